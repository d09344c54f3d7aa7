#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Writes a disk again and again, and tells where writes that land late would do harm.

Each cluster of 4 KiB of the disk has contents of its own in each pass, so that bytes found
anywhere say whose they are.

latewrite.py whole URI SEED PASS NR [FILE REQUESTS]
    Writes clusters 0 to NR - 1 as of PASS, and flushes.  Prints which of them lie in FILE
    where one of REQUESTS (a file with what under-way has printed) may land.
latewrite.py last URI SEED FIRST NR CONTROL
    Writes clusters 0 to 15 as of pass 1, without a flush, and pauses the storage by its
    socket CONTROL.  Then sends a flush, and at the same time a write of the clusters FIRST
    to FIRST + NR - 1 as of pass 1.  Ends when both are answered.
latewrite.py greet SOCKET
    Fails if no NBD server greets a client there.
latewrite.py resume CONTROL
    Lets paused storage go on.
latewrite.py under-way LOG
    Prints type, offset and length of each request in a log of nbdkit's log filter that
    changes bytes and has no result yet.  The type of a durable one (FUA) is Durable.
latewrite.py wrong URI SEED PASS NR
    Prints which of the clusters 0 to NR - 1 do not read back as of PASS.
"""
import random
import re
import socket
import sys

import nbdclient

CLUSTER = 4096
MOST = 64                       # clusters of a piece
BEGIN = re.compile(r'connection=(\d+) (Write|Trim|Zero) id=(\d+) '
                   r'offset=0x([0-9a-f]+) count=0x([0-9a-f]+)( fua=1)?')
END = re.compile(r'connection=(\d+) \.\.\.(Write|Trim|Zero) id=(\d+) ')


def block(seed, number, cluster):
    return random.Random(f'{seed} {number} {cluster}').randbytes(CLUSTER)


def blocks(seed, number, first, nr):
    return b''.join(block(seed, number, first + i) for i in range(nr))


def pieces(seed, number, nr):
    """Pairs of first cluster and number that make up clusters 0 to NR - 1, in random order."""
    rng = random.Random(f'{seed} {number} pieces')
    found, at = [], 0
    while at < nr:
        n = min(rng.randint(1, MOST), nr - at)
        found.append((at, n))
        at += n
    rng.shuffle(found)
    return found


def write(h, seed, number, nr):
    pipe = nbdclient.Pipe(h)
    for at, n in pieces(seed, number, nr):
        pipe.write(blocks(seed, number, at, n), at * CLUSTER)
    pipe.reap(0)


def taken(path, requests, whose):
    """The clusters that WHOSE, by content, names in places of REQUESTS."""
    with open(requests, encoding='ascii') as f, open(path, 'rb') as disk:
        for line in f:
            off, length = map(int, line.split()[1:])
            for at in range(off, off + length, CLUSTER):
                disk.seek(at)
                c = whose.get(disk.read(CLUSTER))
                if c is not None:
                    yield c


def do_whole(uri, seed, number, nr, *files):
    h = nbdclient.connect(uri)
    write(h, seed, number, nr)
    h.flush()
    h.shutdown()
    if files:
        whose = {block(seed, number, c): c for c in range(nr)}
        print(*sorted(taken(*files, whose)))


def control(path, character):
    """Gives a command to nbdkit's pause filter, and waits for its answer."""
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(60)
        s.connect(path)
        s.sendall(character.encode())
        answer = s.recv(1).decode()
    if answer != character.upper():
        raise SystemExit(f'the pause filter answers {answer!r} to {character!r}')


# One process does all this, as the server must not become idle in between.
def do_last(uri, seed, first, nr, path):
    h = nbdclient.connect(uri)
    data = blocks(seed, 1, first, nr)
    write(h, seed, 1, 16)
    control(path, 'p')
    cookies = [h.aio_flush(), h.aio_pwrite(data, first * CLUSTER)]
    while cookies:
        h.poll(-1)
        cookies = [c for c in cookies if not h.aio_command_completed(c)]
    h.shutdown()


def do_resume(path):
    control(path, 'r')


def do_greet(path):
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(60)
        try:
            s.connect(path)
            greeting = s.recv(8)
        except OSError as e:
            raise SystemExit(f'{path}: {e}') from e
    if greeting != b'NBDMAGIC':
        raise SystemExit(f'{path}: {greeting!r}')


def do_under_way(log):
    found = {}
    with open(log, encoding='ascii') as f:
        for line in f:
            m = BEGIN.search(line)
            if m:
                found[m[1], m[3]] = 'Durable' if m[6] else m[2], int(m[4], 16), int(m[5], 16)
            m = END.search(line)
            if m:
                found.pop((m[1], m[3]), None)
    for request in found.values():
        print(*request)


def do_wrong(uri, seed, number, nr):
    h = nbdclient.connect(uri)
    print(*(c for c in range(nr)
            if h.pread(CLUSTER, c * CLUSTER) != block(seed, number, c)))
    h.shutdown()


def main():
    how = globals()['do_' + sys.argv[1].replace('-', '_')]
    how(*(int(a) if a.isdigit() else a for a in sys.argv[2:]))


main()
