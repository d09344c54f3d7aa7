#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A server whose storage has stopped to answer tells its figures all the same: "status" and
# "metrics" end well, and jobs are listed, while another client's command waits for the
# storage.  That command is done when the storage is there again.  Of a file, too, none of
# these commands asks the host for anything.
# Breaks if: what shows figures waits for a command that waits for the storage, so that
# monitoring is blind when it is needed.
. "$(dirname "$0")/lib.sh"
need strace

cd "$TMP"
truncate -s 64M storage.img
nbdkit -f -U "$TMP/storage" file storage.img 2>storage.log &
storage=$!
server_pids+=("$storage")
at_exit "kill -CONT $storage 2>/dev/null"
for ((i = 0; i < 400; i++)); do
  [ ! -S storage ] || break
  sleep 0.05
done
uri="nbd+unix:///?socket=$TMP/storage"
tool create --pool "$uri"
tool disk create "$uri" vm1 16M
start_server "uri=$uri" control="$TMP/control"

cat >check.py <<'PYTHON'
import os
import select
import signal
import subprocess
import sys
sys.path.insert(0, sys.argv[1])
import nbd
from controlclient import Client
control, sock, tool, storage = *sys.argv[2:5], int(sys.argv[5])
waiting, other = Client(control), Client(control)
h = nbd.NBD()
h.connect_uri('nbd+unix:///vm1?socket=' + sock)
h.pwrite(os.urandom(1 << 20), 0)


def is_answered():
    while select.select([waiting.sock], [], [], 0)[0]:
        if 'event' not in waiting.line():
            return True
    return False


os.kill(storage, signal.SIGSTOP)
waiting.send('checkpoint', {})
for command in 'status', 'metrics':
    out = subprocess.run([tool, command, '--control=' + control], check=True, timeout=120,
                         stdout=subprocess.PIPE, text=True).stdout
    assert 'vm1' in out, out
for name in ('query-status', 'query-stats', 'query-jobs', 'query-clients', 'query-disk-stats',
             'query-disk-lines', 'query-settings', 'query-scrub'):
    other.ok(name)
assert not is_answered(), 'the storage did not hang'
os.kill(storage, signal.SIGCONT)
assert waiting.reply() == {'return': {}, 'id': waiting.nr}
h.shutdown()
PYTHON
$PY check.py "$HERE" "$TMP/control" "$SOCK" "$TOOL" "$storage"
stop_server

say "a file"
tool create --pool pool.qcow2
start_server pool.qcow2 control="$TMP/control"
strace -qq -f -o calls -e trace=%file,%%stat -p "$SRV_PID" &
trace=$!
for ((i = 0; i < 400; i++)); do
  # The server looks at its file each second, on a thread of its own.
  [ ! -s calls ] || break
  sleep 0.05
done
[ -s calls ] || die "strace sees nothing"
begin=$SECONDS
$PY - "$HERE" "$TMP/control" <<'PYTHON'
import sys
sys.path.insert(0, sys.argv[1])
from controlclient import Client
c = Client(sys.argv[2])
for _ in range(1000):
    for name in ('query-status', 'query-stats', 'query-jobs', 'query-clients',
                 'query-disk-stats', 'query-disk-lines', 'query-settings', 'query-scrub'):
        c.ok(name)
PYTHON
kill $trace
wait $trace || true
# Each look of that thread is a few calls.
at_most "calls for 8000 commands" "$(grep -c pool.qcow2 calls)" \
  $((100 + 20 * (SECONDS - begin)))
stop_server
