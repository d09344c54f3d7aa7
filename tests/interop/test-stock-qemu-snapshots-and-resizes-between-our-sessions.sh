#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Stock qemu-img makes and deletes internal snapshots, grows and shrinks the
# image, and goes back to a snapshot, between our sessions.
# Breaks if: L2 tables or data that a snapshot shares are written in place,
# or the size is taken from somewhere else than the header.
. "$(dirname "$0")/lib.sh"

disk=$TMP/disk.qcow2
random_file "$TMP/a.raw" 8 1
random_file "$TMP/b.raw" 8 2

start_server "$disk" size=32M
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" 0
stop_server

say "a snapshot, then writes by us"
qemu-img snapshot -c one "$disk"
qemu-img convert -O raw "$disk" "$TMP/one.raw"
qemu-img check -q "$disk"
start_server "$disk"
served_as_raw "$TMP/one.raw"
$PY "$HERE/put.py" "$URI" "$TMP/b.raw" $((4 << 20))
$PY "$HERE/nbdrun.py" "$URI" 'h.trim(1 << 20, 0); h.zero(5000, 2 << 20)'
stop_server
check_clean "$disk"
qemu-img convert -O raw -l snapshot.name=one "$disk" "$TMP/got.raw"
cmp "$TMP/one.raw" "$TMP/got.raw" || die "our writes changed the snapshot"

say "data that only the snapshot holds is still shared"
before=$(disk_usage "$disk")
start_server "$disk"
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" $((16 << 20))
stop_server
check_clean "$disk"
at_most "growth in bytes" $(($(disk_usage "$disk") - before)) $((1 << 20))

say "grown"
qemu-img resize -q "$disk" 100M
start_server "$disk"
equal "size" "$(nbdinfo --size "$URI")" $((100 << 20))
$PY "$HERE/put.py" "$URI" "$TMP/b.raw" $((92 << 20))
stop_server
check_clean "$disk"

say "back to the snapshot"
qemu-img snapshot -a one "$disk"
qemu-img check -q "$disk"
start_server "$disk"
equal "size" "$(nbdinfo --size "$URI")" $((32 << 20))
served_as_raw "$TMP/one.raw"
$PY "$HERE/put.py" "$URI" "$TMP/b.raw" $((20 << 20))
stop_server
check_clean "$disk"

say "shrunk, snapshot deleted"
qemu-img snapshot -d one "$disk"
qemu-img resize -q --shrink "$disk" 22M
qemu-img check -q "$disk"
qemu-img convert -O raw "$disk" "$TMP/want.raw"
start_server "$disk" commit-interval=1
served_as_raw "$TMP/want.raw"
sleep 2
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" $((10 << 20))
nbdcopy "$URI" "$TMP/want.raw"
stop_server
check_clean "$disk"
same_as_raw "$TMP/want.raw" "$disk"
equal data-clusters "$(data_clusters "$disk")" \
  "$(distinct_blocks "$TMP/want.raw")"

say "larger refcounts"
qemu-img amend -q -o refcount_bits=64 "$disk"
start_server "$disk"
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" 0
nbdcopy "$URI" "$TMP/want.raw"
stop_server
check_clean "$disk"
same_as_raw "$TMP/want.raw" "$disk"
