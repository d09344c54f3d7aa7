#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# exchange.sh OLD_BUILD: prove that OLD_BUILD, a build directory of an earlier
# version, and BUILD_DIR (./build) understand each other's images, closed and
# crashed, and that an image can be served by the two of them by turns, each of
# which recovers what the other one left.  By hand: it needs such a build.
#
# Versions before the anchor was called do-not-apply-dedup-anchor do not know
# that name.  So images that they are to understand get an anchor with the older
# name, and one that has today's must be refused, and not changed, if it was not
# closed.
set -euo pipefail
[ $# = 1 ] || { echo "usage: ${0##*/} OLD_BUILD" >&2; exit 2; }
old=$(cd "$1" && pwd)
. "$(dirname "${BASH_SOURCE[0]}")/images.sh"
new=$BUILD_DIR
cd "$TMP"
seed=${SEED:-$RANDOM}

older_anchor () { $PY "$HERE/oldanchor.py" "$1" >oldanchor.out; }

# What MAKER leaves, READER understands.
one_way () # MAKER READER NAME
{
  local count
  use_build "$1"
  make_image "$3" "$TMP" older_anchor
  count=$(recovered_count "$3")
  use_build "$2"
  understands "$3" "$count"
  use_build "$1"
  all_clean "$3"
  same_as_raw "$TMP/want.raw" "$3"
  rm "$3"*
}

# A mixed load is killed again and again; the other version recovers.
by_turns () # KIND
{
  local image=$1-turns maker=$old reader=$new region=$((2 << 20)) round other
  use_build "$new"
  tool create -o "cluster-size=4k,${KINDS[$1]}" "$image" 16M
  older_anchor "$image"
  for round in 1 2 3 4 5 6; do
    mkdir load
    use_build "$maker"
    serve "$image" commit-interval=1
    $PY "$HERE/nbdrun.py" "$URI" 'h.trim(8 << 20, 0); h.flush()'
    $PY "$HERE/crashload.py" run "$URI" "$SRV_PID" $((400 * round)) \
      $((seed + round)) 4 $region "$TMP/load" >load.out
    reap_killed_server
    use_build "$reader"
    serve "$image"
    $PY "$HERE/crashload.py" verify "$URI" $region "$TMP/load"
    stop_server
    all_clean "$image"
    use_build "$maker"
    all_clean "$image"
    rm -r load
    other=$maker maker=$reader reader=$other
  done
  rm "$image"*
}

say "an anchor with a name that the earlier version may not know"
make_image plain-crashed "$TMP"
sum=$(sha256sum <plain-crashed)
use_build "$old"
if ! tool recover plain-crashed >refused 2>&1; then
  equal "the image" "$(sha256sum <plain-crashed)" "$sum"
  grep 'needs recovery' refused
fi
rm plain-crashed

for name in "${NAMES[@]}"; do
  say "$name of the earlier version"
  one_way "$old" "$new" "$name"
  say "$name of this version"
  one_way "$new" "$old" "$name"
done
for kind in "${!KINDS[@]}"; do
  say "$kind, by turns, seed $seed"
  by_turns "$kind"
done
say "each understands the other"
