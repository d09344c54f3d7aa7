#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# qcow2-dedup report writes a page and JSON.  Their figures are those that are
# counted from the tables without our code, and those of info and disk info: what
# deleting each disk frees, what each pair shares, how often clusters are referred
# to, what lies where.  The page is well-formed, loads and runs nothing, and shows
# names of disks as text, whatever they are.  The output appears when it is
# complete; the image stays as it is.
# Breaks if: a figure in it is wrong, a name gets out of its place, a failure leaves
# half a page or takes the image away.
. "$(dirname "$0")/lib.sh"
need xmllint nbdcopy qemu-img

cd "$TMP"
page () { $PY "$HERE/reportpage.py" "$@"; }
report_of () # IMAGE [OPTION...]
{
  tool report "$@" -o r.html
  tool report "$@" --output=json -o r.json
  xmllint --noout --nonet r.html
  page structure r.html
  page figures r.html r.json
}
is_right () # IMAGE
{
  report_of "$1"
  page count r.json "$1"
  page tool r.json "$1" "$TOOL"
}
r_json () { json "$1" <r.json; }

# Raw disks that share some blocks, have some several times, and some of their own.
make_raw () # FILE SEED OWN
{
  $PY - "$@" <<'PYTHON'
import random, sys
path, seed, own = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
mine, base = random.Random(seed), random.Random(0)
with open(path, 'wb') as f:
    for i in range(1000):
        block, k = base.randbytes(4096), mine.random()
        f.write(mine.randbytes(4096) if k < .2 else bytes(4096) if k < .3
                else b'again' * 819 + b'x' if k < .4 else block)
    f.write(mine.randbytes(4096 * own))
PYTHON
}

say "an empty pool, and one with one disk"
tool create --pool pool.qcow2
is_right pool.qcow2
equal "disks" "$(r_json disks | tr -d "[]'" | grep -c active)" 1
make_raw d1.raw 1 500
tool disk import --size=64M pool.qcow2 vm1 d1.raw >/dev/null
is_right pool.qcow2
grep -q 'Only one of them has data' r.html || die "one disk shares with itself"

say "many disks, clones, snapshots, names of strangers"
evil='"><script>alert(1)</script><b title='\''&lt;'
turned=$'invoice-\xe2\x80\xaegpj.exe'   # U+202E
long=$(printf 'n%.0s' {1..255})
names=(vm2 "${evil//\//}" "$turned" 'קובץ 1' "$long")
for ((i = 0; i < ${#names[@]}; i++)); do
  make_raw d.raw $((i + 2)) $((100 * i))
  tool disk import --no-wait --size=64M pool.qcow2 "${names[i]}" d.raw >/dev/null
done
tool disk snapshot --no-wait pool.qcow2 vm1 monday
tool disk clone --no-wait pool.qcow2 vm1@monday vm3
tool disk clone --no-wait pool.qcow2 vm2 vm4
tool disk create --no-wait pool.qcow2 empty 1G
say "with debts"
tool disk info --output=json pool.qcow2 | json pending | grep -q True ||
  die "there are no debts to test with"
report_of pool.qcow2
page tool r.json pool.qcow2 "$TOOL"
cp r.json with-debts.json
say "and without"
tool recover pool.qcow2 >/dev/null
is_right pool.qcow2
same='import json, sys
a, b = ([(d["name"], d["exclusive-bytes"], d["table-bytes"], d["runs"])
  for d in json.load(open(f))["disks"]] for f in sys.argv[1:])
sys.exit(a != b)'
$PY -c "$same" with-debts.json r.json || die "debts change what is exclusive"
grep -q 'U+202E' r.html || die "a character that turns text is not shown"
grep -q '<script' r.html && die "a name became an element"

say "a served pool that was written and not closed"
start_server pool.qcow2
nbdcopy --flush d1.raw "nbd+unix:///vm4?socket=$SOCK"
kill_server
report_of pool.qcow2
grep -q 'was not closed' r.html || die "it does not say that it was not closed"
cp r.json crashed.json
tool recover pool.qcow2 >/dev/null
is_right pool.qcow2
$PY -c "$same" crashed.json r.json || die "the journal was not replayed"

say "what deleting frees is freed"
before=$($PY "$HERE/poolimg.py" data pool.qcow2)
freed=$(tool disk info --output=json pool.qcow2 vm1 | json exclusive-bytes)
tool disk delete pool.qcow2 vm1
after=$($PY "$HERE/poolimg.py" data pool.qcow2)
equal "bytes freed" $(((before - after) * 4096)) "$freed"
is_right pool.qcow2

say "images without disks, store or data of their own"
tool create one.qcow2 64M
start_server one.qcow2
nbdcopy --flush d1.raw "$URI"
stop_server
is_right one.qcow2
qemu-img snapshot -c $'\x01<i>\xff\xc2\x85' one.qcow2
report_of one.qcow2
grep -q '&lt;i&gt;' r.html || die "a name that QEMU made is not shown"
qemu-img convert -c -O qcow2 d1.raw packed.qcow2
report_of packed.qcow2
grep -q 'There is none' r.html || die "an index where there is none"
is_right packed.qcow2

say "what is compressed, with dead data in it"
$PY -c 'import random
r = random.Random(5)
words = [r.randbytes(6) for _ in range(200)]
open("text.raw", "wb").write(b"".join(r.choice(words) for _ in range(350000)))'
for size in 4k 64k; do
  qemu-img convert -c -O qcow2 -o cluster_size=$size text.raw packed-$size.qcow2
  is_right packed-$size.qcow2
  start_server packed-$size.qcow2
  for ((i = 3; i < 30; i += 4)); do
    $PY "$HERE/nbdrun.py" "$URI" "h.trim(1 << 16, $i << 16)"
  done
  stop_server
  qemu-img snapshot -c kept packed-$size.qcow2
  qemu-io -c 'write -P 9 1M 300k' packed-$size.qcow2 >/dev/null
  is_right packed-$size.qcow2
  at_least "dead bytes" "$(r_json pool | $PY -c 'import ast, sys
print(ast.literal_eval(sys.stdin.read())["compression"]["dead-bytes"])')" 1
done
qemu-img create -q -f qcow2 -F qcow2 -b packed.qcow2 above.qcow2
qemu-io -c 'write -P 7 0 1M' above.qcow2 >/dev/null
is_right above.qcow2
tool create small.qcow2 64M
start_server small.qcow2 store=small.store
nbdcopy --flush d1.raw "$URI"
stop_server
report_of small.qcow2 --store=small.store

say "samples of the past"
report_of one.qcow2
t=1700000000
$PY "$HERE/growth.py" one.qcow2 $t,4096,4096,1000000
report_of one.qcow2
$PY "$HERE/growth.py" one.qcow2 0,1,1,1 $t,0,0,5 $((t + 60)),8192,4096,4 \
  18446744073709551615,9223372036854775807,1,18446744073709551615
report_of one.qcow2
many=()
for ((i = 0; i < 510; i++)); do
  many+=($((t + i * i * 60)),$((i * 100000)),$((i * 30000)),$((99999999 - i)))
done
$PY "$HERE/growth.py" one.qcow2 "${many[@]}"
report_of one.qcow2
equal "samples" "$($PY -c 'import json
print(len(json.load(open("r.json"))["growth"]))')" 510

say "what a scrub found"
cp pool.qcow2 rotten.qcow2
report_of rotten.qcow2
equal "bad clusters" "$(r_json scrub | tr -d " '")" \
  "{unfinished:False,position:0,bad:[],places:[],places-not-listed:0}"
# 15 of 16 clusters of data, in the middle of the file, are changed below the image; some
# are beside each other on a disk, too.
at=$($PY - r.json <<'PYTHON'
import json, sys
j = json.load(open(sys.argv[1]))
m = j['map']
full = [i for i, c in enumerate(m['cells']) if c[0] == m['cell-bytes']]
print(full[len(full) // 2] * m['cell-bytes'], j['cluster-size'])
PYTHON
)
cluster=${at#* }
at=${at% *}
bad=$(seq -s ' ' "$at" "$cluster" $((at + 15 * cluster)))
bad=${bad/ $((at + 2 * cluster)) / }
for i in $bad; do
  printf rot | dd of=rotten.qcow2 bs=1 seek=$((i + 100)) conv=notrunc status=none
done
tool scrub --output=json rotten.qcow2 >scrub.out && die "the scrub found nothing"
report_of rotten.qcow2
$PY - scrub.out r.json $bad <<'PYTHON' || die "the report names other places than the scrub"
import json, sys
if json.load(open('r.json'))['scrub']['bad'] != list(map(int, sys.argv[3:])):
    sys.exit('other clusters are bad')
keys = ('disk', 'offset', 'length', 'host-offset')
scrub, report = (sorted(tuple(p[k] for k in keys) for p in v) for v in (
    json.load(open(sys.argv[1]))['findings'],
    json.load(open(sys.argv[2]))['scrub']['places']))
sys.exit(scrub != report or len({p[0] for p in report}) < 2 or
         len({p[2] for p in report}) < 2)
PYTHON

say "the output appears when it is complete, and the image stays"
sum=$(sha256sum <pool.qcow2)
tool report pool.qcow2 -o - >stdout.html
tool report pool.qcow2 >stdout2.html
cmp stdout.html stdout2.html >/dev/null || page structure stdout2.html
echo before >old.html
cp old.html keep.html
refused tool report no-such.qcow2 -o old.html
one_error_line no-such.qcow2
refused tool report pool.qcow2 -o no-such-dir/r.html
one_error_line no-such-dir/r.html
ln pool.qcow2 link.html
for out in pool.qcow2 ./pool.qcow2 link.html; do
  refused tool report pool.qcow2 -o $out
  one_error_line "$out" 'the image itself'
done
rm link.html
refused tool report --store=small.store small.qcow2 -o small.store
refused tool report pool.qcow2 -o /dev/full
one_error_line /dev/full 'space'
refused tool report pool.qcow2 --output=human -o r.html
refused tool report -o r.html
refused tool report pool.qcow2 -o ''
refused tool report pool.qcow2 --store= -o r.html
dd if=/dev/urandom of=noise.qcow2 bs=64k count=4 status=none
refused tool report noise.qcow2 -o old.html
cmp old.html keep.html || die "a failure replaced the page"
head -c $(($(stat -c %s pool.qcow2) / 2)) pool.qcow2 >half.qcow2
refused tool report half.qcow2 -o old.html
cmp old.html keep.html || die "a failure replaced the page"
(ulimit -f 8; refused tool report pool.qcow2 -o old.html)
cmp old.html keep.html || die "a full disk replaced the page"
equal "files left behind" "$(find . -name '.*.html.*' | wc -l)" 0
chmod 640 old.html
tool report pool.qcow2 -o old.html
equal "its mode" "$(stat -c %a old.html)" 640
page structure old.html
tool report pool.qcow2 -o /dev/null
[ -c /dev/null ] || die "/dev/null was replaced"
ln -s old.html to-old.html
ln -s /proc/self/fd/1 to-stdout.html          # as /dev/stdout is
echo before >old.html
tool report pool.qcow2 -o to-old.html
page structure old.html
tool report pool.qcow2 -o to-stdout.html >stdout.html
page structure stdout.html
tool report pool.qcow2 -o to-stdout.html | cat >stdout.html
page structure stdout.html
[ -L to-old.html ] && [ -L to-stdout.html ] || die "a symbolic link was replaced"
equal "the image" "$(sha256sum <pool.qcow2)" "$sum"
check_clean pool.qcow2
