#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Count the distinct blocks of a raw file that are not all zero.

distinct.py FILE [BLOCK_SIZE [START [LENGTH]]]: the yardstick for
deduplication, with no code in common with the program under test.  The last
block is padded with zeroes.
"""
import hashlib
import os
import sys


def blocks(path, size=4096, start=0, length=None):
    """The hashes of these blocks."""
    seen = set()
    zero = bytes(size)
    fd = os.open(path, os.O_RDONLY)
    end = os.fstat(fd).st_size
    if length is not None:
        end = min(end, start + length)
    pos = start
    while pos < end:
        try:
            data = os.lseek(fd, pos, os.SEEK_DATA)
        except OSError:         # nothing but a hole is left
            break
        stop = min(end, os.lseek(fd, data, os.SEEK_HOLE))
        pos = max(pos, start + (data - start) // size * size)
        while pos < stop:
            buf = os.pread(fd, min(256 * size, end - pos), pos)
            for i in range(0, len(buf), size):
                block = buf[i:i + size].ljust(size, b'\0')
                if block != zero:
                    seen.add(hashlib.blake2b(block, digest_size=20).digest())
            pos += len(buf)
    os.close(fd)
    return seen


if __name__ == '__main__':
    args = [int(a) for a in sys.argv[2:]]
    print(len(blocks(sys.argv[1], *args)))
