#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The benchmark suite measures every main row with every server, reads back
# what was written, and would notice if it were wrong: one changed byte, or
# the right blocks in the wrong place, fail the verification.
# How many blocks are equal is counted by a program that shares no code with it.
# Breaks if: load generator, servers' options and report do not fit together,
# or if a benchmark could pass on a server that loses data.
. "$(dirname "$0")/lib.sh"
need qemu-nbd qemu-img
LOAD=$BUILD_DIR/bench/dedup-load
[ -x "$LOAD" ] || missing "$LOAD is not built"
[ -z "$preload" ] || skip "not with a sanitizer"

load () { "$LOAD" --uri="$URI" "$@" >"$TMP/load.out"; }

say "contents are a function of the offset, whatever block, order or depth"
S=4M
second=(--offset=$S --size=$S --gen=2 --dup-run=64k)
start_server "$TMP/disk.qcow2" size=8M
load seqwrite --size=$S --connections=2
for dup in all half scatter none; do
  load randwrite "${second[@]}" --dup=$dup --block=8k --depth=5
  load verify "${second[@]}" --dup=$dup --block=64k --connections=2
  load verify --size=$S --order=random
  nbdcopy "$URI" "$TMP/disk.raw"
  distinct=$(distinct_blocks "$TMP/disk.raw")
  case $dup in                  # of 2048, half of them written first
    none) equal "distinct blocks" "$distinct" 2048 ;;
    half) at_least "distinct blocks" "$distinct" 1200
          at_most "distinct blocks" "$distinct" 1900 ;;
    *) equal "distinct blocks, dup=$dup" "$distinct" 1024 ;;
  esac
done
for other in --gen=3 --dup=all --dup=half; do
  refused load verify "${second[@]}" $other
  grep -q 'wrong contents' "$TMP/refused" || die "not refused for its contents"
done

say "part of an order is found again"
load batchsync "${second[@]}" --gen=4 --ops=100
load verify "${second[@]}" --gen=4 --block=4k --order=random --ops=100
load verify "${second[@]}" --gen=4 --block=4k --order=random --ops=100 \
  --reorder=5
refused load verify "${second[@]}" --gen=4 --block=4k --order=random --ops=101

say "one wrong byte, one wrong zero"
load verify --size=$S
$PY "$HERE/nbdrun.py" "$URI" '
b = bytearray(h.pread(1, 3000001)); b[0] ^= 1; h.pwrite(b, 3000001)'
refused load verify --size=$S
grep -q "offset $((3000001 / 4096 * 4096))\$" "$TMP/refused" ||
  die "another offset: $(cat "$TMP/refused")"
load zero --size=$S --block=1M
load verifyzero --size=$S
$PY "$HERE/nbdrun.py" "$URI" "h.pwrite(b'x', $((4 << 20)) - 1)"
refused load verifyzero --size=$S
stop_server

say "the suite"
$PY "$HERE/../../bench/run" --quick --size 4M --verify all \
  --build "$BUILD_DIR" --dir "$TMP" --out "$TMP/out" >"$TMP/bench.out" 2>&1 ||
  { tail -n 20 "$TMP/bench.out" >&2; die "bench/run"; }
$PY - "$TMP/out" <<'END'
import json, math, sys, xml.dom.minidom
out = sys.argv[1]
results = json.load(open(out + '/results.json'))
runs = {(r['row'], r['server']): r for r in results['runs']}
assert len(runs) == len(results['runs']) == 10 * 4, len(runs)
for key, r in runs.items():
    assert r['value'] > 0 and math.isfinite(r['value']), key
    assert r['verified'] or key[0].startswith('randread'), key
    assert r['load']['ops'] > 0 and r['rss_mib'] > 0, key
for s in results['summary']:
    # One round: the ratio is that of the two values.
    v = {name: m['median'] for name, m in s['values'].items()}
    want = v['dedup'] / v['file']
    assert abs(s['ratios']['vs_file']['median'] - want) < 1e-9, s
    want = v['dedup'] / max(v['qemu4k'], v['qemu64k'])
    assert abs(s['ratios']['vs_qemu']['median'] - want) < 1e-9, s
    assert len(s['targets']) == 2, s
text = open(out + '/results.md').read()
svg = open(out + '/results.svg').read()
xml.dom.minidom.parseString(svg)
for s in results['summary']:
    assert '| %s |' % s['row'] in text and '>%s<' % s['row'] in svg, s['row']
END
leftover=$(find "$TMP" -maxdepth 1 -name 'dedup-bench-*')
equal "what bench/run leaves behind" "$leftover" ''
