#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A small disk that is rewritten for ever, with flushes, takes a bounded
# multiple of its data on the host, and little more than its data at rest and
# once closed.
#
# The bound, in MiB, for 32 MiB of data in clusters of 4 KiB.  While it is
# rewritten: the data, 48 in quarantine (twice 24), what 16 requests of 1 MiB
# and the commit under way add (16), journal and index (12), spare clusters and
# those ahead (6): 146.  At rest: data, journal, index and 6: 56.  Closed: 50.
# A disk of 1 GiB has 36 more of each: its journal has up to 16 areas of 1 MiB, and
# its index gets a run of 2.5 MiB for each 61,000 clusters that are written, until
# merges drop what was overwritten.  So the number of writes is fixed, whatever the
# speed of the machine: 1.75 GiB, 458,752 clusters, at most 8 runs.
# Breaks if: freed clusters wait long to be used again, quarantine or the
# journal of a small disk is as large as that of a large one, or freed space is
# kept.
. "$(dirname "$0")/lib.sh"
need fio

mb=32
disk=$TMP/disk.qcow2
mib () { echo $(($(disk_usage "$disk") >> 20)); }

rewrite () # BYTES-A-REQUEST REQUESTS-A-FLUSH BYTES SECONDS-AT-MOST
{
  (cd "$TMP" && exec fio --name=f --ioengine=nbd --uri="$URI" --rw=randwrite \
    --bs="$1" --fsync="$2" --size=${mb}m --iodepth=8 --refill_buffers \
    --io_size="$3" --runtime="$4" >"$TMP/fio.log" 2>&1) &
  local fio=$! most=0 now
  while kill -0 "$fio" 2>/dev/null; do
    now=$(mib)
    [ "$now" -le "$most" ] || most=$now
    sleep 0.2
  done
  wait "$fio" || die "fio: $(tail -3 "$TMP/fio.log")"
  say "$1 at a time, flushed after $2: at most $most MiB"
  at_most "MiB on the host" "$most" $((146 + slack))
}

for size in ${mb}M 1G; do
  say "$mb MiB of a disk of $size"
  start_server "$disk" size="$size"
  slack=0
  [ "$size" = ${mb}M ] || slack=36
  rewrite 1m 32 1536m 5
  rewrite 4k 32 256m 4
  for i in $(seq 150); do
    [ "$(mib)" -le $((56 + slack)) ] && break
    sleep 0.1
  done
  at_most "MiB at rest" "$(mib)" $((56 + slack))
  stop_server
  at_most "MiB once closed" "$(mib)" $((50 + slack))
  check_clean "$disk"
  rm "$disk"
done
