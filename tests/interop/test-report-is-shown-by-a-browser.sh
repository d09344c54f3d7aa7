#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Chromium shows the page of qcow2-dedup report, for an empty pool, one with one
# disk, one with many, and one with 1,000: in a narrow and a wide window, light and
# dark, without a script, a request or a line on the console, and with nothing wider
# than the window (browser.py).
# Breaks if: the page needs something that it does not have, cannot be read in one of
# the schemes, or does not fit.
# SHOTS=DIR keeps the screenshots.
. "$(dirname "$0")/lib.sh"
need chromium nbdcopy

cd "$TMP"
export HOME=$TMP TOOL PLUGIN
many=${REPORT_DISKS:-1000}
page () # IMAGE PAGE
{
  tool report "$1" -o "$2"
  $PY "$HERE/reportpage.py" structure "$2"
}
raw () # FILE SEED
{
  $PY - "$@" <<'PYTHON'
import random, sys
mine, base = random.Random(int(sys.argv[2])), random.Random(0)
with open(sys.argv[1], 'wb') as f:
    for _ in range(800):
        block = base.randbytes(4096)
        f.write(mine.randbytes(4096) if mine.random() < .3 else block)
PYTHON
}

say "none, one, some"
tool create --pool pool.qcow2
page pool.qcow2 none.html
raw a.raw 1
tool disk import --size=16M pool.qcow2 "vm1" a.raw >/dev/null
page pool.qcow2 one.html
$PY "$HERE/growth.py" pool.qcow2 $(for ((i = 0; i < 200; i++)); do
  echo $((1700000000 + i * 86400)),$((i * 500000 + i % 9 * 300000)),$((i * 99999)),1
done)
names=('"><b onclick=x>' "$(printf 'long-%.0s' {1..50})" "$(printf 'n%.0s' {1..255})")
for name in "${names[@]}"; do
  raw a.raw ${#name}
  tool disk import --no-wait --size=16M pool.qcow2 "$name" a.raw >/dev/null
done
for ((i = 0; i < 30; i++)); do
  tool disk clone --no-wait pool.qcow2 vm1 "clone $i"
done
tool disk snapshot pool.qcow2 vm1 monday
page pool.qcow2 some.html

say "$many"
cp pool.qcow2 many.qcow2
$PY "$HERE/manydisks.py" many.qcow2 "$many"
page many.qcow2 many.html
tool report --output=json many.qcow2 -o many.json
$PY "$HERE/reportpage.py" figures many.html many.json
$PY "$HERE/reportpage.py" count many.json many.qcow2
at_most "bytes of the page" "$(stat -c %s many.html)" $((1 << 20))

say "in the browser"
mkdir -p "${SHOTS:-shots}"
timeout -k 5 240 $PY "$HERE/browser.py" "${SHOTS:-shots}" \
  none.html one.html some.html many.html
