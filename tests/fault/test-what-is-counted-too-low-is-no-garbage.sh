#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The refcounts of two clusters that the disk and a snapshot name, and of one
# that only the snapshot names, become 1, as that of garbage is.  No place loses
# its bytes, however much is written; the log says so; what is garbage is freed;
# and qemu-img check -r all repairs the refcounts.  The image has a persistent
# bitmap, with which free clusters keep their bytes, but garbage is found.
# Breaks if: garbage is freed because of its refcount alone.
. "$(dirname "$0")/fault.sh"
need qemu-img qemu-io

garbage () { tool check --output=json "$1" | json garbage-clusters; }

cd "$TMP"
disk=disk.qcow2
random_file a.raw 4 1
random_file b.raw 4 2
start_server "$disk" size=64M
$PY "$HERE/put.py" "$URI" a.raw 0
$PY "$HERE/put.py" "$URI" a.raw $((8 << 20))
stop_server
qemu-img bitmap --add "$disk" changes
qemu-img snapshot -c one "$disk"
start_server "$disk"
$PY "$HERE/put.py" "$URI" b.raw $((24 << 20))
stop_server

say "QEMU discards; refcounts are lost"
hosts=$($PY "$FAULT/miscount.py" "$disk" find \
  $((1 << 20)) $((1028 << 10)) $((2 << 20)))
qemu-io -f qcow2 -d unmap -c 'discard 2M 4k' -c 'discard 10M 4k' \
  -c 'discard 25M 2M' "$disk" >/dev/null
check_clean "$disk"
equal "garbage" "$(garbage "$disk")" 512
equal "refcounts" "$($PY "$FAULT/miscount.py" "$disk" 1 $hosts |
  tr '\n' ' ')" '5 5 3 '
qemu-img convert -O raw "$disk" want.raw
qemu-img convert -l one -O raw "$disk" one.raw

say "a session, and one more, which write"
for n in 1 2; do
  start_server "$disk" commit-interval=1
  for ((i = 0; i < 400; i++)); do
    grep -q ': 3 clusters are in use' "$SRV_LOG" && break
    sleep 0.05
  done
  [ $i -lt 400 ] || die "the log does not tell what is counted too low"
  sleep 1.5                     # what was freed is ready for use
  random_file new.raw 8 $((n + 2))
  $PY "$HERE/put.py" "$URI" new.raw $((40 << 20))
  dd if=new.raw of=want.raw bs=1M seek=40 conv=notrunc status=none
  served_as_raw want.raw
  stop_server
  same_as_raw want.raw "$disk"
  qemu-img convert -l one -O raw "$disk" now.raw
  cmp one.raw now.raw || die "the snapshot has changed"
done
equal "refcounts after that" "$($PY "$FAULT/miscount.py" "$disk" 1 $hosts |
  tr '\n' ' ')" '1 1 1 '

say "repaired"
qemu-img check -r all "$disk" >repair.out 2>&1 || true
check_clean "$disk"
equal "garbage" "$(garbage "$disk")" 0
same_as_raw want.raw "$disk"
