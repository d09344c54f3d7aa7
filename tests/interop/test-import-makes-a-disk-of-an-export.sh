#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The command import makes a disk of an NBD export, as a job: of raw and qcow2 files, with
# odd sizes, with and without holes that the server tells of.  Holes are not read, and
# progress counts data only.  The disk has its name when it is complete, never before; it
# is gone if the job is cancelled, if the export fails or was never there, and if the
# server ends.  An import that was asked to be resumable is continued then, if the export
# is the same.  A disk that is replaced keeps its old contents until the new ones are
# complete.  What cannot be is refused in one line.
# Breaks if: contents differ, a part of them gets the name, a failed import leaves a disk,
# a server that is silent keeps others waiting, or a pause does not hold.
. "$(dirname "$0")/lib.sh"
need qemu-nbd qemu-img nbdcopy prlimit

cd "$TMP"
tool create --pool pool.qcow2
$PY - <<'PYTHON'
import os
import random
r = random.Random(5)
with open('source.raw', 'wb') as f:
    f.truncate((90 << 20) + 700)
    for at, length in ((0, 3 << 20), ((40 << 20) + 5000, 2 << 20), (67 << 20, 4096),
                       ((90 << 20) + 100, 600)):
        f.seek(at)
        f.write(r.randbytes(length))
with open('other.raw', 'wb') as f:
    f.write(r.randbytes(4 << 20))
with open('changed.raw', 'wb') as f:
    f.write(r.randbytes(4 << 20))
with open('beside.raw', 'wb') as f:
    f.write(r.randbytes(6 << 20))
with open('fresh.raw', 'wb') as f:
    f.write(r.randbytes(16 << 20))
PYTHON
qemu-img convert -f raw -O qcow2 source.raw source.qcow2

source_nr=0
# source NAME PROGRAM ARGUMENT...: runs a server with -U SOCKET, and sets EXPORT_NAME to
# its URI.
source ()
{
  local name=$1 i
  shift
  source_nr=$((source_nr + 1))
  "$@" &
  eval "pid_$name=$!"
  server_pids+=("$!")
  disown $!                     # bash is not to say that it was killed
  for ((i = 0; i < 400; i++)); do
    [ -S "$TMP/source-$name" ] && break
    sleep 0.05
  done
  eval "export uri_$name='nbd+unix:///?socket=$TMP/source-$name'"
}
kit () # NAME ARGUMENT...
{
  source "$1" nbdkit -f -U "$TMP/source-$1" "${@:2}" 2>>"$TMP/sources.log"
}
kit raw file source.raw
kit blind --filter=noextents file source.raw
kit other file other.raw
kit changed file changed.raw
kit fresh file fresh.raw
kit beside file beside.raw
kit slow --filter=delay --filter=noextents file other.raw rdelay=50ms
kit error --filter=error file source.raw error-pread-rate=100% error=EIO \
  error-file="$TMP/fail"
kit empty null 0
kit huge null 7E
source qcow2 qemu-nbd -f qcow2 -r -t -k "$TMP/source-qcow2" source.qcow2
$PY - "$TMP/source-silent" <<'PYTHON' &
import socket
import sys
import time
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen(8)
kept = []
while True:
    kept.append(s.accept())
PYTHON
server_pids+=("$!")
export uri_silent="nbd+unix:///?socket=$TMP/source-silent"
export uri_none="nbd+unix:///?socket=$TMP/nobody-listens"

cat >lib.py <<'PYTHON'
import os
import subprocess
import sys
import time
sys.path.insert(0, os.environ['HERE'])
from controlclient import Client

TMP = os.environ['TMP']
c = Client(TMP + '/control')


def uri(name):
    return os.environ['uri_' + name]


def job(job_id='import'):
    return {j['id']: j for j in c.ok('query-jobs')}.get(job_id)


def disks():
    return sorted(d['name'] for d in c.whole('query-disks') if d['kind'] != 'active')


def wait(what, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, (c.ok('query-jobs'), disks(), c.events)
        time.sleep(0.01)


def start(source, name, **args):
    c.ok('import', name=name, uri=source, auto_dismiss=False, **args)


def finish(error=None, details=''):
    """Waits for the end of the job, dismisses it, and returns what it said."""
    wait(lambda: job()['status'] == 'concluded')
    j = job()
    c.ok('job-dismiss', id='import')
    if error is None:
        assert 'error' not in j, j
    else:
        assert error in j.get('error', ''), j
    assert details in j['details'], j
    return j


def same(name, path):
    """The disk begins with the bytes of the file, and has zeroes behind them."""
    out = TMP + '/out.raw'
    subprocess.run(['nbdcopy', 'nbd+unix:///%s?socket=%s' %
                    (name, os.environ['SOCK']), out], check=True)
    with open(path, 'rb') as a, open(out, 'rb') as b:
        data = a.read()
        got = b.read()
    assert got[:len(data)] == data, name
    assert not any(got[len(data):]), name
    return len(got)
PYTHON
run () # PYTHON: with lib.py
{
  HERE=$HERE TMP=$TMP SOCK=$SOCK $PY -c "exec(open('lib.py').read())
$1"
}

start_server pool.qcow2 control="$TMP/control"
say "raw and qcow2, with and without holes"
run "
size = os.stat('source.raw').st_size
for source, name in (('raw', 'vm1'), ('blind', 'vm2'), ('qcow2', 'vm3')):
    start(uri(source), name)
    j = finish()
    assert same(name, 'source.raw') == (size + 511) // 512 * 512
    done = j['current-progress']
    assert done == j['total-progress'], j
    if source == 'blind':
        assert done == size, j
    else:                       # pieces of 256 KiB around 5 MiB of data
        assert 5 << 20 <= done <= 8 << 20, j
    assert disks() == ['vm1', 'vm2', 'vm3'][:len(disks())], disks()
events = [e['status'] for e in c.take_events('JOB_STATUS_CHANGE')]
assert events == ['created', 'running', 'waiting', 'pending', 'concluded', 'null'] * 3
s = c.ok('query-disks', limit=1)
start(uri('raw'), 'large', size=100 << 20)
finish()
assert same('large', 'source.raw') == 100 << 20
start('nbd+unix:///vm1?socket=' + os.environ['SOCK'], 'own')    # of this server
finish()
same('own', 'source.raw')
"

say "in smaller steps while a client writes"
run "
import threading
import nbd
h = nbd.NBD()
h.connect_uri('nbd+unix:///vm1?socket=' + os.environ['SOCK'])
first = h.pread(4096, 50 << 20)
stop = threading.Event()
def write():
    while not stop.is_set():
        h.pwrite(os.urandom(4096), 50 << 20)
        time.sleep(0.001)
def done():
    return job()['current-progress']
t = threading.Thread(target=write)
t.start()
time.sleep(0.1)
start(uri('beside'), 'beside', speed=2 << 20)
seen = set()
end = time.monotonic() + 2
while time.monotonic() < end:
    seen.add(done())
c.ok('block-job-set-speed', device='import', speed=0)
finish()
stop.set()
t.join()
h.pwrite(first, 50 << 20)
h.flush()
h.shutdown()
assert any(n % (256 << 10) for n in seen), seen
same('beside', 'beside.raw')
c.ok('disk-delete', name='beside')
" || die "a client that writes is not spared"

say "pause, speed, cancel"
run "
start(uri('slow'), 'slow', speed=1 << 20)
wait(lambda: job()['current-progress'] > 0)
assert 'slow.importing' in disks() and 'slow' not in disks()
c.error('import', 'slow.importing', name='slow', uri=uri('raw'))
c.error('disk-delete', '', name='slow.importing')       # it is open
c.ok('job-pause', id='import')
wait(lambda: job()['status'] == 'paused')
done = job()['current-progress']
assert 0 < done < job()['total-progress'] == 4 << 20, job()
time.sleep(1)
assert job()['current-progress'] == done
c.ok('job-resume', id='import')
wait(lambda: job()['current-progress'] > done)
c.ok('job-cancel', id='import')
finish('canceled')
assert not [d for d in disks() if 'slow' in d], disks()
c.ok('import', name='slow', uri=uri('slow'))    # once more, to its end
wait(lambda: job() is None)
same('slow', 'other.raw')
"

say "exports that fail"
touch fail
run "
before = disks()
start(uri('error'), 'x')
finish('Input/output error', 'reading at 0x')
for source, error, details in (
        ('none', '', 'No such file'), ('empty', 'Invalid', 'is empty'),
        ('huge', 'Invalid', '')):
    start(uri(source), 'x')
    finish(error, details)
start('nbd+unix:///no-export?socket=' + os.environ['SOCK'], 'x')
finish('', 'no-export')
start(uri('raw'), 'x', size=90 << 20)
finish('Invalid', 'more than the')
# One that is silent: others go on, and it is cancelled at once.
start(uri('silent'), 'x')
begin = time.monotonic()
c.ok('import', name='y', uri=uri('other'), job_id='other')
wait(lambda: job('other') is None)
c.ok('disk-delete', name='y')
c.ok('job-cancel', id='import')
finish('canceled')
assert time.monotonic() - begin < 20
# One that dies meanwhile.
start(uri('slow'), 'x', speed=1 << 20)
wait(lambda: job()['current-progress'] > 0)
os.kill($pid_slow, 9)
finish('', 'source-slow')
assert disks() == before, disks()
# A disk that is deleted meanwhile.
start(uri('other'), 'x', speed=1 << 20)
wait(lambda: job()['current-progress'] > 0)
c.ok('disk-delete', name='x.importing', force=True)
finish('shutdown', 'x.importing')
assert disks() == before, disks()
"

say "a full disk: the job waits for space"
run "
def limit(size):
    subprocess.run(['prlimit', '--pid', '$SRV_PID', '--fsize=%s:unlimited' % size],
                   check=True)
limit(os.stat('pool.qcow2').st_size + (1 << 20))
start(uri('fresh'), 'big')
wait(lambda: 'waits-for' in job())
done = job()['current-progress']
assert done < job()['total-progress'], job()
limit('unlimited')
finish()
same('big', 'fresh.raw')
c.ok('disk-delete', name='big')
"

say "what cannot be"
run "
before = disks()
c.ok('disk-snapshot', name='vm1', snapshot='s')
u = uri('raw')
for args, text in (
        (dict(name='vm1', uri=u), 'already'),
        (dict(name='vm1@s', uri=u), ''),
        (dict(name='', uri=u), ''),
        (dict(name='a/b', uri=u), ''),
        (dict(name='n' * 250, uri=u), ''),
        (dict(name='x', uri='source.raw'), 'not the URI'),
        (dict(name='x', uri='file:///etc/passwd'), 'not the URI'),
        (dict(name='x', uri=''), 'not the URI'),
        (dict(name='x', uri=u + '&' + 'a' * 8192), '8192 bytes at the most'),
        (dict(name='x', uri=u, size=100 << 20 | 1), 'multiple of 512'),
        (dict(name='x', uri=u, replace=True), 'x'),
        (dict(name='vm1@s', uri=u, replace=True), ''),
        (dict(name='', uri=u, replace=True), ''),
        (dict(name='vm1', uri=u, replace=True, size=100 << 20), 'keeps its size')):
    c.error('import', text, **args)
assert job() is None
c.ok('disk-delete', name='vm1@s')
assert disks() == before, disks()
start(uri('raw') + '&tls-psk-file=/etc/passwd', 'x')    # names a file of the server
finish('', '')
assert disks() == before, disks()
"

say "replace"
run "
import nbd
own = 'nbd+unix:///%s?socket=' + os.environ['SOCK']
c.ok('disk-snapshot', name='large', snapshot='old')
start(uri('other'), 'large', replace=True, speed=1 << 20)
wait(lambda: job()['current-progress'] > 0)
same('large', 'source.raw')
c.ok('block-job-set-speed', device='import', speed=0)
finish()
assert same('large', 'other.raw') == 100 << 20
same('large@old', 'source.raw')
# In use: refused, or by force.
h = nbd.NBD()
h.connect_uri(own % 'large')
c.error('import', '1 client', name='large', uri=uri('raw'), replace=True)
start(uri('raw'), 'large', replace=True, force=True)
finish()
same('large', 'source.raw')
try:
    h.pread(512, 0)
    sys.exit('FAIL: a client goes on with a disk that was replaced')
except nbd.Error as e:
    assert e.errno == 'ESHUTDOWN', e
h.shutdown()
# Only the last step is refused.
start(uri('other'), 'taken', speed=1 << 20)
wait(lambda: job()['current-progress'] > 0)
c.ok('disk-create', name='taken', size=512)
c.ok('block-job-set-speed', device='import', speed=0)
finish('exists', 'taken')
assert 'taken.importing' in disks()
same('taken.importing', 'other.raw')
c.ok('disk-delete', name='taken.importing')
c.ok('disk-delete', name='taken')
"

say "the server ends"
run "
start(uri('other'), 'x', speed=1 << 20)
wait(lambda: job()['current-progress'] > 0)
c.ok('import', name='y', uri=uri('silent'))
assert 'x.importing' in disks()
"
begin=$SECONDS
stop_server
at_most "seconds until the server had ended" $((SECONDS - begin)) 20
tool recover pool.qcow2 >/dev/null
tool disk list pool.qcow2 >list
! has -E '^[xy]' list || die "a disk of an import is there after the end of the server"
check_clean pool.qcow2

say "kill -9"
start_server pool.qcow2 control="$TMP/control"
run "
start(uri('other'), 'x', speed=1 << 20)
wait(lambda: job()['current-progress'] > 0)
c.ok('flush')
"
kill_server
start_server pool.qcow2 control="$TMP/control"
run "
assert 'x.importing' in disks() and 'x' not in disks(), disks()
c.error('import', 'crash', name='x', uri=uri('other'))
c.ok('disk-delete', name='x.importing')
start(uri('other'), 'x')
finish()
same('x', 'other.raw')
for name in ('vm1', 'vm2', 'vm3', 'large', 'own'):
    same(name, 'source.raw')
c.ok('disk-delete', name='x')
"

say "an import that is resumed, after an end of the server and after kill -9"
begin_resumable ()
{
  run "
start(uri('other'), 'x', speed=1 << 20, resume=True)
wait(lambda: job()['current-progress'] >= 2 << 20)
c.ok('job-pause', id='import')
wait(lambda: job()['status'] == 'paused')
assert job()['current-progress'] < 4 << 20
c.error('import', 'is being imported', name='x', uri=uri('other'), resume=True,
        job_id='second')
c.ok('flush')
"
}
resume ()
{
  run "
assert 'x.importing' in disks() and 'x' not in disks(), disks()
c.error('import', 'resume', name='x', uri=uri('other'))
start(uri('raw'), 'x', resume=True)
finish('Invalid', 'would have')
start(uri('changed'), 'x', resume=True)
finish('Invalid', 'has changed')
assert 'x.importing' in disks() and 'x' not in disks(), disks()
start(uri('other'), 'x', resume=True)
j = finish()
assert j['total-progress'] <= 13 << 18, j       # 1.75 MiB were there, less 1 MiB
assert 'x' in disks() and 'x.importing' not in disks()
same('x', 'other.raw')
c.ok('disk-delete', name='x')
"
}
begin_resumable
stop_server
start_server pool.qcow2 control="$TMP/control"
resume
begin_resumable
kill_server
start_server pool.qcow2 control="$TMP/control"
resume
begin_resumable
run "
c.ok('job-cancel', id='import')
finish('canceled')
assert 'x.importing' not in disks()
"
stop_server
tool recover pool.qcow2 >/dev/null
check_clean pool.qcow2
