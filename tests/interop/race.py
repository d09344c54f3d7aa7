#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""race.py URI CONNECTIONS BLOCKS REGION SEED BLOCK_SIZE: every connection
writes the same BLOCKS distinct blocks, each into a region of its own (REGION
bytes apart), in waves that all start together, in runs of 1 to 16 blocks cut
differently.  So the same new content arrives by several connections at once,
over and over."""
import multiprocessing
import random
import sys

import nbdclient

BLOCK = int(sys.argv[6])
WAVE = max(1, (1 << 20) // BLOCK)       # blocks between two barriers


def content(seed, i):
    return random.Random(seed * 1000003 + i).randbytes(BLOCK)


def writer(uri, number, nr_blocks, region, seed, barrier):
    rng = random.Random(seed + number)
    h = nbdclient.connect(uri)
    pipe = nbdclient.Pipe(h, 8)
    for first in range(0, nr_blocks, WAVE):
        last = min(first + WAVE, nr_blocks)
        data = b''.join(content(seed, i) for i in range(first, last))
        barrier.wait()
        pos = first
        while pos < last:
            n = min(rng.randint(1, 16), last - pos)
            at = (pos - first) * BLOCK
            pipe.write(data[at:at + n * BLOCK], number * region + pos * BLOCK)
            pos += n
    pipe.drain()
    h.flush()
    for i in rng.sample(range(nr_blocks), min(64, nr_blocks)):
        if h.pread(BLOCK, number * region + i * BLOCK) != content(seed, i):
            raise SystemExit('connection %d: block %d differs' % (number, i))
    h.shutdown()


def main():
    uri = sys.argv[1]
    connections, blocks, region, seed = (int(a) for a in sys.argv[2:6])
    barrier = multiprocessing.Barrier(connections)
    nbdclient.run_processes(
        writer, [(uri, i, blocks, region, seed, barrier)
                 for i in range(connections)])


main()
