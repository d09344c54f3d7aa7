#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Makes load for a disk whose host is full, with a model (model.py).

full.py fill URI DIR SEED     writes of 4 KiB of new data at random places,
    by 3 connections, until no write is taken any more, then a flush.
full.py churn URI DIR SEED OPERATIONS [PID]
    new data, overwrites, trims, flushes, verified reads; then a flush.  With
    PID: that server is killed with signal 9 after so many operations.
full.py overwrite URI DIR SEED OPERATIONS
    overwrite existing data, so many times a connection, with flushes:
    each must be taken.
full.py verify URI DIR        check that the disk is what the models say.
full.py crashed URI DIR       check that it is what they say a crash may leave.
full.py trim URI DIR SEED PERCENT   trim so much of what there is, and flush.

Only ENOSPC may ever be an answer; reads, trims and flushes do not fail."""
import collections
import errno
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, '..', 'interop'))
# pylint: disable=wrong-import-position
import nbd
import nbdclient
from model import CLUSTER, Model, content

CONNECTIONS = 3
PATIENCE = 20                   # seconds without an operation: a hang


class Worker:
    """One connection; its clusters are those equal to WHO modulo 3."""

    def __init__(self, uri, directory, who, seed=0):
        self.h = nbdclient.connect(uri)
        self.m = Model(os.path.join(directory, 'model.%d' % who))
        self.who = who
        self.rng = random.Random('%d %d' % (seed, who))
        # The last 2 MiB are for others.
        self.size = (self.h.get_size() - (2 << 20)) // CLUSTER
        self.count = collections.Counter()

    def new_number(self):
        return self.rng.randrange(1, 1 << 60)

    def anywhere(self):
        return (self.rng.randrange(self.size // CONNECTIONS - 1) *
                CONNECTIONS + self.who)

    def known(self):
        return self.rng.choice(list(self.m.now)) if self.m.now \
            else self.anywhere()

    def write(self, cluster):
        """True if it was taken."""
        n = self.new_number()
        before = self.m.now.get(cluster, {0})
        self.m.sent(cluster, n)
        try:
            self.h.pwrite(content(n), cluster * CLUSTER)
        except nbd.Error as e:
            if e.errnum != errno.ENOSPC:
                raise
            self.m.failed(cluster, n, before)
            self.count['full'] += 1
            return False
        self.m.done(cluster, n)
        self.count['written'] += 1
        return True

    def trim(self, cluster):
        self.m.sent(cluster, 0)
        self.h.trim(CLUSTER, cluster * CLUSTER)
        self.m.done(cluster, 0)
        self.count['trimmed'] += 1

    def flush(self):
        self.h.flush()
        self.m.flushed()
        self.count['flushed'] += 1

    def step(self):
        kind = self.rng.random()
        if kind < 0.35:
            self.write(self.anywhere())
        elif kind < 0.65:
            self.write(self.known())
        elif kind < 0.80:
            self.trim(self.known())
        elif kind < 0.97:
            c = self.known()
            self.m.check(self.h, clusters=[c])
        else:
            self.flush()

    def end(self):
        self.m.save()
        print('connection %d: %s' % (self.who, dict(self.count)))


def fill(who, uri, directory, seed):
    w = Worker(uri, directory, who, seed)
    refused = 0
    while refused < 30:
        refused = 0 if w.write(w.anywhere()) else refused + 1
    w.flush()
    w.end()


def churn(who, uri, directory, seed, limit, pid, done, barrier):
    w = Worker(uri, directory, who, seed)
    barrier.wait()
    try:
        while pid or done.value < limit:
            w.step()
            done.value += 1     # a lost update only makes the load longer
        w.flush()
    except nbd.Error:
        if not pid or not (w.h.aio_is_dead() or w.h.aio_is_closed()):
            raise
    finally:
        done.value += 1 << 32   # one that fails takes the others with it
    w.end()


def kill(pid, limit, done):
    """Wait until so much is done, or nothing is any more."""
    seen, since = -1, time.monotonic()
    while done.value < limit:
        if done.value != seen:
            seen, since = done.value, time.monotonic()
        if time.monotonic() - since > PATIENCE:
            if shutil.which('gdb'):
                subprocess.run(['gdb', '-p', str(pid), '-batch', '-ex',
                                'thread apply all bt 12'], check=False,
                               stdout=sys.stderr, stderr=subprocess.DEVNULL)
            os.kill(pid, signal.SIGABRT)
            sys.exit('the server hangs')
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)


def overwrite(who, uri, directory, seed, operations):
    w = Worker(uri, directory, who, seed)
    there = [c for c, v in w.m.now.items() if 0 not in v]
    if not there:
        sys.exit('nothing to overwrite')
    for i in range(operations):
        if not w.write(w.rng.choice(there)):
            sys.exit('overwrite %d was refused' % i)
        if i % 40 == 39:
            w.flush()
    w.flush()
    w.end()


def verify(who, uri, directory, crashed):
    w = Worker(uri, directory, who)
    w.m.check(w.h, crashed)
    w.m.save()


def trim(who, uri, directory, seed, percent):
    w = Worker(uri, directory, who, seed)
    for c in w.rng.sample(sorted(w.m.now), len(w.m.now) * percent // 100):
        w.trim(c)
    w.flush()
    w.end()


def main():
    what, uri, directory = sys.argv[1:4]
    args = [int(a) for a in sys.argv[4:]]
    if what == 'churn':
        args = (args + [0])[:3] + [multiprocessing.Value('l', 0),
                                   multiprocessing.Barrier(CONNECTIONS, None, 30)]
    elif what in ('verify', 'crashed'):
        args = [what == 'crashed']
    killer = None
    if what == 'churn' and args[2]:
        killer = multiprocessing.get_context('fork').Process(
            target=kill, args=(args[2], args[1], args[3]))
        killer.start()
    fn = {'fill': fill, 'churn': churn, 'trim': trim,
          'overwrite': overwrite}.get(what, verify)
    nbdclient.run_processes(fn, [(i, uri, directory, *args)
                                 for i in range(CONNECTIONS)])
    if killer:
        killer.join()
        sys.exit(killer.exitcode)


main()
