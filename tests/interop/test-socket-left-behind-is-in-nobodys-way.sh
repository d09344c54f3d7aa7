#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A server starts where an earlier one, which ended or was killed, left its Unix
# socket, however -U is spelled.  The socket of a running server, and a file
# that is not a socket, stay: nbdkit refuses to start, and clients of the other
# server are not disturbed.
# Breaks if: a command works only once, or a server takes another one's socket.
. "$(dirname "$0")/lib.sh"
cd "$TMP"
sock=$TMP/it.sock

# serve IMAGE OPTION...: sets SRV_PID, waits until it listens.
serve ()
{
  local image=$1 i
  shift
  rm -f pid
  SRV_LOG=$TMP/server.log
  nbdkit_cmd -f --pidfile pid "$@" "$PLUGIN" "$image" size=1M >"$SRV_LOG" 2>&1 &
  SRV_PID=$!
  server_pids+=("$SRV_PID")
  for ((i = 0; i < 1200; i++)); do
    [ -s pid ] && return 0
    kill -0 "$SRV_PID" 2>/dev/null || die "server did not start: $*"
    sleep 0.05
  done
  die "server is not ready after 60 s: $*"
}
starts_not () { refused start_for_a_while "$@"; }
start_for_a_while ()
{
  (
    if [ -n "$preload" ]; then export LD_PRELOAD=$preload; fi
    exec timeout -k 5 30 nbdkit -f "$@"
  )
}
size () { nbdinfo --size "nbd+unix:///?socket=$sock"; }

for option in "-U $sock" "-U it.sock" "-Uit.sock" "--unix=it.sock" \
              "--uni it.sock" "-rU it.sock"; do
  say "$option"
  # shellcheck disable=SC2086
  serve disk.qcow2 $option
  equal "size" "$(size)" $((1 << 20))
  stop_server
  [ -S "$sock" ] || die "nbdkit has removed $sock: is all this needed?"
done

say "after a kill"
serve disk.qcow2 -U "$sock"
kill_server
serve disk.qcow2 -U "$sock"
equal "size" "$(size)" $((1 << 20))

say "another server is up there"
starts_not -U "$sock" "$PLUGIN" other.qcow2 size=2M
grep -q 'Address already in use' "$TMP/refused" ||
  die "another reason: $(cat "$TMP/refused")"
equal "size" "$(size)" $((1 << 20))

say "the same image is being served: its socket stays"
starts_not -U "$sock" "$PLUGIN" disk.qcow2
equal "size" "$(size)" $((1 << 20))
stop_server

say "no socket"
rm "$sock"
echo precious >"$sock"
starts_not -U "$sock" "$PLUGIN" disk.qcow2
equal "the file" "$(cat "$sock")" precious
ln -s "$TMP/elsewhere.sock" link.sock
$PY -c 'import socket; socket.socket(socket.AF_UNIX).bind("elsewhere.sock")'
starts_not -U link.sock "$PLUGIN" disk.qcow2
[ -S elsewhere.sock ] || die "it followed a link"
