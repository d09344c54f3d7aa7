#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# docs/rooms.svg is what docs/draw-rooms.py draws of this tree; the drawing follows
# the includes, is the same each time, and refuses rooms that form a circle.
# Breaks if: rooms, their includes or their promises change and the picture does not.
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
draw=$top/docs/draw-rooms.py
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

die () { echo "FAIL: $*" >&2; exit 1; }

"$draw" "$top" >"$tmp/now.svg"
cmp "$top/docs/rooms.svg" "$tmp/now.svg" ||
  die "the rooms have changed: docs/draw-rooms.py >docs/rooms.svg"
PYTHONHASHSEED=1 "$draw" "$top" | cmp - "$tmp/now.svg" ||
  die "the same tree is drawn in another way"

# Each room that has a library of its own is in it.
while read -r room; do
  grep -qF ">$room/<" "$tmp/now.svg" || die "$room is missing"
done < <(cd "$top" && grep -lE 'static_library|shared_module' \
           {common,io,qcow2fmt,dedup,server,plugin}{,/*,/*/*}/meson.build \
           2>/dev/null | xargs -n1 dirname)

# A tree of three rooms; "high" includes the others, "middle" the lowest.
mkdir -p "$tmp/tree"/{low,middle,high}
for room in low middle high; do
  printf '# SPDX\n# Is %s.\n' "$room" >"$tmp/tree/$room/meson.build"
  echo '#define X' >"$tmp/tree/$room/$room-x.h"
done
arrows () { "$draw" "$tmp/tree" | grep -c 'class="arrow"'; }
echo '#include "low-x.h"' >"$tmp/tree/middle/m.c"
printf '#include "middle-x.h"\n#include "low-x.h"\n' >"$tmp/tree/high/h.c"
[ "$(arrows)" = 2 ] || die "$(arrows) arrows instead of 2"
"$draw" "$tmp/tree" >"$tmp/out"
grep -q '>Is middle.<' "$tmp/out" || die "no promise"
rm "$tmp/tree/high/h.c"
[ "$(arrows)" = 1 ] || die "$(arrows) arrows instead of 1"
echo '#include "middle-x.h"' >"$tmp/tree/low/l.c"
if "$draw" "$tmp/tree" >"$tmp/out" 2>&1; then
  die "a circle was drawn"
fi
grep -q 'circle: low -> middle -> low' "$tmp/out" || die "$(cat "$tmp/out")"
