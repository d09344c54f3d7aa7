#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A device of exactly the size that "measure" gives takes a disk full of unique
# data, written twice, without ENOSPC; one that is a tenth smaller than the
# data does not.
# Breaks if: something that grows is not in the sum.

. "$(dirname "$0")/lib.sh"
need nbdkit qemu-img losetup
need_root

# fill SIZE_MB PASSES: prints "full" at ENOSPC
fill ()
{
  $PY - "$URI" "$1" "$2" <<'PY'
import errno, nbd, os, random, sys
h = nbd.NBD ()
h.connect_uri (sys.argv[1])
nr, passes = int (sys.argv[2]), int (sys.argv[3])
try:
    for n in range (passes):
        order = list (range (nr * 4))
        if n == 2:
            random.Random (1).shuffle (order)
        for i in order:
            h.pwrite (os.urandom (256 << 10), i << 18)
            if i % 16 == 15:
                h.flush ()
    h.flush ()
    h.trim (nr << 19, 0)
    h.flush ()
except nbd.Error as e:
    assert e.errnum == errno.ENOSPC, e
    print ("full")
PY
}

# on_device BYTES SIZE_MB OPTIONS
on_device ()
{
  rm -f "$TMP/dev"
  truncate -s "$1" "$TMP/dev"
  loop_on "$TMP/dev"
  tool create -o "$3" "$LOOP" "$2M"
  start_server "$LOOP"
}

size=$((48 * SCALE))
for options in cluster-size=4k \
               cluster-size=64k,refcount-bits=64,journal-areas=4 \
               cluster-size=512,log-store-order=12; do
  say "$options"
  tool measure -o $options --output=json ${size}M >"$TMP/m"
  most=$(json fully-allocated <"$TMP/m")
  least=$(json required <"$TMP/m")
  at_least "fully allocated size" "$most" $((size << 20))
  tool create -o $options "$TMP/empty" ${size}M
  at_least "required size" "$least" "$(stat -c %s "$TMP/empty")"
  rm "$TMP/empty"
  on_device "$most" $size $options
  equal "what $most bytes are" "$(fill $size 3)" ""
  stop_server
  check_clean "$LOOP"
  loop_off
done

say "too small"
on_device $((size * 9 / 10 << 20)) $size cluster-size=4k
equal "what a smaller device is" "$(fill $size 1)" full
stop_server
check_clean "$LOOP"
loop_off

refused tool measure 0
refused tool measure 20X
refused tool measure -o cluster-size=3k 20G
tool measure 20G | has '^fully allocated size: [0-9]*$'
