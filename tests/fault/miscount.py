#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""miscount.py IMAGE find OFFSET...: prints which host clusters hold these guest
offsets of a closed image.
miscount.py IMAGE COUNT HOST...: makes the refcounts, of 16 bits, of these host
clusters COUNT, and prints what they were."""
import struct
import sys

from storeimg import Image, OFFSETS


def find(img, off):
    per = img.cluster // 8
    guest = off // img.cluster
    l1e, = img.entries(img.l1_off + guest // per * 8, 1)
    entry, = img.entries((l1e & OFFSETS) + guest % per * 8, 1)
    return (entry & OFFSETS) // img.cluster


def miscount(img, count, host):
    per = img.cluster // 2
    block, = img.entries(img.reftable_off + host // per * 8, 1)
    at = block + host % per * 2
    print(*struct.unpack('>H', img.read(at, 2)))
    with open(img.f.name, 'r+b') as f:
        f.seek(at)
        f.write(struct.pack('>H', count))


def main():
    img, what = Image(sys.argv[1]), sys.argv[2]
    for n in map(int, sys.argv[3:]):
        if what == 'find':
            print(find(img, n))
        else:
            miscount(img, int(what), n)


main()
