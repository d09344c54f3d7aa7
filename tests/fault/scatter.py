#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""scatter.py URI SEED WRITES CONNECTIONS [SPAN]: sends so many
writes of 4 KiB of new data to random places of the first SPAN bytes, 32 in
flight on each connection, then a flush.  Cluster 0 gets content SEED * 10 + 1 last."""
import os
import random
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, '..', 'interop'))
# pylint: disable=wrong-import-position
import nbdclient
from model import CLUSTER, content


def scatter(who, uri, seed, writes, connections, span):
    h = nbdclient.connect(uri)
    rng = random.Random('%d %d' % (seed, who))
    n = min(span, h.get_size()) // CLUSTER // connections
    pipe = nbdclient.Pipe(h, 32)
    for i in range(writes):
        c = rng.randrange(1, n) * connections + who
        pipe.write(content(rng.randrange(1, 1 << 60)), c * CLUSTER)
    pipe.write(content(seed * 10 + who + 1), who * CLUSTER)
    pipe.drain()
    h.flush()


def main():
    uri, seed = sys.argv[1], int(sys.argv[2])
    writes, connections = int(sys.argv[3]), int(sys.argv[4])
    span = int(sys.argv[5]) if len(sys.argv) > 5 else 1 << 62
    nbdclient.run_processes(scatter, [
        (i, uri, seed, writes // connections, connections, span)
        for i in range(connections)])


main()
