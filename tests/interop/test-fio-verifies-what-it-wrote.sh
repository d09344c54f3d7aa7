#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# fio verifies (crc32c) what several of its jobs wrote at once, in blocks of 4k
# to 64k, some of them duplicates of each other, and again after a restart.
# Breaks if: parallel requests mix up data.
. "$(dirname "$0")/lib.sh"
need fio
fio --enghelp 2>/dev/null | has -w nbd || missing "fio has no nbd engine"

cd "$TMP"                       # fio leaves files where it runs
disk=$TMP/disk.qcow2
start_server "$disk" size=256M
cat >"$TMP/job.fio" <<END
[global]
ioengine=nbd
uri=$URI
iodepth=8
verify=crc32c
verify_fatal=1
dedupe_percentage=30
rw=randwrite
size=$((16 * SCALE))m
group_reporting
[small]
bs=4k
offset=0
[mixed]
bsrange=4k-64k
blockalign=4k
offset=64m
[trims]
rw=randtrimwrite
bs=16k
verify=0
offset=128m
[odd]
bsrange=512-20k
bs_unaligned=1
serialize_overlap=1
offset=192m
END
fio "$TMP/job.fio" >"$TMP/fio.out" 2>&1 || { cat "$TMP/fio.out"; die "fio"; }
nbdcopy "$URI" "$TMP/want.raw"
stop_server
check_clean "$disk"
same_as_raw "$TMP/want.raw" "$disk"

say "verified again after a restart"
# Not the odd ones: they overlap, and fio remembers nothing between runs.
start_server "$disk"
sed -i "s|^uri=.*|uri=$URI|; /^\[trims\]/,\$d" "$TMP/job.fio"
fio --verify_only "$TMP/job.fio" >"$TMP/fio.out" 2>&1 ||
  { cat "$TMP/fio.out"; die "fio --verify_only"; }
stop_server
check_clean "$disk"
