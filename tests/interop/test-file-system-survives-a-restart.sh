#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A real file system on a loop device over nbdfuse is made, filled, unmounted
# and checked; after a restart of the server fsck is clean and the files are the
# same.
# Breaks if: flushes or trims fail in the way file systems use them.
. "$(dirname "$0")/lib.sh"
need nbdfuse losetup mkfs.ext4 e2fsck fusermount3
need_root
[ -c /dev/fuse ] || skip "no FUSE"
losetup -f >/dev/null 2>&1 || skip "no loop devices"

attach ()
{
  : >"$TMP/disk"
  nbdfuse "$TMP/disk" "$URI" & fuse=$!
  for i in $(seq 100); do
    [ -s "$TMP/disk" ] && break
    kill -0 $fuse 2>/dev/null || skip "nbdfuse does not work here"
    sleep 0.05
  done
  loop=$(losetup -f --show "$TMP/disk") || { detach_fuse; skip "losetup"; }
}

detach_fuse () { fusermount3 -u "$TMP/disk"; wait $fuse || true; }

detach ()
{
  losetup -d "$loop"
  loop=
  for i in $(seq 100); do
    losetup -j "$TMP/disk" | has . || break
    sleep 0.05
  done
  detach_fuse
}

loop=
mkdir "$TMP/mnt"
at_exit 'mountpoint -q "$TMP/disk" && fusermount3 -u -z "$TMP/disk"'
at_exit 'if [ -n "$loop" ]; then losetup -d "$loop"; fi'
at_exit 'mountpoint -q "$TMP/mnt" && umount "$TMP/mnt"'
disk=$TMP/disk.qcow2
real_tree "$TMP/tree" $((40 * SCALE))
start_server "$disk" size=$((256 * SCALE))M
attach
mkfs.ext4 -q "$loop"
mount -o discard "$loop" "$TMP/mnt" || skip "mount does not work here"
cp -a "$TMP/tree" "$TMP/mnt/one"
cp -a "$TMP/tree" "$TMP/mnt/two"
rm -rf "$TMP/mnt/one"
cp -a "$TMP/tree" "$TMP/mnt/three"
umount "$TMP/mnt"
e2fsck -fn "$loop" >"$TMP/fsck" 2>&1 || die "$(cat "$TMP/fsck")"
detach
nbdcopy "$URI" "$TMP/want.raw"
stop_server
check_clean "$disk"
same_as_raw "$TMP/want.raw" "$disk"

start_server "$disk"
served_as_raw "$TMP/want.raw"
attach
e2fsck -fn "$loop" >"$TMP/fsck" 2>&1 || die "$(cat "$TMP/fsck")"
mount -o ro "$loop" "$TMP/mnt"
diff -r --no-dereference "$TMP/tree" "$TMP/mnt/two"
diff -r --no-dereference "$TMP/tree" "$TMP/mnt/three"
umount "$TMP/mnt"
detach
stop_server
check_clean "$disk"
