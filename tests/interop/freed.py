# SPDX-License-Identifier: BSD-3-Clause
"""Deletes the disks and snapshots of a pool in random order, and compares each time
what `disk info` says about it with what the file has lost, by poolimg.py alone.

freed.py FILE SEED: makes the pool, too.
"""
import json
import os
import random
import sys

import poolimg
from poolmodel import CLUSTER, Pool, Wrong, content

DISK = 3 << 20


def fill(p, name, rng):
    """Writes runs of clusters, of which other disks have some."""
    h = p.connect(name)
    for _ in range(12):
        at = rng.randrange(DISK // CLUSTER - 40)
        first = rng.choice((rng.randrange(1, 300), rng.randrange(1, 10 ** 9)))
        h.pwrite(content(range(first, first + rng.randrange(1, 40))),
                 at * CLUSTER)
    h.trim(64 << 10, rng.randrange(DISK // CLUSTER - 16) * CLUSTER)
    h.flush()
    h.shutdown()


def make(p, rng):
    names = []
    for i in range(4):
        p.disk('create', 'd%d' % i, str(DISK))
        names.append('d%d' % i)
    for i in range(4):
        p.start()
        for name in names:
            fill(p, name, rng)
        p.stop()
        source = rng.choice(names)
        p.disk('clone', source, 'c%d' % i)
        p.disk('snapshot', source, 's%d' % i)
        names.append('c%d' % i)
        p.disk('reset', *rng.sample(names, 2))


class Seen:
    """The clusters that each thing in the file takes."""

    def __init__(self, path):
        img = poolimg.Image(path)
        if img.incompatible & poolimg.RECOVERY:
            raise Wrong('work is left')
        self.counts, _ = img.refcounts()
        self.names = {root.name: root for root in img.roots[1:] if root.is_disk}
        l2, self.tables = set(), set()
        for root in img.roots:
            if root.name == 'do-not-apply-dedup-anchor':
                continue
            v = img.words(root.l1_off, root.l1_entries)
            l2.update((e & poolimg.OFFSETS) // CLUSTER for e in v
                      if e & poolimg.OFFSETS)
            first = root.l1_off // CLUSTER
            self.tables.update(range(first, first + (root.l1_entries * 8 +
                                                     CLUSTER - 1) // CLUSTER))
        self.data = set().union(*map(img.table, l2))
        self.tables |= l2
        end = img.snapshots_end + CLUSTER - 1
        self.snapshot_table = set(range(img.snapshots_off // CLUSTER,
                                        end // CLUSTER))


def delete(p, name):
    said = json.loads(p.disk('info', name, options=['--output=json']))
    before = Seen(p.path)
    p.disk('delete', name)
    after = Seen(p.path)
    data, tables = before.data - after.data, before.tables - after.tables
    lost = (len(data) * CLUSTER, len(tables) * CLUSTER)
    if lost != (said['exclusive-bytes'], said['table-bytes']):
        raise Wrong('%s: info says %d bytes of data and %d of tables, and the '
                    'file has lost %d and %d' %
                    (name, said['exclusive-bytes'], said['table-bytes'], *lost))
    kept = [c for c in data | tables if after.counts.get(c)]
    if set(kept) - after.snapshot_table:
        raise Wrong('%s: clusters are not free: %s' % (name, kept[:10]))
    return sum(lost)


def main(path, seed):
    rng = random.Random(seed)
    print('seed %d' % seed)
    p = Pool(path, 64 << 20)
    make(p, rng)
    names = sorted(Seen(path).names)
    if len(names) < 10:
        raise Wrong('there are %d disks only' % len(names))
    rng.shuffle(names)
    freed = [delete(p, name) for name in names]
    left = Seen(path)
    if left.names or left.data:
        raise Wrong('something is left')
    print('%d deleted; freed by each: %s KiB' %
          (len(names), ' '.join(str(n >> 10) for n in freed)))


main(sys.argv[1], int(os.environ.get('DEDUP_TEST_SEED') or sys.argv[2]))
