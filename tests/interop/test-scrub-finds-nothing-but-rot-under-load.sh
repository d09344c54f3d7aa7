#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Scrubs run, one after the other, while three clients write, trim, clone, snapshot
# and delete disks of the same pool.  Blocks of a disk rot meanwhile, and some are
# healed: each finding is a rotten block, each rotten block is found, whoever calls
# clusters bad (scrubs, or writers who compare), and no client reads wrong bytes.
# Breaks if: a cluster that is freed and used again while a scrub looks at it, or an
# old entry of the index, passes for rot, or rot is missed under load.
#
# SCRUB_CLUSTERS (8,192) is how many clusters the disk has; SCRUB_SECONDS (8) how
# long scrubs go on; SEED=n.  A million clusters take 8 GiB in TMPDIR:
#   SCRUB_CLUSTERS=1000000 tests/interop/test-scrub-finds-nothing-but-rot-under-load.sh
. "$(dirname "$0")/lib.sh"
need qemu-img

cd "$TMP"
clusters=${SCRUB_CLUSTERS:-$((8192 * SCALE))}
seconds=${SCRUB_SECONDS:-$((8 * SCALE))}
seed=${SEED:-$RANDOM}
say "$clusters clusters, SEED=$seed"
load () { $PY "$HERE/scrubload.py" "$@"; }
serve () { start_server pool.qcow2 control="$TMP/control"; }

tool create --pool pool.qcow2
serve
load fill "$SOCK" "$TMP/control" "$clusters" "$seed"
stop_server
load places pool.qcow2 "$clusters" places

serve
load run "$SOCK" "$TMP/control" pool.qcow2 "$SRV_LOG" "$clusters" "$seed" places \
  "$seconds" rotten
stop_server
tool recover pool.qcow2 >out    # it may close while deleted clones are left
check_clean pool.qcow2

say "the closed image"
rc=0
tool scrub --restart --output=json pool.qcow2 >report.json || rc=$?
equal "status of the scrub of the closed image" $rc 2
$PY - report.json rotten <<'PYTHON'
import json
import sys
report = json.load(open(sys.argv[1]))
want = {int(line) for line in open(sys.argv[2])}
got = set()
for f in report['findings']:
    got.update(range(f['host-offset'], f['host-offset'] + f['length'], 4096))
assert got == want, (got - want, want - got)
assert report['different-clusters'] == len(want) > 0
assert report['doubtful-clusters'] == report['unreadable-clusters'] == 0
PYTHON
echo PASS
