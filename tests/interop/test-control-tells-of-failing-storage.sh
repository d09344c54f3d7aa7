#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# When an fdatasync of the image fails, clients of the control socket hear of it: that a
# request failed, and that nobody can write any more, with the reason; query-status
# says the same; commands that change something are refused.  The server still answers
# and ends, and the next start recovers what was flushed.
# Breaks if: a failure of the storage is told late, or never, or with another reason.
. "$(dirname "$0")/lib.sh"
need cc

cd "$TMP"
cat >fail.c <<'SOURCE'
#include <errno.h>
#include <unistd.h>
#include <sys/syscall.h>
int
fdatasync (int fd)
{
  if (access (FILE_NAME, F_OK) == 0) {
    errno = EIO;
    return -1;
  }
  return syscall (SYS_fdatasync, fd);
}
SOURCE
cc -shared -fPIC -DFILE_NAME="\"$TMP/fail\"" -o fail.so fail.c
preload="$preload $TMP/fail.so"
tool create --pool pool.qcow2
tool disk create pool.qcow2 vm1 4M
random_file vm1.raw 4 9
start_server pool.qcow2 control="$TMP/control" commit-interval=0
uri="nbd+unix:///vm1?socket=$SOCK"
nbdcopy --flush vm1.raw "$uri"
cat >listen.py <<'PYTHON'
import sys
import time
import nbd
sys.path.insert(0, sys.argv[2])
from controlclient import Client
c, h = Client(sys.argv[1]), nbd.NBD()
h.connect_uri(sys.argv[3])
# Background work that the first writes cause is done before the failure begins.
h.pwrite(b'7' * 65536, 0)
h.flush()
time.sleep(1)
assert c.ok('query-status')['status'] == 'running'
h.pwrite(b'8' * 65536, 0)
open('fail', 'w').close()
try:
    h.flush()
    sys.exit('FAIL: a flush succeeds that cannot have')
except nbd.Error as e:
    assert e.errno == 'EIO', e
s = c.ok('query-status')
assert s['status'] == 'io-error' and not s['running'] and s['read-only'], s
assert 'Input/output error' in s['reason'], s
end = time.monotonic() + 30     # it is told within a second or so
while not any(e['event'] == 'IMAGE_READ_ONLY' for e in c.events):
    assert time.monotonic() < end, c.events
    time.sleep(0.05)
    c.ok('query-status')
e = c.take_events('IMAGE_READ_ONLY')
assert len(e) == 1 and e[0]['reason'] == s['reason'], (e, s)
e = c.take_events('BLOCK_IO_ERROR')
assert len(e) == 1 and e[0]['device'] == 'vm1' and e[0]['request'] == 'flush', e
assert e[0]['action'] == 'report' and not e[0]['nospace'], e
assert len(h.pread(65536, 1 << 20)) == 65536
for name, args in (('disk-create', dict(name='x', size=512)),
                   ('disk-delete', dict(name='vm1', force=True)),
                   ('checkpoint', {}), ('flush', {})):
    c.error(name, '', **args)
assert [d['name'] for d in c.ok('query-disks')] == ['vm1']
c.ok('quit')
c.rest()
PYTHON
$PY listen.py "$TMP/control" "$HERE" "$uri"
wait "$SRV_PID" || true
forget_server "$SRV_PID"
no_crash_in "$SRV_LOG"
rm fail
start_server pool.qcow2
nbdcopy "nbd+unix:///vm1?socket=$SOCK" got.raw
cmp -i 65536 vm1.raw got.raw || die "what was flushed before the failure is lost"
stop_server
