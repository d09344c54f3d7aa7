# SPDX-License-Identifier: BSD-3-Clause
"""Finds where things lie in an image with a dedup store, from docs/on-disk.md
alone, without any of the program's code."""
import collections
import struct

EXTENSION = 0xcd8e819b
OFFSETS = 0x00fffffffffffe00

Area = collections.namedtuple('Area', 'host_off first_seq nr_blocks')
Incarnation = collections.namedtuple('Incarnation', 'id host_off size order')


class Image:
    """An open file; read-only, and good for a file that is being served."""

    def __init__(self, path):
        self.f = open(path, 'rb')
        h = self.read(0, 104)
        (self.cluster_bits,) = struct.unpack_from('>I', h, 20)
        self.cluster = 1 << self.cluster_bits
        self.l1_entries, self.l1_off, self.reftable_off, \
            self.reftable_clusters = struct.unpack_from('>IQQI', h, 36)
        (length,) = struct.unpack_from('>I', h, 100)
        self.config_off, self.config_size = self.extension(length)

    def read(self, off, n):
        self.f.seek(off)
        data = self.f.read(n)
        return data + bytes(n - len(data))

    def extension(self, at):
        while True:
            kind, size = struct.unpack('>II', self.read(at, 8))
            if kind == EXTENSION:
                return struct.unpack('>QI', self.read(at + 8, 12))
            if kind == 0:
                raise SystemExit('no dedup store')
            at += 8 + (size + 7) // 8 * 8

    def slots(self):
        """(offset, length in use, generation) of both, newest last."""
        half = self.config_size // 2
        found = []
        for off in (self.config_off, self.config_off + half):
            magic, _, size, _, gen = struct.unpack('>8sIIQQ',
                                                   self.read(off, 32))
            if magic == b'DDUPCONF':
                found.append((off, size, gen))
        return sorted(found, key=lambda s: s[2])

    def config(self):
        """Of the newest slot: fields that the tests need."""
        off, size, _ = self.slots()[-1]
        c = self.read(off, size)
        self.epoch, self.epoch_start, self.checkpoint, self.index_start, \
            _, _, nr_areas, nr_inc = self.fields(c)
        at = 128
        self.areas = [Area(*struct.unpack_from('>QQI', c, at + 24 * i))
                      for i in range(nr_areas)]
        at += 24 * nr_areas
        self.incarnations = [
            Incarnation(*struct.unpack_from('>QQQI', c, at + 40 * i))
            for i in range(nr_inc)]
        # Segments of runs, if any, stand behind the limbo areas; to these
        # tests they are incarnations of another format.
        version, = struct.unpack_from('>I', c, 8)
        at += 40 * nr_inc + 16 * struct.unpack_from('>I', c, 80)[0]
        if version >= 2:
            nr_seg, = struct.unpack_from('>I', c, at)
            for i in range(nr_seg):
                ident, _, off, size = struct.unpack_from('>QQQQ', c,
                                                         at + 8 + 56 * i)
                self.incarnations.append(Incarnation(ident, off, size, 0))
        return self

    @staticmethod
    def fields(c):
        return (struct.unpack_from('>I', c, 32) +
                struct.unpack_from('>QQQ', c, 40) +
                struct.unpack_from('>IIII', c, 64))

    def last_block(self):
        """The highest sequence number in the journal's areas."""
        last = 0
        for a in self.config().areas:
            data = self.read(a.host_off, a.nr_blocks * 4096)
            for i in range(a.nr_blocks):
                magic, _, seq = struct.unpack_from('>8sQQ', data, i * 4096)
                if magic != b'DDUPJRNL' or seq != a.first_seq + i:
                    break
                last = max(last, seq)
        return last

    def entries(self, off, n):
        return struct.unpack('>%dQ' % n, self.read(off, 8 * n))

    def l2_tables(self):
        return [e & OFFSETS for e in self.entries(self.l1_off,
                                                  self.l1_entries)
                if e & OFFSETS]

    def refblocks(self):
        n = self.reftable_clusters * self.cluster // 8
        return [e for e in self.entries(self.reftable_off, n) if e]
