#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""hostileqmp.py SOCKET PID: clients that do harm, and one that measures it.

SOCKET is that of tests/control/qmp-server, PID the server's.  While each attack goes
on, a good client asks again and again; the longest answer must take less than
MAX_WAIT seconds, and the server's memory must stay below MAX_RSS.
"""
import json
import os
import socket
import sys
import threading
import time

MAX_WAIT = 2.0                 # seconds; two busy cores
MAX_RSS = 320 << 20            # one value of 64 MiB, and what it becomes
ATTACK_MB = int(os.environ.get('QMP_ATTACK_MB', '1024'))
MAX_CLIENTS = 128
HELLO = b'{"execute":"qmp_capabilities"}'


def connect(path, hello=True):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(60)
    s.connect(path)
    if hello:
        s.sendall(HELLO)
        read_lines(s, 2)
    return s


def read_lines(s, count):
    """COUNT lines or more, up to the end of one."""
    parts, seen = [b''], 0
    while seen < count or not parts[-1].endswith(b'\n'):
        parts.append(s.recv(65536))
        if not parts[-1]:
            raise EOFError(parts[-2][-200:])
        seen += parts[-1].count(b'\n')
    return b''.join(parts)


def must(condition, what):
    if not condition:
        sys.exit('FAIL: ' + what)


def rss(pid):
    with open('/proc/%d/status' % pid, encoding='ascii') as f:
        for line in f:
            if line.startswith('VmRSS:'):
                return int(line.split()[1]) << 10
    raise ValueError('no VmRSS')


class Watch:
    """The good client, on a thread of its own."""

    def __init__(self, path, pid):
        self.socket, self.pid = connect(path), pid
        self.stop, self.longest, self.largest, self.nr = False, 0, 0, 0
        self.failure = None
        self.thread = threading.Thread(target=self.run)

    def answered(self):
        self.socket.sendall(b'{"execute":"query-version","id":%d}' % self.nr)
        got = b''
        while b'"id": %d}' % self.nr not in got:
            got = read_lines(self.socket, 1)       # some may be events

    def run(self):
        while not self.stop:
            before = time.monotonic()
            try:
                self.answered()
            except (OSError, EOFError) as e:
                self.failure = repr(e)
                return
            self.nr += 1
            self.longest = max(self.longest, time.monotonic() - before)
            self.largest = max(self.largest, rss(self.pid))
            time.sleep(0.005)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop = True
        self.thread.join()
        self.socket.close()


def send_ignoring_replies(s, chunks):
    """Returns how many bytes were taken until the server closed or stopped."""
    sent = 0
    try:
        for chunk in chunks:
            s.sendall(chunk)
            sent += len(chunk)
    except (OSError, TimeoutError):
        pass
    return sent


def one_large_string(path):
    s = connect(path)
    s.sendall(b'{"execute":"echo","arguments":{"value":"')
    mb = b'x' * (1 << 20)
    must(send_ignoring_replies(s, [mb] * ATTACK_MB) == ATTACK_MB << 20,
         'the string was not read')
    s.sendall(b'"}}\n{"execute":"query-version","id":"still here"}')
    data = b''
    while b'still here' not in data:
        data += read_lines(s, 1)
    must(data.count(b'JSON token size limit exceeded') == 1, repr(data[:500]))
    s.close()


def many_large_strings(path):
    """Together they are over the bound of all clients."""
    clients = [connect(path) for _ in range(16)]
    for s in clients:
        s.sendall(b'{"execute":"echo-slowly","arguments":{"value":"')
        send_ignoring_replies(s, [b'y' * (1 << 20)] * 24)
    for s in clients:
        s.close()


def many_tokens(path):
    """Replies are not read, so the server stops reading."""
    s = connect(path)
    s.settimeout(2)
    s.sendall(b'{"execute":"echo","arguments":{"value":[')
    sent = send_ignoring_replies(s, [b'1,' * (1 << 19)] * ATTACK_MB)
    must(sent < 64 << 20, 'the server read %d MB' % (sent >> 20))
    s.close()


def deep(path):
    s = connect(path)
    s.settimeout(2)
    send_ignoring_replies(s, [b'[' * (1 << 16)] * 64)
    s.close()


def garbage(path):
    s = connect(path)
    s.settimeout(2)
    send_ignoring_replies(s, (os.urandom(1 << 16) for _ in range(256)))
    s.close()


def garbage_that_is_read(path):
    s = connect(path)
    reader = threading.Thread(target=read_all, args=(s,))
    reader.start()
    send_ignoring_replies(s, (os.urandom(1 << 14) for _ in range(64)))
    s.shutdown(socket.SHUT_RDWR)
    reader.join()
    s.close()


def read_all(s):
    try:
        while s.recv(1 << 16):
            pass
    except OSError:
        pass


def large_ids(path):
    """Replies repeat an id, and each of these bytes would be six."""
    values = (b'"%s"' % (b'\x7f' * (8 << 20)), b'[%s0]' % (b'0,' * (1 << 18)),
              b'{%s}' % b','.join(b'"%d":0' % i for i in range(1 << 17)))
    clients = [connect(path) for _ in values]
    for s, value in zip(clients, values):
        send_ignoring_replies(s, [b'{"id":%s,"execute":"query-version"}' % value])
    for s in clients:
        must(json.loads(read_lines(s, 1))['error']['desc'] ==
             "QMP input member 'id' is too large", 'a large id is repeated')
    s = clients[0]
    for value in ('x' * 8192, {'a': ['x'] * 2000}):
        s.sendall(json.dumps({'id': value, 'execute': 'query-version'}).encode())
        must(json.loads(read_lines(s, 1))['id'] == value, 'a small id is not repeated')
    return clients


def reads_no_replies(path):
    """Each command has a reply of 1 MB."""
    s = connect(path)
    s.settimeout(2)
    ask = b'{"execute":"large","arguments":{"bytes":1000000}}'
    send_ignoring_replies(s, [ask] * 20000)
    return s


def reads_no_events(path):
    """It is dropped; who reads gets all events."""
    deaf, maker = connect(path), connect(path)
    for _ in range(20):
        maker.sendall(b'{"execute":"emit","arguments":{"count":1000}}')
        lines = read_lines(maker, 1001).splitlines()
        numbers = [json.loads(l)['data']['number'] for l in lines[:-1]]
        must(numbers == list(range(1000)) and lines[-1] == b'{"return": {}}',
             'events are lost, or behind the reply')
    try:
        while deaf.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    for s in (deaf, maker):
        s.close()


def half_an_object(path):
    return [send_half(path) for _ in range(20)]


def send_half(path):
    s = connect(path)
    s.sendall(b'{"execute":"query-version","arguments":{"a":[1,"b')
    return s


def gone_in_the_middle(path):
    """Of a command, of a value, of the greeting."""
    for i in range(200):
        s = connect(path, hello=i % 3 > 0)
        s.sendall(b'{"execute":"wait","arguments":{"ms":1}}' if i % 3 == 1 else
                  b'{"execute":"large","arguments":{"bytes":100000}}{"exec')
        s.close()


def too_many(path):
    clients = []
    for _ in range(MAX_CLIENTS - 1):     # and the good one
        clients.append(connect(path))
    for i, s in enumerate(clients):
        s.sendall(b'{"execute":"who","id":%d}' % i)
    for i, s in enumerate(clients):
        reply = json.loads(read_lines(s, 1))
        must(reply['id'] == i and reply['return']['pid'] == os.getpid() and
             reply['return']['uid'] == os.getuid(), repr(reply))
    extra = connect(path, hello=False)
    must(extra.recv(100) == b'', 'one client too many was let in')
    extra.close()
    for s in clients:
        s.close()
    # There is room again, as soon as the server has seen them go.
    for _ in range(100):
        try:
            connect(path).close()
            return
        except (EOFError, OSError):
            time.sleep(0.05)
    sys.exit('FAIL: nobody can connect after many had')


def main(path, pid):
    kept = []
    for attack in (one_large_string, many_large_strings, many_tokens, deep,
                   garbage, garbage_that_is_read, large_ids, reads_no_replies,
                   reads_no_events, half_an_object, gone_in_the_middle,
                   too_many):
        if attack is too_many:
            kept.clear()
            time.sleep(0.5)
        with Watch(path, pid) as watch:
            before = time.monotonic()
            kept.append(attack(path))
            time.sleep(0.1)
            took = time.monotonic() - before
        print('%s: %.1f s, the longest of %d answers took %.3f s, %d MiB' %
              (attack.__name__, took, watch.nr, watch.longest,
               watch.largest >> 20))
        must(watch.failure is None, 'the good client: %s' % watch.failure)
        must(watch.longest < MAX_WAIT, 'the good client waited too long')
        must(watch.largest < MAX_RSS, 'the server has too much memory')
        must(watch.nr > 2, 'the good client did not run')
    kept.clear()
    time.sleep(1)
    print('at the end: %d MiB' % (rss(pid) >> 20))


if __name__ == '__main__':
    main(sys.argv[1], int(sys.argv[2]))
