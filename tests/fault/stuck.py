#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""stuck.py MODE SOCKET LOG: plays a client that does not help a server to end.

  idle        connected, asks nothing
  mute        connected, and does not even begin the handshake
  header      sent half of a request's header
  half        sent half of a write's data
  deaf        asks for reads and takes no answer
  writing     writes one sector after the other, 16 at a time, each with its
              number, every third with FUA, until the connection ends
  large       writes 32 MiB at a time, over and over, until the connection ends

It writes "ready" to LOG when it has reached that state.  Then it stays until
the connection ends; "writing" adds how many writes were answered ("answered
N"), and "error N" where one was refused."""
import os
import socket
import struct
import sys
import time

MAGIC, REPLY = 0x25609513, 0x67446698
READ, WRITE, FUA = 0, 1, 1 << 16
SECTOR = 512


def receive(s, n):
    data = b''
    while len(data) < n:
        more = s.recv(n - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def handshake(s):
    """To the transmission phase (newstyle, EXPORT_NAME, no zeroes)."""
    receive(s, 18)
    s.sendall(struct.pack('>I', 3) + b'IHAVEOPT' + struct.pack('>II', 1, 0))
    receive(s, 10)


def request(cmd, handle, off, n):
    return struct.pack('>IIQQI', MAGIC, cmd, handle, off, n)


def sector(number):
    return struct.pack('>Q', number + 1) * (SECTOR // 8)


def write_on(s, say):
    """Sector N gets its number: N is answered, or the connection ended."""
    answered, sent = set(), 0
    try:
        while True:
            while sent - len(answered) < 16:
                cmd = WRITE if sent % 3 else WRITE | FUA
                s.sendall(request(cmd, sent, sent * SECTOR, SECTOR) +
                          sector(sent))
                sent += 1
            magic, error, handle = struct.unpack('>IIQ', receive(s, 16))
            assert magic == REPLY
            if error:
                say('error %d' % error)
                return
            answered.add(handle)
            if len(answered) == 200:
                say('ready')
    except (EOFError, OSError):
        pass
    say('answered ' + ' '.join(map(str, sorted(answered))))


def write_large(s, say):
    data = os.urandom(1 << 20) * 32
    say('ready')
    try:
        for i in range(1000):
            s.sendall(request(WRITE, i, 64 << 20, len(data)) + data)
            error = struct.unpack('>IIQ', receive(s, 16))[1]
            if error:
                say('error %d' % error)
    except (EOFError, OSError):
        pass


def main():
    mode, path, log = sys.argv[1:4]
    out = open(log, 'w')

    def say(line):
        print(line, file=out, flush=True)
    s = socket.socket(socket.AF_UNIX)
    s.connect(path)
    if mode != 'mute':
        handshake(s)
    if mode == 'writing':
        write_on(s, say)
        return
    if mode == 'large':
        write_large(s, say)
        return
    if mode == 'header':
        s.sendall(request(WRITE, 1, 1 << 20, 1 << 20)[:10])
    elif mode == 'half':
        s.sendall(request(WRITE, 1, 1 << 20, 1 << 20) + b'x' * 1000)
    elif mode == 'deaf':
        s.settimeout(1)
        try:
            for i in range(200):
                s.sendall(request(READ, i, 0, 4 << 20))
        except OSError:
            pass
    say('ready')
    time.sleep(1000)


main()
