#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Adds clones of vm1 to a closed pool, faster than any program of ours does.

usage: manydisks.py POOL NR

Each has an entry in the snapshot table, an L1 table of its own, and a debt in each
L2 table that it names.  Bit 48 stays clear, so a check finds the debts.
"""
import os
import struct
import sys

import hostilepool                  # which needs TOOL and PLUGIN
import poolimg


def add(b, nr):
    source = b.by['vm1']
    data = b.img.read(source.l1_off, source.l1_entries * 8)
    data += bytes(-len(data) % b.img.cluster)
    end = os.path.getsize(b.path)
    end += -end % b.img.cluster
    b.put(end, data * nr)
    for i in range(nr):
        e = source.copy(b'%d' % (5000 + i), b'vm-%d' % i)
        e.l1_off = end + i * len(data)
        e.put(hostilepool.UUID, '16s', struct.pack('>QQ', 1, 5000 + i))
        b.entries.append(e)
    for e in set(b.img.words(source.l1_off, source.l1_entries)):
        c = (e & poolimg.OFFSETS) >> b.img.bits
        if c:
            b.refcount(c, b.counts[c] + (nr << 16 | nr))
    for c in range(end // b.img.cluster,
                   (end + len(data) * nr) // b.img.cluster):
        b.refcount(c, 1)


bad = hostilepool.Bad(sys.argv[1])
add(bad, int(sys.argv[2]))
bad.save()
