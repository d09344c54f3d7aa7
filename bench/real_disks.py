# SPDX-License-Identifier: BSD-3-Clause
"""Raw disks with real data, and the plugin that serves an image for them."""
import hashlib
import os
import subprocess

import servers

BLOCK = 4096
MIB = 1 << 20


def blocks_of(path):
    """Yields the blocks of a raw file that are not all zero."""
    zero = bytes(BLOCK)
    with open(path, 'rb', buffering=0) as f:
        end = os.fstat(f.fileno()).st_size
        pos = 0
        while pos < end:
            try:
                pos = os.lseek(f.fileno(), pos, os.SEEK_DATA) // BLOCK * BLOCK
            except OSError:                             # nothing but a hole is left
                return
            stop = os.lseek(f.fileno(), pos, os.SEEK_HOLE)
            while pos < stop:
                buf = os.pread(f.fileno(), MIB, pos)
                for i in range(0, len(buf), BLOCK):
                    block = buf[i:i + BLOCK].ljust(BLOCK, b'\0')
                    if block != zero:
                        yield block
                pos += len(buf)


def make_data(path, mib, raws):
    """Makes a file of distinct blocks of the raw files."""
    seen, nr = set(), mib * MIB // BLOCK
    with open(path, 'wb') as f:
        for raw in raws:
            for b in blocks_of(raw):
                h = hashlib.blake2b(b, digest_size=16).digest()
                if len(seen) < nr and h not in seen:
                    seen.add(h)
                    f.write(b)
    if len(seen) < nr:
        raise servers.BenchError(f'only {len(seen) * BLOCK // MIB} MiB of data')


class Server:
    """The plugin on IMAGE, or on an image on the export URI: a context manager."""

    def __init__(self, args, image, *keys, uri=None):
        self.sock = image + '.sock'
        # pylint: disable=consider-using-with
        self.process = subprocess.Popen(
            [servers.find_nbdkit(), '-f', '-U', self.sock,
             f'{args.build}/plugin/nbdkit-dedup-plugin.so',
             'uri=' + uri if uri else image, *keys],
            stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def uri(self, export=''):
        return f'nbd+unix:///{export}?socket={self.sock}'

    def __enter__(self):
        self.wait()
        return self

    def wait(self):
        for _ in range(6000):
            if os.path.exists(self.sock):
                return
            try:
                if self.process.wait(0.01) is not None:
                    raise servers.BenchError('the server did not start')
            except subprocess.TimeoutExpired:
                pass
        raise servers.BenchError('the server does not listen')

    def __exit__(self, kind, *_):
        self.process.terminate()
        status = self.process.wait(servers.TIMEOUT_S)
        if os.path.exists(self.sock):
            os.unlink(self.sock)
        if status != 0 and kind is None:
            raise servers.BenchError(f'the server ended with status {status}')

    def peak_mib(self):
        """Returns the most memory that the process has had so far."""
        with open(f'/proc/{self.process.pid}/status', encoding='ascii') as f:
            return next(int(line.split()[1]) / 1024 for line in f
                        if line.startswith('VmHWM:'))
