#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""vanish.py URI MODEL SEED CLIENTS [MOST]: one client works and verifies on
the first half of the disk, while CLIENTS others, one after the other, send up
to MOST (20) requests for the second half, in bulk and cut off anywhere, and
disappear without a word.  First, and with 0 clients only, it checks that the
first half is what MODEL says."""
import os
import random
import socket
import struct
import sys
import threading

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, '..', 'interop'))
# pylint: disable=wrong-import-position
import nbd
import nbdclient
from model import CLUSTER, Model, content

READ, WRITE, FLUSH, TRIM, ZEROES = 0, 1, 3, 4, 6


def handshake(path):
    """A connection in the transmission phase (newstyle, EXPORT_NAME)."""
    s = socket.socket(socket.AF_UNIX)
    s.connect(path)
    s.recv(18, socket.MSG_WAITALL)
    s.sendall(struct.pack('>I', 3) + b'IHAVEOPT' + struct.pack('>II', 1, 0))
    s.recv(10, socket.MSG_WAITALL)
    return s


def request(rng, half):
    kind = rng.choice((READ, WRITE, WRITE, WRITE, FLUSH, TRIM, ZEROES))
    n = rng.choice((512, 4096, 65536, 1 << 20))
    off = half + rng.randrange((half - n) // 512) * 512
    if kind == FLUSH:
        n = off = 0
    head = struct.pack('>IHHQQI', 0x25609513, 0, kind, rng.getrandbits(60),
                       off, n)
    return head + (rng.randbytes(n) if kind == WRITE else b'')


def vanish(path, rng, half, most):
    s = handshake(path)
    data = b''.join(request(rng, half) for _ in range(rng.randint(1, most)))
    if rng.random() < 0.7:      # in the middle of one
        data = data[:rng.randrange(1, len(data))]
    s.settimeout(0.2)           # its answers are not read
    try:
        s.sendall(data)
    except OSError:
        pass
    if rng.random() < 0.5:      # RST, where there is such a thing
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                     struct.pack('ii', 1, 0))
    s.close()


def work(h, m, rng, clusters, stop):
    while not stop.is_set():
        c = rng.randrange(clusters)
        n = rng.randrange(1, 1 << 40)
        m.sent(c, n)
        h.pwrite(content(n), c * CLUSTER)
        m.done(c, n)
        m.check(h, clusters=[rng.choice(list(m.now))])
        if rng.random() < 0.02:
            h.flush()
            m.flushed()
    h.flush()
    m.flushed()


def main():
    uri, path, seed, clients = sys.argv[1:5]
    most = int(sys.argv[5]) if len(sys.argv) > 5 else 20
    rng = random.Random(int(seed))
    m = Model(path)
    h = nbdclient.connect(uri)
    half = h.get_size() // 2
    m.check(h, crashed=True)
    stop, failed = threading.Event(), []

    def worker():
        try:
            work(h, m, random.Random(rng.random()), half // CLUSTER, stop)
        except nbd.Error as e:
            failed.append(e)

    t = threading.Thread(target=worker)
    t.start()
    try:
        for _ in range(int(clients)):
            vanish(uri.split('socket=')[1], rng, half, most)
    except OSError as e:
        failed.append(e)
    stop.set()
    t.join()
    m.save()
    if failed:
        raise SystemExit(failed[0])
    m.check(h)


main()
