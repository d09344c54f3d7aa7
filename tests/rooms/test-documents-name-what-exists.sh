#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The files, functions and structs that the documents name exist, so that a reader
# finds them after code has moved.  tests/rooms/named.py says what it looks at.
# shellcheck disable=SC2016  # backquotes are those of Markdown
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)

die () { echo "FAIL: $*" >&2; exit 1; }

# nbdkit-notes.md names what is in nbdkit.
cd "$top"
list=(README.md SECURITY.md bench/README.md)
for doc in docs/*.md; do
  [ "$doc" = docs/nbdkit-notes.md ] || list+=("$doc")
done
found=$(python3 "$here/named.py" "$top" "${list[@]}") || die "$found"

# The script finds what is missing, and only that.
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
mkdir -p "$tmp/room"
cat >"$tmp/room/a.c" <<'SOURCE'
#include <uv.h>
/* dedup_gone is only a comment. */
struct dedup_a { int x; };
struct dedup_b {
  int y;
};
int
dedup_open (void)
{
  return 0;
}
SOURCE
printf 'void\ndedup_close (void)\n{\n}\n' >"$tmp/room/c.c"
cat >"$tmp/good.md" <<'GOOD'
[here](good.md) room/a.c `room/a.c` `a.c` `uv.h` `room/` `dedup_open (x)` `dedup_`
`struct dedup_a` `dedup_a.x` `struct
dedup_b` `dedup_open` (`room/a.c`) `tests/unit/test-NAME.c` http://x/room/b.c
GOOD
python3 "$here/named.py" "$tmp" good.md || die "what exists was not found"

lacks () # WHAT TEXT
{
  local found
  printf '\n%s\n' "$2" >"$tmp/bad.md"
  found=$(python3 "$here/named.py" "$tmp" bad.md good.md) &&
    die "nothing is missing in: $2"
  [ "$found" = "bad.md:2: $1" ] || die "$found for: $2"
}
lacks 'no file gone.md' '[there](gone.md#part)'
lacks 'no file room/b.c' 'see room/b.c'
lacks 'no file b.h' '`b.h`'
lacks 'no folder hall/' '`hall/`'
lacks 'no dedup_gone' '`dedup_gone (x)`'
lacks 'no qcow2_' '`qcow2_...`'
lacks 'no struct dedup_open' '`struct dedup_open`'
lacks 'no y in struct dedup_a' '`dedup_a.y`'
lacks 'no dedup_close in room/a.c' 'first `dedup_close` (`room/a.c`)'
lacks 'no dedup_close in a.c' '`dedup_close` in `a.c`'
