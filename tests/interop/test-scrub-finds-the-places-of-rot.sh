#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# qcow2-dedup scrub finds each block that was changed below the pool, names all
# disks and ranges that show it and no others, leaves a sound pool alone, and can be
# interrupted.
# Breaks if: rot stays unnoticed, sound data is called bad, or a finding does not say
# whose data it is.
. "$(dirname "$0")/lib.sh"
need qemu-img nbdcopy
mb=$((24 * SCALE))
pool=$TMP/pool.qcow2

scrub () # STATUS [OPTION]...: the report goes to $TMP/report
{
  local want=$1 rc=0
  shift
  tool scrub --output=json "$@" "$pool" >"$TMP/report" 2>"$TMP/err" || rc=$?
  no_crash_in "$TMP/err"
  [ $rc = "$want" ] || { cat "$TMP/err" "$TMP/report" >&2; die "status $rc"; }
}
field () { json "$1" <"$TMP/report"; }

random_file "$TMP/raw" "$mb" 7
tool create --pool "$pool"
tool disk import "$pool" vm1 "$TMP/raw" >"$TMP/out" 2>&1
tool disk clone "$pool" vm1 vm2

say "a sound pool"
scrub 0
equal good "$(field good-clusters)" $((mb * 256))
equal unknown "$(field unknown-clusters)" 0
equal doubtful "$(field doubtful-clusters)" 0
equal findings "$(field findings)" '[]'
scrub 0 --read-only --threads=1
equal good "$(field good-clusters)" $((mb * 256))
check_clean "$pool"

say "an interrupted scrub"
"$TOOL" scrub --rate=1M "$pool" >"$TMP/out" 2>&1 &
pid=$!
sleep 2
kill -TERM $pid
rc=0
wait $pid || rc=$?
equal "status of the interrupted scrub" $rc 130
check_clean "$pool"

say "rot"
blocks=$($PY "$HERE/scrubrot.py" rot "$pool" "$TMP/raw" 40 "${SEED:-3}")
scrub 2
$PY "$HERE/scrubrot.py" check "$TMP/report" $blocks
equal "known bad clusters" "$(field known-bad-clusters)" 40
check_clean "$pool"
scrub 2 --threads=1
$PY "$HERE/scrubrot.py" check "$TMP/report" $blocks
rc=0
tool scrub "$pool" >"$TMP/text" || rc=$?
equal "status of the text report" $rc 2
at_least "lines on vm1" "$(grep -c '^ERROR vm1: bytes 0x' "$TMP/text")" 1
at_least "lines on vm2" "$(grep -c '^ERROR vm2: bytes 0x' "$TMP/text")" 1

say "what is served"
start_server "$pool"
refused tool scrub "$pool"
one_error_line "$pool" 'lock|use'
stop_server

say "a snapshot with a name that no terminal should see"
pool=$TMP/$'odd\xff.qcow2'
tool create "$pool" 1M
head -c 1M "$TMP/raw" >"$TMP/first.raw"
start_server "$pool"
nbdcopy --flush "$TMP/first.raw" "$URI"
stop_server
qemu-img snapshot -c $'a\e[31m\xff' "$pool"
"$PY" "$HERE/scrubrot.py" rot "$pool" "$TMP/first.raw" 4 "${SEED:-3}" >"$TMP/out"
scrub 2
equal "the name of the file" "$(field filename)" "$TMP/odd?.qcow2"
equal "whose data it is" "$($PY -c 'import json, sys
print(sorted({f["disk"] for f in json.load(sys.stdin)["findings"]}))' <"$TMP/report")" \
  "['', 'a?[31m?']"
rc=0
tool scrub "$pool" >"$TMP/text" || rc=$?
equal "status of the text report" $rc 2
has '^ERROR a?\[31m?: bytes 0x' "$TMP/text" || die "the snapshot is not named"
! has $'[\e\xff]' "$TMP/text" || die "the name reaches the terminal as it is"
for command in info check index; do
  equal "the name of the file" "$(tool $command --output=json "$pool" 2>"$TMP/err" |
    json filename)" "$TMP/odd?.qcow2"
done

say "compressed data"
pool=$TMP/packed.qcow2
$PY - "$TMP/words" <<'END'
import random
import sys
r = random.Random(8)
words = [r.randbytes(5) for _ in range(300)]
with open(sys.argv[1], 'wb') as f:
    for i in range(2048):
        f.write(b''.join(r.choice(words) for _ in range(820))[:4096])
END
tool create --pool -o compress=zstd "$pool"
tool disk import "$pool" vm1 "$TMP/words" >"$TMP/out" 2>&1
tool disk clone "$pool" vm1 vm2
scrub 0
equal "good pieces" "$(field good-compressed)" 2048
equal "unknown pieces" "$(field unknown-compressed)" 0
# Some bytes in 25 pieces that a disk has.
$PY - "$pool" "$HERE" <<'END'
import random
import sys
sys.path.insert(0, sys.argv[2])
import poolimg
r, img, entries = random.Random(9), poolimg.Image(sys.argv[1]), set()
for root in img.roots:
    if root.name != 'do-not-apply-dedup-anchor':
        for e in img.words(root.l1_off, root.l1_entries):
            if e & poolimg.OFFSETS:
                entries |= {x for x in img.l2_entries(
                    (e & poolimg.OFFSETS) >> img.bits) if x & poolimg.COMPRESSED}
with open(sys.argv[1], 'r+b') as f:
    for e in r.sample(sorted(entries), 25):
        where = img.packed(e)
        f.seek(where[r.randrange(len(where) // 2)])
        f.write(r.randbytes(8))
END
# What clients see of it: errors, or other bytes.
start_server "$pool" readonly=on
for disk in vm1 vm2; do
  $PY "$HERE/nbdrun.py" "nbd+unix:///$disk?socket=$SOCK" "
import json
want, bad = open('$TMP/words', 'rb').read(), []
for at in range(0, len(want), 4096):
    got = []
    e = fails(lambda: got.append(h.pread(4096, at)))
    if e or got[0] != want[at:at + 4096]:
        bad.append(at)
json.dump(bad, open('$TMP/$disk.bad', 'w'))"
done
stop_server
scrub 2
$PY - "$TMP" <<'END'
import json
import sys
found = {'vm1': set(), 'vm2': set()}
for f in json.load(open(sys.argv[1] + '/report'))['findings']:
    found[f['disk']] |= set(range(f['offset'], f['offset'] + f['length'], 4096))
for disk, places in found.items():
    want = set(json.load(open(f'{sys.argv[1]}/{disk}.bad')))
    assert places == want, (disk, sorted(places ^ want))
    assert len(want) >= 20, len(want)
END
equal "bad pieces" "$(field different-clusters)" \
  "$($PY -c 'import json, sys; print(len(json.load(open(sys.argv[1]))))' \
     "$TMP/vm1.bad")"

say "wrong usage"
refused tool scrub --rate=0 "$pool"
refused tool scrub --threads=0 "$pool"
refused tool scrub "$TMP/none"
one_error_line "$TMP/none"
echo PASS
