#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Each command of the control socket does what it says; with wrong arguments it is
# refused by one line that names what is wrong, and nothing has changed: neither the list
# of disks, nor the settings, nor the jobs.  What was changed is there after a restart.
# Breaks if: a command does something else or nothing, a wrong argument is taken or its
# error does not name it, a refused command changes something, or a change is lost.
. "$(dirname "$0")/lib.sh"

cd "$TMP"
tool create --pool pool.qcow2
start_server pool.qcow2 control="$TMP/control"

cat >check.py <<'PYTHON'
import sys
sys.path.insert(0, sys.argv[2])
from controlclient import Client

MB = 1 << 20
c = Client(sys.argv[1])


def state():
    return [c.ok('query-disks'), c.ok('query-settings'),
            [(j['id'], j['type']) for j in c.ok('query-jobs')
             if j['type'] not in ('disks', 'defragment')]]


def refused(name, part, /, **args):
    before = state()
    c.error(name, part, **args)
    after = state()
    assert before == after, (name, args, before, after)


def disks():
    return {d['name']: d for d in c.ok('query-disks')}


# --- Disks ---
c.ok('disk-create', name='vm1', size=MB)
c.ok('disk-create', name='größe €', size=3 * MB)
c.ok('disk-clone', source='vm1', name='vm2')
c.ok('disk-snapshot', name='vm1', snapshot='base')
c.ok('disk-clone', source='vm1@base', name='vm3')
d = disks()
assert list(d) == ['größe €', 'vm1', 'vm1@base', 'vm2', 'vm3'], d
assert d['vm1']['kind'] == 'disk' and d['vm1@base']['kind'] == 'snapshot'
assert d['vm1']['writable'] and not d['vm1@base']['writable']
assert d['größe €']['size'] == 3 * MB and 'origin' not in d['größe €']
assert d['vm2']['origin'] == 'vm1' and d['vm3']['origin'] == 'vm1@base'
assert d['vm1']['clients'] == 0 and d['vm1']['created'] > 1700000000

refused('disk-create', 'vm1', name='vm1', size=MB)
refused('disk-create', 'size', name='x', size=0)
refused('disk-create', 'size', name='x', size=1000)
refused('disk-create', 'size', name='x', size=1 << 62)
refused('disk-create', "'size'", name='x', size=-512)
refused('disk-create', "'size'", name='x', size='1M')
refused('disk-create', "'size'", name='x')
refused('disk-create', "'name'", size=MB)
refused('disk-create', "'name'", name=1, size=MB)
refused('disk-create', "'sise'", name='x', size=MB, sise=1)
for name in '', 'a/b', 'a@b', 'a\nb', 'a\x00b', 'x' * 256:
    refused('disk-create', '', name=name, size=MB)
refused('disk-clone', "'no'", source='no', name='x')
refused('disk-clone', 'vm2', source='vm1', name='vm2')
refused('disk-clone', '@', source='vm1', name='x@y')
refused('disk-snapshot', 'vm1@base', name='vm1', snapshot='base')
refused('disk-snapshot', "'no'", name='no', snapshot='x')
refused('disk-snapshot', '', name='vm1', snapshot='')
refused('disk-snapshot', '', name='vm1', snapshot='a@b')

c.ok('disk-resize', name='vm1', size=2 * MB)
refused('disk-resize', '"shrink"', name='vm1', size=MB)
refused('disk-resize', '512', name='vm1', size=2 * MB + 1)
refused('disk-resize', 'snapshot', name='vm1@base', size=4 * MB)
refused('disk-resize', 'active', name='', size=4 * MB)
refused('disk-resize', "'no'", name='no', size=4 * MB)
for shrink in False, True:      # which it would not help to say
    refused('disk-resize', 'snapshot', name='vm1@base', size=512, shrink=shrink)
    refused('disk-resize', 'active', name='', size=512, shrink=shrink)
    refused('disk-resize', 'multiple of 512', name='vm1', size=0, shrink=shrink)
    refused('disk-resize', 'multiple of 512', name='vm1', size=1, shrink=shrink)
c.ok('disk-resize', name='vm1', size=MB + 512, shrink=True)
assert disks()['vm1']['size'] == MB + 512

c.ok('disk-reset', name='vm2', source='größe €')
assert disks()['vm2']['size'] == 3 * MB
refused('disk-reset', 'itself', name='vm2', source='vm2')
refused('disk-reset', '', name='vm1@base', source='vm2')
refused('disk-reset', "'no'", name='vm2', source='no')
refused('disk-reset', "'no'", name='no', source='vm2')

c.ok('disk-rename', name='vm1', new_name='web')
d = disks()
assert 'vm1' not in d and 'vm1@base' not in d and 'web@base' in d, d
assert d['vm3']['origin'] == 'web@base'
refused('disk-rename', 'vm2', name='web', new_name='vm2')
refused('disk-rename', "'no'", name='no', new_name='x')
refused('disk-rename', '', name='web', new_name='x@y')
refused('disk-rename', 'active', name='', new_name='x')

assert c.take_events('BLOCK_EXPORT_DELETED') == []
c.ok('disk-delete', name='vm3')
assert c.take_events('BLOCK_EXPORT_DELETED') == [{'id': 'vm3'}]
refused('disk-delete', "'vm3'", name='vm3')
refused('disk-delete', 'active', name='')
assert c.take_events('BLOCK_EXPORT_DELETED') == []

# --- Lists ---
names = list(disks())
assert [x['id'] for x in c.ok('query-block-exports')] == names
assert c.ok('query-block-exports')[0]['type'] == 'nbd'
assert [x['name'] for x in c.ok('query-disks', limit=2)] == names[:2]
assert [x['name'] for x in c.ok('query-disks', after=names[1])] == names[2:]
assert c.ok('query-disks', limit=0) == []
refused('query-disks', "'limit'", limit='x')

# --- QEMU's ---
n = c.ok('query-named-block-nodes')
assert len(n) == 1 and n[0]['drv'] == 'qcow2' and not n[0]['ro'], n
assert n[0]['file'].endswith('/pool.qcow2') and n[0]['node-name'] == 'image'
assert n[0]['image']['virtual-size'] >= 512, n
assert n[0]['image']['cluster-size'] == 4096
assert n[0]['image']['actual-size'] > 0
s = c.ok('query-status')
assert s == {'running': True, 'singlestep': False, 'status': 'running',
             'read-only': False}, s
for name in 'block-export-add', 'block-export-del', 'device_add':
    assert c.command(name)['error']['class'] == 'CommandNotFound'
for name in 'job-cancel', 'job-pause', 'job-resume', 'job-dismiss':
    assert c.error(name, '', id='no') == 'Job not found'
    refused(name, "'id'")
c.error('block-job-set-speed', '', device='no', speed=1)
refused('block-job-set-speed', "'speed'", device='disks', speed=-1)

# --- Every argument of every command ---
def schema():
    entries, first = [], 0
    while first is not None:
        page = c.ok('query-schema', first=first)
        entries += page['entries']
        first = page.get('next')
    return {e['name']: e for e in entries if e['kind'] == 'command'}


def valid(member):
    return {'str': 'vm2', 'size': 512, 'int': 1, 'bool': False}.get(
        member['type'], 'info')


def wrong(member):
    return 1 if member['type'] in ('str', 'LogLevel') else 'x'


nr = 0
before = state()
for name, entry in schema().items():
    if name in ('quit', 'qmp_capabilities'):
        continue
    members = entry.get('members', [])
    needed = {m['name']: valid(m) for m in members if not m.get('optional')}
    c.error(name, "'nonsense'", **needed, nonsense=1)
    for m in members:
        if m['type'].startswith('['):
            continue
        c.error(name, "'%s'" % m['name'], **{**needed, m['name']: wrong(m)})
        nr += 1
        if m['name'] in needed:
            c.error(name, "'%s'" % m['name'],
                    **{k: v for k, v in needed.items() if k != m['name']})
assert nr > 30, nr
assert state() == before

# --- Settings ---
assert c.ok('query-settings')['commit-interval'] == 5000
refused('set', 'commit-interval', commit_interval=3600001, log_level='debug')
refused('set', "'log-level'", log_level='loud', commit_interval=1)
refused('set', "'job-speed'", job_speed=-1)
refused('set', "'colour'", colour='red', commit_interval=1)
c.ok('set', commit_interval=20, job_speed=1 << 40, log_level='debug')
s = c.ok('query-settings')
assert (s['commit-interval'], s['job-speed'], s['log-level']) == \
    (20, 1 << 40, 'debug'), s
c.ok('disk-create', name='loud', size=512)
c.ok('disk-delete', name='loud')
c.ok('checkpoint')
c.ok('set', log_level='error')
c.ok('disk-create', name='silent', size=512)
c.ok('disk-delete', name='silent')
c.ok('set', log_level='info')

c.ok('flush')
c.ok('checkpoint')
refused('flush', "'x'", x=1)
PYTHON
$PY check.py "$TMP/control" "$HERE"

say "each change is in the log, with who asked for it"
me="user $(id -u)"
for what in "disk-create 'vm1', 1048576 bytes" "disk-clone 'vm2' of 'vm1'" \
    "disk-snapshot 'vm1@base'" "disk-resize 'vm1' to 2097152 bytes" \
    "disk-reset 'vm2' to 'g" "disk-rename 'vm1' to 'web'" "disk-delete 'vm3'" \
    "set {" "checkpoint"; do
  grep -F "pool.qcow2: $what" "$SRV_LOG" | grep -q "(process [0-9]*, $me)" ||
    die "the log does not tell of: $what"
done
! grep -q "'silent'" "$SRV_LOG" || die "the log level has no effect"
equal "lines on the log level" \
  "$(grep -c 'set {.*"log-level": "\(error\|info\)"' "$SRV_LOG")" 2
grep -qE "disk-create 'vm1'.*was refused: .*vm1" "$SRV_LOG" ||
  die "the log does not tell of what was refused"

say "all is there after a restart, and the image is clean"
stop_server
[ ! -e "$TMP/control" ] || die "the socket is still there"
tool recover pool.qcow2 >/dev/null
check_clean pool.qcow2
tool disk list --output=json pool.qcow2 >list.json
equal "the disks" "$($PY -c '
import json
l = json.load(open("list.json"))
print([(d["name"], d["virtual-size"]) for d in l["disks"]])')" \
  "[('größe €', 3145728), ('vm2', 3145728), ('web', 1049088), ('web@base', 1048576)]"
