#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# What "qcow2-dedup status" and "metrics" tell of a pool is what fio and qemu-io did to it:
# exact numbers of requests and bytes, by disk and by client; the logical and stored bytes
# are those that "info" counts in the closed image.  promtool accepts the metrics, and
# they parse; a file that is replaced is never half a file.  The screen keeps to the width
# of the terminal.
# Breaks if: a request is counted twice, not at all or for another disk; a unit is wrong;
# a label is not escaped; or a figure is made up where it is not known.
. "$(dirname "$0")/lib.sh"
need fio promtool

cd "$TMP"
uri () { echo "nbd+unix:///$1?socket=$SOCK"; }
odd='we"ird\n'                  # a backslash and an n
tool create --pool pool.qcow2
tool disk create pool.qcow2 a 16M
tool disk create pool.qcow2 b 16M
tool disk create pool.qcow2 "$odd" 1M
start_server pool.qcow2 control="$TMP/control"
ask () { tool "$@" --control="$TMP/control" pool.qcow2; }

say "nothing was done yet"
ask status --output=json >before.json
ask metrics >before.prom
promtool check metrics <before.prom || die "promtool does not accept the metrics"

say "fio and qemu-io work"
fio --name=job --ioengine=nbd --uri="$(uri a)" --rw=randrw --rwmixread=40 --bs=4k \
  --size=16m --io_size=8m --iodepth=8 --fsync=64 --randseed=1 \
  --output=fio.json --output-format=json >/dev/null
qemu-io -f raw -c 'write -P 1 0 1M' -c 'write -P 1 1M 64k' -c 'read 0 128k' \
  -c 'discard 512k 256k' "$(uri b)" >/dev/null
cat >hold.py <<'PYTHON'
import sys
import nbd
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pread(512, 0)
h.pread(512, 1024)
print('ready', flush=True)
sys.stdin.read()
PYTHON
coproc hold { $PY hold.py "$(uri b)"; }
hold_pid=$!
read -r line <&"${hold[0]}"
equal "the client's line" "$line" ready
tool disk list pool.qcow2 >/dev/null 2>&1 && die "the image is not locked"

cat >check.py <<'PYTHON'
"""Compares the figures of a server with what was done."""
import json
import re
import sys
sys.path.insert(0, sys.argv[1])
from controlclient import Client
control, tool, odd = sys.argv[2:5]

def equal(what, got, want):
    if got != want:
        sys.exit('FAIL: %s is %r, should be %r' % (what, got, want))

c = Client(control)
space = c.ok('count-space')
stats = c.ok('query-stats')
disks = {d['name']: d for d in c.ok('query-disk-stats')}
clients = c.ok('query-clients')
def line(d):
    requests = ['{type}:{requests}:{errors}:{bytes}'.format(**r) for r in d['requests']]
    return '%d %s %d %s %s' % (d['size'], d.get('mapped-bytes', '-'), d['clients'],
                               ','.join(requests) or '-', d['name'])
equal('lines on the disks', c.ok('query-disk-lines'), [line(d) for d in disks.values()])

def by_type(o):
    return {r['type']: r for r in o['requests']}

job = json.load(open('fio.json'))['jobs'][0]
a, b, all_ = by_type(disks['a']), by_type(disks['b']), by_type(stats)
for t in 'read', 'write':
    equal(t + 's of a', a[t]['requests'], job[t]['total_ios'])
    equal('bytes of ' + t + 's of a', a[t]['bytes'], job[t]['io_bytes'])
equal('writes of b', b['write']['requests'], 2)
equal('bytes of writes of b', b['write']['bytes'], (1 << 20) + (64 << 10))
equal('reads of b', b['read']['requests'], 3)
equal('bytes of reads of b', b['read']['bytes'], (128 << 10) + 2 * 512)
equal('trims of b', b['trim']['requests'], 1)
equal('bytes of trims of b', b['trim']['bytes'], 256 << 10)
equal('requests of an unused disk', disks[odd.replace('\\n', '\\n')]['requests'], [])
for t in all_:
    equal('all ' + t + 's', all_[t]['requests'],
          sum(by_type(d).get(t, {'requests': 0})['requests'] for d in disks.values()))
    equal('histogram of ' + t, sum(all_[t]['latency']), all_[t]['requests'])
    equal('errors of ' + t, all_[t]['errors'], 0)
assert all_['flush']['requests'] >= job['sync']['total_ios'] > 0
us = job['write']['clat_ns']['mean'] / 1000
mean = all_['write']['total-ns'] / all_['write']['requests'] / 1000
assert 1 <= mean <= us * 1.5 + 50, (mean, us)

equal('clients', [(x['export'], by_type(x)['read']['bytes']) for x in clients],
      [('b', 1024)])
assert re.fullmatch(r'unix:pid=\d+,uid=\d+', clients[0]['address']), clients
equal('number of clients', stats['clients'], 1)
equal('clients of b', disks['b']['clients'], 1)

mapped = {n: d['mapped-bytes'] for n, d in disks.items()}
equal('logical bytes', space['logical-bytes'], sum(mapped.values()))
equal('mapped in b', mapped['b'], (1 << 20) + (64 << 10) - (256 << 10))
equal('disks', (space['disks'], space['snapshots']), (3, 0))
equal('space', space['status'], 'ok')
equal('read-only', stats['read-only'], False)
json.dump({'space': space, 'stats': stats, 'disks': disks}, open('figures.json', 'w'))
PYTHON
tool control "$TMP/control" scrub speed:=1 job-id=slow
$PY check.py "$HERE" "$TMP/control" "$TOOL" "$odd"

say "metrics have the same figures"
ask metrics -o all.prom
promtool check metrics <all.prom || die "promtool does not accept the metrics"
cat >parse.py <<'PYTHON'
"""Parses Prometheus' text format, strictly, and compares it with query-stats."""
import json
import re
import sys
odd = sys.argv[1]
label = r'[a-z_]+="(?:[^"\\\n]|\\[\\"n])*"'
sample = re.compile(r'([a-z_]+)(?:\{(%s(?:,%s)*)\})? (\S+)' % (label, label))
values, types = {}, {}
for line in open('all.prom', encoding='utf-8'):
    line = line.rstrip('\n')
    if line.startswith('# TYPE '):
        _, _, name, kind = line.split(' ')
        assert name not in types, 'two TYPE lines for ' + name
        types[name] = kind
        continue
    if line.startswith('# HELP '):
        continue
    m = sample.fullmatch(line)
    assert m, 'not a sample: ' + line
    base = re.sub(r'_(bucket|sum|count)$', '', m[1])
    assert m[1] in types or types.get(base) == 'histogram', m[1] + ' has no type'
    assert (types.get(m[1]) == 'counter') == m[1].endswith('_total'), m[1]
    labels = dict(re.findall(r'([a-z_]+)="((?:[^"\\]|\\.)*)"', m[2] or ''))
    labels = {k: re.sub(r'\\(.)', lambda x: '\n' if x[1] == 'n' else x[1], v)
              for k, v in labels.items()}
    assert labels.pop('image') == 'pool.qcow2'
    assert not {'job', 'instance'} & set(labels), 'Prometheus has labels of this name: ' + line
    key = (m[1], frozenset(labels.items()))
    assert key not in values, 'twice: ' + line
    values[key] = float(m[3])

def get(name, **labels):
    return values['nbdkit_dedup_' + name, frozenset(labels.items())]

f = json.load(open('figures.json'))
stats, space = f['stats'], f['space']
for r in stats['requests']:
    t = r['type']
    assert get('request_bytes_total', type=t) == r['bytes'], t
    assert get('request_errors_total', type=t) == r['errors'] == 0, t
    assert get('request_duration_seconds_count', type=t) == r['requests'], t
    assert abs(get('request_duration_seconds_sum', type=t) -
               r['total-ns'] / 1e9) < 1e-9, t
    bounds = sorted((float(dict(k[1])['le']), v) for k, v in values.items()
                    if k[0].endswith('_bucket') and dict(k[1])['type'] == t)
    assert [v for _, v in bounds] == sorted(v for _, v in bounds), t
    assert bounds[-1] == (float('inf'), r['requests']), t
    for bound, v in bounds[:-1]:
        i = round(bound * 1e9).bit_length() - 1
        assert bound * 1e9 == 2 ** i and v == sum(r['latency'][:i]), (t, bound)
for name, key in (('logical_bytes', 'logical-bytes'), ('stored_bytes', 'stored-bytes'),
                  ('image_used_bytes', 'used-bytes'), ('host_bytes', 'host-bytes'),
                  ('image_file_bytes', 'file-bytes'), ('disks', 'disks'),
                  ('deduplicated_bytes', 'deduplicated-bytes'),
                  ('dead_bytes', 'dead-bytes'),
                  ('shared_dead_bytes', 'shared-dead-bytes')):
    assert get(name) == space[key], (name, get(name), space[key])
assert abs(get('dedup_ratio') - space['ratio']) < 1e-9
assert abs(get('compression_ratio') - space['compression-ratio']) < 1e-9
assert get('space_status', status='ok') == 1 and get('space_status', status='low') == 0
assert get('disk_request_bytes_total', disk='b', type='trim') == 256 << 10
for disk, d in f['disks'].items():
    for r in d['requests']:
        for name, key in (('requests', 'requests'), ('request_errors', 'errors'),
                          ('request_bytes', 'bytes')):
            assert get(f'disk_{name}_total', disk=disk, type=r['type']) == r[key], r
assert len([k for k in values if k[0].endswith('disk_requests_total')]) == \
    sum(len(d['requests']) for d in f['disks'].values()) > 0
assert get('disk_size_bytes', disk=odd) == 1 << 20
assert get('clients') == 1 and get('read_only') == 0
assert 0 <= get('job_progress_ratio', id='slow', type='scrub') < 1
assert get('start_time_seconds') == stats['started']
assert get('clusters_stored_total') == stats['dedup']['clusters-stored']
PYTHON
$PY parse.py "$odd"
equal "the rights of the file" "$(stat -c %a all.prom)" \
  "$(printf %o $((0666 & ~0$(umask))))"
cp all.prom old.prom
refused bash -c "ulimit -f 1; exec '$TOOL' metrics --control='$TMP/control' -o all.prom"
one_error_line all.prom 'cannot be written'
cmp all.prom old.prom || die "a file that could not be written was replaced"
equal "files beside it" "$(echo .all.prom.*)" '.all.prom.*'
equal "lines on standard output" "$(ask metrics -o - | grep -c "^nbdkit_dedup_clients")" 1
sum=$(head -c 64K pool.qcow2 | sha256sum)
refused ask metrics -o pool.qcow2
one_error_line pool.qcow2 'is a qcow2 image'
equal "the begin of the image" "$(head -c 64K pool.qcow2 | sha256sum)" "$sum"
mkfifo pipe
cat pipe >piped.prom &
reader=$!
ask metrics -o pipe
wait $reader
[ -p pipe ] || die "a pipe was replaced by a file"
ln -s all.prom link.prom
ask metrics -o link.prom
[ -L link.prom ] || die "a symbolic link was replaced by a file"
for file in piped.prom all.prom; do
  promtool check metrics <$file || die "promtool does not accept $file"
done
$PY - "$SOCK" "$odd" <<'PYTHON'
import sys
import nbd
h = nbd.NBD()
h.set_export_name(sys.argv[2])
h.connect_unix(sys.argv[1])
h.flush()
h.shutdown()
PYTHON
equal "disks whose first type is another" \
  "$(ask metrics | grep -c 'disk_requests_total{.*ird.*,type="flush"} 1$')" 1

say "the screen"
ask status >screen.txt
grep -q $'\033' screen.txt && die "escape sequences without a terminal"
for want in 'disks 3' 'clients 1' 'ratio ' 'space    ok' '^write  ' '^read  '; do
  grep -q -- "$want" screen.txt || die "the screen lacks '$want': $(cat screen.txt)"
done
cat >terminal.py <<'PYTHON'
"""Runs a command on a terminal of COLUMNS and ROWS, for some seconds at most."""
import fcntl, os, pty, re, signal, struct, subprocess, sys, termios, unicodedata
columns, rows, seconds = map(int, sys.argv[1:4])
main, other = pty.openpty()
fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack('HHHH', rows, columns, 0, 0))
p = subprocess.Popen(sys.argv[4:], stdout=other, stderr=other)
os.close(other)
if seconds:
    try:
        p.wait(seconds)
        sys.exit('FAIL: it ended by itself')
    except subprocess.TimeoutExpired:
        p.send_signal(signal.SIGINT)
out = b''
try:
    while True:
        out += os.read(main, 65536)
except OSError:
    pass
if p.wait() != 0:
    sys.exit('FAIL: status %d' % p.returncode)
text = out.decode()
assert '\033[1m' in text, 'no colour'
def width(line):
    return sum(0 if unicodedata.combining(c) else
               2 if unicodedata.east_asian_width(c) in 'WF' else 1 for c in line)
screens = text.split('\033[H\033[2J')
for screen in screens[1:] if seconds else screens:
    lines = re.sub('\033\\[[0-9;]*m', '', screen).replace('\r', '').rstrip('\n').split('\n')
    for line in lines:
        assert width(line) <= columns, '%d columns: %s' % (width(line), line)
    assert not rows or len(lines) < rows, '%d lines' % len(lines)
if seconds:
    assert len(screens) >= 3, 'it did not watch'
PYTHON
wide=$(printf '\xe7\xa3\x81\xe7\x9b\xa4e\xcc\x81%.0s' {1..20})   # and an accent that combines
tool control "$TMP/control" disk-create name="$wide" size:=512
$PY terminal.py 40 50 0 "$TOOL" status --control="$TMP/control" pool.qcow2
$PY terminal.py 100 16 0 "$TOOL" status --control="$TMP/control"
$PY terminal.py 60 30 4 "$TOOL" status --watch=1 --control="$TMP/control" pool.qcow2

tool control "$TMP/control" disk-delete name="$wide"
tool control "$TMP/control" job-cancel id=slow

say "the closed image has what was told"
kill "$hold_pid"
wait "$hold_pid" || true
"$TOOL" status --watch=1 --control="$TMP/control" >watched.txt 2>refused &
watch=$!
for ((i = 0; i < 600; i++)); do
  [ ! -s watched.txt ] || break
  sleep 0.05
done
stop_server
rc=0
wait $watch || rc=$?
equal "status of the command that watched a server that ended" $rc 1
one_error_line control 'ended the connection'
tool info --output=json pool.qcow2 >info.json
$PY - <<'PYTHON'
import json
info, space = json.load(open('info.json')), json.load(open('figures.json'))['space']
pool = info['pool']
for ours, theirs in (('logical-bytes', 'logical-bytes'), ('stored-bytes', 'stored-bytes'),
                     ('disks', 'disks'), ('snapshots', 'snapshots'), ('ratio', 'ratio')):
    assert space[ours] == pool[theirs], (ours, space[ours], pool[theirs])
assert space['cluster-size'] == info['cluster-size']
PYTHON

say "without a server the file stays, and the error is one line"
cp all.prom old.prom
refused ask metrics -o all.prom
one_error_line control 'no server listens'
cmp all.prom old.prom || die "the file was changed"
refused ask status
one_error_line control 'no server listens'
for sub in status metrics; do
  refused tool $sub 'nbd+unix:///x?socket=y'
  one_error_line $sub '--control names the socket'
done
refused tool status
one_error_line status 'IMAGE is needed'
refused tool status --watch=0 x
one_error_line status 'number of seconds'
refused tool metrics a b
one_error_line metrics 'IMAGE is needed'
