#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Compressed data that was overwritten here and there leaves clusters that are mostly
# dead.  qcow2-dedup compact, and the command of a running server, empty them: the file
# takes less space on the host, at most a tenth of what compressed data takes is dead,
# all that is shared stays shared, and no byte of the disk changes, also after a kill in
# the middle.  So it is with snapshots and clones, and with snapshots that QEMU made.
# Breaks if: space is not given back, data is moved back to where it was, or a byte
# changes.
. "$(dirname "$0")/lib.sh"
need qemu-img

cd "$TMP"
MB=12
# What is written first, what every other 64 KiB or so is overwritten with, and how the
# disk looks then.  Words compress.
$PY - $MB <<'END'
import random
import sys
r = random.Random(7)
words = [r.randbytes(5) for _ in range(300)]
blocks = int(sys.argv[1]) << 8
def block():
    return b''.join(r.choice(words) for _ in range(820))[:4096]
first = [block() for _ in range(blocks)]
again = [block() if r.random() < .5 else None for _ in range(blocks)]
open('first.raw', 'wb').write(b''.join(first))
open('disk.raw', 'wb').write(b''.join(a or f for a, f in zip(again, first)))
open('again.txt', 'w').write(' '.join(str(i) for i, a in enumerate(again) if a))
END
overwrite='
f = open("disk.raw", "rb")
for i in open("again.txt").read().split():
    f.seek(int(i) << 12)
    h.pwrite(f.read(4096), int(i) << 12)
h.flush()'

make_image () # IMAGE TYPE CLUSTER_SIZE
{
  start_server "$1" size=${MB}M compress="$2" cluster-size="$3"
  $PY "$HERE/put.py" "$URI" first.raw 0
  $PY "$HERE/nbdrun.py" "$URI" "$overwrite"
  stop_server
  check_clean "$1"
  same_as_raw disk.raw "$1"
}
field () { $PY -c 'import json, sys
info = json.load(sys.stdin)
print(info.get("pool", info)["compression"][sys.argv[1]])' "$1"; }
figure () { tool info --output=json "$1" | field "$2"; }   # IMAGE NAME
on_host () { du -k "$1" | cut -f 1; }
# A tenth, and what the run that was appended to last has not filled: two clusters.
is_compact () # IMAGE CLUSTER_SIZE
{
  local dead packed
  dead=$(figure "$1" dead-bytes)
  packed=$(figure "$1" packed-bytes)
  at_most "dead bytes of $1" "$dead" $((packed / 10 + 2 * $2))
}

# Compacts an image that has more than one disk or snapshot.
gives_back () # IMAGE
{
  local dead before
  dead=$(figure "$1" dead-bytes) before=$(on_host "$1")
  at_least "dead bytes" "$dead" $(($(figure "$1" stored-bytes) / 5))
  tool compact --output=json "$1" >compact.out
  equal "dead bytes that stay" "$(json shared-dead-bytes <compact.out)" 0
  is_compact "$1" 4096
  at_most "KiB on the host" "$(on_host "$1")" \
    $((before - (dead - $(figure "$1" dead-bytes)) / 1024 + 256))
  check_clean "$1"
}

for kind in zstd-4096 zlib-65536; do
  disk=$kind.qcow2 size=${kind#*-}
  say "$disk"
  make_image $disk ${kind%-*} $size
  dead=$(figure $disk dead-bytes) before=$(on_host $disk)
  pieces=$(figure $disk pieces) stored=$(figure $disk stored-bytes)
  at_least "dead bytes" "$dead" $((stored / 5))
  tool compact --output=json $disk >compact.out
  is_compact $disk $size
  check_clean $disk
  same_as_raw disk.raw $disk
  equal "pieces" "$(figure $disk pieces)" "$pieces"
  left=$(figure $disk dead-bytes)
  # What is not dead any more is free; the index has grown.
  at_most "KiB on the host" "$(on_host $disk)" \
    $((before - (dead - left) / 1024 + 256))
  equal "freed bytes" "$(json freed-bytes <compact.out)" \
    $((stored - $(figure $disk stored-bytes)))
  tool compact --output=json $disk >compact.out
  equal "moved the second time" "$(json moved-bytes <compact.out)" 0
done

say "kills in the middle"
make_image killed.qcow2 zstd 4096
for ms in 20 60 120 250 500; do
  "$TOOL" compact --dead=1 killed.qcow2 >compact.out 2>&1 &
  pid=$!
  sleep $(printf '0.%03d' $ms)
  kill -9 $pid 2>/dev/null || true
  wait $pid 2>/dev/null || true
  tool recover killed.qcow2 >recover.out
  check_clean killed.qcow2
  same_as_raw disk.raw killed.qcow2
done
tool compact killed.qcow2 >compact.out
is_compact killed.qcow2 4096

say "beside a client, in a pool"
tool create --pool -o compress=zstd pool.qcow2
start_server pool.qcow2 control="$TMP/control"
ask () { tool control control "$@"; }
ask disk-create name=a size:=$((MB << 20)) >/dev/null
URI="nbd+unix:///a?socket=$SOCK"
$PY "$HERE/put.py" "$URI" first.raw 0
$PY "$HERE/nbdrun.py" "$URI" "$overwrite"
ask count-space >space.json
at_least "dead bytes" "$(json dead-bytes <space.json)" \
  $(($(json stored-bytes <space.json) / 5))
ask compact job-id=c >/dev/null
ask compact >again.out 2>&1 && die "two compactions at a time"
grep -q 'already' again.out || die "the second compaction: $(cat again.out)"
for ((i = 0; i < 600; i++)); do
  $PY "$HERE/nbdrun.py" "$URI" "
f = open('disk.raw', 'rb')
for i in range($i * 7, $i * 7 + 40):
    i = i * 37 % ($MB << 8)
    f.seek(i << 12)
    d = f.read(4096)
    assert h.pread(4096, i << 12) == d, i
    h.pwrite(d, i << 12)"
  ask query-jobs >jobs.json
  grep -q '"compact"' jobs.json || break
done
grep -q '"compact"' jobs.json && die "the job does not end: $(cat jobs.json)"
stop_server
is_compact pool.qcow2 4096
check_clean pool.qcow2
tool disk export pool.qcow2 a a.raw >/dev/null
cmp a.raw disk.raw

say "with a snapshot and a clone"
tool create --pool -o compress=zstd shared.qcow2
start_server shared.qcow2 control="$TMP/control"
ask disk-create name=a size:=$((MB << 20)) >/dev/null
URI="nbd+unix:///a?socket=$SOCK"
$PY "$HERE/put.py" "$URI" first.raw 0
$PY "$HERE/nbdrun.py" "$URI" "$overwrite"
stop_server
tool disk snapshot shared.qcow2 a s
tool disk clone shared.qcow2 a b
gives_back shared.qcow2
for name in a b a@s; do
  tool disk export shared.qcow2 $name out.raw >/dev/null
  cmp out.raw disk.raw || die "$name has changed"
  rm out.raw
done

say "with a snapshot of QEMU"
make_image qemu.qcow2 zstd 4096
qemu-img snapshot -c s qemu.qcow2
gives_back qemu.qcow2
same_as_raw disk.raw qemu.qcow2
qemu-img convert -l s -O raw qemu.qcow2 out.raw
cmp out.raw disk.raw || die "the snapshot has changed"

say "with a snapshot that has no export name"
start_server unnamed.qcow2 size=${MB}M compress=zstd cluster-size=4096
stop_server
qemu-img snapshot -c x unnamed.qcow2
start_server unnamed.qcow2
$PY "$HERE/put.py" "$URI" first.raw 0
$PY "$HERE/nbdrun.py" "$URI" "$overwrite"
stop_server
qemu-img snapshot -c x unnamed.qcow2    # its id is 2
start_server unnamed.qcow2
$PY "$HERE/nbdrun.py" "$URI" "h.trim($MB << 20, 0)
h.pwrite(open('first.raw', 'rb').read(4096), 0)"
stop_server
qemu-img snapshot -c 2 unnamed.qcow2
at_least "dead bytes" "$(figure unnamed.qcow2 dead-bytes)" \
  $(($(figure unnamed.qcow2 stored-bytes) / 5))
start_server unnamed.qcow2 control="$TMP/control"
equal "exports" "$($PY "$HERE/nbdrun.py" "$URI" '
g = nbd.NBD()
g.set_opt_mode(True)
g.connect_uri("'"$URI"'")
names = []
g.opt_list(lambda name, _: names.append(name))
g.opt_abort()
print(*sorted(names))')" " 1 2"
ask compact job-id=c >/dev/null
for ((i = 0; i < 240; i++)); do         # 2 minutes
  ask query-jobs >jobs.json
  grep -q '"compact"' jobs.json || break
  sleep 0.5
done
grep -q '"compact"' jobs.json && die "the job does not end: $(cat jobs.json)"
stop_server
is_compact unnamed.qcow2 4096
check_clean unnamed.qcow2
qemu-img convert -l snapshot.id=2 -O raw unnamed.qcow2 out.raw
cmp out.raw disk.raw || die "the snapshot has changed"

say "by itself"
start_server auto.qcow2 size=${MB}M compress=zstd compact=auto control="$TMP/auto"
$PY "$HERE/put.py" "$URI" first.raw 0
$PY "$HERE/nbdrun.py" "$URI" "$overwrite"
for ((i = 0; i < 240; i++)); do         # 2 minutes
  tool control auto count-space >space.json
  is_little=$($PY -c 'import json
s = json.load(open("space.json"))
print(s["dead-bytes"] <= s["stored-bytes"] // 10)')
  [ "$is_little" = True ] && break
  sleep 0.5
done
equal "whether little is dead" "$is_little" True
stop_server
grep -q 'compacted: ' "$SRV_LOG" || die "nothing was compacted"
check_clean auto.qcow2
same_as_raw disk.raw auto.qcow2

say "what is refused"
start_server zstd-4096.qcow2 compress=off
stop_server
refused tool compact zstd-4096.qcow2
one_error_line zstd-4096 'not compressed'
qemu-img convert -c -O qcow2 disk.raw foreign.qcow2
refused tool compact foreign.qcow2
one_error_line foreign 'no index'
refused tool compact --dead=100 foreign.qcow2
one_error_line dead '1 to 99'
