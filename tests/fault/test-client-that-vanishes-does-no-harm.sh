#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Clients end in the middle of requests, in their half of it or the server's:
# other clients are not disturbed, their writes are there, and the image is
# closed clean. nbdkit 1.32 itself may abort when a client vanishes
# (raw_send_socket: Assertion `sock >= 0'), mostly with several answers to send;
# then the image is closed all the same, with everything that was answered, and
# the server fails.
# Breaks if: a request without a client leaks a lock, a claim or a cluster, or
# that abort leaves the image to a recovery.
. "$(dirname "$0")/fault.sh"
disk=$TMP/disk.qcow2
aborts=0

for ((round = 1; round <= 6 * SCALE; round++)); do
  start_server "$disk" size=64M
  rc=0
  $PY "$FAULT/vanish.py" "$URI" "$TMP/model" $((SEED + round)) 60 \
    $((round % 2 ? 1 : 20)) >"$TMP/vanish.out" 2>&1 || rc=$?
  if kill -0 "$SRV_PID" 2>/dev/null; then
    [ $rc = 0 ] || die "$(cat "$TMP/vanish.out")"
    stop_server
    check_clean "$disk"
    continue
  fi
  rc=0
  wait "$SRV_PID" || rc=$?
  forget_server "$SRV_PID"
  grep -q "raw_send_socket: Assertion .sock >= 0" "$SRV_LOG" ||
    die "the server has ended: $(tail -n 5 "$SRV_LOG")"
  equal "status after nbdkit's abort" $rc 1
  check_clean "$disk"
  aborts=$((aborts + 1))
  start_server "$disk"
  $PY "$FAULT/vanish.py" "$URI" "$TMP/model" $SEED 0
  stop_server
  check_clean "$disk"
done
start_server "$disk"
$PY "$FAULT/vanish.py" "$URI" "$TMP/model" "$SEED" 0
stop_server
say "nbdkit aborted in $aborts of $((round - 1)) rounds"
