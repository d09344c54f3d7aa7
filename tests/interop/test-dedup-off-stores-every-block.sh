#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# With dedup=off nothing is linked, and what is shared stays shared. With
# dedup=on again old entries are found. A crash is survived without hashes as
# well.
# Breaks if: a WRITE record (no hash) is not replayed or not verified.
. "$(dirname "$0")/lib.sh"

disk=$TMP/disk.qcow2
random_file "$TMP/a.raw" 4 1
start_server "$disk" size=64M
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" 0
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" $((4 << 20))
stop_server
equal data-clusters "$(data_clusters "$disk")" 1024
start_server "$disk" dedup=off commit-interval=0
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" $((8 << 20))
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" $((12 << 20))
$PY "$HERE/nbdrun.py" "$URI" 'h.pwrite(pat(1, 5000), 100); h.flush()'
nbdcopy "$URI" "$TMP/want.raw"
kill_server
start_server "$disk" dedup=off
served_as_raw "$TMP/want.raw"
stop_server
check_clean "$disk"
same_as_raw "$TMP/want.raw" "$disk"
equal data-clusters "$(data_clusters "$disk")" $((1024 * 3 + 2))
start_server "$disk"
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" $((16 << 20))
stop_server
check_clean "$disk"
equal data-clusters "$(data_clusters "$disk")" $((1024 * 3 + 2))
