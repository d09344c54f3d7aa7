#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# SIGTERM, SIGINT and SIGHUP close the image and end the server, whatever its
# clients do: idle, silent in the handshake, in the middle of a header or of a
# request, not reading, or writing continuously.  Everything that was answered
# is in the image, and no client gets an error.
# Breaks if: the server waits for a client, closes before it has answered, or
# answers with an error when it is about to end.
. "$(dirname "$0")/fault.sh"
limit=${DEDUP_CLOSE_LIMIT_MS:-10000}
[ -z "$preload" ] || limit=$((6 * limit))   # a sanitizer is slow
disk=$TMP/disk.qcow2
clients=()

client () # MODE...
{
  local mode i
  for mode; do
    : >"$TMP/$mode"
    $PY "$FAULT/stuck.py" "$mode" "$SOCK" "$TMP/$mode" &
    clients+=($!)
    for ((i = 0; i < 600; i++)); do
      ! grep -q . "$TMP/$mode" || continue 2
      sleep 0.05
    done
    die "client $mode is not ready"
  done
}
end_clients ()
{
  local pid
  for pid in ${clients[@]+"${clients[@]}"}; do
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  clients=()
}
at_exit end_clients

# ends SIGNAL: the server does, and the image is closed.
ends ()
{
  local start took rc=0
  start=$(now_ms)
  kill -s "$1" "$SRV_PID"
  while kill -0 "$SRV_PID" 2>/dev/null &&
        [ $(($(now_ms) - start)) -le "$limit" ]; do
    sleep 0.02
  done
  took=$(($(now_ms) - start))
  at_most "milliseconds to end" $took "$limit"
  wait "$SRV_PID" || rc=$?
  forget_server "$SRV_PID"
  equal "status of the server" $rc 0
  no_crash_in "$SRV_LOG"
  grep -q 'closed cleanly' "$SRV_LOG" || die "no line when it closed"
  say "$1: ended after $took ms"
  check_clean "$disk"
}

# What the client "writing" was told is there.
answered_is_there ()
{
  local i
  for ((i = 0; i < 200; i++)); do
    ! grep -q 'answered\|error' "$TMP/writing" || break
    sleep 0.05
  done
  ! grep error "$TMP/writing" "$TMP/large" || die "a client was told of an error"
  grep -q answered "$TMP/writing" || die "the writer has not ended"
  qemu-img convert -f qcow2 -O raw "$disk" "$TMP/raw"
  $PY - "$TMP/writing" "$TMP/raw" <<'EOF' || die "an answered write is lost"
import struct, sys
numbers = [l for l in open(sys.argv[1]) if l.startswith('answered')][0].split()
with open(sys.argv[2], 'rb') as raw:
    for n in map(int, numbers[1:]):
        raw.seek(n * 512)
        assert raw.read(512) == struct.pack('>Q', n + 1) * 64, n
print('--', len(numbers) - 1, 'answered writes are there')
EOF
}

for mode in idle mute header half deaf; do
  rm -f "$disk"
  start_server "$disk" size=64M
  $PY "$HERE/nbdrun.py" "$URI" 'h.pwrite(b"a" * 65536, 0)'
  client $mode
  ends TERM
  qemu-io -f qcow2 -c 'read -P 0x61 0 64k' "$disk" | grep '^read' >/dev/null ||
    die "the write is lost"
  end_clients
done

for signal in TERM INT HUP; do
  rm -f "$disk"
  start_server "$disk" size=256M
  client idle mute header half deaf large writing
  ends $signal
  answered_is_there
  end_clients
done

say "without clients, in nbdkit's own way; twice the signal does no harm"
start_server "$disk"
kill -TERM "$SRV_PID"
kill -TERM "$SRV_PID" 2>/dev/null || true
wait "$SRV_PID" || die "status $?"
forget_server "$SRV_PID"
check_clean "$disk"

say "an abort that is not nbdkit's touches nothing any more"
start_server "$disk"
$PY "$HERE/nbdrun.py" "$URI" 'h.pwrite(b"b" * 65536, 0)'
kill -ABRT "$SRV_PID"
rc=0
wait "$SRV_PID" 2>/dev/null || rc=$?
forget_server "$SRV_PID"
equal "status after SIGABRT" $rc 134
equal "bit 48 after SIGABRT" "$(bit48 "$disk")" 1
start_server "$disk"
stop_server

say "with a client, too, the temporary socket of --run goes"
rm -f "$disk"
: >"$TMP/idle"
run_nbdkit -U - "$PLUGIN" "$disk" size=64M --run '
  echo "$unixsocket" >"'"$TMP"'/temporary"
  '"$PY '$FAULT/stuck.py'"' idle "$unixsocket" "'"$TMP"'/idle" &
  echo $! >"'"$TMP"'/client"
  for i in $(seq 600); do
    ! grep -q . "'"$TMP"'/idle" || break
    sleep 0.05
  done'
clients+=("$(cat "$TMP/client")")
grep -q ready "$TMP/idle" || die "the client is not ready"
[ ! -e "$(dirname "$(cat "$TMP/temporary")")" ] ||
  die "$(cat "$TMP/temporary") is still there"
end_clients
check_clean "$disk"

say "one connection on standard input and output"
mkfifo "$TMP/in" "$TMP/out"
SRV_LOG=$TMP/stdin.log
nbdkit_cmd -s "$PLUGIN" "$disk" <"$TMP/in" >"$TMP/out" 2>"$SRV_LOG" &
SRV_PID=$!
server_pids+=("$SRV_PID")
exec 8>"$TMP/in" 9<"$TMP/out"
head -c 18 <&9 | grep NBDMAGIC >/dev/null || die "no greeting"
ends TERM
exec 8>&- 9<&-
