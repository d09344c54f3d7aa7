#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Under `ulimit -f` the file cannot grow past a limit. To clients that is a full
# disk: no other error, and no end of the server, also across kill -9.
# Breaks if: SIGXFSZ is not ignored, or EFBIG is reported as an I/O error.
. "$(dirname "$0")/fault.sh"
disk=$TMP/disk.qcow2
ulimit -S -f $((40 << 10))      # 40 MiB, of the servers (and of models)

start_server "$disk" size=20G commit-interval=1
$PY "$FAULT/full.py" fill "$URI" "$TMP" "$SEED"
at_most "size of the file" "$(stat -c %s "$disk")" $((40 << 20))
$PY "$FAULT/full.py" churn "$URI" "$TMP" $((SEED + 1)) 2000
$PY "$FAULT/full.py" verify "$URI" "$TMP"
wait_until_clean "$disk" 8
$PY "$FAULT/full.py" churn "$URI" "$TMP" $((SEED + 2)) 500 "$SRV_PID"
reap_killed_server
start_server "$disk"
$PY "$FAULT/full.py" crashed "$URI" "$TMP"
$PY "$FAULT/full.py" trim "$URI" "$TMP" $((SEED + 3)) 30
$PY "$FAULT/full.py" fill "$URI" "$TMP" $((SEED + 4))
stop_server
check_clean "$disk"
