#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# No two files of a room need each other, directly or through others, and no room
# needs one above it, so that each can be read and tested with the files below it
# only.  tests/rooms/circles.py looks at includes and at the symbols of object files.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)
build=$(cd "${BUILD_DIR:-build}" && pwd)

die () { echo "FAIL: $*" >&2; exit 1; }

dedup_rooms=(dedup/hash dedup/index/table dedup/index dedup/journal dedup/store
             dedup/upkeep dedup/disks dedup/write dedup)
for rooms in common io qcow2fmt server/control server "${dedup_rooms[*]}"; do
  read -r -a list <<<"$rooms"
  circles=$(python3 "$here/circles.py" "$build" "$top" "${list[@]}") ||
    die "$rooms: $circles"
done

# No room needs one above it.
all=(common io qcow2fmt "${dedup_rooms[@]}" server)
up=$(python3 "$here/circles.py" "$build" "$top" "${all[@]}" |
     grep 'looks up' || true)
[ -z "$up" ] || die "$up"

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

# And what looks up.
mkdir "$tmp/build/above"
mv "$tmp/build/room/c.c.o" "$tmp/build/above/d.c.o"
rm "$tmp/build/room/b.c.o"
mv "$tmp/build/room/a.c.o" "$tmp/build/above/a.c.o"
mv "$tmp/build/above/d.c.o" "$tmp/build/room/c.c.o"
found=$(python3 "$here/circles.py" "$tmp/build" "$tmp/src" room above) &&
  die "a need that looks up was not found"
[ "$found" = "room/c looks up to above/a" ] || die "found $found"
