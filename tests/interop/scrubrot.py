#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""scrubrot.py rot POOL RAW COUNT SEED: lets COUNT blocks of RAW rot where POOL
stores them: one bit flips, or the block becomes zero, or it changes places with
another one.  Prints the blocks, by number.

scrubrot.py check REPORT BLOCK...: REPORT, the JSON of a scrub, names these blocks of
the disks vm1 and vm2, and nothing else."""
import json
import mmap
import random
import sys

SIZE = 4096


def rot(pool, raw, count, seed):
    rng = random.Random(int(seed))
    data = open(raw, 'rb').read()
    blocks = rng.sample(range(len(data) // SIZE), int(count))
    with open(pool, 'r+b') as f, mmap.mmap(f.fileno(), 0) as m:
        def place(k):
            at = m.find(data[k * SIZE:(k + 1) * SIZE])
            assert at > 0 and at % SIZE == 0
            return at

        places = [place(k) for k in blocks]
        for i, at in enumerate(places):
            if i % 4 == 0:
                m[at + rng.randrange(SIZE)] ^= 1 << rng.randrange(8)
            elif i % 4 == 1:
                m[at:at + SIZE] = bytes(SIZE)
            elif i % 4 == 2 and i + 1 < len(places):
                other = places[i + 1]
                a, b = m[at:at + SIZE], m[other:other + SIZE]
                m[at:at + SIZE], m[other:other + SIZE] = b, a
    whole = len(blocks) // 4 * 4    # of the last four, both of a pair are there
    assert whole == len(blocks)
    print(*blocks)


def check(report, blocks):
    want = {(d, int(k)) for k in blocks for d in ('vm1', 'vm2')}
    got = set()
    r = json.load(open(report))
    for f in r['findings']:
        assert f['why'] == 'different' and f['healable'], f
        assert f['offset'] % SIZE == 0 and f['length'] % SIZE == 0
        for at in range(f['offset'], f['offset'] + f['length'], SIZE):
            got.add((f['disk'], at // SIZE))
    assert got == want, (sorted(got - want)[:9], sorted(want - got)[:9])
    assert r['different-clusters'] == len(blocks), r['different-clusters']
    assert r['unreadable-clusters'] == r['doubtful-clusters'] == 0
    assert r['findings-not-listed'] == 0 and r['complete']


if sys.argv[1] == 'rot':
    rot(*sys.argv[2:])
else:
    check(sys.argv[2], sys.argv[3:])
