#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""rot.py index|tables DIR CASES SEED: damages a copy of an image, one place at
a time, serves it, works on it, closes it, and checks it; for as many places as
CASES says, chosen at random.  Environment: PLUGIN, TOOL, NBDKIT_PRELOAD.

index: configuration, journal and incarnations of a clean image: bytes
    flipped, parts deleted or overwritten, replaced by those of another image
    and by older ones of this image.  The server must start, contents must be
    right throughout, and the image it closes must be clean.
tables: L1, L2, refcounts: `qcow2-dedup check` must report it; a server must
    neither crash nor harm any cluster that the damaged place does not map.
    It may refuse to start, and answer EIO.  Clusters are not written to that
    share a host cluster which is counted too low but more than once: see
    counted_too_low.
"""
import collections
import errno
import os
import random
import shutil
import struct
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, '..', 'interop'))
# pylint: disable=wrong-import-position
import nbd
import nbdclient
from model import content
from storeimg import Image, OFFSETS

CLUSTER = 4096
CLUSTERS = 3072                 # of the disk: 12 MiB, 6 L2 tables
SIZE = CLUSTERS * CLUSTER
CRASH = ('Assertion', 'Sanitizer', 'runtime error:', 'Segmentation')


class Failure(Exception):
    pass


class Server:
    """The plugin on a file; STARTED false: it refused."""

    def __init__(self, directory, path):
        sock = os.path.join(directory, 'rot.sock')
        pidfile = os.path.join(directory, 'rot.pid')
        for p in (sock, pidfile):
            if os.path.exists(p):
                os.unlink(p)
        env = dict(os.environ)
        if env.get('NBDKIT_PRELOAD'):
            env['LD_PRELOAD'] = env['NBDKIT_PRELOAD']
        self.log = open(os.path.join(directory, 'rot.log'), 'w+')
        self.proc = subprocess.Popen(
            ['nbdkit', '-f', '-U', sock, '--pidfile', pidfile,
             os.environ['PLUGIN'], path], env=env, stderr=self.log)
        while self.proc.poll() is None and not os.path.exists(pidfile):
            time.sleep(0.005)
        self.started = self.proc.poll() is None
        self.h = None
        if self.started:
            self.h = nbdclient.connect('nbd+unix:///?socket=' + sock)

    def said(self):
        self.log.seek(0)
        return self.log.read()

    def stop(self):
        """The exit status."""
        if self.h and self.proc.poll() is None:
            self.h.shutdown()
        if self.proc.poll() is None:
            self.proc.terminate()
        try:
            status = self.proc.wait(timeout=30)
        except subprocess.TimeoutExpired as e:
            self.proc.kill()
            raise Failure('does not end') from e
        said = self.said()
        self.log.close()
        if status < 0 or status > 1 or any(c in said for c in CRASH):
            raise Failure('ended with %d: %s' % (status, said[-1500:]))
        return status


class Disk:
    """Contents as they should be, and an image with them."""

    def __init__(self, directory, name, seed):
        self.directory = directory
        self.path = os.path.join(directory, name)
        self.rng = random.Random(seed)
        self.data = bytearray(SIZE)
        run([os.environ['TOOL'], 'create', '-o',
             'log-store-order=5,journal-areas=3', self.path, str(SIZE)])

    def put(self, h, cluster, number):
        data = content(number)
        h.pwrite(data, cluster * CLUSTER)
        self.data[cluster * CLUSTER:(cluster + 1) * CLUSTER] = data

    def work(self, seed, n):
        """Writes, some of equal data, in one session."""
        s = Server(self.directory, self.path)
        for i in range(n):
            number = self.rng.choice((seed * 10000 + i, seed * 10000 + i,
                                      1 + self.rng.randrange(200)))
            # Sparse, so that there are clusters without data.
            self.put(s.h, self.rng.randrange(CLUSTERS) | 1, number)
        s.h.flush()
        time.sleep(0.3)         # freezing goes on behind our back
        s.stop()


def run(cmd):
    """Status and output."""
    p = subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                       check=False)
    out = p.stdout.decode(errors='replace')
    if p.returncode < 0 or any(c in out for c in CRASH):
        raise Failure('%s: status %d: %s' % (cmd, p.returncode, out[-1000:]))
    return p.returncode, out


def read_all(h):
    """Contents, and the clusters that cannot be read."""
    bad, out = set(), bytearray()
    for at in range(0, SIZE, 1 << 20):
        n = min(1 << 20, SIZE - at)
        try:
            out += h.pread(n, at)
            continue
        except nbd.Error as e:
            if e.errnum != errno.EIO:
                raise Failure('read: %s' % e) from e
        for c in range(at // CLUSTER, (at + n) // CLUSTER):
            try:
                out += h.pread(CLUSTER, c * CLUSTER)
            except nbd.Error:
                out += bytes(CLUSTER)
                bad.add(c)
    return out, bad


def compare(data, h, except_for, strict):
    got, bad = read_all(h)
    if strict and bad:
        raise Failure('clusters %s cannot be read' % sorted(bad)[:9])
    wrong = [c for c in range(CLUSTERS)
             if c not in except_for and c not in bad and
             got[c * CLUSTER:(c + 1) * CLUSTER] !=
             data[c * CLUSTER:(c + 1) * CLUSTER]]
    if wrong:
        raise Failure('clusters %s are wrong' % wrong[:9])


def load(h, disk, data, rng, except_for, strict):
    """Duplicates of what is there, new data, zeroes, trims; but not in the
    clusters EXCEPT_FOR."""
    for _ in range(60):
        c = rng.randrange(CLUSTERS)
        if c in except_for:
            continue
        kind = rng.random()
        if kind < 0.5:
            d = rng.randrange(CLUSTERS)
            new = bytes(disk.data[d * CLUSTER:(d + 1) * CLUSTER])
        elif kind < 0.85:
            new = content(rng.randrange(1 << 59, 1 << 60))
        else:
            new = bytes(CLUSTER)
        try:
            if kind < 0.95:
                h.pwrite(new, c * CLUSTER)
            else:
                h.trim(CLUSTER, c * CLUSTER)
        except nbd.Error as e:
            if strict or e.errnum not in (errno.EIO, errno.EPERM,
                                          errno.EROFS, errno.ENOSPC):
                raise Failure('write: %s' % e) from e
            continue
        data[c * CLUSTER:(c + 1) * CLUSTER] = new


def serve(disk, path, rng, data, except_for=(), strict=True, unwritten=()):
    """One session on a damaged image, whose contents are DATA; returns what the
    server said, and if what was written is certainly there in the next session.
    Clusters EXCEPT_FOR are neither written nor compared, those UNWRITTEN are
    compared only."""
    with open(path, 'rb') as f:
        before = f.read()
    s = Server(disk.directory, path)
    try:
        if not s.started:
            if strict:
                raise Failure('does not start')
            if os.path.basename(path) not in s.said() or \
               len(s.said().strip().splitlines()) > 2:
                raise Failure('no clear refusal')
            with open(path, 'rb') as f:
                if f.read() != before:
                    raise Failure('refused, and changed')
            return 'refused', False
        compare(data, s.h, except_for, strict)
        load(s.h, disk, data, rng, set(except_for) | set(unwritten), strict)
        time.sleep(rng.choice((0, 0, 0.05)))
        compare(data, s.h, except_for, strict)
        try:
            s.h.flush()
        except nbd.Error as e:
            if strict:
                raise Failure('flush: %s' % e) from e
            return s.said(), False
        return s.said(), True
    except Failure as e:
        raise Failure('%s (server: %s)' % (e, s.said()[-800:])) from e
    finally:
        s.stop()


# --- damage to the index ----------------------------------------------------

def flip(f, off):
    f.seek(off)
    b = f.read(1) or b'\0'
    f.seek(off)
    f.write(bytes([b[0] ^ 0xff]))


def fill(f, rng, off, n, garbage):
    f.seek(off)
    f.write(rng.randbytes(n) if garbage else bytes(n))


def parts(img):
    """(name, offset, length) of everything in the store."""
    img.config()
    found = [('config %d' % i, off, n)
             for i, (off, n, _) in enumerate(img.slots())]
    used = img.last_block()
    for i, a in enumerate(img.areas):
        n = max(1, min(a.nr_blocks, used + 1 - a.first_seq)) \
            if a.first_seq <= used else 1
        found.append(('journal area %d' % i, a.host_off, n * 4096))
    found += [('incarnation %d' % i.id, i.host_off, i.size)
              for i in img.incarnations]
    return found


def transplant(f, img, donor):
    """All of another image's store, as far as it fits, over this one's."""
    theirs = dict((name, (off, n)) for name, off, n in parts(donor))
    for name, off, n in parts(img):
        if name in theirs:
            f.seek(off)
            f.write(donor.read(theirs[name][0], min(n, theirs[name][1])))


def same_places(f, img, donor):
    """What the donor has at the places of this image's store."""
    for _, off, n in parts(img):
        f.seek(off)
        f.write(donor.read(off, n))


def index_cases(rng, img, other, older, cases):
    """(name, function of an open file)."""
    store = parts(img)
    yield 'store of another image', lambda f: transplant(f, img, other)
    yield 'places of another image', lambda f: same_places(f, img, other)
    yield 'older store', lambda f: transplant(f, img, older)
    yield 'older bytes', lambda f: same_places(f, img, older)
    yield 'everything deleted', \
        lambda f: [fill(f, rng, o, n, False) for _, o, n in store]
    yield 'everything garbage', \
        lambda f: [fill(f, rng, o, n, True) for _, o, n in store]
    for name, off, n in store:
        yield name + ' deleted', \
            lambda f, o=off, n=n: fill(f, rng, o, n, False)
        yield name + ' garbage', \
            lambda f, o=off, n=n: fill(f, rng, o, n, True)
    incarnations = [p for p in store if p[0].startswith('inc')]
    if not incarnations:
        raise Failure('the image has no table of the index to damage')
    if len(incarnations) > 1:   # each in the next one's place
        def rotate(f):
            bytes_of = [img.read(o, n) for _, o, n in incarnations]
            for (_, off, _), b in zip(incarnations,
                                      bytes_of[1:] + bytes_of[:1]):
                f.seek(off)
                f.write(b)
        yield 'incarnations exchanged', rotate
    while cases > 0:
        name, off, n = rng.choice(store)
        at = off + rng.randrange(min(n, rng.choice((150, 4096, n))))
        yield '%s, byte %d' % (name, at - off), lambda f, a=at: flip(f, a)
        cases -= 1


def closed_clean(path):
    """Guest data and refcounts are right; a damaged part of the index may
    still be there, and be told."""
    status, out = run(['qemu-img', 'check', path])
    if status != 0:
        raise Failure('qemu-img check after it: %s' % out[-600:])
    status, out = run([os.environ['TOOL'], 'check', path])
    if status != 0 and (status != 2 or 'deduplication store' not in out or
                        'Corruptions:' in out):
        raise Failure('check after it: %d %s' % (status, out[-600:]))


def index(disk, directory, cases, seed):
    rng = random.Random(seed)
    disk.work(1, 500)
    older_path = os.path.join(directory, 'older')
    shutil.copyfile(disk.path, older_path)
    disk.work(2, 500)
    other = Disk(directory, 'other', 99)
    other.work(7, 1000)
    img, victim = Image(disk.path), os.path.join(directory, 'victim')
    tally = collections.Counter()
    for name, damage in index_cases(rng, img, Image(other.path),
                                    Image(older_path), cases):
        shutil.copyfile(disk.path, victim)
        with open(victim, 'r+b') as f:
            damage(f)
        try:
            status, out = run([os.environ['TOOL'], 'info', victim])
            if status != 0:
                raise Failure('info fails')
            if name.startswith('everything') and 'index cannot be used' not in out:
                raise Failure('info does not say what happened')
            status, _ = run([os.environ['TOOL'], 'check', victim])
            tally['check said so' if status else 'check saw nothing'] += 1
            said, _ = serve(disk, victim, rng, bytearray(disk.data))
            tally['server said so' if said else 'server said nothing'] += 1
            closed_clean(victim)
        except Failure as e:
            raise SystemExit('seed %d, %s: %s' % (seed, name, e)) from e
        tally['cases'] += 1
    print(dict(tally))


# --- damage to the tables ---------------------------------------------------

def table_cases(rng, img, cases):
    """(name, offset of the byte, clusters it maps)."""
    l2, refs = img.l2_tables(), img.refblocks()
    per = CLUSTER // 8
    used = os.stat(img.f.name).st_size // CLUSTER
    for _ in range(cases):
        kind = rng.choice(('L1', 'L2', 'L2', 'L2', 'refcount table',
                           'refcounts', 'refcounts', 'refcounts'))
        if kind == 'L1':
            i = rng.randrange(len(l2) * 8)
            yield kind, img.l1_off + i, \
                range(i // 8 * per, (i // 8 + 1) * per)
        elif kind == 'L2':
            t, i = rng.randrange(len(l2)), rng.randrange(CLUSTER)
            yield kind, l2[t] + i, [t * per + i // 8]
        elif kind == 'refcount table':
            yield kind, img.reftable_off + rng.randrange(len(refs) * 8), ()
        else:
            yield kind, refs[0] + rng.randrange(used * 2), ()


def damage_byte(f, rng, off):
    """Invert it, clear it, or flip a bit; returns the bits that changed."""
    f.seek(off)
    b = (f.read(1) or b'\0')[0]
    new = rng.choice((b ^ 0xff, 0, b ^ 1 << rng.randrange(8)))
    if new == b:
        new = b ^ 0xff
    f.seek(off)
    f.write(bytes([new]))
    return b ^ new


def may_pass(img, kind, off, bits):
    """Nobody can tell a zero flag or a compressed flag from a wrong one; and
    COPIED says nothing where nothing is mapped."""
    unmapped = not any(img.read(off // 8 * 8, 8))
    return kind == 'L2' and (off % 8 == 7 and bits == 1 or
                             off % 8 == 0 and bits == 0x40 or
                             off % 8 == 0 and bits == 0x80 and unmapped)


def counted_too_low(img, kind, off, victim):
    """The guest clusters that share the host cluster whose refcount the byte
    at OFF is part of, if that became too low, but not below 2.

    Nobody can tell such a count from a right one without reading all L2
    tables.  As these clusters are overwritten, the count says too early that
    no reference is left, and the host cluster is used again while some still
    name it.  (A count of 1 is noticed: then an entry should not exist.)"""
    if kind != 'refcounts':
        return []
    with open(victim, 'rb') as f:
        f.seek(off // 2 * 2)
        is_now, = struct.unpack('>H', f.read(2).ljust(2, b'\0'))
    was, = struct.unpack('>H', img.read(off // 2 * 2, 2))
    if not 2 <= is_now < was:
        return []
    host = (off - img.refblocks()[0]) // 2
    per = CLUSTER // 8
    return [t * per + i for t, l2 in enumerate(img.l2_tables())
            for i, e in enumerate(img.entries(l2, per))
            if e & OFFSETS == host * CLUSTER]


def tables(disk, directory, cases, seed):
    rng = random.Random(seed)
    disk.work(1, 1000)
    img, victim = Image(disk.path), os.path.join(directory, 'victim')
    tally = collections.Counter()
    for kind, off, mapped in table_cases(rng, img, cases):
        shutil.copyfile(disk.path, victim)
        with open(victim, 'r+b') as f:
            bits = damage_byte(f, rng, off)
        try:
            status, out = run([os.environ['TOOL'], 'check', victim])
            if may_pass(img, kind, off, bits):
                tally['cannot be told'] += 1
            elif status not in (2, 3) and not (status == 1 and out):
                raise Failure('check says %d: %s' % (status, out[-600:]))
            low = counted_too_low(img, kind, off, victim)
            data = bytearray(disk.data)
            said, flushed = serve(disk, victim, rng, data, set(mapped), False,
                                  low)
            if flushed:         # what was freed is used again by now
                serve(disk, victim, rng, data, set(mapped), False, low)
            tally[kind] += 1
            tally['counted too low'] += low != []
            tally['refused' if said == 'refused' else
                  'served, said so' if said else 'served'] += 1
        except Failure as e:
            raise SystemExit('seed %d, %s, byte %d (%d): %s' % (
                seed, kind, off, off % CLUSTER, e)) from e
    print(dict(tally))


def main():
    what, directory, cases, seed = sys.argv[1:5]
    disk = Disk(directory, 'disk', int(seed))
    {'index': index, 'tables': tables}[what](disk, directory, int(cases),
                                             int(seed))


main()
