#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The compiler refuses a file of a room that includes a header of a room above
# it, or beside it: each room has include directories of its own.  No include has a
# path, because one such as "../server/loop.h" would compile in any room.
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
build=$(cd "${BUILD_DIR:-build}" && pwd)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

die () { echo "FAIL: $*" >&2; exit 1; }

# The arguments that the room's own build gives to FILE, a line each.
arguments () # FILE
{
  python3 - "$build" "$top/$1" <<'PYTHON'
import json, os, shlex, sys
build, path = sys.argv[1:]
for entry in json.load(open(os.path.join(build, 'compile_commands.json'))):
    full = os.path.join(entry['directory'], entry['file'])
    if os.path.realpath(full) != os.path.realpath(path):
        continue
    args = shlex.split(entry['command'])
    keep = [a for a in args[1:] if a.startswith(('-I', '-D', '-std', '-f'))]
    print('\n'.join(keep))
    break
PYTHON
}

# Does FILE, with HEADER included before it, compile as a part of its room?
compiles () # FILE HEADER
{
  local args
  mapfile -t args < <(arguments "$1")
  [ ${#args[@]} -gt 0 ] || die "$1 is not built"
  printf '#include "%s"\n#include "%s"\n' "$2" "$top/$1" >"$tmp/breach.c"
  (cd "$build" &&
   cc "${args[@]}" -I"$top/$(dirname "$1")" -w -fsyntax-only "$tmp/breach.c") \
    >"$tmp/log" 2>&1
}

! grep -rnE --include='*.[ch]' '^[[:space:]]*#[[:space:]]*include[[:space:]]+".*/' \
  "$top"/{common,io,qcow2fmt,dedup,server,plugin,tools} ||
  die "these includes have a path"

while read -r file allowed forbidden; do
  compiles "$file" "$allowed" ||
    { cat "$tmp/log"; die "$file does not compile with $allowed"; }
  for header in ${forbidden//,/ }; do
    [ -n "$(find "$top" -name "$header" -not -path '*/build*/*')" ] ||
      die "there is no $header any more"
    ! compiles "$file" "$header" || die "$file may include $header"
    grep -q "$header: No such file" "$tmp/log" ||
      { cat "$tmp/log"; die "$file with $header is refused for another reason"; }
  done
done <<'ROOMS'
common/fault.c fault.h io.h,hash.h
io/file.c io.h qcow2.h,hash.h,dedup.h
qcow2fmt/alloc.c io.h dedup.h,hash.h,index.h,store.h,server.h,check.h,qcow2-check.h
dedup/hash/hash.c checked.h io.h,index.h,dedup.h,qcow2.h
dedup/index/table/segment.c hash.h index.h,dedup.h,config.h,journal.h,qcow2.h
dedup/index/young.c segment.h store.h,area.h,gate.h,config.h,upkeep.h,write.h,dedup.h,journal.h,qcow2.h,server.h
dedup/journal/journal.c qcow2.h index.h,config.h,store.h,dedup.h,server.h
dedup/store/commit.c index.h upkeep.h,write.h,dedup.h,pool.h,server.h
dedup/upkeep/clean.c store.h write.h,hints.h,disks.h,dedup.h,pool.h,server.h
dedup/disks/switch.c upkeep.h write.h,claim.h,hints.h,dedup.h,pool.h,server.h
dedup/write/link.c upkeep.h disks.h,dedup.h,pool.h,server.h,loop.h
dedup/scrub/read.c upkeep.h write.h,disks.h,dedup.h,pool.h,server.h
dedup/open.c write.h server.h,loop.h
server/request.c dedup.h index.h,store.h,upkeep.h,write.h,incarnation.h,segment.h
ROOMS

# Headers that other rooms of dedup/ may include: the manuals and what they include.
# Every other one is for the files beside it only.
public=' dedup-types.h dedup-disks.h hash.h index.h index-upkeep.h index-limits.h storage.h
  manifest.h incarnation.h segment.h log-store.h journal.h journal-read.h
  journal-limits.h record.h store.h gate.h value.h config.h area.h samples.h dedup-limits.h upkeep.h
  write.h claim.h hints.h disks.h bad.h dedup-compact.h dedup-compress.h dedup-scrub.h scrub.h '
while read -r header; do
  name=$(basename "$header")
  [[ $public != *[[:space:]]"$name"[[:space:]]* ]] || continue
  others=$(cd "$top" && grep -rl --include='*.[ch]' "^#include \"$name\"" \
             common io qcow2fmt dedup server plugin tools |
           grep -v "^$(dirname "$header")/[^/]*$" || true)
  [ -z "$others" ] || die "$name is private to $(dirname "$header"): $others"
done < <(cd "$top" && find dedup/*/ -name '*.h')
