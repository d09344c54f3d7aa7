#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# How fast a scrub reads, against dd with O_DIRECT on the same file, in turns:
#
#   bench/scrub-speed.sh [MIB] [ROUNDS]       (1024 MiB, 3 rounds)
#
# BUILD_DIR has the tool (build); TMPDIR is where the pool is made.  Prints MiB/s, and
# the ratio of each scrub and the dd before it.
set -euo pipefail
mib=${1:-1024}
rounds=${2:-3}
tool=$(cd "${BUILD_DIR:-build}" && pwd)/tools/qcow2-dedup
dir=$(mktemp -d "${TMPDIR:-/tmp}/scrub-speed-XXXXXX")
trap 'rm -rf "$dir"' EXIT

seconds () # COMMAND...: how long it took
{
  local start end
  start=$(date +%s.%N)
  "$@" >"$dir/out" 2>&1
  end=$(date +%s.%N)
  echo "$start $end" | awk '{ print $2 - $1 }'
}

dd if=/dev/urandom of="$dir/raw" bs=1M count="$mib" status=none
"$tool" create --pool "$dir/pool"
"$tool" disk import "$dir/pool" vm "$dir/raw" >"$dir/out" 2>&1
rm "$dir/raw"
for ((i = 0; i < rounds; i++)); do
  for threads in 1 2 4; do
    d=$(seconds dd if="$dir/pool" of=/dev/null bs=1M iflag=direct)
    s=$(seconds "$tool" scrub --restart --threads=$threads "$dir/pool")
    echo "$d $s $mib $threads" | awk '{
      printf "dd %.0f MiB/s, scrub with %d threads %.0f MiB/s, ratio %.2f\n",
             $3 / $1, $4, $3 / $2, $1 / $2 }'
  done
done
