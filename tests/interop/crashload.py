#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Makes a mixed load that is cut short by kill -9 of the server, and proves
afterwards that the disk is the state after some prefix of the operations.

crashload.py run URI PID OPERATIONS SEED CONNECTIONS REGION DIR
    Each connection works on a region of its own (REGION bytes) with writes,
    zeroes, trims, flushes and FUA writes, whole clusters and parts of them,
    much of it equal to what others write.  After OPERATIONS in all, the
    server (process PID, which the test says is its own) is killed with signal
    9; several PIDs with commas between them are killed one right after the other.
    What was done and answered is written to DIR.  PID 0: nobody is killed, the
    load ends with a flush.

crashload.py verify URI REGION DIR
    Reads the disk and checks, for every connection:
     - there is a k so that its region is the state after its first k
       operations; only operation k+1 may be there in part;
     - every operation that was answered before a flush was sent that was
       answered is among them, of whatever connection the flush was;
     - what is there of one connection implies all that the others had been
       answered before it was sent (a prefix of the whole history).

crashload.py verify-flushed URI REGION DIR
    The same for images without a journal (docs/features.md): of each sector,
    what the last flush covers is there, or what a later operation wrote.

CRASHLOAD_CLUSTER: the image's cluster size in bytes (4096), if it is larger.
"""
import hashlib
import multiprocessing
import os
import pickle
import random
import signal
import sys
import time

import nbd
import nbdclient
from nbdclient import SECTOR

PER_CLUSTER = 8                 # sectors of 512 bytes in 4 KiB
TRIM_SECTORS = int(os.environ.get('CRASHLOAD_CLUSTER') or 4096) // SECTOR
POOL = 400                      # contents that all connections share


def sector_bytes(number):
    """The contents named NUMBER; 0 is zeroes."""
    if number == 0:
        return bytes(SECTOR)
    seed = hashlib.sha256(b'%d' % number).digest()
    return seed * (SECTOR // len(seed))


def cluster_names(rng, who):
    """Names of the 8 sectors of a cluster: shared, or only this one's."""
    if rng.random() < 0.6:
        c = rng.randrange(POOL)
    else:
        c = (who + 1) * 10000000 + rng.randrange(5000000)
    return [1 + c * PER_CLUSTER + i for i in range(PER_CLUSTER)]


def plan(rng, who, sectors):
    """One operation: (kind, first sector, names or count, flags)."""
    kind = rng.random()
    clusters = sectors // PER_CLUSTER
    if kind < 0.45:             # whole clusters
        n = rng.choice((1, 1, 1, 2, 4, 8, 16))
        at = rng.randrange(clusters - n) * PER_CLUSTER
        names = []
        for _ in range(n):
            names += cluster_names(rng, who)
        return 'write', at, names, rng.random() < 0.02
    if kind < 0.65:             # parts of clusters
        n = rng.randint(1, 20)
        at = rng.randrange(sectors - n)
        names = [rng.randrange(1, 4000) for _ in range(n)]
        return 'write', at, names, rng.random() < 0.02
    if kind < 0.87:
        n = rng.choice((1, 5, 8, 16, 64, 200))
        at = rng.randrange(sectors - n)
        if n % PER_CLUSTER == 0 and rng.random() < 0.7:
            at -= at % PER_CLUSTER
        if kind < 0.76:
            return 'zero', at, [0] * n, rng.random() < 0.02
        # A trim is whole clusters here: what happens to parts is the
        # server's choice, and this model has no room for choices.
        at -= at % TRIM_SECTORS
        n = max(TRIM_SECTORS, n // TRIM_SECTORS * TRIM_SECTORS)
        return 'trim', at, [0] * n, False
    if kind < 0.89:
        return 'flush', 0, [], False
    return 'write', rng.randrange(clusters) * PER_CLUSTER, \
        cluster_names(rng, who), False


def perform(h, base, op):
    kind, at, names, fua = op
    flags = nbd.CMD_FLAG_FUA if fua else 0
    off = base + at * SECTOR
    if kind == 'write':
        h.pwrite(b''.join(map(sector_bytes, names)), off, flags)
    elif kind == 'zero':
        h.zero(len(names) * SECTOR, off, flags)
    elif kind == 'trim':
        h.trim(len(names) * SECTOR, off, flags)
    else:
        h.flush()


def worker(uri, who, region, seed, limit, done, out, barrier):
    rng = random.Random(seed * 1000 + who)
    h = nbdclient.connect(uri)
    barrier.wait()              # nobody dies before all are connected
    log = []                    # [operation, sent, answered or None]
    try:
        while done.value < limit:
            entry = [plan(rng, who, region // SECTOR), time.monotonic(), None]
            log.append(entry)
            perform(h, who * region, entry[0])
            entry[2] = time.monotonic()
            done.value += 1     # a lost update only makes the load longer
        entry = [('flush', 0, [], False), time.monotonic(), None]
        log.append(entry)
        h.flush()
        entry[2] = time.monotonic()
    except nbd.Error as e:
        # Only the end of the connection is expected.
        if e.errno not in ('ENOTCONN', 'ECONNRESET', 'EPIPE', 'ESHUTDOWN',
                           'EINVAL', None, ''):
            raise
    with open(os.path.join(out, 'log.%d' % who), 'wb') as f:
        pickle.dump(log, f)


def killer(pids, limit, done):
    while done.value < limit:
        time.sleep(0.001)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def run(uri, pid, operations, seed, connections, region, out):
    print('seed %d, %d operations, %d connections' %
          (seed, operations, connections))
    pids = [int(p) for p in str(pid).split(',') if int(p)]
    done = multiprocessing.Value('l', 0)
    # With a victim the workers go on until their connections break.
    limit = 1 << 60 if pids else operations
    barrier = multiprocessing.Barrier(connections)
    jobs = [(uri, i, region, seed, limit, done, out, barrier)
            for i in range(connections)]
    ctx = multiprocessing.get_context('fork')
    death = None
    if pids:
        death = ctx.Process(target=killer, args=(pids, operations, done))
        death.start()
    nbdclient.run_processes(worker, jobs)
    if death:
        death.join()


class Region:
    """One connection's region: which prefixes of its log are on the disk."""

    def __init__(self, log, data):
        self.log = log
        self.names = {sector_bytes(n): n
                      for op in log for n in op[0][2]}
        self.names[bytes(SECTOR)] = 0
        self.disk = [self.names.get(data[i:i + SECTOR], -1)
                     for i in range(0, len(data), SECTOR)]

    def prefixes(self):
        """All k that fit."""
        state = [0] * len(self.disk)
        wrong = {i for i, n in enumerate(self.disk) if n != 0}
        found = []
        for k in range(len(self.log) + 1):
            if k > 0:
                _, at, names, _ = self.log[k - 1][0]
                for i, name in enumerate(names, at):
                    state[i] = name
                    if self.disk[i] == name:
                        wrong.discard(i)
                    else:
                        wrong.add(i)
            if self.explained(k, wrong):
                found.append(k)
        return found, wrong

    def explained(self, k, wrong):
        if not wrong:
            return True
        if k == len(self.log):
            return False
        _, at, names, _ = self.log[k][0]
        if len(wrong) > len(names):
            return False
        return all(at <= i < at + len(names) and
                   self.disk[i] == names[i - at] for i in wrong)


def must_be_there(logs):
    """When each operation was answered, at the latest, to be certain: the
    time the last answered flush was sent (or FUA: that operation itself)."""
    flushes = [e[1] for log in logs for e in log
               if e[0][0] == 'flush' and e[2] is not None]
    return max(flushes, default=0.0)


def least(log, moment, fua):
    """How many operations of LOG are those up to the last one that was
    answered before MOMENT, or (FUA) that was a FUA write and answered."""
    k = 0
    for i, (op, _, answered) in enumerate(log):
        if answered is not None and (answered < moment or (fua and op[3])):
            k = i + 1
    return k


def read_logs(out):
    logs = []
    while os.path.exists(os.path.join(out, 'log.%d' % len(logs))):
        with open(os.path.join(out, 'log.%d' % len(logs)), 'rb') as f:
            logs.append(pickle.load(f))
    return logs


def verify_flushed(uri, region, out):
    logs = read_logs(out)
    h = nbdclient.connect(uri)
    flushed = must_be_there(logs)
    for who, log in enumerate(logs):
        data = b''.join(h.pread(min(1 << 20, region - p), who * region + p)
                        for p in range(0, region, 1 << 20))
        disk = Region(log, data).disk
        need = least(log, flushed, True)
        allowed = [{0} for _ in disk]
        for k, ((_, at, names, _), _, _) in enumerate(log):
            for i, name in enumerate(names, at):
                if k < need:
                    allowed[i] = {name}
                else:
                    allowed[i].add(name)
        wrong = [i for i, name in enumerate(disk) if name not in allowed[i]]
        if wrong:
            raise SystemExit('connection %d: %d sectors (%s) hold neither what '
                             'was flushed nor what came after' %
                             (who, len(wrong), wrong[:8]))
        print('connection %d: %d operations, %d flushed' %
              (who, len(log), need))
    h.shutdown()


def verify(uri, region, out):
    logs = read_logs(out)
    h = nbdclient.connect(uri)
    flushed = must_be_there(logs)
    high, low = [], []
    for who, log in enumerate(logs):
        data = b''.join(h.pread(min(1 << 20, region - p), who * region + p)
                        for p in range(0, region, 1 << 20))
        r = Region(log, data)
        need = least(log, flushed, True)
        ks, wrong = r.prefixes()
        if not ks:
            unknown = r.disk.count(-1)
            raise SystemExit('connection %d: the disk is no prefix of its %d '
                             'operations; %d sectors differ from the last '
                             'state (%s), %d hold what nobody wrote' %
                             (who, len(log), len(wrong), sorted(wrong)[:8],
                              unknown))
        if ks[-1] < need:
            raise SystemExit('connection %d: %d operations are there, %d were '
                             'flushed' % (who, ks[-1], need))
        fit = [k for k in ks if k >= need]
        low.append(fit[0])
        high.append(fit[-1])
        print('connection %d: %d operations, %d flushed, %d there' %
              (who, len(log), need, fit[-1]))
    for i, log in enumerate(logs):
        if low[i] == 0:
            continue
        sent = log[low[i] - 1][1]
        for j, other in enumerate(logs):
            if i != j and least(other, sent, False) > high[j]:
                raise SystemExit(
                    'operation %d of connection %d is there, but not all that '
                    'connection %d had been answered before it was sent' %
                    (low[i], i, j))
    h.shutdown()


def main():
    if sys.argv[1] == 'run':
        run(sys.argv[2], sys.argv[3], *(int(a) for a in sys.argv[4:8]),
            sys.argv[8])
    else:
        how = {'verify': verify, 'verify-flushed': verify_flushed}
        how[sys.argv[1]](sys.argv[2], int(sys.argv[3]), sys.argv[4])


main()
