# SPDX-License-Identifier: BSD-3-Clause
# Sourced by the scripts here: makes images with one build, closed or crashed,
# and proves of another build that it understands them.
#
# An image is named KIND-STATE.  KIND is a key of KINDS; STATE is "clean",
# "crashed" (kill -9, with operations after the last flush), or "lost" (the same,
# and the data of one of the last writes did not reach the disk, its records
# did).  An image with a store file has it beside it, as IMAGE.store.
. "$(dirname "${BASH_SOURCE[0]}")/../interop/lib.sh"
IMAGES=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
need qemu-img

# Each kind has a hash of its own.  Log stores of 2^4 buckets hold some 60
# entries, so that these disks need several freezes.  The kind "incarnations" is
# served with verify=off, which gives it tombstones.
declare -A KINDS=(
  [plain]=hash=sha256,journal-areas=2
  [incarnations]=hash=skein-256-256,journal-areas=2,log-store-order=4,max-incarnations=64
  [runs]=hash=sha3-256,journal-areas=2,log-store-order=4
  [merged]=hash=sha3-256,journal-areas=2,log-store-order=4
  [store]=hash=xxh3-128,journal-areas=2,log-store-order=4)
ALL_UNFLUSHED=90                # as in disk.py
NAMES=(plain-clean plain-crashed plain-lost incarnations-clean
       incarnations-crashed merged-clean runs-crashed runs-lost store-clean
       store-crashed)

use_build () # DIR: what start_server and tool run from now on
{
  PLUGIN=$1/plugin/nbdkit-dedup-plugin.so
  TOOL=$1/tools/qcow2-dedup
  [ -f "$PLUGIN" ] && [ -x "$TOOL" ] || die "$1 is no build directory"
}

disk_py () { $PY "$IMAGES/disk.py" "$@"; }
has_store_file () { case ${1##*/} in store-*) true ;; *) false ;; esac; }

# Starts a server for IMAGE, with what its kind needs.
serve () # IMAGE ARGS...
{
  local image=$1
  shift
  case ${image##*/} in
    store-*) start_server "$image" store="$image.store" "$@" ;;
    incarnations-*) start_server "$image" verify=off "$@" ;;
    *) start_server "$image" "$@" ;;
  esac
}

# Runs qcow2-dedup COMMAND on IMAGE, with its store file if it has one.
tool_on () # COMMAND IMAGE ARGS...
{
  local command=$1 image=$2
  shift 2
  if has_store_file "$image"; then
    tool "$command" --store="$image.store" "$@" "$image"
  else
    tool "$command" "$@" "$image"
  fi
}

copy_image () # FROM TO
{
  cp --sparse=always "$1" "$2"
  if has_store_file "$1"; then
    cp --sparse=always "$1.store" "$2.store"
  fi
}

image_field () { tool_on info "$1" --output=json | json "$2"; } # IMAGE KEY

# --- Making ---------------------------------------------------------------------

# Makes DIR/NAME with the chosen build.  PREPARE, a function, changes the new image
# before it is written.
make_image () # NAME DIR [PREPARE]
{
  local image=$2/$1 kind=${1%-*} state=${1##*-} count i
  tool create -o "cluster-size=4k,${KINDS[$kind]}" "$image" 16M
  [ $# -lt 3 ] || "$3" "$image"
  serve "$image" commit-interval=500ms
  disk_py write "$URI" flushed
  if [ "$state" = clean ]; then
    stop_server
    [ "$kind" != merged ] || wait_for_merges "$image"
    return
  fi
  disk_py crash "$URI" "$SRV_PID"
  reap_killed_server
  equal "bit 48 of $1" "$(bit48 "$image")" 1
  count=$(recovered_count "$image")
  at_least "unflushed operations in $1" "$count" 1
  at_most "unflushed operations in $1" "$count" $((ALL_UNFLUSHED - 1))
  if [ "$state" = lost ]; then
    disk_py lose "$image" "$count"
    at_most "operations in $1" "$(recovered_count "$image")" $((count - 1))
  fi
}

# A server without requests merges until few runs are left.
wait_for_merges () # IMAGE
{
  local i
  for ((i = 0; i < 20; i++)); do
    [ "$(image_field "$1" runs)" -gt 4 ] || return 0
    serve "$1"
    sleep 2
    stop_server
  done
  die "$(image_field "$1" runs) runs are left in $1"
}

# Prints how many unflushed operations the chosen build's recovery finds in IMAGE,
# which stays as it is.
recovered_count () # IMAGE
{
  local copy=$TMP/count/${1##*/}
  mkdir -p "$TMP/count"
  copy_image "$1" "$copy"
  if [ "$(bit48 "$copy")" = 1 ]; then
    tool_on recover "$copy" >"$TMP/recover.out"
  fi
  qemu-img convert -O raw "$copy" "$TMP/count/raw"
  disk_py count "$TMP/count/raw"
  rm -r "$TMP/count"
}

# Prints, as one line of JSON, what the chosen build's info says of IMAGE, which
# has COUNT unflushed operations.  Fields that differ between versions are left out.
described () # IMAGE COUNT
{
  tool_on info "$1" --output=json >"$TMP/info.json"
  $PY - "${1##*/}" "$2" "$TMP/info.json" <<'PYTHON'
import json, sys
name, count, path = sys.argv[1:]
with open(path) as f:
    info = json.load(f)
for key in 'filename', 'actual-size', 'index-memory-bytes':
    info.pop(key, None)
print(json.dumps([name, {'unflushed': int(count), 'info': info}]))
PYTHON
}

# --- Proving --------------------------------------------------------------------

all_clean () # IMAGE
{
  check_clean "$1"
  tool_on check "$1" >"$TMP/check.out" 2>&1 ||
    { cat "$TMP/check.out" >&2; die "qcow2-dedup check $1 with its store file"; }
}

# Fails unless, with the chosen build, IMAGE, closed or crashed, is the disk with
# COUNT unflushed operations: served read-only (which changes no byte), after
# qcow2-dedup recover, and after a start.  Then its index must find all that the
# disk holds, and it must be clean after it was written and closed.
understands () # IMAGE COUNT
{
  local image=$1 count=$2 before known sum
  sum=$(cat "$image"* | sha256sum)
  disk_py model "$TMP/want.raw" "$count"
  serve "$image" -r
  served_as_raw "$TMP/want.raw"
  stop_server
  equal "$image, served read-only," "$(cat "$image"* | sha256sum)" "$sum"

  mkdir -p "$TMP/recovered"
  copy_image "$image" "$TMP/recovered/${image##*/}"
  if [ "$(bit48 "$image")" = 1 ]; then
    tool_on recover "$TMP/recovered/${image##*/}" >"$TMP/recover.out"
  fi
  all_clean "$TMP/recovered/${image##*/}"
  same_as_raw "$TMP/want.raw" "$TMP/recovered/${image##*/}"
  rm -r "$TMP/recovered"

  serve "$image"
  served_as_raw "$TMP/want.raw"
  stop_server
  before=$(image_field "$image" data-clusters)
  known=$(image_field "$image" hits)
  # In a session of its own: hints know what was read before.
  serve "$image"
  disk_py write "$URI" later "$count"
  disk_py model "$TMP/want.raw" "$count" later
  served_as_raw "$TMP/want.raw"
  stop_server
  all_clean "$image"
  same_as_raw "$TMP/want.raw" "$image"
  equal "new clusters of ${image##*/}, of which 40 hold new data," \
    "$(($(image_field "$image" data-clusters) - before))" 40
  at_least "what the index of ${image##*/} found" \
    "$(($(image_field "$image" hits) - known))" "$before"
}
