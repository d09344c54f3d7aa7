#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""put.py URI FILE OFFSET [LENGTH [FILE_OFFSET]]: writes a file to an export at
an offset, in requests of 256 KiB, PUT_DEPTH (16) at a time, and flushes.  FILE
may be "URI": then the bytes come from the export itself."""
import os
import sys

import nbdclient


def main():
    uri, path, off = sys.argv[1], sys.argv[2], int(sys.argv[3])
    h = nbdclient.connect(uri)
    if path == 'URI':
        src = lambda pos, n: h.pread(n, pos)
        size = h.get_size()
    else:
        f = open(path, 'rb')

        def src(pos, n):
            f.seek(pos)
            return f.read(n)
        size = f.seek(0, 2)
    length = int(sys.argv[4]) if len(sys.argv) > 4 else size
    pos = int(sys.argv[5]) if len(sys.argv) > 5 else 0
    end = min(size, pos + length)
    pipe = nbdclient.Pipe(h, int(os.environ.get('PUT_DEPTH', '16')))
    while pos < end:
        data = src(pos, min(256 << 10, end - pos))
        pipe.write(data, off)
        off += len(data)
        pos += len(data)
    pipe.drain()
    h.flush()
    h.shutdown()


main()
