#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Images that qemu-img convert -c made are deduplicated where they are: qcow2-dedup
# index finds equal compressed clusters, and what a client writes links the compressed
# cluster that holds the same bytes.  QEMU rewrites a part of it, and the rest is
# found again; at the end all of it is freed.
# Breaks if: a compressed cluster is hashed as something else than its expanded bytes,
# is counted wrongly in one of the host clusters that it touches, is freed while
# somebody refers to it, or is linked after QEMU has freed it.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-io

cd "$TMP"
MB=4
# Blocks of 512 bytes to 64 KiB are compressible; some occur twice.
$PY - $MB <<'END'
import random
import sys
r = random.Random(6)
words = [r.randbytes(r.randint(3, 9)) for _ in range(400)]
def block(seed):
    q = random.Random(seed)
    b = bytearray()
    while len(b) < 65536:
        b += q.choice(words)
    return bytes(b[:65536])
n = int(sys.argv[1]) * 16
with open('a.raw', 'wb') as f:
    for i in range(n):
        f.write(block(r.randrange(n // 3)) if i % 2 else block(1000 + i))
END
cat a.raw a.raw >twice.raw

try () # TYPE CLUSTER_SIZE BYTES
{
  local disk=$1-$2.qcow2 entries packed before
  say "$disk"
  qemu-img convert -c -f raw -O qcow2 -o "cluster_size=$2,compression_type=$1" \
    a.raw "$disk" || return 0      # zstd: QEMU >= 5.1
  qemu-img resize -q "$disk" $((2 * MB))M
  tool index "$disk" >index.out
  check_clean "$disk"
  same_as_raw a.raw "$disk"
  entries=$(distinct_blocks a.raw "$3")
  # An entry for each content; marks of the host clusters are entries, too.
  at_least "index entries" "$(info_field "$disk" index-entries)" "$entries"
  packed=$(info_field "$disk" compressed-clusters)
  before=$(data_clusters "$disk")
  if [ "$2" != 512 ]; then       # few of these become smaller
    at_most "clusters with data" "$before" $((packed * 9 / 10))
    # Marks count as dead.
    tool info --verbose --output=json "$disk" >info.out
    equal "live entries" "$(json live-entries <info.out)" "$entries"
  fi

  say "the same again by a client"
  start_server "$disk" control="$TMP/control"
  $PY "$HERE/put.py" "$URI" a.raw $((MB << 20))
  tool control control count-space >space.json
  stop_server
  check_clean "$disk"
  same_as_raw twice.raw "$disk"
  tool info --output=json "$disk" >info.out
  $PY - <<'END'
import json
space, info = json.load(open('space.json')), json.load(open('info.out'))
c = info['compression']
for k in ('deduplicated-bytes', 'stored-bytes', 'dead-bytes'):
    assert space[k] == c[k], (k, space[k], c[k])
for k in ('dedup-ratio', 'compression-ratio'):
    assert abs(space[k] - c[k]) < 1e-6, (k, space[k], c[k])
assert abs(space['dedup-ratio'] * space['compression-ratio'] - space['ratio']) < 1e-6
assert c['dedup-ratio'] > 1
END
  equal "compressed clusters" "$(info_field "$disk" compressed-clusters)" \
    $((2 * packed))
  equal "clusters with data" "$(data_clusters "$disk")" "$before"

  say "a kill, and QEMU in between"
  start_server "$disk"
  $PY "$HERE/put.py" "$URI" a.raw $((MB << 20))
  $PY "$HERE/put.py" "$URI" a.raw 0 $((MB << 19)) $((MB << 19))
  kill_server
  tool recover "$disk" >recover.out
  check_clean "$disk"
  qemu-io -f qcow2 -c "write -q -P 7 0 $((MB << 19))" \
    -c "write -q -P 8 $((MB << 20)) $((MB << 19))" "$disk"
  start_server "$disk"
  $PY "$HERE/put.py" "$URI" a.raw $((MB << 20))
  $PY "$HERE/put.py" "$URI" a.raw 0
  stop_server
  check_clean "$disk"
  same_as_raw twice.raw "$disk"

  say "nothing is left of it"
  start_server "$disk"
  $PY "$HERE/nbdrun.py" "$URI" "h.trim($((2 * MB << 20)), 0)"
  stop_server
  check_clean "$disk"
  equal "clusters with data" "$(data_clusters "$disk")" 0
}

try zlib 64k 65536
try zstd 4k 4096
try zlib 512 512
