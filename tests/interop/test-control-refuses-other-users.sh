#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Another user cannot give commands, even where the mode of the control socket lets it
# connect: the kernel says who connects, and the server closes without a word.
# Root of a user name space is the user that made the name space, and no more.  Root, and
# the user whom the server runs as, are served as before.
# Breaks if: the mode of the socket is all that protects it, or a refused client gets the
# greeting, has a command run, or takes a place from others.
. "$(dirname "$0")/lib.sh"
need_root
need setpriv unshare

cd "$TMP"
chmod 755 "$TMP"
tool create --pool pool.qcow2
tool disk create pool.qcow2 vm1 1M
start_server pool.qcow2 control="$TMP/control"
equal "mode of the socket" "$(stat -c %a control)" 600

cat >ask.py <<'PYTHON'
"""ask.py SOCKET: sends a deletion, and prints what comes back; status 3: it cannot
connect."""
import socket
import sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(20)
try:
    s.connect(sys.argv[1])
except PermissionError:
    sys.exit(3)
data = b''
try:
    s.sendall(b'{"execute": "qmp_capabilities"} {"execute": "disk-delete", '
              b'"arguments": {"name": "vm1"}} {"execute": "quit"}')
    while True:
        part = s.recv(4096)
        if not part:
            break
        data += part
except (BrokenPipeError, ConnectionResetError):
    pass
print(data.decode(), end='')
PYTHON
ask () # COMMAND...: runs ask.py by it
{
  local rc=0
  "$@" $PY - "$TMP/control" <ask.py >out || rc=$?
  echo $rc
}
nobody=(setpriv --reuid=65534 --regid=65534 --clear-groups)
root_of_nobody=("${nobody[@]}" unshare --user --map-root-user)

is_refused () # COMMAND...
{
  equal "status of a client by $1" "$(ask "$@")" 0
  [ ! -s out ] || die "another user got an answer: $(cat out)"
  tail -n 1 "$SRV_LOG" | has 'of uid 65534 is refused' ||
    die "the log does not tell of it"
}

say "the mode keeps others out"
equal "status of nobody" "$(ask "${nobody[@]}")" 3

say "and so does the server"
chmod 777 control
is_refused "${nobody[@]}"
if [ "$("${root_of_nobody[@]}" id -u 2>/dev/null)" = 0 ]; then
  is_refused "${root_of_nobody[@]}"
else
  say "user name spaces cannot be had"
fi
for i in {1..100}; do           # more than there may be clients
  ask "${nobody[@]}" >/dev/null
done
equal "disks" "$(tool control "$TMP/control" query-disks |
                 $PY -c 'import json, sys; print([d["name"] for d in json.load(sys.stdin) if d["name"]])')" \
  "['vm1']"
[ -S control ] && kill -0 "$SRV_PID" || die "the server has ended"
stop_server

say "a server of another user: that user and root, and nobody else"
mkdir run
cp pool.qcow2 run/pool.qcow2
chown -R 65534 run
SRV_LOG=$TMP/run/log
"${nobody[@]}" bash -c 'exec nbdkit -f -U "$1/s" --pidfile "$1/pid" "$2" \
  "$1/pool.qcow2" control="$1/control" >"$1/log" 2>&1' - "$TMP/run" "$PLUGIN" &
SRV_PID=$!
server_pids+=("$SRV_PID")
for ((i = 0; i < 600; i++)); do
  [ -s run/pid ] && break
  kill -0 "$SRV_PID" 2>/dev/null || break
  sleep 0.05
done
if [ ! -s run/pid ]; then       # the build lies where nobody may not read
  has -i 'permission denied' "$SRV_LOG" || die "the server did not start"
  say "the build cannot be read by another user"
  exit 0
fi
chmod 777 run/control
for who in "${nobody[*]}" env; do
  $who "$PY" -c '
import sys
import socket
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
assert b"QMP" in s.recv(4096)' "$TMP/run/control" || die "refused: $who"
done
ln -sf "$TMP/run/control" control
equal "status of a third user" \
  "$(ask setpriv --reuid=65533 --regid=65533 --clear-groups)" 0
[ ! -s out ] || die "a third user was served"
kill -TERM "$SRV_PID"
wait "$SRV_PID"
forget_server "$SRV_PID"
