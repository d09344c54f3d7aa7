#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""oldanchor.py IMAGE: gives the anchor of a closed image the form of early
versions: id and name "dedup", and as size of the disk all that its L1 table
maps, which QEMU would give the disk if it applied the anchor."""
import struct
import sys

NEW, OLD = b'do-not-apply-dedup-anchor', b'dedup'
HEAD = 40                       # bytes of an entry before its extra data


def main():
    with open(sys.argv[1], 'r+b') as f:
        head = f.read(104)
        nr, table = struct.unpack('>IQ', head[60:72])
        f.seek(table)
        data = f.read(65536)
        at, out = 0, b''
        for _ in range(nr):
            id_len, name_len = struct.unpack('>HH', data[at + 12:at + 16])
            extra, = struct.unpack('>I', data[at + 36:at + 40])
            end = at + HEAD + extra + id_len + name_len
            entry = bytearray(data[at:end])
            if entry[HEAD + extra:] == NEW * 2:
                entry[12:16] = struct.pack('>HH', len(OLD), len(OLD))
                size, = struct.unpack('>Q', entry[48:56])
                entry[48:56] = struct.pack('>Q', size + 1)
                entry[HEAD + extra:] = OLD * 2
                print('disk size', size + 1)
            out += bytes(entry) + bytes(-len(entry) % 8)
            at = end + -end % 8
        f.seek(table)
        f.write(out + bytes(at - len(out)))


main()
