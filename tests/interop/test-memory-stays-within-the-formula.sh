#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The peak memory of a server stays within the formula of section 9 of
# docs/ARCHITECTURE.md, for large disks and small caches, log stores that
# freeze all the time, merges, trims, several connections and large requests.
# Breaks if: something grows without end, tables or copies of them pile up, or
# malloc keeps what was given back.
. "$(dirname "$0")/lib.sh"
LOAD=$BUILD_DIR/bench/dedup-load
[ -x "$LOAD" ] || missing "$LOAD is not built"
[ -z "$preload" ] || skip "not with a sanitizer"

load () { "$LOAD" --uri="$URI" "$@" >"$TMP/load.out"; }

M=$((1 << 20))

# serve NAME SIZE CLUSTER CACHE ORDER [KEY...]
serve ()
{
  name=$1 size=$2 cluster=$3 cache=$4 order=$5
  shift 5
  tool create -o cluster-size="$cluster",log-store-order="$order" \
    "$TMP/$name.qcow2" "$size"
  start_server "$TMP/$name.qcow2" l2-cache-size="$cache" "$@"
}

# within CONNECTIONS REQUEST ENTRIES: so many connections there were at once, so
# many bytes the largest request had, so many entries went into the index.
within ()
{
  local out
  out=$($PY "$HERE/memory.py" "$SRV_PID" "$size" "$cluster" "$cache" "$order" \
        "$3" "$(stat -c %s "$TMP/$name.qcow2")" "$1" "$2") ||
    die "$name: $out"
  say "$name: $out"
}

runs_of () { info_field "$TMP/$name.qcow2" runs; }

n=$((15000 * SCALE))

say "1 TiB, 8 MiB of cache, log stores of 4096 entries"
serve small $((1 << 40)) 4096 $((8 * M)) 10
for gen in 1 2 3; do
  load randwrite --ops=$n --connections=4 --depth=8 --gen=$gen --seed=$gen
done
load randread --ops=$n --connections=4 --depth=8 --seed=9
within 4 4096 $((3 * n))
load randwrite --block=2M --ops=60 --connections=4 --depth=4 --gen=4
load trim --block=2G --depth=2 --ops=60
within 4 $((2 * M)) $((3 * n + 30720))
stop_server
at_least "runs of the index" "$(runs_of)" 2
rm "$TMP/small.qcow2"

say "64 GiB, cache for all tables, large log store"
serve default $((65536 * M)) 4096 $((200 * M)) 16
load randwrite --ops=$((4 * n)) --connections=4 --depth=8
load randwrite --ops=$((4 * n)) --connections=4 --depth=8 --gen=2 --seed=2
within 4 4096 $((8 * n))
stop_server
rm "$TMP/default.qcow2"

say "4 TiB in clusters of 64 KiB, 16 MiB of cache"
serve large $((4 << 40)) 65536 $((16 * M)) 10
load randwrite --block=64k --ops=$((n / 10)) --connections=2 --depth=8
load randwrite --block=64k --ops=$((n / 10)) --connections=2 --depth=8 --gen=2
load trim --block=2G --ops=100
within 2 65536 $((n / 5))
stop_server
rm "$TMP/large.qcow2"

say "requests of 32 MiB"
serve requests $((16384 * M)) 4096 $((32 * M)) 12
load seqwrite --block=32M --ops=16 --depth=2
within 1 $((32 * M)) $((16 * 8192))
stop_server
