# SPDX-License-Identifier: BSD-3-Clause
"""A pool and a model of what each of its disks holds, changed together.

Contents are numbered clusters of 4 KiB: a disk is a list of numbers, 0 is zeroes.
A number that was written to several places is equal data there.  Every step is made
in the file by the tool, by a server and its clients, or by stock QEMU, and in the
model; verify () compares all of it.  The programs that are run: $TOOL, nbdkit with
$PLUGIN (and $PRELOAD), qemu-img, qemu-io, qemu-nbd.
"""
import functools
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import time

import nbd

HERE = os.path.dirname(os.path.abspath(__file__))
TOOL, PLUGIN = os.environ['TOOL'], os.environ['PLUGIN']
CLUSTER = 4096
ANCHOR = 'do-not-apply-dedup-anchor'


@functools.lru_cache(maxsize=100000)
def block(number):
    """The 4 KiB that NUMBER stands for."""
    if number == 0:
        return bytes(CLUSTER)
    return hashlib.blake2b(b'%d' % number).digest() * (CLUSTER // 64)


def content(numbers):
    return b''.join(map(block, numbers))


def first_difference(numbers, data):
    """The first cluster in which DATA is not what NUMBERS say, or None; clusters
    that only one of them has are zeroes in the other."""
    want = content(numbers)
    if data.startswith(want) and not any(data[len(want):]):
        return None
    if want.startswith(data) and not any(want[len(data):]):
        return None
    for i in range(0, max(len(want), len(data)), CLUSTER):
        if want[i:i + CLUSTER].ljust(CLUSTER, b'\0') != \
                data[i:i + CLUSTER].ljust(CLUSTER, b'\0'):
            return i // CLUSTER
    return None


class Wrong(Exception):
    """The programs do not do what the model says."""


def run(*cmd, fails=False):
    """The output of a command, which must succeed, or fail."""
    p = subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                       timeout=300, check=False)
    out = p.stdout.decode(errors='replace')
    if p.returncode < 0 or 'Sanitizer' in out or \
            (p.returncode != 0) != fails:
        raise Wrong('%s: status %d: %s' % (' '.join(cmd), p.returncode, out))
    return out


class Disk:
    def __init__(self, numbers, writable):
        self.numbers = numbers
        self.writable = writable


class Pool:
    def __init__(self, path, max_size, log=None):
        self.path = path
        self.disks = {}
        self.active = []
        self.log = log or (lambda line: None)
        self.server = None
        self.tool('create', '--pool', '--max-disk-size=%d' % max_size, path)

    # --- Programs ------------------------------------------------------------

    def tool(self, *args, fails=False):
        self.log('tool ' + ' '.join(args))
        return run(TOOL, *args, fails=fails)

    def disk(self, command, *args, fails=False, options=()):
        return self.tool('disk', command, *options, self.path, *args,
                         fails=fails)

    def qemu(self, *args, fails=False):
        self.log(' '.join(args))
        return run(*args, fails=fails)

    def start(self, *keys):
        """Serves the pool; self.uri (name) is the address of a disk."""
        sock = self.path + '.sock'
        env = dict(os.environ)
        if os.environ.get('PRELOAD'):
            env['LD_PRELOAD'] = os.environ['PRELOAD']
        self.log('serve ' + ' '.join(keys))
        if os.path.exists(sock):
            os.unlink(sock)
        with open(self.path + '.log', 'wb') as out:
            self.server = subprocess.Popen(
                ['nbdkit', '-f', '-U', sock, '--pidfile', sock + '.pid', PLUGIN,
                 self.path, *keys], env=env, stdout=out, stderr=out)
        for _ in range(1200):
            if os.path.exists(sock + '.pid'):
                os.unlink(sock + '.pid')
                return
            if self.server.poll() is not None:
                break
            time.sleep(0.05)
        self.die()
        raise Wrong('the server does not start: ' + self.server_log())

    def server_log(self):
        with open(self.path + '.log', errors='replace') as f:
            return f.read()

    def uri(self, name):
        return 'nbd+unix:///%s?socket=%s.sock' % (name, self.path)

    def connect(self, name):
        h = nbd.NBD()
        h.connect_uri(self.uri(name))
        return h

    def stop(self):
        """A clean end; debts may be left."""
        self.log('stop')
        self.server.send_signal(signal.SIGTERM)
        status = self.server.wait(timeout=300)
        self.server = None
        if status != 0 or 'Sanitizer' in self.server_log():
            raise Wrong('server: status %d: %s' % (status, self.server_log()))

    def die(self):
        """kill -9 of our server."""
        self.log('kill -9')
        if self.server and self.server.poll() is None:
            self.server.kill()
        if self.server:
            self.server.wait()
        self.server = None

    # --- The file ------------------------------------------------------------

    def header(self):
        with open(self.path, 'rb') as f:
            return f.read(112)

    def has_bit48(self):
        return bool(struct.unpack_from('>Q', self.header(), 72)[0] >> 48 & 1)

    def active_size(self):
        return struct.unpack_from('>Q', self.header(), 24)[0]

    def names_of_stock(self):
        info = json.loads(run('qemu-img', 'info', '--output=json', self.path))
        return sorted(s['name'] for s in info.get('snapshots', [])
                      if s['name'] != ANCHOR)

    def names_of_tool(self):
        v = json.loads(run(TOOL, 'disk', 'list', '--output=json', self.path))
        return sorted(d['name'] for d in v['disks'])

    def settle(self):
        if self.has_bit48():
            self.tool('recover', self.path)
        if self.has_bit48():
            raise Wrong('bit 48 is set after qcow2-dedup recover')

    # --- Comparison ----------------------------------------------------------

    def same(self, name, numbers, data, how):
        at = first_difference(numbers, data)
        if at is not None:
            got = data[at * CLUSTER:][:CLUSTER]
            known = [n for n in range(100000) if block(n) == got][:1]
            raise Wrong('%s, read by %s: cluster %d is %s, not %d' %
                        (name or 'the active disk', how, at,
                         known or 'unknown', numbers[at]
                         if at < len(numbers) else 0))

    def read_by_stock(self, name):
        out = self.path + '.raw'
        snapshot = ('-l', 'snapshot.name=' + name) if name else ()
        run('qemu-img', 'convert', '-O', 'raw', *snapshot, self.path, out)
        with open(out, 'rb') as f:
            return f.read()

    def read_by_qemu_nbd(self, name):
        sock = self.path + '.qemu'
        ready = sock + '.pid'           # exists once qemu-nbd listens
        p = subprocess.Popen(['qemu-nbd', '-r', '-f', 'qcow2', '-k', sock,
                              '--pid-file', ready, '-l',
                              'snapshot.name=' + name, self.path])
        try:
            for _ in range(1200):
                if os.path.exists(ready) or p.poll() is not None:
                    break
                time.sleep(0.02)
            run('nbdcopy', 'nbd+unix:///?socket=' + sock, self.path + '.raw')
            p.wait(timeout=60)
        finally:
            if p.poll() is None:
                p.kill()
            for path in (sock, ready):
                if os.path.exists(path):
                    os.unlink(path)
        with open(self.path + '.raw', 'rb') as f:
            return f.read()

    def read_by_tool(self, name):
        run(TOOL, 'disk', 'export', '--force', self.path, name,
            self.path + '.raw')
        with open(self.path + '.raw', 'rb') as f:
            return f.read()

    def read_served(self, name):
        h = self.connect(name)
        size = h.get_size()
        data = b''.join(h.pread(min(1 << 20, size - at), at)
                        for at in range(0, size, 1 << 20))
        h.shutdown()
        return data

    def check(self):
        """The closed file is right for everybody who may open it."""
        if not self.has_bit48():
            out = run('qemu-img', 'check', self.path)
            if 'No errors were found' not in out:
                raise Wrong('qemu-img check: ' + out)
        else:
            run('qemu-img', 'check', self.path, fails=True)
        run(TOOL, 'check', self.path)
        run(sys.executable, os.path.join(HERE, 'poolimg.py'), 'check', self.path)

    def names_are(self, got, who):
        if got != sorted(self.disks):
            raise Wrong('%s lists %s, not %s' % (who, got, sorted(self.disks)))

    def verify(self, rng):
        """Everything, of a closed pool."""
        self.check()
        self.names_are(self.names_of_tool(), 'qcow2-dedup')
        if self.has_bit48():
            return
        self.names_are(self.names_of_stock(), 'qemu-img')
        size = self.active_size()
        for name, d in self.disks.items():
            how = rng.choice((self.read_by_stock, self.read_by_stock,
                              self.read_by_qemu_nbd, self.read_by_tool))
            numbers = d.numbers
            if how != self.read_by_tool:        # as long as the active disk
                numbers = numbers[:size // CLUSTER]
            self.same(name, numbers, how(name), how.__name__)
        self.same('', self.active, self.read_by_stock(''), 'read_by_stock')

    def verify_served(self):
        for name, d in self.disks.items():
            data = self.read_served(name)
            if len(data) != len(d.numbers) * CLUSTER:
                raise Wrong('%s: its size is %d' % (name, len(data)))
            self.same(name, d.numbers, data, 'NBD')
        if any(self.active):
            self.same('', self.active, self.read_served(''), 'NBD')
