#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# defragment=idle: a disk that was rewritten at random and then read in sequence
# is defragmented when the server is idle.  It has the same contents then, and the
# image is clean and takes no more space on the host.  Clusters of snapshots stay
# where they are, and dirty bitmaps are not marked.  Nothing moves for random
# readers, while clients write or read in sequence, on a host that is short of space,
# and without the parameter.
# Breaks if: the job loses or mixes clusters, never starts or never ends, leaves
# the image unclean, or does what nobody asked for.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-nbd nbdinfo nbdcopy fio

mb=24
disk=$TMP/disk.qcow2

# Host runs of a closed image.  Clusters that lie one behind the other are one
# extent of qemu-img map.
host_runs () # FILE
{
  qemu-img map --output=json "$1" | $PY -c '
import json, sys
print(sum(e["data"] for e in json.load(sys.stdin)))'
}

# All clusters once, in a random order, with new data.
rewrite_at_random ()
{
  (cd "$TMP" && fio --name=f --ioengine=nbd --uri="$URI" --rw=randwrite \
    --bs=4k --size=${mb}m --iodepth=16 --refill_buffers --randrepeat=0 \
    >"$TMP/fio.log" 2>&1) || die "fio: $(tail -3 "$TMP/fio.log")"
}

read_in_sequence () { nbdcopy --connections=1 --request-size=262144 "$URI" null:; }

# Waits until the image is clean, gives no space back, and stays so for 4 s: a
# reader has ended after 3.
wait_until_idle ()
{
  local i rest=0 before used=
  for ((i = 0; i < 1200 && rest < 40; i++)); do
    before=$used
    used=$(disk_usage "$disk")
    rest=$((rest + 1))
    [ "$(bit48 "$disk") $before" = "0 $used" ] || rest=0
    sleep 0.1
  done
  [ "$rest" = 40 ] || die "not idle after 120 s"
}

# A new image of data in a random order, and its contents in want.raw.
make_scattered () # KEYS...
{
  rm -f "$disk"
  start_server "$disk" size=${mb}M "$@"
  rewrite_at_random
  stop_server
  qemu-img convert -O raw "$disk" "$TMP/want.raw"
  before=$(host_runs "$disk")
  at_least "runs of a rewritten disk" "$before" $((mb * 100))
}

say "defragmented"
make_scattered
used=$(disk_usage "$disk")
start_server "$disk" defragment=idle
read_in_sequence
wait_until_idle
served_as_raw "$TMP/want.raw"
stop_server
after=$(host_runs "$disk")
say "$before runs became $after"
at_most "runs of a defragmented disk" "$after" $((3 * mb))
same_as_raw "$TMP/want.raw" "$disk"
check_clean "$disk"
at_most "bytes on the host" "$(disk_usage "$disk")" $((used + (8 << 20)))
at_most "size of the file" "$(stat -c %s "$disk")" $(((5 * mb) << 20))

say "what lies in sequence is left"
sum=$(sha256sum <"$disk")
start_server "$disk" defragment=idle
read_in_sequence
sleep 5
equal "bit 48" "$(bit48 "$disk")" 0
stop_server
equal "image" "$(sha256sum <"$disk")" "$sum"

say "off is the default"
make_scattered
start_server "$disk"
read_in_sequence
sleep 5
stop_server
equal "runs" "$(host_runs "$disk")" "$before"

say "random readers"
start_server "$disk" defragment=idle
(cd "$TMP" && fio --name=f --ioengine=nbd --uri="$URI" --rw=randread --bs=4k \
  --size=${mb}m --iodepth=16 >"$TMP/fio.log" 2>&1) ||
  die "fio: $(tail -3 "$TMP/fio.log")"
sleep 5
stop_server
equal "runs" "$(host_runs "$disk")" "$before"

# For 7 s does OP again and again, after the disk was read in sequence, and is
# killed before the server can be idle.  Nothing has moved, unless this machine kept
# the client waiting for so long that the server was idle.
stays_while () # OP
{
  local gap
  before=$(host_runs "$disk")
  start_server "$disk" defragment=idle
  read_in_sequence
  gap=$($PY "$HERE/nbdrun.py" "$URI" "
import time
gap, n, last = 0, 0, time.time()
end = last + 7
while last < end:
    $1
    n += 1
    gap, last = max(gap, time.time() - last), time.time()
    time.sleep(.02)
print(int(gap * 1000))")
  kill_server
  tool recover "$disk" >/dev/null
  if [ "$gap" -gt 2000 ]; then
    echo "this machine is too slow: left out"
    return
  fi
  at_least "runs" "$(host_runs "$disk")" $((before - 2))
}

say "a client that writes has priority"
stays_while 'h.pwrite(pat(n, 4096), 0)'
say "so does a reader in sequence"
stays_while 'h.pread(1 << 18, n % 96 << 18)'

say "snapshots and bitmaps"
make_scattered
qemu-img snapshot -c kept "$disk"
qemu-img bitmap --add "$disk" changes
start_server "$disk" defragment=idle
# The second half is new since the snapshot.
(cd "$TMP" && fio --name=f --ioengine=nbd --uri="$URI" --rw=randwrite --bs=4k \
  --offset=$((mb / 2))m --size=$((mb / 2))m --iodepth=16 --refill_buffers \
  --randrepeat=0 >"$TMP/fio.log" 2>&1) || die "fio: $(tail -3 "$TMP/fio.log")"
stop_server
qemu-img bitmap --clear "$disk" changes
qemu-img convert -O raw "$disk" "$TMP/now.raw"
map_of_first_half ()
{
  qemu-img map --output=json "$disk" | $PY -c '
import json, sys
print([(e["start"], e["offset"]) for e in json.load(sys.stdin)
       if e["data"] and e["start"] + e["length"] <= int(sys.argv[1])])' \
    $(((mb / 2) << 20)) | sha256sum
}
first=$(map_of_first_half)
start_server "$disk" defragment=idle
read_in_sequence
wait_until_idle
stop_server
after=$(host_runs "$disk")
at_most "runs" "$after" $((before / 2 + 3 * mb))
at_least "runs" "$after" $((before / 2 - 3 * mb))
equal "places of what the snapshot has, too" "$(map_of_first_half)" "$first"
same_as_raw "$TMP/now.raw" "$disk"
check_clean "$disk"
qemu-img convert -l kept -O raw "$disk" "$TMP/kept.raw"
cmp "$TMP/kept.raw" "$TMP/want.raw" || die "the snapshot has changed"
# Nothing is dirty, as a stock server of bitmaps tells.
qemu-nbd -r -t -f qcow2 -B changes -k "$TMP/bitmap.sock" --fork \
  --pid-file="$TMP/bitmap.pid" "$disk"
dirty=$(nbdinfo --map=qemu:dirty-bitmap:changes \
  "nbd+unix:///?socket=$TMP/bitmap.sock" | awk '$3 != 0' | wc -l)
kill "$(cat "$TMP/bitmap.pid")"
equal "dirty extents" "$dirty" 0

say "a host that is short of space"
[ "$(id -u)" = 0 ] || { echo "not root: left out"; exit 0; }
mkdir "$TMP/small"
mount -t tmpfs -o size=$((2 * mb + 24))M none "$TMP/small" || skip "no tmpfs"
at_exit 'umount "$TMP/small"'
disk=$TMP/small/disk.qcow2
make_scattered
# An eighth of it is kept free.
left=$(df --output=avail -B1 "$TMP/small" | tail -1)
fallocate -l $((left - ((2 * mb + 24) << 20) / 8)) "$TMP/small/ballast"
start_server "$disk" defragment=idle
read_in_sequence
sleep 5
stop_server
equal "runs" "$(host_runs "$disk")" "$before"
rm "$TMP/small/ballast"
start_server "$disk" defragment=idle
read_in_sequence
wait_until_idle
stop_server
at_most "runs with space again" "$(host_runs "$disk")" $((3 * mb))
check_clean "$disk"
