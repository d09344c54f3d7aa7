#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The server is stopped (SIGTERM) and started again under a QEMU that has its
# disk open with reconnect-delay: the guest sees no error, and what it wrote is
# there.  QEMU's storage daemon stands for the guest's QEMU: the NBD client in
# it is the same.
# A server that was killed must not be replaced like that: what it had answered
# and not flushed is lost, and the guest does not know (man page).
# Breaks if: a server that ends answers with errors, or loses what it answered.
. "$(dirname "$0")/lib.sh"
need qemu-storage-daemon

disk=$TMP/disk.qcow2
server_sock=$TMP/server.sock
guest_sock=$TMP/guest.sock

# At the same place each time; systemd's socket unit does that better.
serve ()
{
  local i
  rm -f "$server_sock" "$TMP/pid"
  SRV_LOG=$TMP/server$1.log
  nbdkit_cmd -f -U "$server_sock" --pidfile "$TMP/pid" "$PLUGIN" "$disk" \
    size=64M >"$SRV_LOG" 2>&1 &
  SRV_PID=$!
  server_pids+=("$SRV_PID")
  for ((i = 0; i < 600; i++)); do
    [ ! -s "$TMP/pid" ] || return 0
    kill -0 "$SRV_PID" 2>/dev/null || die 'the server did not start'
    sleep 0.05
  done
  die 'the server is not ready'
}

serve 0
qemu-storage-daemon \
  --blockdev driver=nbd,node-name=disk,server.type=unix,server.path="$server_sock",reconnect-delay=60 \
  --nbd-server addr.type=unix,addr.path="$guest_sock" \
  --export type=nbd,id=guest,node-name=disk,name=,writable=on \
  >"$TMP/qsd.log" 2>&1 &
qsd=$!
at_exit "kill -9 $qsd 2>/dev/null"
for ((i = 0; i < 600; i++)); do
  [ ! -S "$guest_sock" ] || break
  kill -0 $qsd 2>/dev/null || die "$(cat "$TMP/qsd.log")"
  sleep 0.05
done

$PY "$HERE/replaced.py" "nbd+unix:///?socket=$guest_sock" 12 \
  >"$TMP/guest.out" 2>&1 &
guest=$!
at_exit "kill -9 $guest 2>/dev/null"
for round in 1 2 3 4; do
  sleep 1.5
  kill -0 $guest || die "the guest ended early: $(cat "$TMP/guest.out")"
  stop_server
  equal "bit 48 after SIGTERM" "$(bit48 "$disk")" 0
  serve $round
done
rc=0
wait $guest || rc=$?
say "$(tail -n 1 "$TMP/guest.out")"
[ $rc = 0 ] || die "the guest saw: $(cat "$TMP/guest.out")"
kill -TERM $qsd
wait $qsd || die "the storage daemon: $(cat "$TMP/qsd.log")"
stop_server
check_clean "$disk"
