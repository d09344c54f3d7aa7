#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# qemu-img resize is all that resizing takes: nothing of the store depends on
# the size.  A crashed image is refused by qemu-img and unchanged, and resized
# once it is recovered; space that a shrink cut off is returned to the host by
# the next session; refcount table, anchor and bitmaps follow a large growth.
# Breaks if: a user has to do more than close the image and resize it.
. "$(dirname "$0")/lib.sh"
need qemu-img

disk=$TMP/disk.qcow2
random_file "$TMP/a.raw" 24 1
random_file "$TMP/b.raw" 2 2

say 'crashed: refused by name'
start_server "$disk" size=64M cluster-size=4k
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" 0
kill_server
before=$(sha256sum <"$disk")
! qemu-img resize "$disk" 128M >"$TMP/out" 2>&1 || die 'a crashed image was resized'
grep -q "$RECOVERY_NAME" "$TMP/out" || die "refused as: $(cat "$TMP/out")"
! qemu-img resize --shrink "$disk" 8M >"$TMP/out" 2>&1 ||
  die 'a crashed image was shrunk'
equal 'the image' "$(sha256sum <"$disk")" "$before"
tool recover "$disk" >/dev/null

say 'shrunk: its space comes back'
qemu-img resize -q --shrink "$disk" 8M
check_clean "$disk"
head -c 8M "$TMP/a.raw" >"$TMP/want.raw"
start_server "$disk" commit-interval=1
served_as_raw "$TMP/want.raw"
for ((i = 0; i < 200; i++)); do
  [ "$(disk_usage "$disk")" -gt $((16 << 20)) ] || break
  sleep 0.05
done
stop_server
at_most 'bytes on the host' "$(disk_usage "$disk")" $((16 << 20))
check_clean "$disk"
same_as_raw "$TMP/want.raw" "$disk"
equal data-clusters "$(data_clusters "$disk")" 2048

say 'grown: tables and bitmaps follow'
qemu-img bitmap --add "$disk" b0
qemu-img resize -q "$disk" 2T
start_server "$disk"
equal size "$(nbdinfo --size "$URI")" $((2 << 40))
$PY "$HERE/put.py" "$URI" "$TMP/b.raw" $(((2 << 40) - (2 << 20)))
$PY "$HERE/put.py" "$URI" "$TMP/b.raw" $((1 << 40))
stop_server
check_clean "$disk"
equal data-clusters "$(data_clusters "$disk")" $((2048 + 512))
equal 'flags of the bitmap' "$(qemu-img info --output=json "$disk" | $PY -c '
import json, sys
print(*json.load(sys.stdin)["format-specific"]["data"]["bitmaps"][0]["flags"])')" auto
start_server "$disk" -r
$PY "$HERE/nbdrun.py" "$URI" "
want = open('$TMP/b.raw', 'rb').read()
assert h.pread(2 << 20, (2 << 40) - (2 << 20)) == want
assert h.pread(2 << 20, 1 << 40) == want
assert h.pread(1 << 20, 8 << 20) == bytes(1 << 20)"
stop_server
