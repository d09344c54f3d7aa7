#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""replaced.py URI SECONDS: plays a guest while the server behind its disk is
replaced: it sends writes, flushes, trims and reads on two connections, 8
requests at a time, checked against a model.  Any error of a request ends it
with status 1.  At the end the whole disk is compared; prints how much was
done."""
import random
import sys
import threading
import time

import nbdclient

BLOCK = 4096


def content(rng):
    return bytes([rng.randrange(1, 256)]) * (BLOCK - 1) + b'\n'


def work(uri, first, nr, until, seed, counts):
    """Blocks FIRST to FIRST + NR are this connection's."""
    rng = random.Random(seed)
    h = nbdclient.connect(uri)
    model = {}
    while time.monotonic() < until:
        batch = rng.sample(range(first, first + nr), 8)
        pipe = nbdclient.Pipe(h, 8)
        for block in batch:
            model[block] = content(rng)
            pipe.write(model[block], block * BLOCK)
        pipe.reap(0)
        kind = rng.randrange(4)
        if kind == 0:
            h.flush()
        elif kind == 1:
            block = rng.choice(batch)
            h.zero(BLOCK, block * BLOCK)
            model[block] = bytes(BLOCK)
        else:
            block = rng.choice(list(model))
            assert h.pread(BLOCK, block * BLOCK) == model[block], block
        counts[seed] += 10
    for block in range(first, first + nr):
        assert h.pread(BLOCK, block * BLOCK) == model.get(block, bytes(BLOCK))
    h.flush()
    h.shutdown()


def main():
    uri, seconds = sys.argv[1], float(sys.argv[2])
    until = time.monotonic() + seconds
    counts, failed = {1: 0, 2: 0}, []

    def run(*args):
        try:
            work(*args)
        except Exception as e:          # pylint: disable=broad-except
            failed.append(e)
    threads = [threading.Thread(target=run,
                                args=(uri, i * 2000, 2000, until, i, counts))
               for i in (1, 2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for e in failed:
        print('failed:', repr(e))
    print(sum(counts.values()), 'requests')
    sys.exit(1 if failed else 0)


main()
