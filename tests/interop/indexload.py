#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""indexload.py URI REGION OPS SEED MODEL: sends random writes (mostly of what
the file MODEL holds somewhere), zeroes, trims and reads to the first REGION
bytes.  Each read is compared with the model, which is written back to its
file."""
import random
import sys

import nbdclient

CLUSTER = 4096


def main():
    uri, region, ops, seed, path = sys.argv[1:6]
    region, ops, rng = int(region), int(ops), random.Random(int(seed))
    print('seed', seed)
    with open(path, 'rb') as f:
        model = bytearray(f.read())
    h = nbdclient.connect(uri)
    for _ in range(ops):
        kind = rng.random()
        n = rng.choice((1, 1, 2, 4, 16, 64)) * CLUSTER
        at = rng.randrange((region - n) // CLUSTER) * CLUSTER
        if kind < 0.2:
            at, n = at + rng.randrange(CLUSTER), rng.randrange(1, n + 1)
        if kind < 0.55:
            src = rng.randrange((len(model) - n) // CLUSTER) * CLUSTER
            data = bytes(model[src:src + n])
            if rng.random() < 0.2:
                data = rng.randbytes(n)
            h.pwrite(data, at)
            model[at:at + n] = data
        elif kind < 0.6:
            h.zero(n, at)
            model[at:at + n] = bytes(n)
        elif kind < 0.65:
            at, n = at // CLUSTER * CLUSTER, -(-n // CLUSTER) * CLUSTER
            h.trim(n, at)
            model[at:at + n] = bytes(n)
        else:
            at = rng.randrange(len(model) - n)
            if h.pread(n, at) != model[at:at + n]:
                raise SystemExit('wrong data at %d (%d bytes)' % (at, n))
    h.flush()
    with open(path, 'wb') as f:
        f.write(model)
    h.shutdown()


main()
