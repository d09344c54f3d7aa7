#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# What the commands of the control socket return, and the data of its events, have the
# members and types that query-schema says, no others, and all that are not optional: of a
# pool with disks, clients, jobs in several states, errors and thresholds, and of an image
# that is open for reading only.
# Breaks if: a member is added, renamed or left out in one place only, so that the manual
# page, which is made from the schema, tells what is not so.
. "$(dirname "$0")/lib.sh"

cd "$TMP"
cat >check.py <<'PYTHON'
import os
import sys
import time
sys.path.insert(0, sys.argv[1])
import nbd
from controlclient import Client

SIMPLE = {'str': lambda v: isinstance(v, str), 'bool': lambda v: isinstance(v, bool),
          'int': lambda v: type(v) is int, 'size': lambda v: type(v) is int and v >= 0,
          'number': lambda v: type(v) in (int, float), 'any': lambda v: True}


class Schema:
    def __init__(self, c):
        self.entries, self.seen, first = {}, set(), 0
        while first is not None:
            page = c.ok('query-schema', first=first)
            for e in page['entries']:
                self.entries[e['kind'] in ('command', 'event'), e['name']] = e
            first = page.get('next')

    def commands(self):
        return [n for is_top, n in self.entries if is_top]

    def check(self, kind, v, at):
        if kind.startswith('['):
            assert isinstance(v, list), (at, v)
            for item in v:
                self.check(kind[1:-1], item, at + '[]')
        elif kind in SIMPLE:
            assert SIMPLE[kind](v), (at, v, kind)
        elif 'values' in self.entries[False, kind]:
            assert v in self.entries[False, kind]['values'], (at, v, kind)
        else:
            self.check_members(self.entries[False, kind], v, at)

    def check_members(self, entry, v, at):
        assert isinstance(v, dict), (at, v)
        members = {m['name']: m for m in entry['members']}
        assert set(v) <= set(members), (at, set(v) - set(members))
        for name, m in members.items():
            assert name in v or m['optional'], (at, name, 'is missing')
            if name in v:
                self.seen.add((entry['name'], name))
                self.check(m['type'], v[name], '%s.%s' % (at, name))

    def check_reply(self, name, v):
        kind = self.entries[True, name].get('returns')
        if kind is None:
            assert v == {}, (name, v)
        else:
            self.check(kind, v, name)

    def check_event(self, e):
        self.check_members(self.entries[True, e['event']], e.get('data', {}), e['event'])


class Checked(Client):
    schema = None

    def ok(self, name, /, **args):
        v = super().ok(name, **args)
        if self.schema:
            self.schema.check_reply(name, v)
        return v


control, sock, kind = sys.argv[2:5]
c = Checked(control)
c.schema = Schema(c)


def ask_all():
    for name in c.schema.commands():
        if name.startswith('query-') or name == 'count-space':
            c.ok(name)


def connect(name):
    h = nbd.NBD()
    h.connect_uri('nbd+unix:///%s?socket=%s' % (name, sock))
    return h


def fails(call):
    try:
        call()
        sys.exit('FAIL: this should have failed')
    except nbd.Error:
        pass


ask_all()
fails(lambda: connect('no'))
if kind == 'pool':
    c.ok('disk-create', name='vm1', size=1 << 24)
    c.ok('disk-clone', source='vm1', name='vm2')
    c.ok('disk-snapshot', name='vm1', snapshot='s')
    h = connect('vm1')
    h.set_strict_mode(0)
    h.pwrite(os.urandom(1 << 20), 0)
    h.flush()
    fails(lambda: h.pread(512, 1 << 40))
    c.ok('set', space_low=1 << 60)
    c.ok('scrub', auto_dismiss=False)
    c.ok('compact', auto_dismiss=False, speed=1)
    ask_all()
    end = time.monotonic() + 30
    while 'SPACE_STATUS_CHANGE' not in {e['event'] for e in c.events}:
        assert time.monotonic() < end, c.events
        time.sleep(0.05)
        c.ok('query-jobs')
    c.ok('disk-delete', name='vm2')
    ask_all()
c.ok('quit')
c.rest()
for e in c.events:
    c.schema.check_event(e)
names = {e['event'] for e in c.events}
want = {'SHUTDOWN', 'CLIENT_REFUSED'}
if kind == 'pool':
    want |= {'JOB_STATUS_CHANGE', 'SPACE_STATUS_CHANGE', 'BLOCK_EXPORT_DELETED'}
    for m in ('details', 'id'):
        assert ('JobInfo', m) in c.schema.seen, m
    assert ('ClientInfo', 'address') in c.schema.seen
    assert ('IndexStats', 'entries') in c.schema.seen
assert want <= names, names
print(len(c.schema.seen), 'members were seen')
PYTHON

ended ()
{
  local rc=0
  wait "$SRV_PID" || rc=$?
  forget_server "$SRV_PID"
  no_crash_in "$SRV_LOG"
  equal "status of the server" $rc 0
}

say "a pool"
tool create --pool -o compress=zstd pool.qcow2
start_server pool.qcow2 control="$TMP/control"
$PY check.py "$HERE" "$TMP/control" "$SOCK" pool
ended

say "an image of QEMU's that is open for reading only"
qemu-img create -q -f qcow2 image.qcow2 1M
start_server image.qcow2 readonly=on control="$TMP/control"
$PY check.py "$HERE" "$TMP/control" "$SOCK" image
ended
