#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# tests/fuzz/run.sh [SECONDS [FUZZER...]]: run the fuzzers of a -Dfuzz=true
# build one after the other, SECONDS (60) in all, starting from the committed
# corpora.  Ends with the CPU time and the number of runs of each; status 1 if
# one crashed, hung or ran out of memory (its input: $WORK/crash/FUZZER-*).
#
# BUILD_DIR (build-fuzz), WORK (a directory that is kept, with what was found;
# default: a temporary one, kept only after a crash).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bin=$(cd "${BUILD_DIR:-build-fuzz}/tests/fuzz" && pwd)
total=${1:-60}
[ $# = 0 ] || shift
fuzzers=("$@")
[ ${#fuzzers[@]} -gt 0 ] ||
  fuzzers=(compressed config disk header image incarnation index journal json lease segment snapshots)
each=$((total / ${#fuzzers[@]}))
[ "$each" -gt 0 ] || each=1

work=${WORK-}
[ -n "$work" ] || { work=$(mktemp -d); temporary=1; }
mkdir -p "$work/crash"
export ASAN_OPTIONS=${ASAN_OPTIONS:-allocator_may_return_null=1}
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-halt_on_error=1:print_stacktrace=1}
TIMEFORMAT='%U %S'
failed=0
for f in "${fuzzers[@]}"; do
  mkdir -p "$work/corpus-$f"
  status=0
  { time "$bin/fuzz-$f" -max_total_time="$each" -timeout=25 \
      -rss_limit_mb=2048 -max_len=16384 -len_control=0 -entropic=0 \
      -artifact_prefix="$work/crash/$f-" -print_final_stats=1 "$work/corpus-$f" "$here/corpus/$f" \
      >"$work/log-$f" 2>&1; } 2>"$work/time-$f" || status=$?
  cpu=$(tail -n 1 "$work/time-$f")
  if [ $status != 0 ]; then
    failed=1
    grep -E 'ERROR|SUMMARY|runtime error' "$work/log-$f" >&2 || true
    echo "fuzz-$f failed: $work/log-$f" >&2
  fi
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$work/log-$f")
  echo "$f ${cpu/ / + } s of CPU, ${runs:-?} runs"
  echo "$f $cpu ${runs:-0}" >>"$work/ledger"
done
[ -z "${temporary-}" ] || [ $failed = 1 ] || rm -rf "$work"
exit $failed
