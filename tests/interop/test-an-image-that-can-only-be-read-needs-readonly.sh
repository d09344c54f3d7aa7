#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# An image that the server may not write, because the user has no right to or
# the file system is read-only, is refused in one line that names the key; with
# readonly=on, -r, or below the cow filter it is served.
# Breaks if: it is served read-only although nobody asked for that, or is
# opened for writing although nobody will write.
. "$(dirname "$0")/lib.sh"

qemu-img create -q -f qcow2 "$TMP/base.qcow2" 16M
qemu-io -f qcow2 -c 'write -P 3 0 1M' "$TMP/base.qcow2" >/dev/null
sum=$(sha256sum <"$TMP/base.qcow2")

as=()
# ARGS...: like try_plugin, as the user who may only read.
try_reader ()
{
  (
    if [ -n "$preload" ]; then export LD_PRELOAD=$preload; fi
    export TMPDIR=$TMP/overlays
    exec timeout -k 5 60 ${as[@]+"${as[@]}"} nbdkit -U - \
      "$PLUGIN" "$@" --run 'nbdinfo --size "$uri"'
  )
}

served () # FILE
{
  local how size
  for how in readonly=on -r --filter=cow; do
    size=$(try_reader "$1" "$how") || die "$how does not serve $1"
    equal "size with $how" "$size" $((16 << 20))
  done
}

say "a user who may only read"
mkdir "$TMP/overlays"
chmod 755 "$TMP"
chmod 777 "$TMP/overlays"
chmod 444 "$TMP/base.qcow2"
if [ "$(id -u)" = 0 ]; then
  need setpriv
  as=(setpriv --reuid 65534 --regid 65534 --clear-groups)
  for path in "$PLUGIN" "$TMP/base.qcow2"; do
    "${as[@]}" test -r "$path" || skip "user 65534 cannot reach $path"
  done
fi
refused try_reader "$TMP/base.qcow2"
one_error_line base.qcow2 'permission denied: .*readonly=on'
served "$TMP/base.qcow2"
chmod 000 "$TMP/base.qcow2"
refused try_reader "$TMP/base.qcow2"
one_error_line base.qcow2 'permission denied$'  # the key would not help
chmod 644 "$TMP/base.qcow2"
equal "image" "$(sha256sum <"$TMP/base.qcow2")" "$sum"

say "a read-only file system"
need_root
as=()
mkdir "$TMP/ro"
mount -t tmpfs none "$TMP/ro" 2>/dev/null || skip "cannot mount a tmpfs"
at_exit "umount $TMP/ro"
cp "$TMP/base.qcow2" "$TMP/ro/"
mount -o remount,ro "$TMP/ro"
refused try_reader "$TMP/ro/base.qcow2"
one_error_line base.qcow2 'read-only file system: .*readonly=on'
served "$TMP/ro/base.qcow2"
