#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Deleting the anchor with qemu-img leaves a plain clean image with its sharing;
# serving that starts a new store, which deduplicates from the first write on.
# Breaks if: the anchor holds anything that stock QEMU does not understand.
. "$(dirname "$0")/lib.sh"

disk=$TMP/disk.qcow2
random_file "$TMP/a.raw" 8 1
start_server "$disk" size=64M
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" 0
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" $((8 << 20))
stop_server
check_clean "$disk"
qemu-img convert -O raw "$disk" "$TMP/want.raw"

qemu-img snapshot -l "$disk" | has -w -- "$ANCHOR" ||
  die "no anchor to delete"
qemu-img snapshot -d "$ANCHOR" "$disk"
qemu-img check "$disk" >"$TMP/out"
grep -q 'No errors were found' "$TMP/out" || die "$(cat "$TMP/out")"
same_as_raw "$TMP/want.raw" "$disk"
# Stock QEMU may write to it, but does not set the COPIED flag of the last
# owner when a refcount falls to 1, as its check then demands; -r does.
qemu-io -f qcow2 -c 'write -P 7 1M 64k' "$disk" >/dev/null
qemu-img check -q -r all "$disk" >/dev/null
qemu-img convert -O raw "$disk" "$TMP/want.raw"

start_server "$disk"
served_as_raw "$TMP/want.raw"
before=$(distinct_blocks "$TMP/want.raw")
random_file "$TMP/b.raw" 4 2
$PY "$HERE/put.py" "$URI" "$TMP/b.raw" $((32 << 20))
$PY "$HERE/put.py" "$URI" "$TMP/b.raw" $((40 << 20))
nbdcopy "$URI" "$TMP/want.raw"
stop_server
check_clean "$disk"
same_as_raw "$TMP/want.raw" "$disk"
qemu-img snapshot -l "$disk" | has -w -- "$ANCHOR" || die "no new anchor"
# 64 KiB of equal blocks by QEMU; all else is there once.
at_most "data-clusters" "$(data_clusters "$disk")" $((before + 1024 + 16))
