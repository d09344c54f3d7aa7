#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# index says that clusters of 4 KiB would share more, with a command that
# converts the image, whatever its name is; this command and the one of the man
# page work.
# Breaks if: the line is missing, or the commands don't work.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-io

# Equal data, but not at multiples of 64 KiB.
random_file "$TMP/a.raw" 4
truncate -s 24M "$TMP/disk.raw"
dd if="$TMP/a.raw" of="$TMP/disk.raw" bs=4k conv=notrunc status=none
dd if="$TMP/a.raw" of="$TMP/disk.raw" bs=4k seek=2049 conv=notrunc status=none
cd "$TMP"
mkdir bin
ln -s "$TOOL" bin/qcow2-dedup

for name in old.qcow2 "it's \$HOME \"old\".qcow2"; do
  say "the command in the line: $name"
  rm -f new.qcow2
  qemu-img convert -f raw -O qcow2 disk.raw "$name"
  tool index "$name" >out
  cat out
  equal "lines" "$(grep -c . out)" 2
  grep -qF "$name: only whole clusters are shared, and clusters of 4 KiB would share more than those of 64 KiB" \
    out || die "not said"
  equal "shared" "$(info_field "$name" saved-bytes)" 0
  sed -n 's/.*: \(qemu-img convert .*\)/\1/p' out | sed 's/NEW/new/g' >command
  PATH=$TMP/bin:$PATH bash -e ./command >out
  cat out
  equal "lines for clusters of 4 KiB" "$(grep -c . out)" 1
  same_as_raw disk.raw new.qcow2
  check_clean new.qcow2
  equal "saved" "$(info_field new.qcow2 saved-bytes)" $((4 << 20))
done

say "the other one in the man page"
run_nbdkit "$PLUGIN" new2.qcow2 size=24M \
  --run 'qemu-img convert -n -f qcow2 -O raw old.qcow2 "$uri"'
same_as_raw disk.raw new2.qcow2
check_clean new2.qcow2
equal "saved" "$(info_field new2.qcow2 saved-bytes)" $((4 << 20))

say "as JSON: a field, no line"
tool index --output=json old.qcow2 >out
equal cluster-size "$(json cluster-size <out)" 65536
