#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Makes pools that no program writes, and looks at what ours do with them.

usage: hostilepool.py DIR [CASE...]

Each case changes a good pool: its disks' entries in the snapshot table, their L1
tables, or refcounts of lent tables.  Then every command of the tool that opens a
pool, and a server with clients, are run on a copy.  Each ends in bounded time,
without a crash; if it fails, by one line that names the file, and nothing changed in
it if that was at open.  A disk that the case did not touch and the command did not
name keeps its contents.
"""
import os
import shutil
import struct
import subprocess
import sys
import time

import nbd
import poolimg
from poolmodel import CLUSTER, TOOL, Pool, Wrong, block, content

SECONDS, RSS_KIB = 60, 1 << 20
HEAD = 40                       # bytes of an entry before its extra data
WRITABLE, DOOMED = 1, 2
FLAGS, VERSION, SIZE, UUID, ORIGIN = 36, 32, 8, 40, 56  # in the extra data
COMPRESS = 80
NUMBERS = {'vm1': list(range(1, 513)) + [0] * 512,
           'vm2': list(range(1, 513)) + [0] * 512,      # its clone
           'vm1@s': list(range(1, 513)) + [0] * 512,
           'vm3': list(range(2000, 2600)) + [0] * 424}  # the witness
PAIR = ('vm1', 'vm2', 'vm1@s')


class Entry:
    """A snapshot table entry."""

    def __init__(self, data, at):
        self.l1_off, self.l1_entries, id_len, name_len = \
            struct.unpack_from('>QIHH', data, at)
        self.rest = data[at + 16:at + 36]
        extra_len, = struct.unpack_from('>I', data, at + 36)
        at += HEAD
        self.extra = bytearray(data[at:at + extra_len])
        at += extra_len
        self.id = data[at:at + id_len]
        self.name = data[at + id_len:at + id_len + name_len]
        at += id_len + name_len
        self.end = at + -at % 8

    def encode(self):
        e = struct.pack('>QIHH', self.l1_off, self.l1_entries, len(self.id),
                        len(self.name)) + self.rest + \
            struct.pack('>I', len(self.extra)) + bytes(self.extra) + \
            self.id + self.name
        return e + bytes(-len(e) % 8)

    def put(self, off, fmt, value):
        struct.pack_into('>' + fmt, self.extra, off, value)

    def copy(self, ident, name):
        e = Entry(self.encode(), 0)
        e.id, e.name = ident, name
        return e


class Bad:
    """A pool that is being damaged."""

    def __init__(self, path):
        self.path = path
        self.img = poolimg.Image(path)
        self.counts, self.blocks = self.img.refcounts()
        data = self.img.read(self.img.snapshots_off, 1 << 20)
        self.entries, at = [], 0
        for _ in range(self.img.nr_snapshots):
            e = Entry(data, at)
            self.entries.append(e)
            at = e.end
        self.by = {e.name.decode(): e for e in self.entries}

    def put(self, off, data):
        with open(self.path, 'r+b') as f:
            f.seek(off)
            f.write(data)

    def save(self):
        """Writes the table behind the end, with a refcount if that is easy."""
        table = b''.join(e.encode() for e in self.entries)
        end = os.path.getsize(self.path)
        end += -end % CLUSTER
        self.put(end, table + bytes(-len(table) % CLUSTER))
        for i in range((len(table) + CLUSTER - 1) // CLUSTER):
            self.refcount(end // CLUSTER + i, 1)
        self.put(60, struct.pack('>IQ', len(self.entries), end))

    def entries_as_bytes(self):
        return b''.join(e.encode() for e in self.entries)

    def refcount(self, c, v):
        per = CLUSTER // 4
        off = self.img.words(self.img.reftable_off, c // per + 1)[-1]
        if off:
            self.put(off + c % per * 4, struct.pack('>I', v))

    def l1(self, name, i, value):
        self.put(self.by[name].l1_off + 8 * i, struct.pack('>Q', value))

    def table(self, name, i=0):
        """The cluster of an L2 table."""
        v = self.img.words(self.by[name].l1_off, i + 1)
        return (v[i] & poolimg.OFFSETS) // CLUSTER


def named(name, value):
    def change(b):
        b.by[name].name = value
    return change


def extra(name, off, fmt, value):
    def change(b):
        b.by[name].put(off, fmt, value)
    return change


def l1_off(name, of):
    def change(b):
        b.by[name].l1_off = of(b)
    return change


def l1_entries(name, n):
    def change(b):
        b.by[name].l1_entries = n
    return change


def entry(name, i, of):
    def change(b):
        b.l1(name, i, of(b))
    return change


def refcount(name, i, v):
    def change(b):
        b.refcount(b.table(name, i), v)
    return change


def cut_extra(name, n):
    def change(b):
        b.by[name].extra = (b.by[name].extra + bytes(n))[:n]
    return change


def same_id(b):
    b.by['vm2'].id = b.by['vm1'].id


def twice(b):
    b.entries.append(b.by['vm1'].copy(b'77', b'vm9'))


def anchor_is_a_disk(b):
    b.by['do-not-apply-dedup-anchor'].extra = bytearray(b.by['vm1'].extra)


def two_anchors(b):
    b.entries.append(b.by['do-not-apply-dedup-anchor'].copy(b'78', b'vm9'))
    b.entries[-1].extra = bytearray(b.by['vm1'].extra)


def many(nr, disks, own_l1):
    def change(b):
        end = os.path.getsize(b.path)
        end += -end % CLUSTER
        for i in range(nr - len(b.entries)):
            e = b.by['vm1'].copy(b'%d' % (i + 100), b'x%d' % i)
            if not disks:
                e.extra = e.extra[:16]
            if own_l1:
                e.l1_off = end + i * CLUSTER
            else:
                e.l1_off = e.l1_entries = 0
            b.entries.append(e)
        if own_l1:
            os.truncate(b.path, end + nr * CLUSTER)
    return change


def end_of(b):
    return os.path.getsize(b.path) // CLUSTER * CLUSTER + (1 << 40)


# Name, change of the clean pool (or with "lent:", of one that was closed with
# debts), disks that it touches.
CASES = [
    ('nothing', lambda b: None, ()),
    ('name twice', named('vm2', b'vm1'), PAIR),
    ('name of a snapshot of a disk twice', named('vm2', b'vm1@s'), PAIR),
    ('id twice', same_id, PAIR),
    ('no name', named('vm2', b''), PAIR),
    ('long name', named('vm2', b'n' * 60000), PAIR),
    ('control characters', named('vm2', b'a\n\x1b[2J\x07\r\x7f'), PAIR),
    ('no UTF-8', named('vm2', b'\xff\xc0\x80'), PAIR),
    ('zero byte', named('vm2', b'vm1\0x'), PAIR),
    ('slash', named('vm2', b'../../etc'), PAIR),
    ('name of the anchor', named('vm2', b'do-not-apply-dedup-anchor'), PAIR),
    ('only @', named('vm2', b'@'), PAIR),
    ('version 2', extra('vm2', VERSION, 'I', 2), PAIR),
    ('version 0', extra('vm2', VERSION, 'I', 0), PAIR),
    ('unknown flag', extra('vm2', FLAGS, 'I', 5), PAIR),
    ('all flags', extra('vm2', FLAGS, 'I', 0xffffffff), PAIR),
    ('doomed in a clean image', extra('vm2', FLAGS, 'I', 2), PAIR),
    ('doomed and writable', extra('vm2', FLAGS, 'I', 3), PAIR),
    ('compression 3', extra('vm2', COMPRESS, 'B', 3), PAIR),
    ('compression 255', extra('vm2', COMPRESS, 'B', 255), PAIR),
    ('own origin', lambda b: b.by['vm2'].extra.__setitem__(
        slice(56, 72), b.by['vm2'].extra[40:56]), PAIR),
    ('same UUID', lambda b: b.by['vm2'].extra.__setitem__(
        slice(40, 56), b.by['vm1'].extra[40:56]), PAIR),
    ('larger than the L1 table', extra('vm2', SIZE, 'Q', 1 << 40), PAIR),
    ('size 2^63', extra('vm2', SIZE, 'Q', 1 << 63), PAIR),
    ('size 2^64-1', extra('vm2', SIZE, 'Q', (1 << 64) - 1), PAIR),
    ('size 0', extra('vm2', SIZE, 'Q', 0), PAIR),
    ('odd size', extra('vm2', SIZE, 'Q', 12345), PAIR),
    ('extra data cut', cut_extra('vm2', 87), PAIR),
    ('extra data of QEMU 2', cut_extra('vm2', 16), PAIR),
    ('extra data longer', cut_extra('vm2', 1024), PAIR),
    ('extra data too long', cut_extra('vm2', 1025), PAIR),
    ('no L1 table', l1_off('vm2', lambda b: 0), PAIR),
    ('L1 table of another disk', l1_off('vm2', lambda b: b.by['vm1'].l1_off),
     PAIR),
    ('L1 table of the active disk', l1_off('vm2', lambda b: b.img.roots[0].l1_off),
     PAIR),
    ('refcount table', l1_off('vm2', lambda b: b.img.reftable_off), PAIR),
    ('refcount block', l1_off('vm2', lambda b: b.blocks[0]), PAIR),
    ('snapshot table', l1_off('vm2', lambda b: b.img.snapshots_off), PAIR),
    ('L1 table is an L2 table', l1_off('vm2', lambda b: b.table('vm1') * CLUSTER),
     PAIR),
    ('L1 table misaligned', l1_off('vm2', lambda b: b.by['vm2'].l1_off + 512),
     PAIR),
    ('L1 table past the end', l1_off('vm2', end_of), PAIR),
    ('L1 table at 2^63', l1_off('vm2', lambda b: 1 << 63), PAIR),
    ('empty L1 table', l1_entries('vm2', 0), PAIR),
    ('short L1 table', l1_entries('vm2', 1), PAIR),
    ('long L1 table', l1_entries('vm2', 4 << 20), PAIR),
    ('L1 table of 2^32-1', l1_entries('vm2', 0xffffffff), PAIR),
    ('disk twice', twice, PAIR),
    ('anchor is a disk', anchor_is_a_disk, PAIR),
    ('disk with the anchor\'s L1 table', two_anchors, PAIR),
    ('L2 table is the header', entry('vm2', 1, lambda b: CLUSTER * 0 | 512), PAIR),
    ('L2 table is a refcount block', entry('vm2', 1, lambda b: b.blocks[0]), PAIR),
    ('L2 table is the L1 table', entry('vm2', 1, lambda b: b.by['vm2'].l1_off),
     PAIR),
    ('L2 table is the snapshot table', entry('vm2', 1, lambda b:
                                             b.img.snapshots_off), PAIR),
    ('L2 table past the end', entry('vm2', 1, end_of), PAIR),
    ('L2 table misaligned', entry('vm2', 0, lambda b: b.table('vm2') * CLUSTER +
                                  512), PAIR),
    ('one L2 table twice', entry('vm2', 1, lambda b: b.table('vm2') * CLUSTER),
     PAIR),
    ('reserved bits in an L1 entry', entry('vm2', 0, lambda b: b.table('vm2') *
                                           CLUSTER | 0x7f000000000001ff), PAIR),
    ('table with refcount 0', refcount('vm1', 0, 0), PAIR),
    ('table with refcount 1', refcount('vm1', 0, 1), PAIR),
    ('table with refcount 99', refcount('vm1', 0, 99), PAIR),
    ('debt in a clean image', refcount('vm1', 0, 1 << 16 | 3), PAIR),
    ('debt of more than paths', refcount('vm1', 0, 9 << 16 | 3), PAIR),
    ('largest refcount', refcount('vm1', 0, 0xffffffff), PAIR),
    ('lent: nothing', lambda b: None, ()),
    ('lent: debt forgotten', refcount('vm1', 0, 3), PAIR),
    ('lent: debt as large as the paths', refcount('vm1', 0, 3 << 16 | 3), PAIR),
    ('lent: debt larger than the paths', refcount('vm1', 0, 70 << 16 | 3), PAIR),
    ('lent: largest refcount', refcount('vm1', 0, 0xffffffff), PAIR),
    ('lent: too few paths', refcount('vm1', 0, 1 << 16 | 2), PAIR),
    ('lent: one path', refcount('vm1', 0, 1), PAIR),
    ('lent: refcount 0', refcount('vm1', 0, 0), PAIR),
    ('lent: no paths', refcount('vm1', 0, 1 << 16), PAIR),
    ('lent: doomed', extra('vm2', FLAGS, 'I', 3), PAIR),
    ('lent: L1 table of another disk', l1_off('vm2', lambda b:
                                              b.by['vm1'].l1_off), PAIR),
    ('65,536 snapshots', many(65536, False, False), ()),
    ('65,536 disks without tables', many(65536, True, False), ()),
    ('65,536 disks', many(65536, True, True), ()),
    ('65,537 snapshots', many(65537, False, False), ()),
]

COMMANDS = [
    ('info',), ('check',), ('disk', 'list'), ('disk', 'list', '--sizes'),
    ('disk', 'info'), ('disk', 'info', '%', 'vm1'), ('disk', 'info', '%', 'vm2'),
    ('disk', 'export', '--force', '%', 'vm2', 'OUT'),
    ('disk', 'create', '%', 'n1', '1M'), ('disk', 'clone', '%', 'vm1', 'n1'),
    ('disk', 'clone', '--no-wait', '%', 'vm2', 'n1'),
    ('disk', 'snapshot', '%', 'vm2', 'n1'), ('disk', 'reset', '%', 'vm1', 'vm2'),
    ('disk', 'reset', '%', 'vm2', 'vm1'), ('disk', 'rename', '%', 'vm1', 'n1'),
    ('disk', 'resize', '%', 'vm2', '8M'),
    ('disk', 'resize', '--shrink', '%', 'vm1', '1M'),
    ('disk', 'delete', '%', 'vm1'), ('disk', 'delete', '%', 'vm2'),
    ('disk', 'import', '--force', '%', 'vm2', 'IN'), ('recover',),
    ('report', '%', '-o', 'OUT'), ('report', '%', '--output=json', '-o', 'OUT'),
]
FOR_MANY = [c for c in COMMANDS if c[:3] not in (
    ('disk', 'info', '%'), ('disk', 'reset', '%'), ('disk', 'snapshot', '%'))]


class Runs:
    def __init__(self, where):
        self.dir = where
        self.good = {}
        self.slowest = 0
        self.make()

    def make(self):
        """The clean pool, and one that was closed with debts."""
        path = os.path.join(self.dir, 'good.qcow2')
        p = Pool(path, 64 << 20)
        for name in ('vm1', 'vm3'):
            p.disk('create', name, '4M')
        p.start()
        for name in ('vm1', 'vm3'):
            h = p.connect(name)
            h.pwrite(content(NUMBERS[name]), 0)
            h.flush()
            h.shutdown()
        p.stop()
        p.disk('clone', 'vm1', 'vm2', options=['--no-wait'])
        p.disk('snapshot', 'vm1', 's', options=['--no-wait'])
        lent = os.path.join(self.dir, 'lent.qcow2')
        shutil.copy(path, lent)
        if not p.has_bit48():
            raise Wrong('no debts are left')
        p.settle()
        self.good = {False: path, True: lent}
        with open(os.path.join(self.dir, 'in.raw'), 'wb') as f:
            f.write(content(range(7000, 7300)))

    def measured(self, cmd):
        """Status and output, in bounded time and memory."""
        start = time.monotonic()
        out = os.path.join(self.dir, 'out')
        with open(out, 'wb') as f:
            p = subprocess.Popen(cmd, stdout=f, stderr=f)
            while p.poll() is None and time.monotonic() < start + SECONDS:
                time.sleep(0.002)
                if os.path.exists('/proc/%d/status' % p.pid):
                    self.bounded(p, cmd)
            if p.returncode is None:
                p.kill()
                raise Wrong('%s: takes more than %d s' % (cmd[1:], SECONDS))
        self.slowest = max(self.slowest, time.monotonic() - start)
        with open(out, errors='replace') as f:
            text = f.read()
        if p.returncode < 0 or p.returncode > 3 or 'Sanitizer' in text or \
                'runtime error' in text:
            raise Wrong('%s: status %d: %s' % (cmd[1:], p.returncode, text))
        return p.returncode, text

    def bounded(self, p, cmd):
        try:
            with open('/proc/%d/statm' % p.pid) as f:
                pages = int(f.read().split()[1])
        except (OSError, IndexError):
            return
        if pages * 4 > RSS_KIB:
            p.kill()
            raise Wrong('%s: takes %d KiB of memory' % (cmd[1:], pages * 4))

    def witness(self, path, what):
        """vm3 is as it was, if it can be read."""
        out = os.path.join(self.dir, 'vm3.raw')
        status, text = self.measured([TOOL, 'disk', 'export', '--force', path,
                                      'vm3', out])
        if status:
            return text
        with open(out, 'rb') as f:
            if f.read() != content(NUMBERS['vm3']):
                raise Wrong('%s: vm3 has other contents' % (what,))
        return None

    def one(self, bad, cmd, readable):
        path = os.path.join(self.dir, 'x.qcow2')
        shutil.copy(bad, path)
        words = [{'%': path, 'OUT': os.path.join(self.dir, 'out.raw'),
                  'IN': os.path.join(self.dir, 'in.raw')}.get(w, w) for w in cmd]
        if path not in words:
            words.append(path)
        status, text = self.measured([TOOL, *words])
        # check lists what it finds, recover is told by a line of its own.
        if status and cmd != ('check',):
            # Damage that is met on the way has lines of its own: one, and two for
            # each of the three disks whose tables are lent.
            lines = text.strip().split('\n')
            if len(lines) > 8 or not all('x.qcow2' in line and
                                         line.isprintable() for line in lines):
                raise Wrong('%s: status %d, %d lines: %s' %
                            (cmd, status, len(lines), text[:2000]))
        if readable:
            again = self.witness(path, cmd)
            if again:
                raise Wrong('%s: afterwards: %s' % (cmd, again))

    def served(self, bad, readonly):
        path = os.path.join(self.dir, 'x.qcow2')
        shutil.copy(bad, path)
        p = Pool.__new__(Pool)
        p.path, p.log, p.server = path, lambda line: None, None
        try:
            p.start(*['-r'] * readonly)
        except Wrong:
            lines = p.server_log().strip().split('\n')
            if len(lines) != 1 or 'x.qcow2' not in lines[0]:
                raise
            with open(path, 'rb') as f, open(bad, 'rb') as g:
                if f.read() != g.read():
                    raise Wrong('refused, and changed')
            return 'refused: ' + lines[0].split('x.qcow2')[1]
        try:
            self.clients(p, readonly)
            p.stop()
        finally:
            p.die()
        return 'served'

    def clients(self, p, readonly):
        for name in ('vm1', 'vm2', 'vm1@s', 'vm3', 'vm9', 'x1', 'x60000', ''):
            h = nbd.NBD()
            try:
                h.connect_uri(p.uri(name))
            except nbd.Error:
                continue
            size = min(h.get_size(), 4 << 20)
            for off in range(0, size, 1 << 20):
                n = min(1 << 20, size - off)
                self.attempt(h.pread, n, off)
                if not readonly and not h.is_read_only() and name != 'vm3':
                    self.attempt(h.pwrite, block(5) * (n // CLUSTER // 2),
                                 off)
                    self.attempt(h.trim, n // 4, off)
            if name == 'vm3' and h.pread(size, 0) != \
                    content(NUMBERS[name])[:size]:
                raise Wrong('vm3 has other contents while served')
            self.attempt(h.flush)
            h.shutdown()

    def attempt(self, fn, *args):
        """Errors are answers, an end of the server is none."""
        try:
            if not args or args[0]:
                fn(*args)
        except nbd.Error as e:
            if e.errno in ('ENOTCONN', 'ECONNRESET', 'EPIPE', None, ''):
                raise Wrong('the server is gone: %s' % e) from e

    def is_freed(self, disk, path):
        """A doomed disk is gone after the image was served, and its L1 table is
        free."""
        img = poolimg.Image(path)
        counts, _ = img.refcounts()
        if any(root.flags & DOOMED for root in img.roots):
            raise Wrong('there is a doomed disk still')
        if counts.get(disk.l1_off // CLUSTER):
            raise Wrong('the L1 table of a doomed disk is not free')
        if img.incompatible & poolimg.RECOVERY:
            raise Wrong('it is not closed cleanly')

    def is_kept(self, disk, path):
        """A disk with a setting of compression that is not known is stored as the
        pool says, and keeps the setting when it is written to, and when its entry is
        written anew."""
        text = subprocess.run([TOOL, 'disk', 'info', '--output=json', path, 'vm2'],
                              check=True, stdout=subprocess.PIPE).stdout
        if b'"compress-source": "pool"' not in text:
            raise Wrong('it is not as the pool: %s' % text)
        subprocess.run([TOOL, 'disk', 'rename', path, 'vm2', 'vm7'], check=True)
        after = Bad(path).by['vm7'].extra[COMPRESS]
        if after != disk.extra[COMPRESS]:
            raise Wrong('the setting has become %d' % after)

    def case(self, name, change, _):
        bad = os.path.join(self.dir, 'bad.qcow2')
        shutil.copy(self.good[name.startswith('lent')], bad)
        b = Bad(bad)
        before = b.entries_as_bytes()
        change(b)
        if b.entries_as_bytes() != before:
            b.save()
        readable = self.witness(bad, 'as it is') is None
        self.slowest = 0
        results = [self.served(bad, True), self.served(bad, False)]
        if name.startswith('L2 table') and results[1] == 'served':
            raise Wrong('it is written to')
        if 'compression' in name:
            self.is_kept(b.by['vm2'], os.path.join(self.dir, 'x.qcow2'))
        if 'doomed' in name:
            self.is_freed(b.by['vm2'], os.path.join(self.dir, 'x.qcow2'))
        many_of = len(b.entries) > 1000
        for cmd in FOR_MANY if many_of else COMMANDS:
            self.one(bad, cmd, readable)
        print('%s: %s; %s; at most %.1f s' % (name, *results, self.slowest))
        sys.stdout.flush()


def main(where, only):
    r = Runs(where)
    failed = 0
    for c in CASES:
        if only and c[0] not in only:
            continue
        try:
            r.case(*c)
        except (Wrong, nbd.Error) as e:
            failed += 1
            print('FAIL: %s: %s' % (c[0], e))
            sys.stdout.flush()
    sys.exit(failed > 0)


if __name__ == '__main__':
    main(sys.argv[1], sys.argv[2:])
