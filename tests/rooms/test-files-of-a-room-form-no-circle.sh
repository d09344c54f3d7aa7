#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# No two files of a room need each other, directly or through others, so that
# each can be read and tested with what lies below it.  tests/rooms/circles.py
# looks at includes and at the symbols of object files.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)
build=$(cd "${BUILD_DIR:-build}" && pwd)

die () { echo "FAIL: $*" >&2; exit 1; }

for room in common io dedup/hash dedup/index/table dedup/index dedup/journal; do
  circles=$(python3 "$here/circles.py" "$build" "$top" "$room") ||
    die "$room has circles: $circles"
done

# Two circles are left, one in dedup/ itself and one in qcow2fmt/.  They are to be
# cut, and until then must not grow.
left=$(python3 "$here/circles.py" "$build" "$top" dedup qcow2fmt || true)
while read -r -a circle; do
  case ${circle[0]} in
    dedup/*) most=15 ;;
    qcow2fmt/*) most=21 ;;
    *) die "a new circle: ${circle[*]}" ;;
  esac
  [ ${#circle[@]} -le $most ] || die "a circle grew: ${circle[*]}"
done <<<"$left"
[ "$(wc -l <<<"$left")" -le 2 ] || die "a new circle: $left"

# The script finds a circle where there is one.
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
mkdir -p "$tmp/src/room" "$tmp/build/room"
echo 'int b (void); int a (void) { return b (); }' >"$tmp/src/room/a.c"
echo 'int a (void); int b (void) { return a (); }' >"$tmp/src/room/b.c"
echo 'int a (void); int c (void) { return a (); }' >"$tmp/src/room/c.c"
for f in a b c; do
  cc -c -o "$tmp/build/room/$f.c.o" "$tmp/src/room/$f.c"
done
found=$(python3 "$here/circles.py" "$tmp/build" "$tmp/src" room) &&
  die "a circle of symbols was not found"
[ "$found" = "room/a room/b" ] || die "found $found instead of a and b"
