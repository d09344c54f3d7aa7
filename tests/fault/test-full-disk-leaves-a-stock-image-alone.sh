#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A stock image on a full disk is to get a dedup store: there is no room, so
# the start is refused in one line, and the image is unchanged.  With a
# little room, at any amount of it, the start either works or changes nothing.
# Breaks if: making a store starts before there is room for all of it.
. "$(dirname "$0")/fault.sh"
small_disk "$TMP/small" 48
disk=$TMP/small/disk.qcow2
qemu-img create -q -f qcow2 -o cluster_size=4k "$disk" 1G
qemu-io -c 'write -q -P 7 0 8M' "$disk"
head -c 64M /dev/zero 2>/dev/null >"$TMP/small/ballast" || true
sync -f "$TMP/small"
sum=$(sha256sum <"$disk")
worked=0
for ((kb = 0; kb <= 24000; kb += 1500)); do
  [ "$kb" = 0 ] || truncate -s -1500K "$TMP/small/ballast"
  if try_plugin "$disk" >"$TMP/refused" 2>&1; then
    worked=1
    break
  fi
  one_error_line "$disk" 'space'
  equal "image after the refusal with $kb kB" "$(sha256sum <"$disk")" "$sum"
done
say "worked with $kb kB"
equal "worked at last" $worked 1
[ "$kb" -gt 0 ] || die "the disk was not full"
check_clean "$disk"
qemu-io -c 'read -q -P 7 0 8M' "$disk" | grep failed >/dev/null && die "data lost"
exit 0
