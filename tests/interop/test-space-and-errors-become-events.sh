#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Somebody who listens on the control socket hears of space that is low, is gone and is
# there again, of requests that failed, and that the image cannot be written any more,
# each once and not for every request; and query-stats, status and metrics say the same
# to those who ask.  The log has one line for each change of the space.
# Breaks if: an event is lost or sent for each of a thousand errors, an error is not
# counted, or a server that refuses all writes looks well.
. "$(dirname "$0")/lib.sh"
need fio prlimit strace

cd "$TMP"
start_server disk.qcow2 size=64M control="$TMP/control"
random_file data.raw 24 3

cat >steps.py <<'PYTHON'
import errno
import os
import re
import subprocess
import sys
import time
sys.path.insert(0, sys.argv[1])
import nbd
from controlclient import Client
control, uri, tool, pid = sys.argv[2:6]
c = Client(control)
h = nbd.NBD()
h.connect_uri(uri)
data = open('data.raw', 'rb').read()
MiB = 1 << 20

def wait_for(name, seconds=15):
    """Returns the data of the next event of this name."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        c.ok('query-status')
        found = c.take_events(name)
        if found:
            assert len(found) == 1, found
            return found[0]
        time.sleep(0.05)
    sys.exit('FAIL: no event %s' % name)

def stats():
    return c.ok('query-stats')

def counts(kind):
    r = {r['type']: r for r in stats()['requests']}[kind]
    return r['requests'], r['errors'], r['bytes']

def metrics():
    out = subprocess.run([tool, 'metrics', '--control=' + control], check=True,
                         stdout=subprocess.PIPE, text=True).stdout
    return dict(line.rsplit(' ', 1) for line in out.splitlines() if line[0] != '#')

def screen():
    return subprocess.run([tool, 'status', '--control=' + control], check=True,
                          stdout=subprocess.PIPE, text=True).stdout

def limit_file_size(size):
    subprocess.run(['prlimit', '--pid', pid, '--fsize=%s:unlimited' % size], check=True)

print('-- low, by the threshold, and no longer')
assert stats()['space']['status'] == 'ok'
c.ok('set', space_low=1 << 60)
e = wait_for('SPACE_STATUS_CHANGE')
assert e['status'] == 'low' and 0 < e['free'] < 1 << 60, e
s = stats()['space']
assert s['status'] == 'low' and s['low-bytes'] == 1 << 60, s
assert s['available-bytes'] >= s['host-free-bytes'] > 0, s
assert 'space    low' in screen()
c.ok('set', space_low=1)
assert wait_for('SPACE_STATUS_CHANGE')['status'] == 'ok'
assert c.ok('query-settings')['space-low'] == 1

print('-- gone')
h.pwrite(data[:MiB], 0)
h.flush()
limit_file_size(os.path.getsize('disk.qcow2'))
failed = done = 0
for off in range(MiB, 24 * MiB, 64 << 10):
    try:
        h.pwrite(data[off:off + (64 << 10)], off)
        done += 1
    except nbd.Error as ex:
        assert ex.errnum == errno.ENOSPC, ex
        failed += 1
assert failed > 100, (failed, done)
assert counts('write') == (1 + done + failed, failed, MiB + done * (64 << 10))
assert wait_for('SPACE_STATUS_CHANGE')['status'] == 'gone'
errors = c.take_events('BLOCK_IO_ERROR')
assert 1 <= len(errors) <= 5, len(errors)
assert errors[0]['operation'] == 'write' and errors[0]['nospace'] is True, errors
assert stats()['space']['status'] == 'gone'
m = metrics()
assert m['nbdkit_dedup_space_status{status="gone"}'] == '1'
assert m['nbdkit_dedup_space_status{status="ok"}'] == '0'
assert m['nbdkit_dedup_request_errors_total{type="write"}'] == str(failed)
text = screen()
assert 'space    gone' in text and re.search(r'^write .* %d$' % failed, text, re.M), text

print('-- and there again')
limit_file_size('unlimited')
end = time.monotonic() + 15
while stats()['space']['status'] != 'ok' and time.monotonic() < end:
    time.sleep(0.5)
    h.pwrite(data[:4096], 40 * MiB)
assert wait_for('SPACE_STATUS_CHANGE')['status'] == 'ok'
h.flush()

print('-- the storage fails')
trace = subprocess.Popen(['strace', '-qq', '-f', '-o', '/dev/null', '-p', pid, '-e',
                          'inject=fdatasync:error=EIO'])
time.sleep(1)
h.pwrite(data[:4096], 48 * MiB)
flushes = counts('flush')
try:
    h.flush()
    sys.exit('FAIL: flush returned success')
except nbd.Error as ex:
    assert ex.errnum == errno.EIO, ex
trace.terminate()
trace.wait()
reason = wait_for('IMAGE_READ_ONLY')['reason']
assert 'Input/output error' in reason, reason
assert counts('flush')[1] == flushes[1] + 1
try:
    h.pwrite(data[:4096], 0)
    sys.exit('FAIL: write returned success')
except nbd.Error:
    pass
time.sleep(1.5)
c.ok('query-status')
assert c.take_events('IMAGE_READ_ONLY') == []
s = stats()
assert s['read-only'] is True and s['read-only-reason'] == reason, s
assert metrics()['nbdkit_dedup_read_only'] == '1'
assert 'read-only: ' + reason in screen()
errors = c.take_events('BLOCK_IO_ERROR')
assert any(e.get('request') == 'flush' for e in errors), errors
assert h.pread(4096, 0) == data[:4096]
PYTHON
$PY steps.py "$HERE" "$TMP/control" "$URI" "$TOOL" "$SRV_PID"

say "the log"
lines ()
{
  grep -oE 'space on the host is low( no longer)?|no space left on the host|there is space on the host again' "$SRV_LOG"
}
equal "what the log says of space" "$(lines)" "space on the host is low
space on the host is low no longer
no space left on the host
there is space on the host again"
grep -E 'is low: [0-9]+ MiB are left \(less than 1099511627776 MiB\)' "$SRV_LOG" |
  has nbdkit || die "the log does not say how much is left"
