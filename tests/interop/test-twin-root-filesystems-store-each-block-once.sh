#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Real input: an ext4 image with a tree of real files (from scale 10 on a
# Debian root file system by debootstrap) and its twin with more files in it,
# side by side on one disk, written by nbdcopy with four connections.  Stored
# are exactly the distinct non-zero blocks of 4 KiB, and all reads back.
# Breaks if: a block is stored twice (a race between writers of the same
# content, a lost index entry), zeroes are stored, or data is mixed up.
. "$(dirname "$0")/lib.sh"
need mke2fs nbdcopy

if [ "$SCALE" -ge 10 ] && [ "$(id -u)" = 0 ] &&
   command -v debootstrap >/dev/null; then
  say "root file system by debootstrap"
  # DEBIAN_MIRROR: where packages come from, if not from the default.
  debootstrap --variant=minbase bookworm "$TMP/root" \
    ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >"$TMP/debootstrap.log" \
    2>&1 || { tail -n 5 "$TMP/debootstrap.log" >&2; skip "debootstrap failed"; }
  more=400
else
  say "tree copied from this system"
  real_tree "$TMP/root" $((96 * SCALE))
  more=$((24 * SCALE))
fi
size=$((SCALE >= 10 ? 2560 : 1024))M
mke2fs -q -t ext4 -b 4096 -d "$TMP/root" "$TMP/a.ext4" $size
real_tree "$TMP/root/usr/local/more" $more 500
mke2fs -q -t ext4 -b 4096 -d "$TMP/root" "$TMP/b.ext4" $size
rm -rf "$TMP/root"
bytes=$(stat -c %s "$TMP/a.ext4")
mv "$TMP/a.ext4" "$TMP/both.raw"
dd if="$TMP/b.ext4" of="$TMP/both.raw" bs=1M conv=sparse,notrunc \
   oflag=seek_bytes seek="$bytes" status=none
truncate -s $((bytes * 2)) "$TMP/both.raw"
rm "$TMP/b.ext4"
want=$(distinct_blocks "$TMP/both.raw")
say "$want distinct blocks"

start_server "$TMP/disk.qcow2" size="$(stat -c %s "$TMP/both.raw")"
nbdcopy --connections=4 --flush "$TMP/both.raw" "$URI"
served_as_raw "$TMP/both.raw"
stop_server
check_clean "$TMP/disk.qcow2"
equal data-clusters "$(data_clusters "$TMP/disk.qcow2")" "$want"
same_as_raw "$TMP/both.raw" "$TMP/disk.qcow2"

say "the same again, after a restart: nothing new is stored"
start_server "$TMP/disk.qcow2"
nbdcopy --connections=4 --flush "$TMP/both.raw" "$URI"
stop_server
check_clean "$TMP/disk.qcow2"
equal data-clusters "$(data_clusters "$TMP/disk.qcow2")" "$want"
same_as_raw "$TMP/both.raw" "$TMP/disk.qcow2"
