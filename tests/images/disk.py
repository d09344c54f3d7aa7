#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""disk.py COMMAND...: a small disk that is written in a fixed way, and a model
of it, for images that one build makes and another one serves.

The disk has 16 MiB in clusters of 4 KiB.  It is written in three steps:

  flushed     new data, duplicates, parts of clusters, zeroes, trims, a flush
  unflushed   single operations, none of them flushed: a crash comes in between
  later       all contents that the disk holds, once more, and new ones

disk.py write URI STEP [COUNT]
    writes a step; "later" is for a disk with the first COUNT operations of
    "unflushed"
disk.py crash URI PID
    does most of "unflushed" so slowly that the server makes part of it durable
    by itself, at its commit interval, and the rest at once; kills process PID
disk.py count RAW
    prints how many operations of "unflushed" RAW holds after "flushed"; fails
    if RAW is no such state
disk.py model RAW COUNT [later]
    writes the disk as it must be to the file RAW
disk.py lose IMAGE COUNT
    overwrites with zeroes, in the file IMAGE, the data of the last of the
    first COUNT operations that brought new data, as a host does that crashed
    before it wrote the data of an unflushed write, but wrote the journal
"""
import os
import signal
import sys
import time

CLUSTER = 4096
SIZE = 16 << 20
ALL = 90                        # unflushed operations
PAUSE = 0.02                    # seconds after an unflushed operation

# Cluster numbers of the disk: where each part of it begins.
DATA, COPIES, SEQUENCE, AGAIN, NEW = 0, 1024, 2048, 3072, 3800
NR_DATA, NR_NEW = 300, 40


def content(name):
    """The bytes of a cluster, which compress well; name 0 is zeroes."""
    return b'cluster %07d\n' % name * (CLUSTER // 16) if name else bytes(CLUSTER)


def flushed():
    """Returns a list of (kind, first byte, bytes or their number)."""
    ops = [write(DATA, range(1, NR_DATA + 1)),
           write(COPIES, range(1, NR_DATA // 2 + 1)),
           ('zero', (DATA + 100) * CLUSTER, 20 * CLUSTER),
           ('trim', (DATA + 140) * CLUSTER, 20 * CLUSTER),
           write(DATA + 200, range(5001, 5041)),
           ('write', (DATA + 250) * CLUSTER + 1000, b'part' * 300),
           ('zero', (COPIES + 9) * CLUSTER - 77, 1000),
           write(COPIES + 20, [299] * 16)]
    return ops


def unflushed(count=ALL):
    ops = []
    for i in range(count):
        at = SEQUENCE + i * 3 % 128
        if i % 10 == 3:
            ops.append(('trim', (COPIES + 30 + i) * CLUSTER, CLUSTER))
        elif i % 10 == 5:
            ops.append(('zero', (COPIES + 30 + i) * CLUSTER, CLUSTER))
        elif i % 3 == 2:
            ops.append(write(at, [i + 1]))
        else:
            ops.append(write(at, [10000 + i]))
    return ops


def later(disk):
    """Returns the operations of the last step on a disk with the bytes DISK."""
    clusters = {disk[i:i + CLUSTER] for i in range(0, SIZE, CLUSTER)}
    there = sorted(clusters - {bytes(CLUSTER)})
    return [('write', AGAIN * CLUSTER, b''.join(there)),
            write(NEW, range(20001, 20001 + NR_NEW))]


def write(cluster, names):
    return 'write', cluster * CLUSTER, b''.join(map(content, names))


def state(ops, disk=None):
    disk = bytearray(SIZE) if disk is None else bytearray(disk)
    for kind, at, what in ops:
        if kind == 'write':
            disk[at:at + len(what)] = what
        else:
            disk[at:at + what] = bytes(what)
    return bytes(disk)


def before(count):
    return state(flushed() + unflushed(count))


def perform(h, ops):
    for kind, at, what in ops:
        if kind == 'zero':
            h.zero(what, at)
        elif kind == 'trim':
            h.trim(what, at)
        else:
            for i in range(0, len(what), 64 << 10):
                h.pwrite(what[i:i + (64 << 10)], at + i)


def connect(uri):
    here = os.path.dirname(os.path.realpath(__file__))
    sys.path.insert(0, os.path.join(here, '..', 'interop'))
    import nbdclient            # pylint: disable=import-outside-toplevel
    return nbdclient.connect(uri)


def cmd_write(uri, step, count='0'):
    h = connect(uri)
    perform(h, flushed() if step == 'flushed' else later(before(int(count))))
    h.flush()
    h.shutdown()


def cmd_crash(uri, pid):
    h = connect(uri)
    ops = unflushed()
    for op in ops[:-10]:
        perform(h, [op])
        time.sleep(PAUSE)
    perform(h, ops[-10:])
    os.kill(int(pid), signal.SIGKILL)


def cmd_count(raw):
    with open(raw, 'rb') as f:
        disk = f.read()
    for count in range(ALL, -1, -1):
        if before(count) == disk:
            print(count)
            return
    sys.exit('%s is no state after a prefix of the operations' % raw)


def cmd_model(raw, count, *more):
    disk = before(int(count))
    if more:
        disk = state(later(disk), disk)
    with open(raw, 'wb') as f:
        f.write(disk)


def cmd_lose(image, count):
    new = [op[2] for op in unflushed(int(count))
           if op[0] == 'write' and op[2] >= content(10000)]
    with open(image, 'r+b') as f:
        data = f.read()
        places = [i for i in range(0, len(data), CLUSTER)
                  if data[i:i + CLUSTER] == new[-1]]
        if len(places) != 1:
            sys.exit('%d places hold the data' % len(places))
        f.seek(places[0])
        f.write(bytes(CLUSTER))


COMMANDS = {'write': cmd_write, 'crash': cmd_crash, 'count': cmd_count,
            'model': cmd_model, 'lose': cmd_lose}

if __name__ == '__main__':
    if len(sys.argv) < 3 or sys.argv[1] not in COMMANDS:
        sys.exit(__doc__)
    COMMANDS[sys.argv[1]](*sys.argv[2:])
