# SPDX-License-Identifier: BSD-3-Clause
# Shell library of the interop tests; sourced, not run.
#
# Every test is a bash script that sources this file, then drives the plugin
# and the tool of one build with stock programs (qemu-img, qemu-io, nbdcopy,
# nbdinfo, fio, libnbd's Python).  Exit status: 0 passed, 77 skipped, anything
# else failed.
#
# Environment: BUILD_DIR (default ./build), KEEP=1 (keep the temporary
# directory), DEDUP_TEST_SCALE (default 1: sizes for CI; 10: real input).
#
# All processes are children of the test and are ended by their own pid.  All
# servers listen on Unix sockets in the temporary directory $TMP.

set -euo pipefail
shopt -s inherit_errexit

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
BUILD_DIR=$(cd "${BUILD_DIR:-build}" && pwd)
PLUGIN=$BUILD_DIR/plugin/nbdkit-dedup-plugin.so
TOOL=$BUILD_DIR/tools/qcow2-dedup
SCALE=${DEDUP_TEST_SCALE:-1}
PY=/usr/bin/python3             # the one that python3-libnbd is for
export PYTHONDONTWRITEBYTECODE=1
export PATH=$PATH:/usr/sbin:/sbin
export LC_ALL=C
RECOVERY_NAME='dedup journal, needs recovery'
ANCHOR=do-not-apply-dedup-anchor

TMP=$(mktemp -d "${TMPDIR:-/tmp}/dedup-XXXXXX")
at_exit_cmds=()
server_pids=()
server_nr=0
SRV_PID=
SRV_LOG=
LOOP=

# --- Outcome -----------------------------------------------------------------

say () { echo "-- $*"; }

# has PATTERN...: does what "grep -q" does, but reads all of its input.  grep -q ends
# at the first match, and a writer that goes on gets SIGPIPE, which fails the
# pipeline under pipefail.
has () { grep "$@" >/dev/null; }

die ()
{
  echo "FAIL: $*" >&2
  if [ -n "$SRV_LOG" ] && [ -s "$SRV_LOG" ]; then
    echo "last lines of $SRV_LOG:" >&2
    tail -n 20 "$SRV_LOG" >&2
  fi
  exit 1
}

skip ()
{
  echo "SKIP: $*"
  exit 77
}

# Run CMD at exit, last one first.
at_exit () { at_exit_cmds+=("$*"); }

cleanup ()
{
  local status=$? i pid
  set +e
  trap - EXIT ERR
  for ((i = ${#at_exit_cmds[@]} - 1; i >= 0; i--)); do
    eval "${at_exit_cmds[i]}"
  done
  for pid in ${server_pids[@]+"${server_pids[@]}"}; do
    kill -9 "$pid" 2>/dev/null && wait "$pid" 2>/dev/null
  done
  loop_off 2>/dev/null
  if [ "${KEEP:-0}" = 1 ]; then
    echo "kept: $TMP"
  else
    rm -rf "$TMP"
  fi
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT TERM
trap 'echo "FAIL: ${BASH_SOURCE[0]##*/}:$LINENO: $BASH_COMMAND" >&2' ERR

# Something that ./check installs or builds is missing: skips the test, or
# fails it where ./check runs it (MISSING_IS_FAILURE).
missing ()
{
  [ -z "${MISSING_IS_FAILURE-}" ] || die "$*"
  skip "$*"
}

need ()
{
  local c
  for c; do
    command -v "$c" >/dev/null || missing "$c is not installed"
  done
}

# How unshare(1) is to treat mounts so that they stay inside.  In a chroot, / may be no
# mount that could be made private; then its mounts are expected to be nobody else's.
mount_propagation ()
{
  if unshare --mount --propagation private true 2>/dev/null; then
    echo private
  else
    echo unchanged
  fi
}

need_root () { [ "$(id -u)" = 0 ] || skip "must be root"; }

equal () # NAME GOT WANT
{
  [ "$2" = "$3" ] || die "$1 is $2, should be $3"
}

at_most () # NAME GOT LIMIT
{
  [ "$2" -le "$3" ] || die "$1 is $2, should be at most $3"
}

at_least () # NAME GOT LIMIT
{
  [ "$2" -ge "$3" ] || die "$1 is $2, should be at least $3"
}

# CMD must fail; its output (both streams) goes to $TMP/refused.
refused ()
{
  local rc=0
  "$@" >"$TMP/refused" 2>&1 || rc=$?
  no_crash_in "$TMP/refused"
  [ $rc -ne 0 ] || die "should have failed: $*"
  [ $rc -lt 124 ] || die "ended with status $rc (signal or timeout): $*"
}

# What $TMP/refused holds is one clear line of ours that names FILE.
one_error_line () # FILE [PATTERN]
{
  local lines
  lines=$(grep -c . "$TMP/refused" || true)
  if [ "$lines" != 1 ]; then
    cat "$TMP/refused" >&2
    die "$lines lines instead of one"
  fi
  grep -qF -- "${1##*/}" "$TMP/refused" ||
    die "does not name ${1##*/}: $(cat "$TMP/refused")"
  if [ $# -gt 1 ]; then
    grep -qiE -- "$2" "$TMP/refused" ||
      die "does not say '$2': $(cat "$TMP/refused")"
  fi
}

# --- Servers -----------------------------------------------------------------

# A build with -Db_sanitize needs its runtime loaded first by nbdkit, too.
preload=$(ldd "$PLUGIN" 2>/dev/null |
          awk '/lib[at]san\.so/ { print $3; exit }') || true
# With libasan of gcc 12, any nbdkit that has printed an error hangs at exit, in
# the freelocale of libp11-kit's destructor (its file plugin does, too).
if [ -n "$preload" ] && command -v cc >/dev/null; then
  echo 'void freelocale (void *l) { (void) l; }' |
    cc -shared -fPIC -x c -o "$TMP/no-freelocale.so" - &&
    preload="$preload $TMP/no-freelocale.so"
fi
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=0}
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-halt_on_error=1:print_stacktrace=1}
export TSAN_OPTIONS=${TSAN_OPTIONS:-halt_on_error=1:second_deadlock_stack=1}

nbdkit_cmd ()
{
  if [ -n "$preload" ]; then
    exec env LD_PRELOAD="$preload" nbdkit "$@"
  else
    exec nbdkit "$@"
  fi
}

no_crash_in () # LOG
{
  if grep -E 'Assertion|Sanitizer|runtime error:|core dumped' "$1" >&2; then
    die "crash report in $1"
  fi
}

# start_server FILE [KEY=VALUE | nbdkit flags]...: serve FILE in a process of
# ours, wait until it listens.  Sets SRV_PID, SRV_LOG, SOCK and URI.  A second
# server may run beside the first: save these four.
start_server ()
{
  local pidfile i
  try_start_server "$@"
  pidfile=$SRV_PIDFILE
  for ((i = 0; i < 1200; i++)); do
    [ -s "$pidfile" ] && return 0
    kill -0 "$SRV_PID" 2>/dev/null || die "server did not start: $*"
    sleep 0.05
  done
  die "server is not ready after 60 s: $*"
}

try_start_server ()
{
  local file=$1
  shift
  server_nr=$((server_nr + 1))
  SOCK=$TMP/s$server_nr
  SRV_LOG=$TMP/server$server_nr.log
  SRV_PIDFILE=$TMP/pid$server_nr
  URI="nbd+unix:///?socket=$SOCK"
  local flags=() keys=()
  while [ $# -gt 0 ]; do
    case $1 in
      -*) flags+=("$1") ;;
      *) keys+=("$1") ;;
    esac
    shift
  done
  nbdkit_cmd -f -U "$SOCK" --pidfile "$SRV_PIDFILE" \
    ${flags[@]+"${flags[@]}"} "$PLUGIN" "$file" ${keys[@]+"${keys[@]}"} \
    >"$SRV_LOG" 2>&1 &
  SRV_PID=$!
  server_pids+=("$SRV_PID")
}

forget_server () # PID
{
  local pid left=()
  for pid in ${server_pids[@]+"${server_pids[@]}"}; do
    [ "$pid" = "$1" ] || left+=("$pid")
  done
  server_pids=(${left[@]+"${left[@]}"})
}

# Close cleanly: TERM, then wait for the end of the process.
stop_server ()
{
  local rc=0
  kill -TERM "$SRV_PID"
  wait "$SRV_PID" || rc=$?
  forget_server "$SRV_PID"
  no_crash_in "$SRV_LOG"
  [ $rc = 0 ] || die "server ended with status $rc"
}

kill_server ()
{
  kill -9 "$SRV_PID" || die "server is gone already"
  reap_killed_server
}

# After somebody else's kill -9.
reap_killed_server ()
{
  local rc=0
  wait "$SRV_PID" 2>/dev/null || rc=$?
  forget_server "$SRV_PID"
  no_crash_in "$SRV_LOG"
  equal "status of the killed server" $rc 137
}

# Serve FILE for the time of one command only: run_nbdkit ARGS... --run CMD,
# or configuration that is to fail.
run_nbdkit () { (nbdkit_cmd -f -U "$TMP/run.sock" "$@"); }
with_timeout () { timeout -k 5 "$@"; }
try_plugin () # ARGS...: start and stop at once
{
  (
    if [ -n "$preload" ]; then export LD_PRELOAD=$preload; fi
    exec timeout -k 5 60 nbdkit -f -U - "$PLUGIN" "$@" \
      --run true
  )
}

# --- Images ------------------------------------------------------------------

tool () { "$TOOL" "$@"; }

# loop_on FILE [OPTION]...: FILE is the loop device LOOP, until loop_off or the end of
# the test.
loop_on ()
{
  LOOP=$(losetup -f --show "${@:2}" "$1" 2>"$TMP/losetup") ||
    skip "no loop devices: $(cat "$TMP/losetup")"
}

# Once only: afterwards another test may have the device of that number.
loop_off ()
{
  [ -z "$LOOP" ] || losetup -d "$LOOP"
  LOOP=
}

# json KEY <JSON: a top-level field.
json () { $PY -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }

info_field () # FILE KEY
{
  tool info --output=json "$1" | json "$2"
}

# 1 if the incompatible feature bit 48 is set in FILE, else 0.
bit48 ()
{
  local b
  b=$(od -An -tu1 -j73 -N1 "$1")
  echo $((b & 1))
}

# The image in FILE, closed, is clean for stock QEMU and for our own check.
check_clean ()
{
  local rc=0
  equal "feature bit 48 of $1" "$(bit48 "$1")" 0
  qemu-img check "$1" >"$TMP/check.out" 2>&1 || rc=$?
  if [ $rc != 0 ] || ! grep -q 'No errors were found' "$TMP/check.out"; then
    head -n 20 "$TMP/check.out" >&2
    die "qemu-img check $1: status $rc"
  fi
  tool_check_clean "$1"
}

tool_check_clean ()
{
  local rc=0
  tool check "$1" >"$TMP/check.out" 2>&1 || rc=$?
  no_crash_in "$TMP/check.out"
  if [ $rc != 0 ]; then
    head -n 20 "$TMP/check.out" >&2
    die "qcow2-dedup check $1: status $rc"
  fi
}

# Guest contents of a closed image as stock QEMU reads them, equal to RAW's.
same_as_raw () # RAW QCOW2
{
  qemu-img compare -f raw -F qcow2 "$1" "$2" >"$TMP/compare.out" 2>&1 ||
    { cat "$TMP/compare.out" >&2; die "$2 differs from $1"; }
}

# The served disk, read over NBD by 4 connections, equals RAW.
served_as_raw () # RAW
{
  nbdcopy --connections=4 "$URI" "$TMP/served.raw"
  cmp "$1" "$TMP/served.raw" || die "served contents differ from $1"
  rm -f "$TMP/served.raw"
}

# Distinct blocks of SIZE bytes in a raw FILE that are not all zero, counted
# without any of our code.
distinct_blocks () # FILE [SIZE]
{
  $PY "$HERE/distinct.py" "$1" "${2:-4096}"
}

# FILE SIZE_MB [SEED]: incompressible, repeatable.
random_file ()
{
  $PY "$HERE/randfile.py" "$1" "$2" "${3:-1}"
}

data_clusters () { info_field "$1" data-clusters; }

# Bytes that FILE takes on the host.
disk_usage () { echo $(($(stat -c '%b * %B' "$1"))); }

# A tree of real files, about MB mebibytes, copied from the running system.
real_tree () # DIR MB [SKIP_MB]
{
  mkdir -p "$1"
  find /usr/bin /usr/lib /usr/share /usr/include /usr/sbin -xdev -type f \
       -size -20000k -printf '%s %P\t%p\n' 2>/dev/null | sort -k2 |
    awk -F'\t' -v limit=$(($2 * 1048576)) -v skip=$((${3:-0} * 1048576)) '
      { split ($1, a, " "); sum += a[1]
        if (sum > skip && sum <= skip + limit) print $2 }' >"$TMP/tree.list"
  tar -C / --ignore-failed-read -cf - -T "$TMP/tree.list" 2>/dev/null |
    tar -C "$1" -xf -
}

[ -f "$PLUGIN" ] || missing "$PLUGIN is not built"
[ -x "$TOOL" ] || missing "$TOOL is not built"
