#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# query-stats is answered within milliseconds while clients write to a pool of many disks
# and a count of all of its space runs; the lists of disks and clients are complete, in
# pages below 64 KiB.
# Breaks if: a figure is read from disk, or waited for under a lock that jobs hold; or if
# a page drops a disk.  The bound is generous, as other programs may use this machine:
# half of the answers within 5 ms.  STATS_DISKS=1000 for the figures of docs/testing.md.
. "$(dirname "$0")/lib.sh"

cd "$TMP"
disks=${STATS_DISKS:-150}
tool create --pool pool.qcow2
start_server pool.qcow2 control="$TMP/control"
cat >ask.py <<'PYTHON'
import os
import sys
import threading
import time
sys.path.insert(0, sys.argv[1])
import nbd
from controlclient import Client
control, sock, disks = sys.argv[2], sys.argv[3], int(sys.argv[4])
c = Client(control)
for i in range(disks):
    c.ok('disk-create', name='disk%04d' % i, size=64 << 20)

def connect(i):
    h = nbd.NBD()
    h.connect_uri('nbd+unix:///disk%04d?socket=%s' % (i, sock))
    return h

clients = [connect(i) for i in range(min(disks, 100))]
stop = threading.Event()

def work(h, seed):
    data = os.urandom(1 << 20)
    off = 0
    while not stop.is_set():
        h.pwrite(data, off)
        off = (off + (1 << 20)) % (64 << 20)
        if off == 0:
            data = os.urandom(1 << 20)

def count():
    o = Client(control)
    while not stop.is_set():
        o.ok('count-space')

threads = [threading.Thread(target=work, args=(h, 0)) for h in clients[:2]]
threads.append(threading.Thread(target=count))
for t in threads:
    t.start()
time.sleep(0.5)
took = []
end = time.monotonic() + 5
while time.monotonic() < end:
    start = time.monotonic()
    c.ok('query-stats')
    took.append(time.monotonic() - start)
    time.sleep(0.005)
stop.set()
for t in threads:
    t.join()
took.sort()
print('%d answers: half within %.2f ms, 99 of 100 within %.2f ms, all within %.2f ms' %
      (len(took), took[len(took) // 2] * 1e3, took[len(took) * 99 // 100] * 1e3,
       took[-1] * 1e3))
if took[len(took) // 2] > 0.005:
    sys.exit('FAIL: too slow')

def pages(command, key):
    found, nr, args = [], 0, {}
    while True:
        page = c.ok(command, **args)        # below 64 KiB: the client insists
        if not page:
            return found, nr
        found += page
        assert len(found) <= 2 * disks, 'pages without end'
        nr += 1
        args = {'after': page[-1][key]}

found, nr = pages('query-disk-stats', 'name')
names = [d['name'] for d in found]
assert names == ['disk%04d' % i for i in range(disks)], names
assert sum(d['clients'] for d in found) == len(clients)
print('%d disks in %d pages' % (len(found), nr))
found, nr = pages('query-clients', 'id')
assert [x['export'] for x in found] == ['disk%04d' % i for i in range(len(clients))]
assert len({x['id'] for x in found}) == len(clients)
print('%d clients in %d pages' % (len(found), nr))
PYTHON
$PY ask.py "$HERE" "$TMP/control" "$SOCK" "$disks"
start=$(date +%s%N)
tool metrics --control="$TMP/control" -o pool.prom
echo "metrics of $disks disks took $((($(date +%s%N) - start) / 1000000)) ms"
equal "disks in the metrics" "$(grep -c '^nbdkit_dedup_disk_size_bytes' pool.prom)" "$disks"
