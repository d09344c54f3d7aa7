# SPDX-License-Identifier: BSD-3-Clause
"""Models a disk: which contents each 4 KiB cluster may have.

A content is a number: 0 is zeroes, any other one has bytes of its own.  For
each cluster there are two sets: what a read may see now, and what a crash now
may leave.  A request that was not answered, or failed, may have been done or
not, but never in part.  One thread; a process that shares a disk with others
works on clusters of its own.
"""
import hashlib
import os
import pickle

CLUSTER = 4096


def content(number):
    """The bytes named NUMBER."""
    if number == 0:
        return bytes(CLUSTER)
    return hashlib.sha256(b'%d' % number).digest() * (CLUSTER // 32)


class Model:
    """What is known of the clusters that were ever written to."""

    def __init__(self, path):
        self.path = path
        self.now, self.left, self.unflushed = {}, {}, set()
        if os.path.exists(path):
            with open(path, 'rb') as f:
                self.now, self.left, self.unflushed = pickle.load(f)

    def save(self):
        with open(self.path + '.new', 'wb') as f:
            pickle.dump((self.now, self.left, self.unflushed), f)
        os.rename(self.path + '.new', self.path)

    def sent(self, cluster, number):
        """A request that makes it NUMBER has gone out."""
        self.now[cluster] = self.now.get(cluster, {0}) | {number}
        self.left[cluster] = self.left.get(cluster, {0}) | {number}
        self.unflushed.add(cluster)

    def done(self, cluster, number):
        """It was answered."""
        self.now[cluster] = {number}

    def failed(self, cluster, number, before):
        """It was refused, and so did nothing."""
        self.now[cluster] = before
        self.left[cluster] = self.left[cluster] - {number} | before

    def flushed(self):
        """A flush was answered; no other request was under way."""
        for c in self.unflushed:
            self.left[c] = set(self.now[c])
        self.unflushed.clear()

    def check(self, h, crashed=False, clusters=None):
        """Read and compare.  CRASHED: what is found is what is, from now."""
        wrong = []
        for c in sorted(self.now if clusters is None else clusters):
            data = h.pread(CLUSTER, c * CLUSTER)
            may = (self.left if crashed else self.now).get(c, {0})
            found = [n for n in may if content(n) == data]
            if not found:
                wrong.append('cluster %d holds %s..., not one of %s' %
                             (c, data[:8].hex(), sorted(may)))
            elif crashed:
                self.now[c] = self.left[c] = {found[0]}
        if wrong:
            raise SystemExit('%s: %d of %d wrong: %s' % (
                self.path, len(wrong), len(self.now), '; '.join(wrong[:5])))
        if crashed:
            self.unflushed.clear()
