#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""bulk.py URI FILE SECONDS SHARE: two connections write new data over and over
the first 64 MiB, each cluster of it a record, until the journal of FILE, which
is being served, has SHARE percent of the blocks that make a checkpoint due
(half of its areas) behind the last checkpoint, or until SECONDS have passed.
Prints how many blocks it has then."""
import os
import random
import struct
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, '..', 'interop'))
# pylint: disable=wrong-import-position
import multiprocessing
import nbd
import nbdclient
from storeimg import Image

SPAN = 32 << 20
PIECE = 256 << 10
MAX_AREAS = 16


def write(who, uri):
    h = nbdclient.connect(uri)
    pipe = nbdclient.Pipe(h, 4)
    rng = random.Random(who)
    data = bytearray(rng.randbytes(PIECE))
    n = 0
    try:
        while True:
            for at in range(0, SPAN, PIECE):
                for c in range(0, PIECE, 4096):
                    n += 1
                    struct.pack_into('>QQ', data, c, who, n)
                pipe.write(data, who * SPAN + at)
    except nbd.Error:
        pass


def main():
    uri, path, seconds, share = sys.argv[1:5]
    ctx = multiprocessing.get_context('fork')
    workers = [ctx.Process(target=write, args=(i, uri)) for i in range(2)]
    for w in workers:
        w.start()
    end = time.monotonic() + float(seconds)
    best = 0
    while time.monotonic() < end:
        img = Image(path).config()
        due = MAX_AREAS // 2 * img.areas[0].nr_blocks
        blocks = max(0, img.last_block() - img.checkpoint + 1)
        best = max(best, blocks)
        if blocks >= due * int(share) // 100:
            break
        time.sleep(0.02)
    for w in workers:
        w.terminate()
    print('%d blocks to replay, a checkpoint is due at %d, most seen %d' %
          (blocks, due, best))


main()
