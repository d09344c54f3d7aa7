#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The server dies when its journal is about as long as it gets (a checkpoint
# is due at half of its areas): from the restart to the first answered read it
# takes less than 2 seconds (DEDUP_RESTART_LIMIT_MS).
# Breaks if: replay is slow, or the checkpoint comes too late.
. "$(dirname "$0")/fault.sh"
disk=$TMP/disk.qcow2
limit=${DEDUP_RESTART_LIMIT_MS:-2000}
worst=0

start_server "$disk" size=1G
for ((round = 1; round <= 2 * SCALE; round++)); do
  $PY "$FAULT/bulk.py" "$URI" "$disk" 10 85
  kill_server 2>/dev/null
  start=$(now_ms)
  try_start_server "$disk"
  $PY "$FAULT/first-read.py" "$SOCK"
  took=$(($(now_ms) - start))
  say "from restart to first read: $took ms"
  [ $took -le $worst ] || worst=$took
  equal "feature bit 48 after the recovery" "$(bit48 "$disk")" 0
done
stop_server
check_clean "$disk"
at_most "milliseconds from restart to first read" $worst "$limit"
