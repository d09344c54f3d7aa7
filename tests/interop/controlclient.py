# SPDX-License-Identifier: BSD-3-Clause
"""A client of the control socket, for tests: blocking, and strict about the wire.

  c = Client(path)
  c.ok('disk-create', name='vm1', size=1 << 20)   what it returns; fails on an error
  c.error('disk-create', 'must be', name='')      the error's text, which has this part
  c.events                                        those that came so far, in order

Every line must be ASCII, one JSON object, shorter than 64 KiB, and end with CRLF; the
text of an error must be one line.
"""
import json
import socket
import sys


class Ended(Exception):
    """The server closed the connection."""


class Client:
    def __init__(self, path, timeout=60):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(timeout)
        self.sock.connect(path)
        self.file = self.sock.makefile('rb')
        self.events = []
        self.nr = 0
        self.greeting = self.line()['QMP']
        self.ok('qmp_capabilities')

    def line(self):
        try:
            line = self.file.readline(65537)
        except ConnectionResetError:
            line = b''
        if not line:
            raise Ended
        assert len(line) < 65536 and line.endswith(b'\r\n'), line[-100:]
        return json.loads(line.decode('ascii'))

    def send(self, name, args):
        self.nr += 1
        o = {'execute': name, 'id': self.nr}
        if args:
            o['arguments'] = {k.rstrip('_').replace('_', '-'): v
                              for k, v in args.items()}
        try:
            self.sock.sendall(json.dumps(o).encode())
        except (BrokenPipeError, ConnectionResetError):
            raise Ended from None

    def reply(self):
        while True:
            o = self.line()
            if 'event' not in o:
                assert o['id'] == self.nr, o
                return o
            self.events.append(o)

    def command(self, name, /, **args):
        self.send(name, args)
        return self.reply()

    def ok(self, name, /, **args):
        o = self.command(name, **args)
        if 'return' not in o:
            sys.exit('FAIL: %s %r: %s' % (name, args, o['error']['desc']))
        return o['return']

    def whole(self, name):
        """The whole list of a command that returns it in pages."""
        items, page = [], self.ok(name)
        while page:
            items += page
            page = self.ok(name, after=page[-1]['name'])
        return items

    def error(self, name, part, /, **args):
        o = self.command(name, **args)
        if 'error' not in o:
            sys.exit('FAIL: %s %r was not refused' % (name, args))
        text = o['error']['desc']
        if '\n' in text or part not in text:
            sys.exit('FAIL: %s %r: "%s" does not say "%s"' %
                     (name, args, text, part))
        return text

    def take_events(self, name):
        """The data of events of this name that came so far, which are dropped."""
        found = [e.get('data') for e in self.events if e['event'] == name]
        self.events = [e for e in self.events if e['event'] != name]
        return found

    def rest(self):
        """Reads events until the server closes the connection."""
        try:
            while True:
                self.events.append(self.line())
        except Ended:
            return

    def close(self):
        self.file.close()
        self.sock.close()
