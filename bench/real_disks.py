# SPDX-License-Identifier: BSD-3-Clause
"""Raw disks with real data, and the plugin that serves an image for them."""
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


class Server:
    """The plugin on IMAGE: a context manager."""

    def __init__(self, args, image, *keys):
        self.sock = image + '.sock'
        # pylint: disable=consider-using-with
        self.process = subprocess.Popen(
            [servers.find_nbdkit(), '-f', '-U', self.sock,
             f'{args.build}/plugin/nbdkit-dedup-plugin.so', image, *keys],
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

    def __exit__(self, *_):
        self.process.terminate()
        if self.process.wait(servers.TIMEOUT_S) != 0:
            raise servers.BenchError('the server did not end well')
