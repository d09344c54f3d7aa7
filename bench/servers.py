# SPDX-License-Identifier: BSD-3-Clause
"""Defines the servers that are compared, and a session of one of them.

Servers are children of this process, listen on a Unix socket in a temporary
directory, run with their defaults unless a row sets something else, and are
ended by their own pid.
"""
import errno
import os
import shutil
import signal
import socket
import subprocess
import time

TIMEOUT_S = 1800                # a single command that takes longer hangs
DROP_TRIES = 10
AT_REST_S = 8                   # a reader has ended after 3, then jobs begin
CLUSTER = {'qemu4k': '4k', 'qemu64k': '64k'}


class SkipRow(Exception):
    """This machine cannot measure the row."""


class BenchError(Exception):
    """A command or server failed, so that there is nothing to measure."""


def run_command(argv):
    r = subprocess.run([str(a) for a in argv], capture_output=True, text=True,
                       timeout=TIMEOUT_S, check=False)
    if r.returncode != 0:
        raise BenchError(f'{" ".join(map(str, argv))}: status {r.returncode}\n'
                         + r.stderr.strip())
    return r.stdout


def is_cached(path):
    """Returns whether one of 16 pages of PATH is in memory.  The question
    itself begins to read them.  Holes are left out: they are never read."""
    size = os.path.getsize(path)
    with open(path, 'rb', buffering=0) as f:
        for i in range(16):
            try:
                at = os.lseek(f.fileno(), size * i // 16, os.SEEK_DATA)
                os.preadv(f.fileno(), [bytearray(1)], at, os.RWF_NOWAIT)
                return True
            except BlockingIOError:
                pass
            except OSError as e:
                if e.errno != errno.ENXIO:      # no data from here on
                    raise
    return False


def drop_cache(path):
    """Drops the pages of the file PATH from memory; returns whether that
    worked.  is_cached begins to read pages, and a page that is being read is not
    dropped; so it is tried again."""
    for _ in range(DROP_TRIES):
        if drop_cache_once(path):
            return True
        time.sleep(0.5)
    return False


def drop_cache_once(path):
    with open(path, 'rb') as f:
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if is_cached(path) and os.geteuid() == 0:
        with open('/proc/sys/vm/drop_caches', 'w', encoding='ascii') as f:
            f.write('1\n')
    if is_cached(path):
        return False
    with open(path, 'rb') as f:     # drop the pages that is_cached read
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def find_nbdkit():
    path = os.environ.get('PATH', os.defpath) + ':/usr/sbin:/sbin'
    return shutil.which('nbdkit', path=path) or 'nbdkit'


class Server:
    """Knows how to make an image for the server NAME, and how to serve it."""

    def __init__(self, name, build, disk, cache='', create_opts='',
                 threads=0, keys=()):
        self.name = name
        self.build = build
        self.disk = disk        # bytes, or a number with k, M, G, T
        self.cache = cache
        self.create_opts = create_opts      # of qcow2-dedup
        self.keys = keys        # of the plugin
        self.nbdkit = [find_nbdkit(), *([f'--threads={threads}']
                                        if threads else []), '-f']
        self.create = {'file': self._create_raw,
                       'dedup': self._create_dedup,
                       'pool': self._create_pool}.get(name,
                                                      self._create_qcow2)
        self.argv = {'file': self._argv_file, 'dedup': self._argv_dedup,
                     'pool': self._argv_dedup}.get(name, self._argv_qemu)
        # The export that is measured: of a pool, its one disk.
        self.export = 'disk' if name == 'pool' else ''

    def _create_raw(self, image):
        run_command(['truncate', '-s', self.disk, image])

    def _create_qcow2(self, image):
        run_command(['qemu-img', 'create', '-q', '-f', 'qcow2', '-o',
                     'cluster_size=' + CLUSTER[self.name], image, self.disk])

    def _create_dedup(self, image):
        opts = ['-o', self.create_opts] if self.create_opts else []
        run_command([f'{self.build}/tools/qcow2-dedup', 'create', *opts,
                     image, self.disk])

    def _create_pool(self, image):
        tool = f'{self.build}/tools/qcow2-dedup'
        opts = ['-o', self.create_opts] if self.create_opts else []
        run_command([tool, 'create', '--pool', *opts, image])
        run_command([tool, 'disk', 'create', image, 'disk', self.disk])

    def _argv_file(self, image, sock):
        return [*self.nbdkit, '-U', sock, 'file', image]

    def _argv_dedup(self, image, sock):
        cache = [f'l2-cache-size={self.cache}'] if self.cache else []
        return [*self.nbdkit, '-U', sock,
                f'{self.build}/plugin/nbdkit-dedup-plugin.so',
                f'file={image}', *cache, *self.keys]

    def _argv_qemu(self, image, sock):
        argv = ['qemu-nbd', '-t', '-k', sock, '--shared=8',
                '--cache=writeback', '--aio=threads', '--discard=unmap']
        if self.cache:
            return [*argv, '--image-opts', 'driver=qcow2,discard=unmap,'
                    f'l2-cache-size={self.cache},file.driver=file,'
                    f'file.filename={image}']
        return [*argv, '-f', 'qcow2', image]


class Session:
    """An image and the process that serves it: a context manager that removes
    both at its end."""

    def __init__(self, server, load, image_dir, sock_dir):
        self.server = server
        self.load_program = load
        self.image = os.path.join(image_dir, 'image-' + server.name)
        self.sock = os.path.join(sock_dir, 'sock')
        self.log = os.path.join(sock_dir, 'log')
        self.uri = f'nbd+unix:///{server.export}?socket={self.sock}'
        self.process = None

    def __enter__(self):
        try:
            self.server.create(self.image)
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        for f in (self.image, self.sock, self.log):
            if os.path.exists(f):
                os.unlink(f)

    def fail(self, what):
        with open(self.log, encoding='utf-8', errors='replace') as f:
            tail = ''.join(f.readlines()[-10:])
        raise BenchError(f'{self.server.name}: {what}\n{tail}')

    def start(self):
        argv = [str(a) for a in self.server.argv(self.image, self.sock)]
        with open(self.log, 'ab') as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log)
        deadline = time.monotonic() + TIMEOUT_S
        while not self._listens():
            if self.process.poll() is not None:
                self.fail('did not start')
            if time.monotonic() > deadline:
                self.fail('does not listen')
            time.sleep(0.001)

    def _listens(self):
        with socket.socket(socket.AF_UNIX) as s:
            try:
                s.connect(self.sock)
            except (FileNotFoundError, ConnectionRefusedError):
                return False
        return True

    def stop(self):
        """Ends the server cleanly; returns how long it took, in seconds."""
        start = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.fail('does not end')
        took = time.monotonic() - start
        self.process = None
        if status != 0:
            self.fail(f'ended with status {status}')
        if os.path.exists(self.sock):
            os.unlink(self.sock)
        return took

    def wait_until_idle(self):
        """Waits until the image has been at rest for some seconds; returns how
        long that took.  An image of ours has bit 48 of its incompatible features
        set while it is changed, and shrinks while space is given back; qemu-nbd
        does nothing by itself."""
        start = time.monotonic()
        at_rest_since = start
        blocks = 0
        while time.monotonic() - at_rest_since < AT_REST_S:
            before, blocks = blocks, os.stat(self.image).st_blocks
            with open(self.image, 'rb') as f:
                f.seek(73)
                changing = self.server.name in ('dedup', 'pool') and f.read(1)[0] & 1
            if changing or blocks != before:
                at_rest_since = time.monotonic()
            if time.monotonic() - start > TIMEOUT_S:
                self.fail('does not come to rest')
            time.sleep(0.1)
        return at_rest_since - start

    def load(self, step):
        """Runs dedup-load; returns the line of JSON that it prints."""
        return run_command([self.load_program, '--uri=' + self.uri,
                            *step.split()])

    def rss_mib(self):
        """Returns the most memory that the process has had so far, in MiB."""
        with open(f'/proc/{self.process.pid}/status',
                  encoding='ascii') as f:
            for line in f:
                if line.startswith('VmHWM:'):
                    return int(line.split()[1]) / 1024
        return None

    def cpu_s(self):
        with open(f'/proc/{self.process.pid}/stat', encoding='utf-8') as f:
            after_name = f.read().rsplit(')', 1)[1].split()
        ticks = int(after_name[11]) + int(after_name[12])
        return ticks / os.sysconf('SC_CLK_TCK')
