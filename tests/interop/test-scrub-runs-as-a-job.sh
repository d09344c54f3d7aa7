#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A scrub of a pool that is served is a job: it is paused, resumed and cancelled, goes on
# after the server was restarted, and tells of rot by an event that names the disk and
# the range.  When a client writes the lost bytes, all disks have them again.
# Breaks if: the job cannot be controlled, is lost with the server, does not tell whose
# data is bad, or healing does not reach other disks.
. "$(dirname "$0")/lib.sh"
need qemu-img

cd "$TMP"
random_file raw 16 7
tool create --pool pool.qcow2
tool disk import pool.qcow2 vm1 raw >out 2>&1
tool disk clone pool.qcow2 vm1 vm2

serve () { start_server pool.qcow2 control="$TMP/control"; }

cat >job.py <<'PYTHON'
import json
import sys
import time
sys.path.insert(0, sys.argv[2])
from controlclient import Client

c = Client(sys.argv[1])


def jobs():
    return [j for j in c.ok('query-jobs') if j['type'] == 'scrub']


def wait(what):
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end, jobs()
        time.sleep(0.05)


def slow():
    c.ok('scrub', job_id='s', speed=1 << 20)
    wait(lambda: jobs()[0]['current-progress'] > 0)
    j = jobs()[0]
    assert j['status'] == 'running' and j['can-pause'] and j['resumes'], j
    assert j['current-progress'] < j['total-progress'], j
    c.error('scrub', 'already')


def fast():
    c.ok('scrub', restart=True)
    wait(lambda: not jobs())


if sys.argv[3] == 'control':
    slow()
    c.ok('job-pause', id='s')
    wait(lambda: jobs()[0]['status'] == 'paused')
    c.ok('job-resume', id='s')
    wait(lambda: jobs()[0]['status'] == 'running')
    c.ok('job-cancel', id='s')
    wait(lambda: not jobs())
    assert not c.ok('query-scrub')['unfinished']
    fast()
    assert c.take_events('SCRUB_FINDING') == []
    assert c.ok('query-scrub')['bad-clusters'] == 0
    slow()                                  # and goes on after a restart
elif sys.argv[3] == 'resumed':
    wait(lambda: not jobs())
    assert not c.ok('query-scrub')['unfinished']
elif sys.argv[3] == 'rot':
    fast()
    c.ok('query-status')
    found = c.take_events('SCRUB_FINDING')
    json.dump(found, open('found.json', 'w'))
    assert c.ok('query-scrub')['bad-clusters'] == 4
else:
    s = c.ok('query-scrub')
    assert s['bad-clusters'] == 0 and s['healed-clusters'] == 4, s
    fast()
    assert c.take_events('SCRUB_FINDING') == []
PYTHON
job () { $PY job.py "$TMP/control" "$HERE" "$1"; }

say "pause, resume, cancel"
serve
job control
stop_server
check_clean pool.qcow2

say "after a restart"
serve
grep -q 'scrub that was running continues' "$SRV_LOG"
job resumed
stop_server

say "rot"
blocks=$($PY "$HERE/scrubrot.py" rot pool.qcow2 raw 4 5)
serve
job rot
for k in $blocks; do
  for disk in vm1 vm2; do
    $PY -c '
import json, sys
found = [(f.get("export", f.get("disk")), f["offset"]) for f in json.load(open("found.json"))]
assert (sys.argv[1], int(sys.argv[2]) * 4096) in found, found' "$disk" "$k" ||
      die "no event for block $k of $disk"
  done
done

say "healing: block by block, on one disk"
for k in $blocks; do
  $PY - "$SOCK" "$k" <<'PYTHON'
import nbd
import sys
h = nbd.NBD()
h.set_export_name('vm1')
h.connect_unix(sys.argv[1])
at = int(sys.argv[2]) * 4096
h.pwrite(open('raw', 'rb').read()[at:at + 4096], at)
h.flush()
PYTHON
done
job healed
URI="nbd+unix:///vm2?socket=$SOCK"
nbdcopy "$URI" back.raw
cmp raw back.raw || die "vm2 is not what it was"
stop_server
check_clean pool.qcow2
rc=0
tool scrub pool.qcow2 >out || rc=$?
equal "status of the scrub after healing" $rc 0
echo PASS
