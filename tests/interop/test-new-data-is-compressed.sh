#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# With compress= new data is compressed and packed: stock QEMU finds no error in the
# image and reads the same bytes, it takes no more space than the compressed data and
# what the ends of runs cost, equal data is shared, QEMU's writes in between are kept,
# kill -9 loses nothing that was flushed, the image remembers the setting, and so does a
# pool.
# Breaks if: an encoder makes what QEMU cannot read, a host cluster is counted wrong or
# freed while something in it is in use, or data is stored plain that shrinks.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-io

cd "$TMP"
MB=4
# Blocks of twenty words, and one in eight that does not shrink.
$PY - $MB <<'END'
import random
import sys
r = random.Random(6)
words = [r.randbytes(r.randint(3, 9)) for _ in range(20)]
with open('a.raw', 'wb') as f:
    for i in range(int(sys.argv[1]) << 8):
        b = bytearray()
        while len(b) < 4096:
            b += r.randbytes(4096) if i % 8 == 0 else r.choice(words)
        f.write(b[:4096])
END
cat a.raw a.raw >twice.raw

# The bytes that blocks of SIZE of a.raw take if each is compressed by zlib, where that
# saves an eighth and a sector; and how many these are.
packed_by_zlib () # SIZE
{
  $PY - "$1" <<'END'
import sys
import zlib
data, size = open('a.raw', 'rb').read(), int(sys.argv[1])
n = blocks = 0
for i in range(0, len(data), size):
    c = zlib.compressobj(1, zlib.DEFLATED, -12)
    packed = len(c.compress(data[i:i + size]) + c.flush())
    shrinks = packed <= size - max(size // 8, 512)
    n += packed if shrinks else size
    blocks += shrinks
print(n, blocks)
END
}

try () # TYPE CLUSTER_SIZE BYTES
{
  local disk=$1-$2.qcow2 size=$3 before packed blocks ends

  say "$disk"
  start_server "$disk" size=$((2 * MB))M cluster-size="$2" compress="$1"
  $PY "$HERE/put.py" "$URI" a.raw 0
  stop_server
  check_clean "$disk"
  $PY -c "open('one.raw', 'wb').write(open('a.raw', 'rb').read() + bytes($MB << 20))"
  same_as_raw one.raw "$disk"
  before=$(data_clusters "$disk")
  blocks=$(info_field "$disk" compressed-clusters)
  if [ "$1" = zlib ]; then
    read -r packed want <<<"$(packed_by_zlib "$size")"
    equal "compressed clusters" "$blocks" "$want"
  else                          # each saves an eighth at least
    packed=$(((MB << 20) - blocks * size / 8))
    at_least "compressed clusters" "$blocks" $(((MB << 20) / size * 3 / 4))
  fi
  # The end of a run of 256 KiB has no room for a whole block, nor has a request more
  # than one end of a sector; and the last run is not full.
  ends=$((packed / (256 << 10) * size + (MB << 2) * 512 + (256 << 10)))
  at_most "bytes of clusters with data" $((before * size)) $((packed + ends))

  say "equal data, with the setting that the image has"
  start_server "$disk"
  $PY "$HERE/put.py" "$URI" a.raw $((MB << 20))
  stop_server
  check_clean "$disk"
  same_as_raw twice.raw "$disk"
  equal "clusters with data" "$(data_clusters "$disk")" "$before"

  say "small pieces, QEMU in between, and a kill"
  cp twice.raw want.raw
  start_server "$disk"
  $PY "$HERE/nbdrun.py" "$URI" '
for i in range(0, 1 << 20, 12288):
    h.pwrite(b"%08d" % i * 100, i + 1000)
    if i % 5 == 0:
        h.flush()
h.flush()'
  kill_server
  tool recover "$disk" >recover.out
  check_clean "$disk"
  $PY - <<'END'
with open('want.raw', 'r+b') as f:
    for i in range(0, 1 << 20, 12288):
        f.seek(i + 1000)
        f.write(b"%08d" % i * 100)
END
  same_as_raw want.raw "$disk"
  for f in qcow2:"$disk" raw:want.raw; do
    qemu-io -f "${f%%:*}" -c 'write -q -P 7 100k 300k' -c 'write -q -P 8 1M 5000' \
      "${f#*:}"
  done
  start_server "$disk"
  $PY "$HERE/put.py" "$URI" a.raw $((MB << 20)) 65536 131072
  stop_server
  dd if=a.raw of=want.raw bs=64k skip=2 seek=$((MB * 16)) count=1 conv=notrunc \
    status=none
  check_clean "$disk"
  same_as_raw want.raw "$disk"

  say "what is rewritten is plain with compress=off"
  before=$(info_field "$disk" compressed-clusters)
  start_server "$disk" compress=off
  $PY "$HERE/nbdrun.py" "$URI" 'h.pwrite(b"new " * (1 << 18), 0)'
  stop_server
  at_most "compressed clusters" "$(info_field "$disk" compressed-clusters)" \
    $((before - 1))

  say "nothing is left of it"
  start_server "$disk"
  $PY "$HERE/nbdrun.py" "$URI" "h.trim($((2 * MB << 20)), 0)"
  stop_server
  check_clean "$disk"
  equal "clusters with data" "$(data_clusters "$disk")" 0
}

try zlib 64k 65536
try zstd 4k 4096
try zstd 64k 65536
try zlib 1k 1024

say "an image of qemu-img, whose compression type says which one"
qemu-img create -q -f qcow2 -o cluster_size=64k q.qcow2 8M
refused try_plugin q.qcow2 compress=zstd
one_error_line q.qcow2 'compress=zstd .*compression type is zlib'
start_server q.qcow2 compress=zlib
$PY "$HERE/put.py" "$URI" twice.raw 0
stop_server
check_clean q.qcow2
same_as_raw twice.raw q.qcow2
at_least "compressed clusters" "$(info_field q.qcow2 compressed-clusters)" 64

say "a pool, and a clone whose source is deleted"
tool create --pool -o compress=zstd --max-disk-size=1G p.qcow2
tool disk import p.qcow2 a a.raw >import.out
before=$(data_clusters p.qcow2)
at_most "clusters with data" "$before" $(((MB << 20) / 4096 - 1))   # not all plain
tool disk clone p.qcow2 a b
tool disk delete p.qcow2 a
tool disk export --force p.qcow2 b b.raw >export.out
cmp a.raw b.raw
check_clean p.qcow2
equal "clusters with data" "$(data_clusters p.qcow2)" "$before"

say "disks of a pool have settings of their own, also while they are served"
stored () { tool disk info --output=json s.qcow2 | json stored-bytes; }
setting () { tool disk info --output=json s.qcow2 "$1" | json compress; }
tool create --pool -o compress=zstd --max-disk-size=1G s.qcow2
for d in a b c; do tool disk create s.qcow2 $d $((MB << 20)); done
tool disk set s.qcow2 b compress=off
equal "settings" "$(setting a) $(setting b)" "zstd off"
tool disk info s.qcow2 a | grep -q '^compress: *zstd, as the pool$' || die "info"
tool disk info s.qcow2 b | grep -q '^compress: *off$' || die "info"
tool disk list --output=json s.qcow2 |
  $PY -c 'import json, sys
assert [(d["compress"], d["compress-source"]) for d in json.load(sys.stdin)["disks"]] == [
    ("zstd", "pool"), ("off", "disk"), ("zstd", "pool")]'
tool disk import --force s.qcow2 b a.raw >import.out
at_least "bytes that are stored plain" "$(stored)" $(((MB << 20) * 9 / 10))
check_clean s.qcow2
before=$(stored)
start_server s.qcow2 compress=off control="$TMP/control"
$PY - "$TMP/control" "$HERE" <<'END'
import sys
sys.path.insert(0, sys.argv[2])
from controlclient import Client
c = Client(sys.argv[1])


def shown():
    return {d['name']: (d['compress'], d['compress-source'])
            for d in c.ok('query-disks')}


assert shown() == {'a': ('off', 'pool'), 'b': ('off', 'disk'), 'c': ('off', 'pool')}
c.ok('disk-set', name='c', compress='zstd')
c.ok('disk-snapshot', name='c', snapshot='s')
c.ok('disk-clone', source='c', name='d')
assert shown()['c'] == shown()['d'] == shown()['c@s'] == ('zstd', 'disk'), shown()
c.ok('disk-set', name='b', compress='pool')
c.ok('disk-set', name='d', compress='off')
assert shown()['b'] == ('off', 'pool') and shown()['d'] == ('off', 'disk'), shown()
before = shown()
for name, value, part in (('c', 'zlib', 'compression type is zstd'), ('c', 'lz4', 'zstd, zlib'),
                          ('c@s', 'off', 'snapshot'), ('no', 'off', "'no'"),
                          ('', 'off', 'active')):
    c.error('disk-set', part, name=name, compress=value)
assert shown() == before
END
tr '\000-\377' '\001-\377\000' <a.raw >other.raw
$PY "$HERE/put.py" "nbd+unix:///c?socket=$SOCK" other.raw 0
$PY "$HERE/put.py" "nbd+unix:///a?socket=$SOCK" a.raw 0
stop_server
at_most "bytes stored compressed" "$(($(stored) - before))" $(((MB << 20) * 3 / 4))
check_clean s.qcow2
equal "settings" "$(setting a) $(setting b) $(setting c) $(setting d)" "off off zstd off"

say "kill -9 under load"
region=$((1 << 20))
for round in 1 2 3; do
  mkdir "r$round"
  start_server k.qcow2 size=4M commit-interval=1 compress=zstd
  $PY "$HERE/nbdrun.py" "$URI" "h.trim(4 << 20, 0); h.flush()"
  $PY "$HERE/crashload.py" run "$URI" $SRV_PID 600 $((RANDOM + 1)) 4 $region "r$round"
  reap_killed_server
  start_server k.qcow2
  $PY "$HERE/crashload.py" verify "$URI" $region "r$round"
  stop_server
  check_clean k.qcow2
done
at_least "compressed clusters" "$(info_field k.qcow2 compressed-clusters)" 1
