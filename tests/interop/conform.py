#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""conform.py PLUGIN TOOL DIR: serves images of every kind that qemu-img can
make and compares them with QEMU's own view of them.

Each case is an image built by qemu-img and qemu-io from a seed.  It is served
read-only: every byte must be what `qemu-img convert` says, extents must not
contradict `qemu-img map`, and the file must not change.  Then it is served for
writing, and the same random operations go through the server and, with
qemu-io, to a twin: contents must stay the same, over NBD and in the file, of
the disk and of each internal snapshot, and `qemu-img check` must find no
errors.

Environment: CONFORM_SEED (printed), CONFORM_SECONDS (for how long to begin
further cases, 45), CONFORM_ALL=1 (the whole product, however long),
CONFORM_CASE (one case, as a failure prints it), CONFORM_SKIP (begin after so
many cases), CONFORM_GO_ON=1 (do not end at the first failure)."""
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time

import nbd

import conformimg
from conformimg import run

PLUGIN, TOOL, DIR = sys.argv[1:4]


class Failure(Exception):
    """What is wrong with a case."""


def expect(cond, what):
    if not cond:
        raise Failure(what)


# --- The server -----------------------------------------------------------

class Server:
    """One nbdkit with the plugin on a Unix socket, and a connection to it."""

    def __init__(self, image, *args):
        self.sock = os.path.join(DIR, 'sock')
        self.pid = os.path.join(DIR, 'pid')
        self.log = os.path.join(DIR, 'log')
        for f in (self.sock, self.pid):
            if os.path.exists(f):
                os.unlink(f)
        env = dict(os.environ)
        if env.get('CONFORM_PRELOAD'):
            env['LD_PRELOAD'] = env['CONFORM_PRELOAD']
        flags = [a for a in args if a.startswith('-')]
        keys = [a for a in args if not a.startswith('-')]
        with open(self.log, 'w', encoding='utf-8') as log:
            self.proc = subprocess.Popen(
                ['nbdkit', '-f', '-U', self.sock, '--pidfile', self.pid,
                 *flags, PLUGIN, image, 'backing=any', *keys], stdout=log, stderr=log,
                env=env)
        deadline = time.monotonic() + 60
        while not (os.path.exists(self.pid) and os.path.getsize(self.pid)):
            expect(self.proc.poll() is None and time.monotonic() < deadline,
                   'does not start: ' + self.said())
            time.sleep(0.01)
        self.h = nbd.NBD()
        self.h.add_meta_context('base:allocation')
        self.h.connect_unix(self.sock)

    def said(self):
        with open(self.log, encoding='utf-8', errors='replace') as f:
            return f.read()

    def contents(self):
        out, size = bytearray(), self.h.get_size()
        while len(out) < size:
            out += self.h.pread(min(4 << 20, size - len(out)), len(out))
        return bytes(out)

    def extents(self):
        """[(offset, length, zero)] of the disk."""
        out, at, size = [], 0, self.h.get_size()

        def cb(_context, off, entries, _err):
            for n, flags in zip(entries[::2], entries[1::2]):
                out.append((off, n, bool(flags & nbd.STATE_ZERO)))
                off += n
        while at < size:
            self.h.block_status(min(size - at, 1 << 30), at, cb)
            at = out[-1][0] + out[-1][1]
        return out

    def stop(self):
        self.h.shutdown()
        self.proc.terminate()
        expect(self.proc.wait() == 0, 'ends badly: ' + self.said())

    def kill(self):
        self.proc.kill()
        self.proc.wait()


# --- Comparisons ------------------------------------------------------------

def same(got, want, what):
    if got == want:
        return
    expect(len(got) == len(want),
           f'{what}: {len(got)} bytes instead of {len(want)}')
    at = next(i for i in range(0, len(got), 512)
              if got[i:i + 512] != want[i:i + 512])
    raise Failure(f'{what}: differs at {at:#x}')


def is_hole(image, q):
    """Does the host's file system say that this extent of qemu-img map is one?
    Some have them where others have zeroes."""
    if not q['data'] or q['depth'] > 0:
        return False
    with open(image, 'rb') as f:
        try:
            data = os.lseek(f.fileno(), q['offset'], os.SEEK_DATA)
        except OSError:                 # ENXIO: none up to the end
            return True
    return data >= q['offset'] + q['length']


def check_extents(case, server, image):
    """Where we say zero QEMU must too; where QEMU says zero we may say data
    only if it knows that from a file below."""
    qemu = json.loads(run('qemu-img', 'map', '-U', '--output=json', image))
    ours = server.extents()
    expect(sum(e[1] for e in ours) == server.h.get_size(), 'extents: a gap')
    lax = case.extents_lax()
    j = 0
    for off, n, zero in ours:
        at = off
        while at < off + n:
            while qemu[j]['start'] + qemu[j]['length'] <= at:
                j += 1
            q = qemu[j]
            end = min(off + n, q['start'] + q['length'])
            expect(not zero or q['zero'],
                   f'extents: {at:#x} is no zero for qemu-img map')
            expect(zero or not q['zero'] or lax or q['depth'] > 0 and
                   case.backing_is_raw() or is_hole(image, q),
                   f'extents: {at:#x} is zero for qemu-img map')
            at = end


def check_file(image):
    r = subprocess.run(['qemu-img', 'check', image], capture_output=True,
                       text=True, check=False)
    expect(r.returncode == 0, f'qemu-img check: status {r.returncode}: '
           + (r.stdout + r.stderr)[:600])
    r = subprocess.run([TOOL, 'check', image], capture_output=True, text=True,
                       check=False)
    expect(r.returncode == 0, f'qcow2-dedup check: status {r.returncode}: '
           + (r.stdout + r.stderr)[:600])


# --- A case -------------------------------------------------------------------

def digest(case):
    return [conformimg.file_bytes(f) for f in case.files()]


def read_phase(case):
    before = digest(case)
    s = Server(case.image, '-r')
    try:
        want = case.contents_by_qemu()
        same(s.contents(), want, 'read-only')
        check_extents(case, s, case.image)
    except BaseException:
        s.kill()
        raise
    s.stop()
    expect(digest(case) == before, 'read-only: a file changed')
    return want


def apply(server, ops):
    for op, off, n, data in ops:
        if op == 'write':
            server.h.pwrite(data, off)
        elif op == 'zero':
            server.h.zero(n, off, nbd.CMD_FLAG_NO_HOLE)
        elif op == 'unmap':
            server.h.zero(n, off)
        else:
            server.h.trim(n, off)
    server.h.flush()


def write_phase(case, rnd):
    snaps = case.snapshots_by_qemu(case.image)
    twin = case.make_twin()
    for session in range(2):
        ops = case.random_ops(rnd)
        s = Server(case.image, *case.keys())
        try:
            if session == 0:
                case.check_said(s.said(), expect)
            expect(not s.h.is_read_only(), 'is read-only: ' + s.said())
            apply(s, ops)
            case.apply_by_qemu(twin, ops)
            want = case.contents_by_qemu(twin)
            same(s.contents(), want, 'after writes')
        except BaseException:
            s.kill()
            raise
        s.stop()
        check_file(case.image)
        same(case.contents_by_qemu(), want, 'closed')
        case.check_more(expect)
        if case.c['extra'] == 'bitmap':
            case.check_bitmaps(twin, expect)
    for name, data in case.snapshots_by_qemu(case.image).items():
        if name != 'dedup':
            same(data, snaps[name], f'snapshot {name}')
    # QEMU goes on where we ended.
    ops = case.random_ops(rnd)
    case.apply_by_qemu(case.image, ops)
    case.apply_by_qemu(twin, ops)
    same(case.contents_by_qemu(), case.contents_by_qemu(twin),
         'after QEMU wrote to it')
    check_file(case.image)
    s = Server(case.image, '-r')
    try:
        same(s.contents(), case.contents_by_qemu(twin), 'served again')
    except BaseException:
        s.kill()
        raise
    s.stop()


def run_case(name, seed):
    work = os.path.join(DIR, 'case')
    shutil.rmtree(work, ignore_errors=True)
    os.mkdir(work)
    rnd = random.Random(f'{seed} {name}')
    case = conformimg.Case(name, work, rnd)
    try:
        case.build()
        read_phase(case)
        if case.writable():
            write_phase(case, rnd)
    except (Failure, nbd.Error) as e:
        return failed(f'{e}', name, seed)
    except subprocess.CalledProcessError as e:
        return failed(f'{e}: {e.stderr}', name, seed)
    return 0


def failed(what, name, seed):
    print(f'FAIL: {what}\nCONFORM_SEED={seed} CONFORM_CASE={name}',
          flush=True)
    if os.environ.get('CONFORM_GO_ON') != '1':
        sys.exit(1)
    return 1


def main():
    seed = int(os.environ.get('CONFORM_SEED') or time.time())
    seconds = float(os.environ.get('CONFORM_SECONDS') or 45)
    whole = os.environ.get('CONFORM_ALL') == '1'
    names = [os.environ['CONFORM_CASE']] if os.environ.get('CONFORM_CASE') \
        else conformimg.all_cases(random.Random(seed))
    print(f'CONFORM_SEED={seed}, {len(names)} cases', flush=True)
    end = time.monotonic() + seconds
    done = failures = 0
    skip = int(os.environ.get('CONFORM_SKIP') or 0)
    for name in itertools.islice(names, skip, None):
        if done and not whole and time.monotonic() > end:
            break
        if os.environ.get('CONFORM_VERBOSE'):
            print(name, flush=True)
        failures += run_case(name, seed)
        done += 1
    print(f'{done - failures} images conform')
    sys.exit(1 if failures else 0)


main()
