#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""qmpdiff.py [--server] THEIRS OURS SEED COUNT TMP: sends the same bytes to QEMU's
monitor at the socket THEIRS and to the one at OURS, and compares the answers byte
by byte.

After each input come bytes that end whatever is unfinished, and a command that
does not exist; the answer to that ends the answers to the input.  Each input is
sent to one connection of each server, whole or in pieces of random sizes.
Numbers of timestamps are masked, nothing else.  With --server OURS is a server
of an image: the greeting is not compared, and inputs with what it does not have
are left out.
"""
import random
import re
import socket
import sys
import time

import qmpcases as cases

PATIENCE = 30
TIMESTAMP = re.compile(rb'"seconds": \d+, "microseconds": \d+')
ROUND = b'{"execute":"qmp_capabilities"}'


class Monitor:
    """A connection.  One that QEMU is not ready for waits in its backlog."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(path)
        self.pending = b''
        self.nr = 0
        self.greeting = self.line()

    def line(self):
        while b'\n' not in self.pending:
            more = self.socket.recv(65536)
            if not more:
                raise EOFError('closed, behind %r' % self.pending)
            self.pending += more
        line, self.pending = self.pending.split(b'\n', 1)
        return TIMESTAMP.sub(b'"seconds": S, "microseconds": U', line + b'\n')

    def send(self, data, cuts=()):
        start = 0
        for cut in list(cuts) + [len(data)]:
            self.socket.sendall(data[start:cut])
            if cut < len(data):
                time.sleep(0.001)
            start = cut

    def ask(self, data, cuts=()):
        """What is answered to DATA."""
        self.nr += 1
        name = b'end-of-%d' % self.nr
        self.send(data, cuts)
        self.send(b'\xff\n{"execute":"none","id":"%s"}\n' % name)
        answer = b''
        while True:
            line = self.line()
            if name in line:
                return answer
            answer += line

    def close(self):
        self.socket.close()


def die(what, data, theirs, ours):
    sys.exit('FAIL: %s\n  input: %r\n  QEMU:  %r\n  ours:  %r' %
             (what, data, theirs, ours))


def compare(theirs, ours, inputs, rand):
    for data in inputs:
        cuts = ()
        if rand.random() < 0.3 and len(data) > 1:
            cuts = sorted(rand.sample(range(1, len(data)), 1 + len(data) // 40))
        answers = theirs.ask(data, cuts), ours.ask(data, cuts)
        if answers[0] != answers[1]:
            die('answers differ', data, *answers)


def compare_meant(theirs, ours):
    for data, their_answer, our_answer, reason in cases.MEANT:
        # The end of unfinished input, that is none here, is answered alike.
        end = ours.ask(b'')
        answers = theirs.ask(data), ours.ask(data)
        if answers != (their_answer + end, our_answer + end):
            die('not the difference that is meant: ' + reason, data, *answers)


def compare_negotiation(paths):
    for data in cases.NEGOTIATION:
        monitors = [Monitor(p) for p in paths]
        answers = [m.ask(data) for m in monitors]
        for m in monitors:
            m.close()
        if answers[0] != answers[1]:
            die('before the negotiation', data, *answers)


def compare_job(theirs, ours, tmp):
    for data, nr_lines in cases.JOB:
        data = data.replace(b'%(tmp)s', tmp.encode())
        for m in (theirs, ours):
            m.send(data)
        answers = [b''.join(m.line() for _ in range(nr_lines))
                   for m in (theirs, ours)]
        if answers[0] != answers[1]:
            die('a job', data, *answers)


def negotiated(path):
    m = Monitor(path)
    m.send(ROUND)
    m.line()
    return m


def compare_greeting(theirs, ours):
    """It differs by the capability, and by nothing else."""
    if theirs.greeting.replace(b'["oob"]', b'[]') != ours.greeting:
        die('greeting', b'', theirs.greeting, ours.greeting)


def for_server(inputs):
    return [i for i in inputs if not any(name in i for name in
                                         cases.NOT_IN_SERVER)]


def main(is_server, theirs, ours, seed, count, tmp):
    rand = random.Random(seed)
    fixed, made = cases.FIXED, cases.generated(rand, int(count))
    compare_negotiation((theirs, ours))
    theirs, ours = negotiated(theirs), negotiated(ours)
    if is_server:
        fixed, made = for_server(fixed), for_server(made)
    else:
        compare_greeting(theirs, ours)
        compare_job(theirs, ours, tmp)
    compare(theirs, ours, fixed, rand)
    compare_meant(theirs, ours)
    compare(theirs, ours, made, rand)
    print('%d fixed inputs, %d before the negotiation, %d meant differences and '
          '%d random inputs, seed %s' %
          (len(fixed), len(cases.NEGOTIATION), len(cases.MEANT), len(made),
           seed))


if __name__ == '__main__':
    server = sys.argv[1] == '--server'
    main(server, *sys.argv[1 + server:])
