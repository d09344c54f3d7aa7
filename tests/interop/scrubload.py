#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""A disk whose clusters are scrubbed while clients write beside it.  Its blocks of
4 KiB have contents that follow from their numbers and SEED.

scrubload.py fill SOCKET CONTROL BLOCKS SEED: makes the disk "base" and writes it.
scrubload.py places POOL BLOCKS FILE: writes to FILE where the closed POOL stores
each block of "base": 8 bytes each.
scrubload.py run SOCKET CONTROL POOL LOG BLOCKS SEED FILE SECONDS ROTTEN: scrubs
the served POOL one time after the other, for SECONDS and three times at least,
while three clients write.  Between the scrubs blocks of "base" rot, and some are
healed.  Each finding must be a rotten block, and each rotten block must be found.
ROTTEN gets the places that are rotten at the end, one a line.

Blocks with an even number may be written again by clients, so that they heal by
themselves; those with an odd number are in "base" and its clones only.
"""
import array
import hashlib
import mmap
import os
import random
import re
import sys
import time
import traceback

import nbd

from controlclient import Client

SIZE = 4096
CHUNK = 256                     # blocks that are written at once
CLIENTS = 3
REST = .01                      # seconds at most between two requests
HOT = 8192                      # blocks that are rewritten all the time
SPEED = 16 << 20                # bytes a second that scrubs read of a small disk
COMMON = 3000                   # contents that all clients write


def content(seed, kind, k):
    name = f'{seed} {kind} {k}'.encode()
    return hashlib.shake_128(name).digest(SIZE)


def connect(socket, name):
    h = nbd.NBD()
    h.set_export_name(name)
    h.connect_unix(socket)
    return h


def in_child(work, *args):
    """Runs WORK in a process of its own; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work(*args)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def wait_for(pids, how=0):
    for pid in pids:
        ended, status = os.waitpid(pid, how)
        if ended and (status or how):
            sys.exit('FAIL: a client ended with status %d' % status)


# --- Fill --------------------------------------------------------------------


def fill_part(socket, blocks, seed, part, parts):
    h = connect(socket, 'base')
    for k in range(part * CHUNK, blocks, parts * CHUNK):
        n = min(CHUNK, blocks - k)
        h.pwrite(b''.join(content(seed, 'base', i) for i in range(k, k + n)),
                 k * SIZE)
    h.shutdown()


def fill(socket, control, blocks, seed):
    Client(control).ok('disk-create', name='base', size=int(blocks) * SIZE)
    wait_for([in_child(fill_part, socket, int(blocks), seed, i, 2)
              for i in range(2)])
    h = connect(socket, 'base')
    h.flush()
    h.shutdown()


# --- Places ------------------------------------------------------------------


def places(pool, blocks, out):
    from poolimg import Image, OFFSETS
    img = Image(pool)
    root, = [r for r in img.roots if r.name == 'base']
    found = array.array('Q')
    for e in img.words(root.l1_off, root.l1_entries):
        if len(found) < int(blocks):
            found.extend(p & OFFSETS
                         for p in img.words(e & OFFSETS, img.cluster // 8))
    del found[int(blocks):]
    assert img.cluster == SIZE and len(set(found)) == len(found)
    assert min(found) > 0
    with open(out, 'wb') as f:
        found.tofile(f)


# --- Clients -----------------------------------------------------------------


class Disk:
    """A clone of "base", and the contents of the blocks that were written since."""

    def __init__(self, run, client, name):
        self.run, self.client, self.name = run, client, name
        self.h = connect(run.socket, name)
        self.ids = {}

    def bytes_of(self, k):
        """The content of block K; None: it may be rotten."""
        ident = self.ids.get(k, ('base', k))
        if ident is None:
            return bytes(SIZE)
        if ident[0] == 'base' and self.run.touched[ident[1]]:
            return None
        return content(self.run.seed, *ident)

    def some_blocks(self, rng):
        n = 1 << rng.randrange(6)
        hot = self.client.number == 0 or rng.random() < .7
        end = min(HOT, self.run.blocks // 2) if hot else self.run.blocks
        first = rng.randrange(end - n)
        return range(first, first + n)

    def new_id(self, rng):
        kind = rng.random()
        if kind < .55:
            self.client.nr += 1
            return 'own %d' % self.client.number, self.client.nr
        if kind < .8:
            return 'common', rng.randrange(COMMON)
        if kind < .95:
            return 'base', rng.randrange(0, self.run.blocks, 2)
        return None

    def write(self, rng):
        ks = self.some_blocks(rng)
        ids = [self.new_id(rng) for _ in ks]
        data = b''.join(content(self.run.seed, *i) if i else bytes(SIZE)
                        for i in ids)
        self.h.pwrite(data, ks[0] * SIZE)
        self.ids.update(zip(ks, ids))

    def trim(self, rng):
        ks = self.some_blocks(rng)
        self.h.trim(len(ks) * SIZE, ks[0] * SIZE)
        self.ids.update((k, None) for k in ks)

    def check(self, ks):
        data = self.h.pread(len(ks) * SIZE, ks[0] * SIZE)
        for i, k in enumerate(ks):
            want = self.bytes_of(k)
            got = bytes(data[i * SIZE:(i + 1) * SIZE])
            if want is not None and got != want and self.bytes_of(k) is not None:
                sys.exit('FAIL: block %d of %s is wrong' % (k, self.name))

    def check_written(self):
        for k in sorted(self.ids):
            self.check(range(k, k + 1))

    def work(self, rng):
        what = rng.random()
        if what < .7:
            self.write(rng)
        elif what < .8:
            self.trim(rng)
        elif what < .97:
            self.check(self.some_blocks(rng))
        else:
            self.h.flush()


class Writer:
    """Writes to a disk of its own.  The first one overwrites few blocks all the time,
    so that clusters that were read are freed and used again; the others write to clones of theirs,
    too, and delete these."""

    def __init__(self, run, number):
        self.run, self.number, self.nr = run, number, 0
        self.rng = random.Random('%s %d' % (run.seed, number))
        self.control = Client(run.control)
        self.disk = Disk(run, self, 'w%d' % number)

    def use_clone(self, i):
        name = 'c%d-%d' % (self.number, i)
        self.control.ok('disk-clone', source=self.disk.name, name=name)
        clone = Disk(self.run, self, name)
        clone.ids = dict(self.disk.ids)
        for _ in range(20):
            clone.work(self.rng)
        clone.h.shutdown()
        self.control.ok('disk-delete', name=name, force=True)

    def keep_snapshot(self, i):
        name = self.disk.name
        self.control.ok('disk-snapshot', name=name, snapshot='s%d' % i)
        if i > 3:
            self.control.ok('disk-delete', name='%s@s%d' % (name, i - 3))

    def work(self):
        rounds = 0
        while not self.run.stop[0]:
            self.disk.work(self.rng)
            if self.number > 0:
                time.sleep(self.rng.random() * REST)
            rounds += 1
            if self.number > 0 and rounds % 150 == 0:
                self.use_clone(rounds // 150)
            if self.number > 0 and rounds % 400 == 0:
                self.keep_snapshot(rounds // 400)
        self.disk.check_written()
        self.disk.h.flush()
        print('-- client %d: %d requests, %d blocks' %
              (self.number, rounds, len(self.disk.ids)))


# --- Rot ---------------------------------------------------------------------


class Rot:
    def __init__(self, run):
        self.run = run
        self.rng = random.Random(run.seed)
        self.fd = os.open(run.pool, os.O_RDWR)
        self.blocks = set()         # that are rotten, or were

    def read(self, k):
        return os.pread(self.fd, SIZE, self.run.places[k])

    def write(self, k, data):
        os.pwrite(self.fd, data, self.run.places[k])
        self.blocks.add(k)

    def let_rot(self, nr):
        """Four blocks each: a bit, zeroes, and two that change places."""
        for _ in range(nr):
            ks = []
            while len(ks) < 4:
                k = self.rng.randrange(self.run.blocks)
                if not self.run.touched[k]:
                    self.run.touched[k] = 1
                    ks.append(k)
            a, b, c, d = ks
            data = bytearray(self.read(a))
            data[self.rng.randrange(SIZE)] ^= 1 << self.rng.randrange(8)
            self.write(a, bytes(data))
            self.write(b, bytes(SIZE))
            data = self.read(c)
            self.write(c, self.read(d))
            self.write(d, data)
        os.fsync(self.fd)

    def heal(self, h):
        """Writes what half of the odd blocks have lost to another disk."""
        odd = sorted(k for k in self.blocks if k % 2)
        for i, k in enumerate(odd[::2]):
            h.pwrite(content(self.run.seed, 'base', k), i * SIZE)
            self.blocks.remove(k)
        return len(odd[::2])

    def still(self, h):
        """The places of blocks that read wrong; H is "base"."""
        return {self.run.places[k]: k for k in self.blocks
                if bytes(h.pread(SIZE, k * SIZE)) !=
                content(self.run.seed, 'base', k)}


# --- Run ---------------------------------------------------------------------


class Run:
    def __init__(self, socket, control, pool, log, blocks, seed, placed):
        self.socket, self.control, self.pool = socket, control, pool
        self.log, self.blocks, self.seed = log, int(blocks), seed
        self.places = array.array('Q')
        with open(placed, 'rb') as f:
            self.places.fromfile(f, self.blocks)
        self.stop = mmap.mmap(-1, 1)                 # shared with the clients
        self.touched = mmap.mmap(-1, self.blocks)    # 1: rotten, or was

    def summary(self):
        """The figures of the last scrub that the log has."""
        with open(self.log) as f:
            line = [s for s in f if 'clusters are good' in s][-1]
        return [int(n) for n in re.findall(r'(\d+) (?:clusters|have|cannot|were|'
                                           r'are doubt)', line)]

    def scrub(self, c):
        """The findings of a scrub, and its figures."""
        c.ok('scrub', restart=True, speed=0 if self.blocks > 100000 else SPEED)
        while any(j['type'] == 'scrub' for j in c.ok('query-jobs')):
            time.sleep(.05)
        found = c.take_events('SCRUB_FINDING')
        c.events.clear()
        return found, self.summary()


def judge(found, figures, rot, still_before, still_after):
    """Each finding is rotten; each block that was rotten all the time is found."""
    ever = {rot.run.places[k] for k in range(rot.run.blocks)
            if rot.run.touched[k]}
    at = {f['host-offset'] for f in found}
    if not at <= ever:
        sys.exit('FAIL: called bad without being rotten: %r' % (at - ever))
    shown = {(f['host-offset'], f['offset']) for f in found
             if f.get('export') == 'base'}
    for place, k in still_before.items():
        if place in still_after and (place, k * SIZE) not in shown:
            sys.exit('FAIL: block %d at %#x is rotten and was not found' %
                     (k, place))
    good, different, unreadable, _, changed, doubtful = figures
    assert different == len(at), (different, len(at))
    assert unreadable == doubtful == 0, figures
    print('-- %d clusters are good, %d bad, %d changed meanwhile' %
          (good, different, changed), flush=True)
    return good


def check_log(run):
    """Nobody called another cluster bad, neither a scrub nor a writer."""
    ever = {run.places[k] for k in range(run.blocks) if run.touched[k]}
    with open(run.log) as f:
        for line in f:
            m = re.search(r'cluster at (0x[0-9a-f]+) (has|cannot)', line)
            if m and int(m.group(1), 16) not in ever:
                sys.exit('FAIL: ' + line)


def run_all(socket, control, pool, log, blocks, seed, placed, seconds, rotten):
    run = Run(socket, control, pool, log, blocks, seed, placed)
    c = Client(control)
    for i in range(CLIENTS):
        c.ok('disk-clone', source='base', name='w%d' % i)
    c.ok('disk-create', name='healer', size=run.blocks * SIZE)
    pids = [in_child(lambda i: Writer(run, i).work(), i)
            for i in range(CLIENTS)]
    base, healer = connect(socket, 'base'), connect(socket, 'healer')
    rot = Rot(run)
    end, scrubs, good, healed = time.monotonic() + int(seconds), 0, 0, 0
    while scrubs < 3 or time.monotonic() < end:
        before = rot.still(base)
        found, figures = run.scrub(c)
        good += judge(found, figures, rot, before, rot.still(base))
        scrubs += 1
        wait_for(pids, os.WNOHANG)
        if scrubs % 2:
            rot.let_rot(2)
        else:
            healed += rot.heal(healer)
    run.stop[0] = 1
    wait_for(pids)
    check_log(run)
    if c.ok('query-scrub')['healed-clusters'] < healed:
        sys.exit('FAIL: not all was healed')
    with open(rotten, 'w') as f:
        for place in sorted(rot.still(base)):
            f.write('%d\n' % place)
    print('-- %d scrubs judged %d clusters, %d were healed' %
          (scrubs, good, healed))


{'fill': fill, 'places': places, 'run': run_all}[sys.argv[1]](*sys.argv[2:])
