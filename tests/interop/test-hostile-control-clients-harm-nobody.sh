#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Clients of the control socket that send garbage, an object of 1 GiB or half of one,
# read nothing, vanish, or are too many harm nobody: a good client is answered
# within 2 s all the time, the server's memory stays below 320 MiB, and the
# one that reads no events is dropped.  QMP_ATTACK_MB is the size of the object.
# Breaks if: input or output of a client is not bounded, or the loop thread waits for
# one client.
. "$(dirname "$0")/lib.sh"

"$BUILD_DIR/tests/control/qmp-server" "$TMP/socket" test 1.2.3 \
  >"$TMP/out" 2>"$TMP/log" &
server=$!
server_pids+=("$server")
SRV_LOG=$TMP/log
for ((i = 0; i < 200; i++)); do
  grep -qs ready "$TMP/out" && break
  sleep 0.1
done

$PY "$HERE/hostileqmp.py" "$TMP/socket" "$server"
grep -q 'is dropped: it does not read its events' "$TMP/log" ||
  die "the log does not say who was dropped"
grep -q "pid [0-9]* of uid $UID is refused: there are too many clients" \
  "$TMP/log" || die "the log does not say who was refused"
grep -q "are lost" "$TMP/log" && die "events were lost"
kill -0 "$server" || die "the server is gone"
