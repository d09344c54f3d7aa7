#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""odd.py URI SECONDS SEED [CONNECTIONS]: sends random requests of any
alignment and length, and compares with a model in memory.

Each connection owns an interval of the disk whose ends are no multiples of
anything, so neighbours meet inside one cluster.  Reads are compared as they
come; at the end everything is read again by one connection.  Operations:
write, write with FUA, zero (with and without the permission to trim), fast
zero, trim, flush, cache, read.
"""
import multiprocessing
import os
import random
import sys
import time

import nbd
import nbdclient


def piece(rng, size):
    """A length: mostly small, sometimes up to 300000, biased to edges."""
    kind = rng.random()
    if kind < 0.3:
        n = rng.randint(1, 600)
    elif kind < 0.6:
        n = rng.choice((1, 511, 512, 513, 4095, 4096, 4097, 8192, 65536))
    elif kind < 0.95:
        n = rng.randint(1, 20000)
    else:
        n = rng.randint(1, 300000)
    return min(n, size)


def payload(rng, n):
    kind = rng.random()
    if kind < 0.2:
        return bytes(n)
    if kind < 0.4:
        return bytes([rng.randint(1, 4)]) * n       # equal blocks everywhere
    if kind < 0.5:                                  # zero in the middle
        return (rng.randbytes(n // 3) + bytes(n // 3)).ljust(n, b'x')
    return rng.randbytes(n)


def write_known(h, rng, base, model):
    """Whole clusters of 4 KiB with one of few contents, which so come back
    after they were freed and their clusters used for others."""
    n = rng.randint(1, 8) * 4096
    at = rng.randrange(4096, len(model) - n)
    at -= (base + at) % 4096
    data = random.Random(rng.randrange(150)).randbytes(n)
    h.pwrite(data, base + at)
    model[at:at + n] = data


def step(h, rng, base, model):
    if rng.random() < 0.25:
        write_known(h, rng, base, model)
        return
    size = len(model)
    n = piece(rng, size)
    at = rng.randint(0, size - n)
    if rng.random() < 0.2:
        at = max(0, at // 4096 * 4096 - base % 4096)
        n = min(n, size - at)
    op = rng.random()
    if op < 0.40:
        data = payload(rng, n)
        h.pwrite(data, base + at,
                 nbd.CMD_FLAG_FUA if rng.random() < 0.1 else 0)
        model[at:at + n] = data
    elif op < 0.52:
        h.zero(n, base + at, rng.choice((0, nbd.CMD_FLAG_NO_HOLE,
                                         nbd.CMD_FLAG_FUA)))
        model[at:at + n] = bytes(n)
    elif op < 0.55:
        try:
            h.zero(n, base + at, nbd.CMD_FLAG_FAST_ZERO)
            model[at:at + n] = bytes(n)
        except nbd.Error as e:          # refused: nothing may have changed
            if e.errno != 'EOPNOTSUPP':
                raise
    elif op < 0.63:
        # Only whole clusters of a trimmed range must read as zero, the rest
        # may: ask for what it became.
        h.trim(n, base + at)
        got = h.pread(n, base + at)
        for i, byte in enumerate(got):
            if byte not in (0, model[at + i]):
                raise SystemExit('trim made byte %d up' % (base + at + i))
        model[at:at + n] = got
    elif op < 0.66:
        h.flush()
    elif op < 0.68:
        h.cache(n, base + at)
    else:
        got = h.pread(n, base + at)
        if got != model[at:at + n]:
            bad = next(i for i in range(n) if got[i] != model[at + i])
            raise SystemExit('read %d+%d: byte %d is %#x, should be %#x' %
                             (base + at, n, base + at + bad, got[bad],
                              model[at + bad]))


def user(uri, seed, base, size, seconds, out):
    rng = random.Random(seed)
    h = nbdclient.connect(uri)
    model = bytearray(h.pread(size, base))
    end = time.monotonic() + seconds
    nr = 0
    while time.monotonic() < end:
        step(h, rng, base, model)
        nr += 1
    with open(out, 'wb') as f:
        f.write(model)
    h.flush()
    h.shutdown()
    print('seed %d: %d operations' % (seed, nr))


def main():
    uri, seconds, seed = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    connections = int(sys.argv[4]) if len(sys.argv) > 4 else 3
    out = sys.argv[5]                   # the model: what the disk must hold
    h = nbdclient.connect(uri)
    size = h.get_size()
    area = min(size // connections, 3 << 20) - 1001
    bases = [i * (area + 77) + 13 for i in range(connections)]
    bases[-1] = size - area             # up to the last byte
    nbdclient.run_processes(
        user, [(uri, seed * 100 + i, bases[i], area, seconds,
                '%s.%d' % (out, i)) for i in range(connections)])
    disk = bytearray(b''.join(h.pread(min(8 << 20, size - p), p)
                              for p in range(0, size, 8 << 20)))
    for i, base in enumerate(bases):
        with open('%s.%d' % (out, i), 'rb') as f:
            model = f.read()
        os.unlink(f.name)
        if disk[base:base + area] != model:
            raise SystemExit('area %d differs at the end' % i)
    with open(out, 'wb') as f:
        f.write(disk)
    h.shutdown()


main()
