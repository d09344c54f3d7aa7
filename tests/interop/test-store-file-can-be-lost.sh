#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# With store= the index lies in a second file.  It is found again after a
# restart and after kill -9 in a freeze. A file that is lost, cut off, old or
# not given costs ratio and a message, and data stays; when its disk is full,
# writes continue.
# Breaks if: a page is listed before it is durable, the image depends on the
# file, or an older copy is taken for the file.
. "$(dirname "$0")/lib.sh"

mb=4
clusters=$((mb * 256))
disk=$TMP/disk.qcow2
ssd=$TMP/ssd
field () { tool info --output=json --store="$ssd" "$disk" | json "$1"; }
# Serve, write a.raw at slot $1, close; prints the clusters stored by it.
again ()
{
  local slot=$1 before after
  shift
  before=$(data_clusters "$disk" 2>/dev/null)
  start_server "$disk" "$@"
  $PY "$HERE/put.py" "$URI" "$TMP/a.raw" $((slot * mb << 20)) >&2
  stop_server
  after=$(data_clusters "$disk" 2>/dev/null)
  stored=$((after - before))
}
all_right ()
{
  check_clean "$disk"
  tool check --store="$ssd" "$disk" >"$TMP/check.out" 2>&1 ||
    { cat "$TMP/check.out" >&2; die "check --store"; }
  qemu-img compare -f raw -F qcow2 "$TMP/want.raw" "$disk" >/dev/null ||
    die "contents differ"
}

random_file "$TMP/a.raw" $mb 1
for i in 0 1 2 3 4 5 6 7; do cat "$TMP/a.raw"; done >"$TMP/want.raw"
tool create -o cluster-size=4k,log-store-order=6,journal-areas=4 "$disk" \
  $((mb * 8))M
again 0 store="$ssd"
equal "stored first" $stored $clusters
at_least "bytes of the store file" "$(stat -c %s "$ssd")" $((clusters * 20))
equal "its magic" "$(head -c 8 "$ssd")" DDUPSTOR
at_least "entries there" "$(field run-entries)" $((clusters / 2))
cp "$ssd" "$TMP/old"

say "restart"
again 1 store="$ssd"
equal "stored after a restart" $stored 0
for i in 2 3 4 5 6 7; do cat "$TMP/a.raw"; done >"$TMP/rest.raw"
start_server "$disk" store="$ssd"
$PY "$HERE/put.py" "$URI" "$TMP/rest.raw" $((2 * mb << 20))
stop_server
equal data-clusters "$(data_clusters "$disk" 2>/dev/null)" $clusters
all_right

say "read-only: as it is, and without it"
before=$(sha256sum <"$ssd")
start_server "$disk" -r store="$ssd"
served_as_raw "$TMP/want.raw"
stop_server
equal "the store file" "$(sha256sum <"$ssd")" "$before"
start_server "$disk" -r
served_as_raw "$TMP/want.raw"
stop_server
start_server "$disk" -r store="$TMP/not-there"
served_as_raw "$TMP/want.raw"
stop_server
[ ! -e "$TMP/not-there" ] || die "made a file read-only"

# What happens to the file must cost ratio, and a line if PATTERN says which.
loses () # PATTERN KEYS...
{
  local pattern=$1
  shift
  again 3 "$@"
  if [ -n "$pattern" ]; then
    equal "lines about it" "$(grep -c "$pattern.*entries of.*lost\|entries of.*$pattern.*lost" "$SRV_LOG")" 1
  fi
  at_least "stored anew" $stored $((clusters / 2))
  at_most "stored anew" $stored $clusters
  all_right
  again 4 store="$ssd"
}
# A second lot of contents, that the older copy does not know.
say "an older copy"
random_file "$TMP/b.raw" $mb 2
start_server "$disk" store="$ssd"
$PY "$HERE/put.py" "$URI" "$TMP/b.raw" 0
stop_server
cat "$TMP/b.raw" >"$TMP/w2"
tail -c +$(((mb << 20) + 1)) "$TMP/want.raw" >>"$TMP/w2"
mv "$TMP/w2" "$TMP/want.raw"
cp "$TMP/old" "$ssd"
loses 'older or newer' store="$ssd"
say "missing"
rm "$ssd"
loses 'it is new' store="$ssd"
say "cut off"
truncate -s 8192 "$ssd"
loses '' store="$ssd"
say "header damaged"
printf spoilt | dd of="$ssd" bs=1 seek=24 conv=notrunc status=none
loses 'header is damaged' store="$ssd"
say "indexing brings back what was lost"
rm "$ssd"
tool index --all --store="$ssd" "$disk" 2>"$TMP/index.err"
grep -q 'it is new: [0-9]* entries of the index are lost' "$TMP/index.err" ||
  die "index says nothing"
again 6 store="$ssd"
equal "stored after indexing" $stored 0
all_right

say "left out"
loses 'was not given' commit-interval=5


say "kill -9 in the middle of freezes"
tool create -o cluster-size=4k,log-store-order=6,journal-areas=4 \
  "$TMP/k.qcow2" $((mb * 8))M
disk=$TMP/k.qcow2
ssd=$TMP/kssd
: >"$TMP/want.raw"
for i in 0 1 2; do
  random_file "$TMP/part.raw" $mb $((100 + i))
  cat "$TMP/part.raw" >>"$TMP/want.raw"
  start_server "$disk" commit-interval=0 store="$ssd"
  $PY "$HERE/put.py" "$URI" "$TMP/part.raw" $((i * mb << 20))
  kill_server
done
tool recover --store="$ssd" "$disk"
equal data-clusters "$(data_clusters "$disk" 2>/dev/null)" $((3 * clusters))
start_server "$disk" store="$ssd"
$PY "$HERE/put.py" "$URI" "$TMP/want.raw" $((3 * mb << 20))
stop_server
equal "data-clusters after the same again" \
  "$(data_clusters "$disk" 2>/dev/null)" $((3 * clusters))
cat "$TMP/want.raw" >"$TMP/w2"
cat "$TMP/w2" >>"$TMP/want.raw"
truncate -s $((mb * 8))M "$TMP/want.raw"
all_right

say "crashed, and the file is lost: data is recovered"
start_server "$disk" commit-interval=0 store="$ssd"
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" $((6 * mb << 20))
kill_server
rm "$ssd"
dd if="$TMP/a.raw" of="$TMP/want.raw" bs=1M seek=$((6 * mb)) conv=notrunc \
  status=none
start_server "$disk" store="$ssd"
served_as_raw "$TMP/want.raw"
stop_server
all_right

[ "$(id -u)" = 0 ] || exit 0
say "its file system is full: writes go on, and the index in the image"
mkdir "$TMP/small"
mount -t tmpfs -o size=128k none "$TMP/small" || exit 0
at_exit 'umount "$TMP/small"'
disk=$TMP/f.qcow2
ssd=$TMP/small/ssd
tool create -o cluster-size=4k,log-store-order=6,journal-areas=4 "$disk" \
  $((mb * 8))M
cp "$TMP/a.raw" "$TMP/want.raw"
cat "$TMP/b.raw" "$TMP/a.raw" "$TMP/b.raw" >>"$TMP/want.raw"
truncate -s $((mb * 8))M "$TMP/want.raw"
start_server "$disk" store="$ssd"
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" 0
$PY "$HERE/put.py" "$URI" "$TMP/b.raw" $((mb << 20))
stop_server
grep -q 'no space left there: the index grows in the image' "$SRV_LOG" ||
  die "nothing was said"
start_server "$disk" store="$ssd"
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" $((mb << 21))
$PY "$HERE/put.py" "$URI" "$TMP/b.raw" $((3 * mb << 20))
stop_server
equal data-clusters "$(data_clusters "$disk" 2>/dev/null)" $((2 * clusters))
all_right
