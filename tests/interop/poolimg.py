#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Counts every reference in an image with disks, from the qcow2 specification and
docs/on-disk.md alone, without any of the program's code.

usage: poolimg.py check FILE
       poolimg.py data FILE

"data" prints how many clusters of the file hold data of disks and snapshots, each
counted once.  "check" verifies what the refcounts of such an image must be:
 - an L2 table that n L1 entries of all roots name has d << 16 | n, 0 <= d < n
   (d, its debt, is 0 where refcounts do not have 32 bits);
 - a cluster that entries of tables name has the sum of n - d over those entries;
 - all that is in use besides has 1, the rest 0; nothing has two kinds of use;
 - without bit 48, all debts are 0 and no disk is being deleted;
 - COPIED in an L2 entry says that the refcount is 1; on the active disk it is set
   wherever that is so, also in L1 entries.
The anchor is a root like the others, whose tables have no debts.  A file that a
crash left must be recovered first: tables that are in the journal are not seen.

Each violation is a line on stdout, and the exit status is 1 then, 0 if there is
none, 2 if the file cannot be read as such an image.
"""
import array
import collections
import os
import struct
import sys

OFFSETS = 0x00fffffffffffe00
COPIED, COMPRESSED = 1 << 63, 1 << 62
RECOVERY, EXTENDED_L2, DATA_FILE = 1 << 48, 1 << 4, 1 << 2
WRITABLE, DOOMED = 1, 2
MAX_LINES = 40

Root = collections.namedtuple('Root', 'name is_disk flags l1_off l1_entries '
                              'size')


class Bad(Exception):
    """The file is no image that can be judged."""


class Image:
    def __init__(self, path):
        self.f = open(path, 'rb')
        self.size = os.fstat(self.f.fileno()).st_size
        h = self.read(0, 112)
        magic, self.version = struct.unpack_from('>II', h)
        if magic != 0x514649fb or self.version not in (2, 3):
            raise Bad('not a qcow2 image')
        self.bits, self.disk_size = struct.unpack_from('>IQ', h, 20)
        self.cluster = 1 << self.bits
        l1_entries, l1_off, self.reftable_off, self.reftable_clusters, \
            self.nr_snapshots, self.snapshots_off = \
            struct.unpack_from('>IQQIIQ', h, 36)
        self.incompatible = 0
        self.refcount_bits = 16
        if self.version == 3:
            self.incompatible, = struct.unpack_from('>Q', h, 72)
            self.refcount_bits = 1 << struct.unpack_from('>I', h, 96)[0]
        if self.incompatible & DATA_FILE or self.refcount_bits < 8:
            raise Bad('data files and narrow refcounts are not counted here')
        self.entry = 16 if self.incompatible & EXTENDED_L2 else 8
        self.roots = [Root('the active disk', False, WRITABLE, l1_off,
                           l1_entries, self.disk_size)]
        self.read_snapshots()

    def read(self, off, n):
        self.f.seek(off)
        data = self.f.read(n)
        return data + bytes(n - len(data))

    def words(self, off, n, code='Q'):
        v = array.array(code, self.read(off, n * array.array(code).itemsize))
        if sys.byteorder == 'little':
            v.byteswap()
        return v

    def read_snapshots(self):
        at = self.snapshots_off
        for _ in range(self.nr_snapshots):
            l1_off, l1_entries, id_len, name_len = \
                struct.unpack('>QIHH', self.read(at, 16))
            extra_len, = struct.unpack('>I', self.read(at + 36, 4))
            extra = self.read(at + 40, extra_len)
            text = self.read(at + 40 + extra_len, id_len + name_len)
            size, flags = self.disk_size, 0
            if extra_len >= 16:
                size, = struct.unpack_from('>Q', extra, 8)
            is_disk = extra_len >= 88 and extra[24:32] == b'DDUPDISK' and \
                struct.unpack_from('>I', extra, 32)[0] == 1
            if is_disk:
                flags, = struct.unpack_from('>I', extra, 36)
            self.roots.append(Root(text[id_len:].decode(errors='replace'),
                                   is_disk, flags, l1_off, l1_entries, size))
            at += (40 + extra_len + id_len + name_len + 7) // 8 * 8
        self.snapshots_end = at

    def refcounts(self):
        """{cluster: refcount}, without zeroes, and the blocks."""
        found, blocks = {}, []
        per = self.cluster * 8 // self.refcount_bits
        code = {8: 'B', 16: 'H', 32: 'I', 64: 'Q'}[self.refcount_bits]
        table = self.words(self.reftable_off,
                           self.reftable_clusters * self.cluster // 8)
        for i, off in enumerate(table):
            if off == 0:
                continue
            blocks.append(off)
            for k, v in enumerate(self.words(off, per, code)):
                if v:
                    found[i * per + k] = v
        return found, blocks

    def packed(self, entry):
        """The bytes of the file that a compressed L2 entry refers to."""
        x = 62 - (self.bits - 8)
        off = entry & ((1 << x) - 1)
        more = entry >> x & ((1 << (self.bits - 8)) - 1)
        return range(off, off + (more + 1) * 512 - off % 512)

    def named(self, entry):
        """The clusters that an L2 entry refers to."""
        if entry & COMPRESSED:
            where = self.packed(entry)
            return range(where[0] >> self.bits, (where[-1] >> self.bits) + 1)
        off = entry & OFFSETS
        return range(off >> self.bits, (off >> self.bits) + 1) if off else ()

    def table(self, c):
        """{cluster: how many entries of the L2 table in cluster C name it}"""
        found = collections.Counter()
        for entry in self.l2_entries(c):
            found.update(self.named(entry))
        return found

    def l2_entries(self, c):
        """The entries of the L2 table in cluster C that are not 0."""
        v = self.words(c << self.bits, self.cluster // 8)
        return [e for e in (v if self.entry == 8 else v[::2]) if e]


class Check:
    def __init__(self, img):
        self.img = img
        self.nr_lines = 0
        self.meta = collections.Counter()    # clusters with one owner
        self.paths = collections.Counter()   # of L2 tables
        self.first = {}                      # where a table is named first
        self.data = collections.Counter()    # references that are counted
        self.nr_debts = 0
        self.active = []                     # (table, COPIED), the active disk

    def wrong(self, line):
        self.nr_lines += 1
        if self.nr_lines <= MAX_LINES:
            print(line)

    def own(self, off, n, what):
        """The bytes [off, off + n) belong to WHAT alone."""
        cluster = self.img.cluster
        if n and (off % cluster or off + n > self.img.size + cluster):
            self.wrong(f'{what}: is not inside the file')
        elif n:
            self.meta.update(range(off // cluster,
                                   (off + n - 1) // cluster + 1))

    def walk_l1(self, root):
        img = self.img
        self.own(root.l1_off, root.l1_entries * 8, f'L1 table of {root.name}')
        for i, e in enumerate(img.words(root.l1_off, root.l1_entries)):
            off = e & OFFSETS
            if e == 0:
                continue
            if off == 0 or off % img.cluster or off >= img.size:
                self.wrong(f'{root.name}: L1 entry {i} is {e:#x}')
                continue
            self.paths[off // img.cluster] += 1
            if root is img.roots[0]:
                self.active.append((off // img.cluster, e & COPIED != 0))
            self.first.setdefault(off // img.cluster, (root.name, i))

    def debt(self, c, n, stored):
        """How many paths to the table in cluster C are not counted."""
        name, i = self.first[c]
        where = f'{name}: table of L1 entry {i} at {c * self.img.cluster:#x}'
        d = 0
        if self.img.refcount_bits == 32:
            d, stored = stored >> 16, stored & 0xffff
        # A table may lie where data was that is still anchored.
        if stored != n + self.data_before[c]:
            self.wrong(f'{where}: {n} paths, refcount says {stored}')
        if d >= n:
            self.wrong(f'{where}: debt {d} of {n} paths')
            d = 0
        if d and not self.img.incompatible & RECOVERY:
            self.wrong(f'{where}: debt {d} without bit 48')
        self.nr_debts += d > 0
        return d

    def walk_tables(self, refcounts):
        self.data_before = self.anchor_names()
        for c, n in self.paths.items():
            weight = n - self.debt(c, n, refcounts.get(c, 0))
            for named, times in self.img.table(c).items():
                self.data[named] += times * weight

    def check_copied(self, refcounts):
        tables = {c for c, _ in self.active}
        for c, copied in self.active:
            if copied != (refcounts.get(c, 0) == 1):
                self.wrong(f'active disk: COPIED of the table at '
                           f'{c * self.img.cluster:#x}: {copied}')
        for c in self.paths.keys() - self.anchor_tables:
            for e in self.img.l2_entries(c):
                copied, off = e & COPIED != 0, e & OFFSETS
                one = refcounts.get(off >> self.img.bits, 0) == 1
                if e & COMPRESSED or off == 0:
                    continue
                if copied and not one or one and not copied and c in tables:
                    self.wrong(f'table at {c * self.img.cluster:#x}: COPIED of '
                               f'{off:#x}: {copied}')

    def anchor_names(self):
        """References of the anchor to clusters that hold tables."""
        found = collections.Counter()
        self.anchor_tables = set()
        for root in self.img.roots:
            if root.name not in ('do-not-apply-dedup-anchor', 'dedup'):
                continue
            for e in self.img.words(root.l1_off, root.l1_entries):
                if e & OFFSETS:
                    c = (e & OFFSETS) >> self.img.bits
                    self.anchor_tables.add(c)
                    found.update(self.img.table(c))
        return found

    def compare(self, refcounts):
        used = set(refcounts) | set(self.meta) | set(self.data)
        for c in sorted(used - set(self.paths)):
            want = self.meta[c] + self.data[c]
            if refcounts.get(c, 0) != want:
                self.wrong(f'cluster {c * self.img.cluster:#x}: refcount '
                           f'{refcounts.get(c, 0)}, {want} references')
            if self.meta[c] and want != 1:
                self.wrong(f'cluster {c * self.img.cluster:#x}: a table, with '
                           f'{want} uses')
        for c in self.paths:
            if self.meta[c] or self.data[c] > self.data_before[c]:
                self.wrong(f'cluster {c * self.img.cluster:#x}: an L2 table, '
                           'and something else')

    def bitmaps_absent(self):
        """Their clusters are not counted here."""
        at = struct.unpack('>I', self.img.read(100, 4))[0] \
            if self.img.version == 3 else 72
        while at < self.img.cluster - 8:
            kind, size = struct.unpack('>II', self.img.read(at, 8))
            if kind == 0x23852875:
                raise Bad('persistent bitmaps are not counted here')
            if kind == 0:
                return
            at += 8 + (size + 7) // 8 * 8

    def run(self):
        img = self.img
        self.bitmaps_absent()
        refcounts, blocks = img.refcounts()
        self.own(0, img.cluster, 'header')
        self.own(img.reftable_off, img.reftable_clusters * img.cluster,
                 'refcount table')
        for off in blocks:
            self.own(off, img.cluster, 'refcount block')
        self.own(img.snapshots_off, img.snapshots_end - img.snapshots_off,
                 'snapshot table')
        for root in img.roots:
            if root.flags & DOOMED and not img.incompatible & RECOVERY:
                self.wrong(f'{root.name}: is being deleted, without bit 48')
            self.walk_l1(root)
        self.walk_tables(refcounts)
        self.compare(refcounts)
        self.check_copied(refcounts)
        return self.nr_lines == 0


def data_clusters(img):
    tables = set()
    for root in img.roots:
        if root.name != 'do-not-apply-dedup-anchor':
            tables.update((e & OFFSETS) >> img.bits
                          for e in img.words(root.l1_off, root.l1_entries)
                          if e & OFFSETS)
    return len(set().union(*map(img.table, tables)))


def main(argv):
    if len(argv) != 3 or argv[1] not in ('check', 'data'):
        sys.exit(__doc__)
    if argv[1] == 'data':
        print(data_clusters(Image(argv[2])))
        return 0
    try:
        c = Check(Image(argv[2]))
        ok = c.run()
    except (Bad, OSError, struct.error) as e:
        print(f'{argv[2]}: {e}', file=sys.stderr)
        return 2
    if not ok:
        print(f'{c.nr_lines} violations')
        return 1
    print(f'{len(c.img.roots)} roots, {len(c.paths)} tables, '
          f'{sum(n > 1 for n in c.paths.values())} shared, '
          f'{c.nr_debts} with debts, {len(c.data)} clusters of data')
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv))
