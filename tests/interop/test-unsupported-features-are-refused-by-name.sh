#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Images that can't be served yet are refused in one line that says why, and
# are left alone.
# Breaks if: a feature that changes the meaning of the tables is ignored.
. "$(dirname "$0")/lib.sh"

unsupported () # PATTERN IMAGE
{
  local sum
  sum=$(sha256sum <"$2")
  refused try_plugin "$2"
  one_error_line "$2" "$1"
  equal "$2 after the refusal" "$(sha256sum <"$2")" "$sum"
}

cd "$TMP"
qemu-img create -q -f qcow2 --object secret,id=s,data=x \
  -o encrypt.format=luks,encrypt.key-secret=s luks.qcow2 16M 2>/dev/null &&
  unsupported 'encrypt' luks.qcow2
qemu-img create -q -f qcow2 -o compat=0.10 v2.qcow2 16M
unsupported 'version 2|v2' v2.qcow2
try_plugin -r v2.qcow2 || die "v2 can't be served read-only"
qemu-img create -q -f qcow2 bits.qcow2 16M
printf '\200' | dd of=bits.qcow2 bs=1 seek=74 conv=notrunc status=none
unsupported 'feature|bit 47' bits.qcow2
qemu-img create -q -f raw back.raw 16M
qemu-img create -q -f qcow2 -b back.raw -F raw overlay.qcow2
rm back.raw
unsupported 'back.raw.*backing=same-dir' overlay.qcow2
