#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Random steps of the tool, of servers and of stock QEMU on one closed pool, each
followed by a comparison with the model of poolmodel.py.

usage: poolstock.py FILE SEED STEPS
"""
import random
import sys

from poolmodel import CLUSTER, Disk, Pool, Wrong, content

MAX_CLUSTERS = 4096             # 16 MiB
DATA = 600                      # numbers that all disks share


class Steps:
    def __init__(self, path, seed):
        self.rng = random.Random(seed)
        self.lines = []
        self.p = Pool(path, 4 * MAX_CLUSTERS * CLUSTER, self.lines.append)
        self.counter = 0
        self.lends = True       # refcounts have 32 bits

    # --- Choices -------------------------------------------------------------

    def new_name(self, prefix):
        self.counter += 1
        return '%s%d' % (prefix, self.counter)

    def one(self, writable=False):
        """The name of a disk or snapshot, or None."""
        v = [n for n, d in self.p.disks.items() if d.writable or not writable]
        return self.rng.choice(v) if v else None

    def clusters(self):
        return 16 * self.rng.randint(1, MAX_CLUSTERS // 16)

    def number(self):
        if self.rng.random() < 0.7:
            return self.rng.randint(1, DATA)
        self.counter += 1
        return DATA + self.counter

    def no_wait(self):
        return ('--no-wait',) if self.rng.random() < 0.3 else ()

    def copy_of(self, name):
        if name:
            return list(self.p.disks[name].numbers)
        n = self.p.active_size() // CLUSTER
        return (self.p.active + [0] * n)[:n]

    # --- Ours ----------------------------------------------------------------

    def create(self):
        name, n = self.new_name('vm'), self.clusters()
        self.p.disk('create', name, str(n * CLUSTER), options=self.no_wait())
        self.p.disks[name] = Disk([0] * n, True)

    def clone(self):
        source = self.one() if self.rng.random() < 0.9 else ''
        if source is None:
            return
        name = self.new_name('vm')
        numbers = self.copy_of(source)
        if not self.lends:
            if not any(numbers):
                return          # has no tables to lend, perhaps
            out = self.p.disk('clone', source, name, fails=True)
            if 'refcount_bits=32' not in out:
                raise Wrong('clone is refused by: ' + out)
            return
        self.p.disk('clone', source, name, options=self.no_wait())
        self.p.disks[name] = Disk(numbers, True)

    def snapshot(self):
        source = self.one(writable=True)
        if source is None or not self.lends:
            return
        name = self.new_name('s')
        self.p.disk('snapshot', source, name, options=self.no_wait())
        self.p.disks[source + '@' + name] = Disk(self.copy_of(source), False)

    def reset(self):
        name = self.one(writable=True)
        source = self.one() if self.rng.random() < 0.9 else ''
        if name is None or name == source or not self.lends:
            return
        numbers = self.copy_of(source)
        self.p.disk('reset', name, source, options=self.no_wait())
        self.p.disks[name].numbers = numbers

    def rename(self):
        old = self.one(writable=True)
        if old is None:
            return
        new = self.new_name('vm')
        self.p.disk('rename', old, new)
        self.p.disks = {new + n[len(old):]
                        if n == old or n.startswith(old + '@') else n: d
                        for n, d in self.p.disks.items()}

    def resize(self):
        name = self.one(writable=True)
        if name is None:
            return
        d, n = self.p.disks[name], self.clusters()
        self.p.disk('resize', name, str(n * CLUSTER), options=['--shrink'])
        d.numbers = (d.numbers + [0] * n)[:n]

    def delete(self):
        name = self.one()
        if name is None:
            return
        if name.startswith('stock'):
            self.p.disk('delete', name, fails=True)
            return
        self.p.disk('delete', name, options=self.no_wait())
        del self.p.disks[name]

    def serve(self):
        self.p.start()
        for name in list(self.p.disks) + [''] * any(self.p.active):
            if name and not self.p.disks[name].writable:
                continue
            if self.rng.random() < 0.7:
                self.write(name)
        if self.rng.random() < 0.5:
            self.p.verify_served()
        self.p.stop()

    def write(self, name):
        h = self.p.connect(name)
        size = h.get_size() // CLUSTER
        if name:
            numbers = self.p.disks[name].numbers
        else:
            # As long as it was before disks made the header's size longer.
            numbers = self.p.active = (self.p.active + [0] * size)[:size]
        if len(numbers) != size:
            raise Wrong('%s has %d clusters' % (name, size))
        for _ in range(self.rng.randint(1, 25)):
            at = self.rng.randrange(size)
            n = min(self.rng.choice((1, 1, 3, 16, 200)), size - at)
            kind = self.rng.random()
            v = [self.number() if kind < 0.8 else 0 for _ in range(n)]
            if kind < 0.8:
                h.pwrite(content(v), at * CLUSTER)
            elif kind < 0.9:
                h.zero(n * CLUSTER, at * CLUSTER)
            else:
                h.trim(n * CLUSTER, at * CLUSTER)
            numbers[at:at + n] = v
        h.flush()
        h.shutdown()

    # --- Theirs --------------------------------------------------------------

    def stock_delete(self):
        name = self.one()
        if name is not None:
            self.p.qemu('qemu-img', 'snapshot', '-d', name, self.p.path)
            del self.p.disks[name]

    def stock_apply(self):
        name = self.one()
        if name is not None:
            self.p.qemu('qemu-img', 'snapshot', '-a', name, self.p.path)
            self.p.active = self.copy_of(name)

    def stock_snapshot(self):
        name = self.new_name('stock')
        numbers = self.copy_of('')
        self.p.qemu('qemu-img', 'snapshot', '-c', name, self.p.path)
        self.p.disks[name] = Disk(numbers, False)

    def stock_amend(self):
        if self.lends and self.rng.random() < 0.5:
            bits = self.rng.choice((16, 64))
            what = 'refcount_bits=%d' % bits
            self.lends = False
        elif self.lends:
            what = 'lazy_refcounts=' + self.rng.choice(('on', 'off'))
        else:
            what = 'refcount_bits=32'
            self.lends = True
        self.p.qemu('qemu-img', 'amend', '-o', what, self.p.path)

    def stock_repair(self):
        self.p.qemu('qemu-img', 'check', '-r', 'all', self.p.path)

    def stock_resize(self):
        n = self.clusters()
        self.p.qemu('qemu-img', 'resize', '--shrink', self.p.path,
                    str(n * CLUSTER))
        self.p.active = (self.p.active + [0] * n)[:n]

    def stock_write(self):
        n = self.p.active_size() // CLUSTER
        self.p.active = self.copy_of('')
        at = self.rng.randrange(n)
        count = min(self.rng.choice((1, 7, 100)), n - at)
        v = [self.number() for _ in range(count)]
        with open(self.p.path + '.data', 'wb') as f:
            f.write(content(v))
        self.p.qemu('qemu-io', '-f', 'qcow2', '-c', 'write -s %s.data %d %d' %
                    (self.p.path, at * CLUSTER, count * CLUSTER), self.p.path)
        self.p.active[at:at + count] = v

    # --- All -----------------------------------------------------------------

    def step(self):
        ours = (self.create, self.clone, self.clone, self.clone, self.snapshot,
                self.reset, self.rename, self.resize, self.delete, self.serve,
                self.serve, self.serve, self.serve)
        theirs = (self.stock_delete, self.stock_apply, self.stock_snapshot,
                  self.stock_amend, self.stock_repair, self.stock_resize,
                  self.stock_write)
        if self.rng.random() < 0.6:
            self.rng.choice(ours)()
        else:
            if self.p.has_bit48():
                self.p.qemu('qemu-img', 'snapshot', '-c', 'no', self.p.path,
                            fails=True)
                self.p.settle()
            self.rng.choice(theirs)()
        while len(self.p.disks) > 9:
            self.delete()
        self.p.verify(self.rng)


def main(path, seed, steps):
    s = Steps(path, seed)
    try:
        for _ in range(3):
            s.create()
        s.serve()
        for _ in range(steps):
            s.step()
        s.p.settle()
        s.p.verify(s.rng)
    except Exception:
        s.p.die()
        print('seed %d, the steps were:' % seed)
        print('\n'.join(s.lines))
        raise
    print('seed %d: %d disks at the end' % (seed, len(s.p.disks)))


main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
