#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# qcow2-dedup index works on images that qemu-img made: the content stays, the
# image is clean, as many clusters are stored as there are different blocks, the
# space of the others is returned to the host, and later writes of the same data
# are found.  Snapshots, backing files and compressed clusters keep their
# content.
# Breaks if: a cluster is taken over with a wrong refcount or flag, a duplicate
# is linked to other bytes, zeroes uncover a backing file, or an entry is
# missing.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-io

field () { json "$1" <"$TMP/index.out"; }
index () # ARGS...: must succeed
{
  tool index --output=json "$@" >"$TMP/index.out" ||
    die "qcow2-dedup index $*"
  equal "complete" "$(field complete)" True
  equal "bad-clusters" "$(field bad-clusters)" 0
}
stock () # FILE RAW [OPTIONS]: every block allocated, zeroes too
{
  qemu-img create -q -f qcow2 -o "cluster_size=4k${3:+,$3}" "$1" \
    "$(stat -c %s "$2")"
  qemu-img convert -q -n -S 0 -f raw -O qcow2 "$2" "$1"
}

say "an image of qemu-img"
$PY "$HERE/dupfile.py" "$TMP/a.raw" 6000
want=$(distinct_blocks "$TMP/a.raw")
disk=$TMP/disk.qcow2
stock "$disk" "$TMP/a.raw"
before=$(disk_usage "$disk")
index "$disk"
check_clean "$disk"
same_as_raw "$TMP/a.raw" "$disk"
equal "stored clusters" "$(data_clusters "$disk")" "$want"
equal "indexed-clusters" "$(field indexed-clusters)" "$want"
equal "index entries" "$(info_field "$disk" index-entries)" "$want"
equal "all of them" 6000 \
  $(($(field indexed-clusters) + $(field linked-clusters) +
     $(field zeroed-clusters)))
equal "saved-bytes" "$(field saved-bytes)" $(((6000 - want) * 4096))
# Journal, tables and configuration cost about 2 MiB.
at_most "bytes on the host" "$(disk_usage "$disk")" \
  $((before - (6000 - want) * 4096 + (4 << 20)))

say "a second run finds nothing to do"
index "$disk"
equal "indexed-clusters" "$(field indexed-clusters)" 0
equal "linked-clusters" "$(field linked-clusters)" 0
equal "known-clusters" "$(field known-clusters)" \
  "$(($(info_field "$disk" mapped-bytes) / 4096))"
index --all "$disk"
equal "linked-clusters with --all" "$(field linked-clusters)" 0
equal "indexed-clusters with --all" "$(field indexed-clusters)" 0
check_clean "$disk"

say "what a client writes is found"
start_server "$disk"
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" 0
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" $((8 << 20)) $((8 << 20))
stop_server
equal "stored clusters" "$(data_clusters "$disk")" "$(
  { head -c $((8 << 20)) "$TMP/a.raw"; head -c $((8 << 20)) "$TMP/a.raw"
    tail -c +$(((16 << 20) + 1)) "$TMP/a.raw"; } >"$TMP/b.raw"
  distinct_blocks "$TMP/b.raw")"
same_as_raw "$TMP/b.raw" "$disk"
check_clean "$disk"

say "the anchor deleted: shared clusters without it are taken in again"
qemu-img snapshot -d "$ANCHOR" "$disk"
index "$disk"
check_clean "$disk"
same_as_raw "$TMP/b.raw" "$disk"
equal "stored clusters" "$(data_clusters "$disk")" \
  "$(distinct_blocks "$TMP/b.raw")"
equal "index entries" "$(info_field "$disk" index-entries)" \
  "$(distinct_blocks "$TMP/b.raw")"

say "internal snapshots"
disk=$TMP/snap.qcow2
stock "$disk" "$TMP/a.raw"
qemu-img snapshot -c one "$disk"
$PY "$HERE/dupfile.py" "$TMP/c.raw" 6000 2
dd if="$TMP/a.raw" of="$TMP/c.raw" bs=1M count=8 conv=notrunc status=none
dd if="$TMP/c.raw" of="$TMP/d.raw" bs=1M count=12 status=none
qemu-img convert -q -n -S 0 -f raw -O qcow2 "$TMP/d.raw" "$disk"
dd if="$TMP/a.raw" of="$TMP/d.raw" bs=1M skip=12 seek=12 status=none
index "$disk"
check_clean "$disk"
same_as_raw "$TMP/d.raw" "$disk"
equal "stored clusters of the disk" "$(data_clusters "$disk")" \
  "$(distinct_blocks "$TMP/d.raw")"
qemu-img convert -l one -O raw "$disk" "$TMP/one.raw"
cmp "$TMP/a.raw" "$TMP/one.raw" || die "the snapshot has changed"
start_server "$disk"
$PY "$HERE/put.py" "$URI" "$TMP/c.raw" 0
stop_server
check_clean "$disk"
qemu-img convert -l one -O raw "$disk" "$TMP/one.raw"
cmp "$TMP/a.raw" "$TMP/one.raw" || die "the snapshot has changed"
qemu-img snapshot -d one "$disk"
start_server "$disk"            # finds the garbage
stop_server
check_clean "$disk"
same_as_raw "$TMP/c.raw" "$disk"

say "a backing file does not show through where zeroes were"
stock "$TMP/base.qcow2" "$TMP/c.raw"
qemu-img create -q -f qcow2 -F qcow2 -b base.qcow2 -o cluster_size=4k \
  "$TMP/over.qcow2"
head -c $((12 << 20)) "$TMP/a.raw" >"$TMP/e.raw"
qemu-img convert -q -n -S 0 -f raw -O qcow2 "$TMP/e.raw" "$TMP/over.qcow2"
dd if="$TMP/c.raw" of="$TMP/e.raw" bs=1M skip=12 seek=12 status=none
sum=$(sha256sum <"$TMP/base.qcow2")
index "$TMP/over.qcow2"
at_least "clusters of zeroes" "$(field zeroed-clusters)" 100
check_clean "$TMP/over.qcow2"
same_as_raw "$TMP/e.raw" "$TMP/over.qcow2"
equal "backing file" "$(sha256sum <"$TMP/base.qcow2")" "$sum"

say "compressed clusters keep their content"
disk=$TMP/compressed.qcow2
$PY -c 'print("easily compressed\n" * 466033)' >"$TMP/f.raw"
truncate -s 8M "$TMP/f.raw"
cat "$TMP/a.raw" >>"$TMP/f.raw"
qemu-img convert -q -c -f raw -O qcow2 -o cluster_size=4k "$TMP/f.raw" "$disk"
qemu-io -f qcow2 -c 'write -P 5 1M 64k' -c 'write -P 5 30M 64k' "$disk" \
  >"$TMP/io"
cp "$disk" "$TMP/copy.qcow2"
index "$disk"
equal "compressed clusters" "$(info_field "$disk" compressed-clusters)" \
  "$(info_field "$TMP/copy.qcow2" compressed-clusters)"
qemu-img compare -f qcow2 -F qcow2 "$disk" "$TMP/copy.qcow2" >/dev/null ||
  die "the content has changed"
check_clean "$disk"

say "what was written with dedup=off is shared by --all"
disk=$TMP/off.qcow2
start_server "$disk" size=24M dedup=off
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" 0
stop_server
at_least "stored clusters" "$(data_clusters "$disk")" $((want + 1000))
index "$disk"
equal "indexed-clusters" "$(field indexed-clusters)" 0
index --all "$disk"
equal "stored clusters" "$(data_clusters "$disk")" "$want"
equal "indexed-clusters" "$(field indexed-clusters)" "$want"
check_clean "$disk"
cp "$TMP/a.raw" "$TMP/g.raw"
truncate -s 24M "$TMP/g.raw"
same_as_raw "$TMP/g.raw" "$disk"

say "clusters of 64k, an odd size, few bits for refcounts"
for o in cluster_size=64k cluster_size=512 refcount_bits=4 refcount_bits=64 \
         cluster_size=64k,extended_l2=on; do
  disk=$TMP/odd.qcow2
  $PY "$HERE/dupfile.py" "$TMP/h.raw" 40 3 65536
  truncate -s $((39 * 65536 + 512)) "$TMP/h.raw"
  stock "$disk" "$TMP/h.raw" "$o"
  index --hash=xxh3-128 "$disk"
  check_clean "$disk"
  same_as_raw "$TMP/h.raw" "$disk"
  [ "${o%,*}" != cluster_size=64k ] ||
    equal "stored clusters" "$(data_clusters "$disk")" \
      "$(distinct_blocks "$TMP/h.raw" 65536)"
  [ "$o" != refcount_bits=64 ] ||
    equal "stored clusters" "$(data_clusters "$disk")" \
      "$(distinct_blocks "$TMP/h.raw")"
  equal hash "$(info_field "$disk" hash)" xxh3-128
done

say "images that cannot be deduplicated"
for o in compat=0.10 refcount_bits=1 refcount_bits=2; do
  stock "$TMP/none.qcow2" "$TMP/h.raw" "$o"
  refused tool index "$TMP/none.qcow2"
  grep -qE 'none.qcow2: (version 2|the image) cannot be deduplicated' "$TMP/refused" ||
    die "$(cat "$TMP/refused")"
  same_as_raw "$TMP/h.raw" "$TMP/none.qcow2"
  check_clean "$TMP/none.qcow2"
done
