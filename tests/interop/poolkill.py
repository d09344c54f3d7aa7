#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Kills servers of a pool and commands of the tool, again and again, and proves
that each disk holds what was flushed, and a prefix of what came after.

usage: poolkill.py FILE SEED ROUNDS

A round: one client for each of several disks writes, zeroes, trims and flushes,
until the server is killed by signal 9; the image is recovered by the next server or
the next command.  Of a disk, what the last answered flush covers must be there,
and then the first operations after it, in order; only the one behind these may be
there in part.  Between the rounds the tool clones, snapshots, resets, renames and
deletes; some of these commands are killed, too, and have then happened as a whole or
not at all.
"""
import multiprocessing
import random
import subprocess
import sys
import time

import nbd
from poolmodel import CLUSTER, TOOL, Disk, Pool, Wrong, block, content

DISK_CLUSTERS = 1024            # 4 MiB, of two L2 tables
DATA = 300                      # numbers that all disks share
MAX_DISKS = 8


def plan(rng, size, fresh):
    """One operation: its kind, first cluster, and the numbers it leaves."""
    kind = rng.random()
    if kind < 0.08:
        return 'flush', 0, []
    at = rng.randrange(size)
    n = min(rng.choice((1, 1, 1, 2, 5, 30)), size - at)
    if kind < 0.85:
        return 'write', at, [rng.randint(1, DATA) if rng.random() < 0.6
                             else next(fresh) for _ in range(n)]
    return ('zero' if kind < 0.92 else 'trim'), at, [0] * n


def client(uri, seed, first_fresh, size, conn):
    """Works until the connection breaks, and sends the list of [operation,
    answered]."""
    rng = random.Random(seed)
    fresh = iter(range(first_fresh, 1 << 40))
    log = []
    try:
        h = nbd.NBD()
        h.connect_uri(uri)
        while True:
            kind, at, numbers = plan(rng, size, fresh)
            log.append([(kind, at, numbers), False])
            if kind == 'flush':
                h.flush()
            elif kind == 'write':
                h.pwrite(content(numbers), at * CLUSTER)
            elif kind == 'zero':
                h.zero(len(numbers) * CLUSTER, at * CLUSTER)
            else:
                h.trim(len(numbers) * CLUSTER, at * CLUSTER)
            log[-1][1] = True
    except nbd.Error as e:
        if e.errno not in ('ENOTCONN', 'ECONNRESET', 'EPIPE', 'ESHUTDOWN',
                           'ECONNREFUSED', 'EINVAL', None, ''):
            conn.send('%s: %s' % (uri, e))
            return
    conn.send(log)


def apply_to(numbers, op):
    _, at, v = op
    numbers[at:at + len(v)] = v


class Judge:
    """Which prefixes of LOG, on top of BEFORE, may be what DATA is."""

    def __init__(self, before, log, data):
        self.log = [op for op, _ in log]
        self.need = max((i + 1 for i, (op, answered) in enumerate(log)
                         if answered and op[0] == 'flush'), default=0)
        self.data = data
        self.state = list(before)

    def right_at(self, i, number):
        return self.data[i * CLUSTER:(i + 1) * CLUSTER] == block(number)

    def explained(self, wrong, k):
        """Operation K, which is there in part, explains what is WRONG."""
        if not wrong:
            return True
        if k == len(self.log):
            return False
        _, at, v = self.log[k]
        return len(wrong) <= len(v) and all(
            at <= i < at + len(v) and self.right_at(i, v[i - at])
            for i in wrong)

    def prefix(self):
        """How many operations are there; None if it is no prefix."""
        state = self.state
        for op in self.log[:self.need]:
            apply_to(state, op)
        wrong = {i for i, n in enumerate(state) if not self.right_at(i, n)}
        for k in range(self.need, len(self.log) + 1):
            if self.explained(wrong, k):
                return k
            if k < len(self.log):
                _, at, v = self.log[k]
                apply_to(state, self.log[k])
                for i, n in enumerate(v, at):
                    (wrong.discard if self.right_at(i, n) else wrong.add)(i)
        return None

    def result(self):
        """What the disk holds: the state after the prefix, and of the operation
        behind it what is there."""
        k = self.prefix()
        if k is None:
            return None
        if k < len(self.log):
            _, at, v = self.log[k]
            for i, n in enumerate(v, at):
                if self.right_at(i, n):
                    self.state[i] = n
        return self.state


class Rounds:
    def __init__(self, path, seed):
        self.rng = random.Random(seed)
        self.lines = []
        self.counter = 0
        self.p = Pool(path, 64 << 20, self.lines.append)
        self.killed = self.operations = 0
        for _ in range(3):
            name = self.new_name('vm')
            self.p.disk('create', name, str(DISK_CLUSTERS * CLUSTER))
            self.p.disks[name] = Disk([0] * DISK_CLUSTERS, True)

    def new_name(self, prefix):
        self.counter += 1
        return '%s%d' % (prefix, self.counter)

    # --- Load ----------------------------------------------------------------

    def load(self):
        """Clients write until the server dies.  Returns {name: log}."""
        clients = []
        for name, d in self.p.disks.items():
            if d.writable and len(clients) < 5:
                self.counter += 1
                here, there = multiprocessing.Pipe(False)
                job = multiprocessing.Process(target=client, args=(
                    self.p.uri(name), self.rng.random(),
                    1000 + self.counter * 1000000, len(d.numbers), there))
                job.start()
                there.close()
                clients.append((name, job, here))
        time.sleep(self.rng.choice((0.02, 0.1, 0.3, 0.7)))
        self.p.die()
        logs = {}
        for name, job, here in clients:
            logs[name] = here.recv()
            job.join()
            if isinstance(logs[name], str):
                raise Wrong(logs[name])
            self.operations += len(logs[name])
        return logs

    def judge(self, logs):
        """Compares all disks with the server that has recovered the pool."""
        for name, d in self.p.disks.items():
            data = self.p.read_served(name)
            if len(data) != len(d.numbers) * CLUSTER:
                raise Wrong('%s has another size' % name)
            j = Judge(d.numbers, logs.get(name, []), data)
            numbers = j.result()
            if numbers is None:
                raise Wrong('%s is no prefix of its %d operations, of which %d '
                            'were flushed' % (name, len(j.log), j.need))
            d.numbers = numbers

    def server_round(self):
        self.p.start('commit-interval=%d' % self.rng.choice((0, 1)))
        logs = self.load()
        if self.rng.random() < 0.3:     # dies while it recovers, or soon after
            try:
                self.p.start()
            finally:
                self.p.die()
        self.p.start()
        self.judge(logs)
        if self.rng.random() < 0.5:
            self.p.stop()
        else:
            self.p.die()

    # --- Commands ------------------------------------------------------------

    def command(self):
        """A random command, its arguments, and the disks after it."""
        disks = {n: Disk(list(d.numbers), d.writable)
                 for n, d in self.p.disks.items()}
        writable = [n for n, d in disks.items() if d.writable]
        source = self.rng.choice(list(disks))
        name = self.rng.choice(writable)
        kind = self.rng.choice(('clone', 'clone', 'snapshot', 'reset', 'rename',
                                'delete'))
        if len(disks) >= MAX_DISKS:
            kind = 'delete'
        if kind == 'clone':
            new = self.new_name('vm')
            disks[new] = Disk(list(disks[source].numbers), True)
            return kind, (source, new), disks
        if kind == 'snapshot':
            new = self.new_name('s')
            disks[name + '@' + new] = Disk(list(disks[name].numbers), False)
            return kind, (name, new), disks
        if kind == 'reset' and source != name:
            disks[name].numbers = list(disks[source].numbers)
            return kind, (name, source), disks
        if kind == 'delete' and len(writable) > 2:
            del disks[source]
            return kind, (source,), disks
        if not any(n.startswith(name + '@') for n in disks):
            new = self.new_name('vm')
            return 'rename', (name, new), {new if n == name else n: d
                                           for n, d in disks.items()}
        return None, None, None

    def tool_round(self):
        kind, args, after = self.command()
        if kind is None:
            return
        no_wait = ['--no-wait'] if kind != 'rename' and \
            self.rng.random() < 0.5 else []
        if self.rng.random() < 0.5:
            self.p.disk(kind, *args, options=no_wait)
            self.p.disks = after
            return
        cmd = [TOOL, 'disk', kind, *no_wait, self.p.path, *args]
        self.lines.append('killed: ' + ' '.join(cmd[1:]))
        with subprocess.Popen(cmd, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT) as job:
            time.sleep(self.rng.random() * self.rng.choice((0.01, 0.05, 0.1)))
            job.kill()
            out = job.stdout.read().decode()
        if job.returncode not in (0, -9):
            raise Wrong('%s: status %d: %s' % (kind, job.returncode, out))
        self.killed += job.returncode == -9
        self.happened(job.returncode == 0, kind, args, after)

    def happened(self, done, kind, args, after):
        """Finds out if a killed command was done, and takes that over."""
        if kind == 'reset':
            self.p.start()
            data = self.p.read_served(args[0])
            self.p.die()
            was = self.p.disks[args[0]].numbers
            if data == content(after[args[0]].numbers):
                self.p.disks = after
            elif done or data != content(was):
                raise Wrong('%s is neither what it was nor what it was reset '
                            'to' % args[0])
            return
        names = self.p.names_of_tool()
        if names == sorted(after):
            self.p.disks = after
        elif done or names != sorted(self.p.disks):
            raise Wrong('after a killed %s %s there are %s' %
                        (kind, args, names))

    # --- All -----------------------------------------------------------------

    def end_round(self):
        """Sometimes everything is looked at, closed."""
        if self.rng.random() < 0.25:
            self.p.tool('recover', self.p.path)
            self.p.verify(self.rng)

    def run(self, rounds):
        for i in range(rounds):
            self.lines.append('round %d' % i)
            self.server_round()
            for _ in range(self.rng.randint(1, 3)):
                self.tool_round()
            self.end_round()
        self.p.tool('recover', self.p.path)
        self.p.verify(self.rng)


def main(path, seed, rounds):
    r = Rounds(path, seed)
    try:
        r.run(rounds)
    except BaseException:
        r.p.die()
        print('seed %d, the steps were:' % seed)
        print('\n'.join(r.lines[-60:]))
        sys.stdout.flush()
        raise
    print('seed %d: %d rounds, %d operations, %d commands killed' %
          (seed, rounds, r.operations, r.killed))


main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
