#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""crosslink.py make IMAGE CASE [COMPAT]: makes a qcow2 image in which guest
cluster 3 is one host cluster with a table (or two tables are one), as damage
would leave it; crosslink.py list: prints the cases.

The disk has 16 MiB in clusters of 4 KiB, of which an L2 table maps 2 MiB; a
snapshot "foo"; and an enabled bitmap "b0" in the cases that are about one,
because QEMU 7.2's check -r deletes all snapshots of an image with bitmaps.
Data is in the first 64 KiB of the first four tables, and was rewritten in the
first two since the snapshot."""
import struct
import subprocess
import sys

K, M = 1 << 10, 1 << 20
CLUSTER = 4 * K
COPIED = 1 << 63
MASK = 0x00fffffffffffe00


class Image:
    def __init__(self, path):
        self.f = open(path, 'r+b')
        self.l1 = self.u64(40)
        self.reftable = self.u64(48)
        self.snapshots = self.u64(64)
        self.snapshot_l1 = self.u64(self.snapshots)

    def get(self, off, n):
        self.f.seek(off)
        return self.f.read(n)

    def u64(self, off):
        return struct.unpack('>Q', self.get(off, 8))[0]

    def put(self, off, v):
        self.f.seek(off)
        self.f.write(struct.pack('>Q', v))

    def l2(self, i, l1=None):
        return self.u64((l1 or self.l1) + 8 * i) & MASK

    def snapshot_l2(self, i):
        return self.l2(i, self.snapshot_l1)

    def bitmap_directory(self):
        at, = struct.unpack('>I', self.get(100, 4))    # header length
        while True:
            kind, n = struct.unpack('>II', self.get(at, 8))
            if kind == 0x23852875:
                return self.u64(at + 8 + 16)
            if kind == 0:
                sys.exit('no bitmaps extension')
            at += 8 + n + -n % 8

    def bitmap_table(self):
        return self.u64(self.bitmap_directory())

    def guest(self, host_off):
        """Guest cluster 3 is at HOST_OFF."""
        assert host_off % CLUSTER == 0 and host_off
        self.put(self.l2(0) + 3 * 8, host_off | COPIED)

    def refcount(self, host_off, count):
        self.f.seek(self.u64(self.reftable) + host_off // CLUSTER * 2)
        self.f.write(struct.pack('>H', count))

    def counted_guest(self, host_off):
        """The same, and counted.  (QEMU, asked to repair it, writes bitmaps
        anew elsewhere.)"""
        self.refcount(self.u64(self.l2(0) + 3 * 8) & MASK, 0)
        self.refcount(host_off, 2)
        self.put(self.l2(0) + 3 * 8, host_off)


# Guest data that is one cluster with a table.
GUEST = {
    'data-and-snapshot-l2': lambda i: i.guest(i.snapshot_l2(0)),
    'data-and-shared-l2': lambda i: i.guest(i.l2(2)),
    'data-and-active-l2': lambda i: i.guest(i.l2(1)),
    'data-and-its-own-l2': lambda i: i.guest(i.l2(0)),
    'data-and-snapshot-l1': lambda i: i.guest(i.snapshot_l1),
    'data-and-active-l1': lambda i: i.guest(i.l1),
    'data-and-snapshot-table': lambda i: i.guest(i.snapshots),
    'data-and-refcount-block': lambda i: i.guest(i.u64(i.reftable)),
    'data-and-refcount-table': lambda i: i.guest(i.reftable),
    'data-and-bitmap-directory':
        lambda i: i.counted_guest(i.bitmap_directory()),
    'data-and-bitmap-table': lambda i: i.counted_guest(i.bitmap_table()),
    'data-and-bitmap-bits':
        lambda i: i.counted_guest(i.u64(i.bitmap_table()) & MASK),
}
# Two places of L1 tables that name one L2 table.
TABLES = {
    'one-l2-twice': lambda i: i.put(i.l1 + 8, i.l2(0) | COPIED),
    'l2-of-two-roots-copied':
        lambda i: i.put(i.l1 + 8, i.snapshot_l2(1) | COPIED),
    'l2-of-two-roots': lambda i: i.put(i.l1 + 8, i.snapshot_l2(1)),
}
# A table that is written in place, and another one.
CLASH = {
    'l2-and-refcount-block':
        lambda i: i.put(i.l1 + 8, i.u64(i.reftable) | COPIED),
    'l2-and-active-l1': lambda i: i.put(i.l1 + 8, i.l1 | COPIED),
}


def behind_data(i):
    """Guest clusters 15 and 16 follow each other in the file: data, and the L2
    table of the next 2 MiB."""
    last = i.u64(i.l2(0) + 15 * 8)
    assert i.l2(1) == (last & MASK) + CLUSTER
    i.put(i.l2(0) + 16 * 8, last + CLUSTER)


CASES = {**GUEST, **TABLES, **CLASH}


def qemu_io(path, *cmds):
    args = [a for c in cmds for a in ('-c', c)]
    subprocess.run(['qemu-io', '-f', 'qcow2', *args, path], check=True,
                   stdout=subprocess.DEVNULL)


def make(path, case, compat='1.1'):
    subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', '-o',
                    'cluster_size=4k,compat=' + compat, path, '16M'],
                   check=True)
    qemu_io(path, *(f'write -P {i + 1} {2 * i}M 64k' for i in range(4)))
    subprocess.run(['qemu-img', 'snapshot', '-c', 'foo', path], check=True)
    if 'bitmap' in case:
        subprocess.run(['qemu-img', 'bitmap', '--add', path, 'b0'], check=True)
    qemu_io(path, 'write -P 11 0 64k', 'write -P 12 2M 64k')
    image = Image(path)
    (behind_data if case == 'table-behind-data' else CASES[case])(image)
    image.f.close()


if __name__ == '__main__':
    if sys.argv[1] == 'list':
        print('\n'.join(CASES))
    else:
        make(*sys.argv[2:])
