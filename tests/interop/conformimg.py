# SPDX-License-Identifier: BSD-3-Clause
"""Builds the images of conform.py, and says which cases there are.

A case has a name like c64k-v3-r16-std-zlib-none-plain-flat: one word a
dimension, see DIMENSIONS."""
import itertools
import os
import shutil
import signal
import struct
import subprocess
import time

import nbd

K, M = 1 << 10, 1 << 20
UNKNOWN_EXTENSION = struct.pack('>I', 0x12345678)

DIMENSIONS = (
    ('cluster', ('c512', 'c4k', 'c16k', 'c64k', 'c2M')),
    ('version', ('v2', 'v3')),
    ('refcount', ('r1', 'r2', 'r4', 'r8', 'r16', 'r32', 'r64')),
    ('l2', ('std', 'ext')),
    ('compression', ('zlib', 'zstd')),
    ('backing', ('none', 'raw', 'qcow2', 'chain', 'short', 'probed')),
    ('extra', ('plain', 'snap', 'lazy', 'dirty', 'bitmap', 'rawdata',
               'data', 'odd', 'prealloc')),
)
NAMES = [d[0] for d in DIMENSIONS]

CLUSTER = {'c512': 512, 'c4k': 4 * K, 'c16k': 16 * K, 'c64k': 64 * K,
           'c2M': 2 * M}


def run(*args):
    r = subprocess.run(args, capture_output=True, text=True, check=True)
    return r.stdout


def file_bytes(path):
    with open(path, 'rb') as f:
        return f.read()


def possible(c):
    """Can qemu-img make it?"""
    v2 = c['version'] == 'v2'
    data_file = c['extra'] in ('rawdata', 'data')
    if v2 and (c['refcount'] != 'r16' or c['l2'] == 'ext' or
               c['compression'] == 'zstd' or data_file or
               c['extra'] in ('lazy', 'dirty', 'bitmap', 'odd')):
        return False
    if c['l2'] == 'ext' and CLUSTER[c['cluster']] < 16 * K:
        return False
    if c['extra'] == 'snap' and c['refcount'] in ('r1', 'r2'):
        return False
    if data_file and (c['compression'] == 'zstd' or
                      c['refcount'] not in ('r1', 'r16')):
        return False
    if c['extra'] == 'rawdata' and c['backing'] != 'none':
        return False
    if c['extra'] == 'prealloc' and c['backing'] != 'none':
        return False
    return True


def all_cases(rnd):
    names = ['-'.join(words)
             for words in itertools.product(*(d[1] for d in DIMENSIONS))
             if possible(dict(zip(NAMES, words)))]
    rnd.shuffle(names)
    return names


class Case:
    """One image with its files in DIR."""

    def __init__(self, name, work, rnd):
        self.name, self.dir, self.rnd = name, work, rnd
        self.c = dict(zip(NAMES, name.split('-')))
        self.cluster = CLUSTER[self.c['cluster']]
        self.size = {512: M, 4 * K: 3 * M, 16 * K: 6 * M, 64 * K: 12 * M,
                     2 * M: 40 * M}[self.cluster]
        # Not always a multiple of a cluster.
        if rnd.random() < 0.3:
            self.size -= 512 * rnd.randrange(1, 8)
        self.image = os.path.join(work, 'image.qcow2')
        self.data = os.path.join(work, 'noise')
        self.nr_twins = 0
        self.is_dirty = False

    # --- what is expected of it ---------------------------------------

    def v2(self):
        return self.c['version'] == 'v2'

    def data_file(self):
        return self.c['extra'] in ('rawdata', 'data')

    def writable(self):
        return True

    def keys(self):
        return ('dedup=off',) if self.v2() else ()

    def backing_is_raw(self):
        return self.c['backing'] != 'none'

    def extents_lax(self):
        return self.c['extra'] in ('prealloc', 'rawdata', 'data')

    def check_said(self, said, expect):
        if not self.v2() and (self.c['refcount'] in ('r1', 'r2') or
                              self.data_file()):
            expect('without deduplication' in said, 'does not say that it '
                   'does not deduplicate: ' + said)
        if self.is_dirty:
            expect('rebuilt' in said, 'refcounts not rebuilt: ' + said)

    def check_more(self, expect):
        if self.c['extra'] == 'odd':
            self.check_odd(expect)
        if self.c['backing'] == 'probed':
            with open(self.image, 'rb') as f:
                expect(UNKNOWN_EXTENSION in f.read(self.cluster),
                       'an unknown header extension is gone')
        if self.c['extra'] == 'rawdata':
            want = self.contents_by_qemu()
            got = file_bytes(self.image + '.data')
            # qemu-img makes it whole clusters long.
            end = -(-len(want) // self.cluster) * self.cluster
            expect(got[:len(want)] == want and len(got) <= end,
                   'the raw data file is not the disk')

    # --- operations ---------------------------------------------------

    def some_range(self, rnd, biggest):
        off = rnd.randrange(self.size // 512) * 512
        n = min(rnd.randrange(1, biggest // 512 + 2) * 512, self.size - off)
        if rnd.random() < 0.5:
            off -= off % self.cluster
        return off, max(512, min(n, self.size - off))

    def random_ops(self, rnd, nr=12, kinds=None):
        """[(kind, offset, length, data)]"""
        kinds = kinds or ['write'] * 5 + ['zero', 'unmap', 'trim']
        ops = []
        for _ in range(nr):
            off, n = self.some_range(rnd, max(3 * self.cluster, 64 * K))
            kind, data = rnd.choice(kinds), None
            if kind == 'write':
                # Every content may come again.
                data = bytes([rnd.randrange(1, 4)]) * n if rnd.random() < 0.4 \
                    else random_bytes(rnd, n)
            if kind == 'trim':
                # What a trim leaves is the server's choice, but for this.
                off -= off % self.cluster
                n = max(self.cluster, n - n % self.cluster)
                if off + n > self.size:
                    continue
                if self.c['backing'] != 'none' and self.v2():
                    continue
            ops.append((kind, off, n, data))
        return ops

    def apply_by_qemu(self, image, ops, extra=()):
        args = []
        files = []
        for i, (kind, off, n, data) in enumerate(ops):
            if kind == 'write':
                path = os.path.join(self.dir, f'op{i}')
                with open(path, 'wb') as f:
                    f.write(data)
                files.append(path)
                args += ['-c', f'write -s {path} {off} {n}']
            elif kind == 'compressed':
                args += ['-c', f'write -c -P {data} {off} {n}']
            elif kind == 'zero':
                args += ['-c', f'write -z {off} {n}']
            elif kind == 'unmap':
                args += ['-c', f'write -z -u {off} {n}']
            else:
                args += ['-c', f'discard {off} {n}']
        r = subprocess.run(['qemu-io', '-d', 'unmap', '-f', 'qcow2', *args,
                            *extra, image], capture_output=True, text=True,
                           check=False, cwd=self.dir)
        for path in files:
            os.unlink(path)
        # QEMU does not compress over what is there already.
        clash = any(op[0] == 'compressed' for op in ops)
        if ('failed' in r.stdout + r.stderr and not clash) or \
                r.returncode not in (0, 1 if clash else 0, -signal.SIGKILL):
            raise subprocess.CalledProcessError(r.returncode, r.args, '',
                                                r.stdout + r.stderr)

    # --- building -----------------------------------------------------

    def options(self):
        c = self.c
        o = [f'cluster_size={self.cluster}',
             'compat=' + ('0.10' if self.v2() else '1.1')]
        if not self.v2():
            o += ['refcount_bits=' + c['refcount'][1:],
                  'compression_type=' + c['compression'],
                  'extended_l2=' + ('on' if c['l2'] == 'ext' else 'off')]
        if c['extra'] in ('lazy', 'dirty'):
            o += ['lazy_refcounts=on']
        if self.data_file():
            o += [f'data_file={self.image}.data']
        if c['extra'] == 'rawdata':
            o += ['data_file_raw=on']
        if c['extra'] == 'prealloc':
            o += ['preallocation=' + self.rnd.choice(
                ('metadata', 'falloc', 'full'))]
        return ','.join(o)

    def make_raw(self, name, size):
        path = os.path.join(self.dir, name)
        with open(path, 'wb') as f:
            for _ in range(6):
                f.seek(self.rnd.randrange(size // 512) * 512)
                f.write(random_bytes(self.rnd, 20 * K))
            f.truncate(size)
        return name

    def make_backing(self):
        """-> arguments of qemu-img create."""
        kind, rnd = self.c['backing'], self.rnd
        if kind == 'none':
            return []
        size = self.size + 512 * rnd.randrange(200)
        if kind == 'short':
            size = self.size // 2 // 512 * 512
        base = self.make_raw('base.raw', size)
        if kind in ('raw', 'short'):
            return ['-b', base, '-F', 'raw']
        if kind == 'probed':
            return ['-b', base, '-F', 'raw']   # the format is cut out later
        below = [base, 'raw']
        for i in range(1 if kind == 'qcow2' else 3):
            name = f'below{i}.qcow2'
            length = size - rnd.randrange(4) * 8 * K
            path = os.path.join(self.dir, name)
            subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', '-o',
                            'cluster_size=' + rnd.choice(('4k', '64k')),
                            '-b', below[0], '-F', below[1], name,
                            str(length)], check=True, cwd=self.dir)
            keep, self.size = self.size, length - length % 512
            self.apply_by_qemu(path, self.random_ops(
                rnd, 5, ['write', 'zero', 'trim']))
            self.size = keep
            below = [name, 'qcow2']
        return ['-b', below[0], '-F', below[1]]

    def cut_backing_format(self):
        """Make the extension that names it one that nobody knows."""
        with open(self.image, 'r+b') as f:
            head = f.read(self.cluster)
            at = head.index(struct.pack('>I', 0xe2792aca))
            f.seek(at)
            f.write(UNKNOWN_EXTENSION)

    def compressed_ops(self):
        if self.data_file():
            return []
        ops = []
        for _ in range(4):
            at = self.rnd.randrange(self.size // self.cluster)
            n = min(self.rnd.randrange(1, 4) * self.cluster,
                    (self.size - at * self.cluster) // 512 * 512)
            n = max(self.cluster, n - n % self.cluster)
            if at * self.cluster + n <= self.size:
                ops.append(('compressed', at * self.cluster, n,
                            self.rnd.randrange(1, 255)))
        return ops

    def build(self):
        rnd, extra = self.rnd, self.c['extra']
        back = self.make_backing()
        subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', '-o',
                        self.options(), *back, self.image, str(self.size)],
                       check=True, cwd=self.dir, capture_output=True,
                       text=True)
        if self.c['backing'] == 'probed':
            self.cut_backing_format()
        self.apply_by_qemu(self.image, self.random_ops(rnd, 6) +
                           self.compressed_ops() + self.random_ops(rnd, 3))
        if extra == 'snap':
            for i in range(rnd.randrange(1, 3)):
                # Small refcounts may have no room for it; then QEMU leaks.
                r = subprocess.run(['qemu-img', 'snapshot', '-c', f's{i}',
                                    self.image], capture_output=True,
                                   check=False)
                if r.returncode != 0:
                    run('qemu-img', 'check', '-r', 'leaks', self.image)
                self.apply_by_qemu(self.image, self.random_ops(rnd, 4))
        if extra == 'bitmap':
            self.add_bitmaps()
        if extra == 'odd':
            self.make_odd()
        if extra == 'dirty':
            self.apply_by_qemu(self.image, self.random_ops(rnd, 6),
                               ['-c', 'flush', '-c', 'sigraise 9'])
        # Where no refcount had to change QEMU has not marked it.
        self.is_dirty = bool(file_bytes(self.image)[79] & 1) and \
            not self.v2()

    def add_bitmaps(self):
        for i, args in enumerate(([], ['-g', '64k'], ['--disable'])):
            run('qemu-img', 'bitmap', '--add', *args, self.image, f'b{i}')
        self.apply_by_qemu(self.image, self.random_ops(self.rnd, 3))

    def make_odd(self):
        """A compatible bit and an autoclear bit nobody knows; the extensions
        that are not needed to read it get unknown types."""
        with open(self.image, 'r+b') as f:
            f.seek(80)
            f.write(struct.pack('>QQ', 1 << 40, 1 << 33))

    def check_odd(self, expect):
        with open(self.image, 'rb') as f:
            f.seek(80)
            compatible, autoclear = struct.unpack('>QQ', f.read(16))
        expect(compatible & 1 << 40, 'an unknown compatible bit is gone')
        expect(not autoclear & 1 << 33, 'an unknown autoclear bit is left')

    # --- QEMU's view --------------------------------------------------

    def files(self):
        return [os.path.join(self.dir, f) for f in sorted(os.listdir(self.dir))]

    def contents_by_qemu(self, image=None):
        out = os.path.join(self.dir, 'out.raw')
        run('qemu-img', 'convert', '-U', '-f', 'qcow2', '-O', 'raw',
            image or self.image, out)
        data = file_bytes(out)
        os.unlink(out)
        return data

    def snapshots_by_qemu(self, image):
        if self.c['extra'] != 'snap':
            return {}
        out, found = os.path.join(self.dir, 'snap.raw'), {}
        for line in run('qemu-img', 'snapshot', '-l', image).split('\n')[2:]:
            if not line or 'dedup' in line.split()[0]:
                continue
            name = line.split()[1]
            run('qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', '-l', name,
                image, out)
            found[name] = file_bytes(out)
            os.unlink(out)
        return found

    def bitmap_by_qemu(self, image, name):
        """The dirty runs [(offset, end)] of an enabled bitmap."""
        sock = os.path.join(self.dir, 'qsock')
        proc = subprocess.Popen(['qemu-nbd', '-r', '-f', 'qcow2', '-B', name,
                                 '-k', sock, image], cwd=self.dir)
        h, runs = None, []
        while h is None:        # the socket is there before it listens
            if proc.poll() is not None:
                raise subprocess.CalledProcessError(
                    proc.returncode, ['qemu-nbd', '-B', name], '', '')
            time.sleep(0.01)
            h = nbd.NBD()
            h.add_meta_context('qemu:dirty-bitmap:' + name)
            try:
                h.connect_unix(sock)
            except nbd.Error:
                h = None

        def cb(_context, off, entries, _err):
            for n, flags in zip(entries[::2], entries[1::2]):
                if flags:
                    runs.append((off, off + n))
                off += n
        h.block_status(h.get_size(), 0, cb)
        h.shutdown()
        proc.wait()
        if os.path.exists(sock):
            os.unlink(sock)
        return runs

    def check_bitmaps(self, twin, expect):
        """Ours know all that the twin's know, and no more than whole clusters
        of it."""
        for name in ('b0', 'b1'):
            ours = self.bitmap_by_qemu(self.image, name)
            want = self.bitmap_by_qemu(twin, name)
            for a, b in want:
                expect(any(x <= a and b <= y for x, y in ours),
                       f'bitmap {name}: does not know {a:#x}')
            grown = covered([(a - a % self.cluster, b + -b % self.cluster)
                             for a, b in want])
            for x, y in ours:
                expect(any(a <= x and y <= b for a, b in grown),
                       f'bitmap {name}: {x:#x} was not written')

    def make_twin(self):
        self.nr_twins += 1
        twin = os.path.join(self.dir, f'twin{self.nr_twins}.qcow2')
        shutil.copyfile(self.image, twin)
        if self.data_file():
            self.split_data_file(twin)
        return twin

    def split_data_file(self, twin):
        """The twin's data file must be its own."""
        name = (self.image + '.data').encode()
        with open(twin, 'r+b') as f:
            head = f.read(min(self.cluster, 64 * K))
            at = head.index(name)
            other = name[:-len('.data')] + b'.twin'
            f.seek(at)
            f.write(other)
        shutil.copyfile(self.image + '.data', other.decode())


def covered(runs):
    """Runs that touch made one."""
    out = []
    for a, b in runs:
        if out and a <= out[-1][1]:
            out[-1] = (out[-1][0], max(b, out[-1][1]))
        else:
            out.append((a, b))
    return out


def random_bytes(rnd, n):
    return rnd.randbytes(n)
