#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The server is killed in the middle of commands, again and again.  Each change that was
# answered is there after the restart; the one that was under way is there as a whole or
# not at all; the next server takes over the socket; disks keep their contents.
# Breaks if: a command answers before its change is durable, or half of one is kept.
#
# SEED=N repeats the times of the kills; the seed is printed.
. "$(dirname "$0")/lib.sh"

cd "$TMP"
uri () { echo "nbd+unix:///$1?socket=$SOCK"; }
tool create --pool pool.qcow2
tool disk create pool.qcow2 keep 4M
random_file keep.raw 4 3
start_server pool.qcow2
nbdcopy --flush keep.raw "$(uri keep)"
stop_server
cat >change.py <<'PYTHON'
# Changes disks until the server is killed, and compares the list at the start with what
# the last run knew: the model is in the file model, as [list before, list after] of the
# command that was not answered, which are equal if there is none.
import json
import os
import random
import sys
sys.path.insert(0, sys.argv[2])
from controlclient import Client, Ended

random.seed(int(sys.argv[3]))
try:
    c = Client(sys.argv[1])
except (Ended, OSError):
    print(0)
    sys.exit()
before, after = json.load(open('model')) if os.path.exists('model') else (
    {'keep': 4 << 20},) * 2
model = {d['name']: d['size'] for d in c.whole('query-disks')}
assert model in (before, after), [
    (n, m.get(n), model.get(n)) for m in (before, after)
    for n in set(m) ^ set(model) | {n for n in m if m[n] != model.get(n)}]
nr = 0


def step():
    global model, nr
    mine = [n for n in model if n != 'keep' and '@' not in n]
    new, what = dict(model), random.randrange(6)
    n = random.choice(mine) if mine else None
    name = 'd%d' % random.randrange(10 ** 9)
    if what == 0 or n is None:
        new[name] = size = random.randrange(1, 4096) * 512
        args = 'disk-create', dict(name=name, size=size)
    elif what == 1:
        new[name] = model['keep']
        args = 'disk-clone', dict(source='keep', name=name)
    elif what == 2:
        new['%s@%s' % (n, name)] = model[n]
        args = 'disk-snapshot', dict(name=n, snapshot=name)
    elif what == 3:
        new[n] = model['keep']
        args = 'disk-reset', dict(name=n, source='keep')
    elif what == 4:
        new[n] = size = random.randrange(1, 4096) * 512
        args = 'disk-resize', dict(name=n, size=size, shrink=True)
    elif len(mine) > 4:
        n = random.choice(list(new))
        if n == 'keep':
            return
        del new[n]
        args = 'disk-delete', dict(name=n)
    else:
        return
    json.dump((model, new), open('model', 'w'))
    c.ok(args[0], **args[1])
    json.dump((new, new), open('model', 'w'))
    model, nr = new, nr + 1


try:
    while True:
        step()
except Ended:
    print(nr)
PYTHON

seed=${SEED:-$((RANDOM * 32768 + RANDOM))}
say "seed $seed"
RANDOM=$seed
total=0
for ((round = 0; round < 12 * SCALE; round++)); do
  start_server pool.qcow2 control="$TMP/control"
  $PY change.py "$TMP/control" "$HERE" $((seed + round)) >nr &
  client=$!
  sleep "0.$((RANDOM % 9))"
  kill_server
  wait $client || die "round $round: the list of disks is not what was answered"
  total=$((total + $(cat nr)))
done
at_least "commands that were answered" $total $((5 * SCALE))
say "$total commands"
start_server pool.qcow2
nbdcopy "$(uri keep)" got.raw
cmp keep.raw got.raw || die "the disk 'keep' has changed"
stop_server
tool recover pool.qcow2 >/dev/null
check_clean pool.qcow2
