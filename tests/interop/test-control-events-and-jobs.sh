#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Clients of the control socket hear of what happens: an NBD client that is refused, each
# state of a job (the first ones before the reply of the command that starts it), and the
# end of the server by a signal.  A job can be slowed, paused, resumed, cancelled and
# dismissed, goes on when the client that started it is gone, and does what it is for.
# Breaks if: an event is missing, comes twice or late, goes to a client that has not
# finished its negotiation, or a command on a job does something else.
. "$(dirname "$0")/lib.sh"

cd "$TMP"
random_file half.raw 8 5
cat half.raw half.raw >disk.raw
qemu-img convert -f raw -O qcow2 disk.raw disk.qcow2
before=$(disk_usage disk.qcow2)
start_server disk.qcow2 control="$TMP/control"

cat >events.py <<'PYTHON'
import socket
import subprocess
import sys
import time
sys.path.insert(0, sys.argv[2])
from controlclient import Client

c = Client(sys.argv[1])
raw = socket.socket(socket.AF_UNIX)     # never sends qmp_capabilities
raw.connect(sys.argv[1])


def job(client=c):
    return {j['id']: j for j in client.ok('query-jobs')}.get('job')


def wait(what, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, (job(), c.events)
        time.sleep(0.02)


def states():
    return [s['status'] for s in c.take_events('JOB_STATUS_CHANGE')
            if s['id'] == 'job']


# A client of NBD that asks for what there is not.
r = subprocess.run(['nbdinfo', '--size', sys.argv[3]], capture_output=True)
assert r.returncode != 0
c.ok('query-status')
refused = c.take_events('CLIENT_REFUSED')
assert [e['export'] for e in refused] == ['no'] and 'no' in refused[0]['reason'], \
    refused

# A slow job: pause, resume, and the client that started it goes away.
starter = Client(sys.argv[1])
starter.ok('index-existing', job_id='job', speed=1 << 20)
seen = [e['data']['status'] for e in starter.events]
assert seen == ['created', 'running'], seen
starter.close()
j = job()
assert j['status'] == 'running' and j['speed'] == 1 << 20, j
wait(lambda: job()['total-progress'] > 0)
j = job()
assert j['current-progress'] < j['total-progress'], j
assert states() == ['created', 'running']
c.error('index-existing', 'already')
c.error('job-resume', 'not paused', id='job')
c.error('job-dismiss', "'running'", id='job')
c.ok('job-pause', id='job')
wait(lambda: job()['status'] == 'paused')
done = job()['current-progress']
time.sleep(0.5)
assert job()['current-progress'] == done
assert states() == ['paused']
c.error('job-pause', '', id='job')
c.ok('job-resume', id='job')
wait(lambda: job()['current-progress'] > done)
assert states() == ['running']
c.ok('job-cancel', id='job')
wait(lambda: job() is None)
assert states() == ['aborting', 'concluded', 'null']

# To the end, faster, and dismissed by hand.
c.ok('index-existing', job_id='job', speed=1024, auto_dismiss=False)
c.ok('block-job-set-speed', device='job', speed=0)
wait(lambda: job()['status'] == 'concluded')
j = job()
assert 'error' not in j and j['current-progress'] == j['total-progress'], j
assert states() == ['created', 'running', 'waiting', 'pending', 'concluded']
c.error('job-cancel', "'concluded'", id='job')
c.ok('job-dismiss', id='job')
assert states() == ['null'] and job() is None
c.error('job-dismiss', 'Job not found', id='job')

print('ready', flush=True)
c.rest()
data = c.take_events('SHUTDOWN')
assert data == [{'guest': False, 'reason': 'host-signal'}], data
data = b''
while True:
    part = raw.recv(4096)
    if not part:
        break
    data += part
assert data.count(b'\n') == 1, data     # the greeting
PYTHON
$PY events.py "$TMP/control" "$HERE" "nbd+unix:///no?socket=$SOCK" >out &
client=$!
for ((i = 0; i < 1800; i++)); do
  grep -qs ready out && break
  kill -0 $client 2>/dev/null || break
  sleep 0.05
done
stop_server
wait $client || die "the client of the control socket failed"
check_clean disk.qcow2
same_as_raw disk.raw disk.qcow2
at_most "bytes of the image that holds the same twice" \
  "$(disk_usage disk.qcow2)" $((before * 3 / 4 + 16777216))
