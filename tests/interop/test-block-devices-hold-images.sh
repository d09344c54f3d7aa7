#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Images are made and served on block devices that hold bytes of an earlier use:
# random ones, and a former image of the same kind.
# Breaks if: space is looked for behind the end of the file, anything counts on
# bytes there being zero, a device that holds something is overwritten
# without --force, or compressed data is appended within a block that the device writes
# as a whole.

. "$(dirname "$0")/lib.sh"
need nbdkit qemu-img nbdcopy nbdsh losetup mkfs.ext4 blockdev
need_root

device () { loop_on "$1" -b "$2"; } # FILE SECTOR

# Serve it after a crash, and compare with the model.
crash_and_compare ()
{
  kill_server
  start_server "$LOOP"
  served_as_raw "$TMP/model"
}

random_file "$TMP/a" 24 1
random_file "$TMP/b" 24 2
model_of () # FILE: 48 MiB that begin with it
{
  cp "$1" "$TMP/model"
  truncate -s 48M "$TMP/model"
}

for sector in 512 4096; do
  say "sectors of $sector: a device that holds something"
  rm -f "$TMP/dev"
  random_file "$TMP/dev" 200 3
  device "$TMP/dev" $sector
  sum=$(sha256sum <"$LOOP")
  refused try_plugin "$LOOP" size=48M
  one_error_line "$LOOP" 'not a qcow2 image'
  refused tool create "$LOOP" 48M
  one_error_line "$LOOP" 'first or the last MiB.*not zero.*--force'
  equal "checksum of the device" "$(sha256sum <"$LOOP")" "$sum"

  say "sectors of $sector: an image among random bytes"
  tool create --force "$LOOP" 48M
  tool_check_clean "$LOOP"
  model_of "$TMP/a"
  start_server "$LOOP"
  nbdcopy --flush "$TMP/a" "$URI"
  crash_and_compare
  nbdsh -u "$URI" -c 'h.trim (4 << 20, 8 << 20)' \
        -c 'h.pwrite (b"x" * 1000, (40 << 20) + 123)' -c 'h.flush ()'
  $PY - "$TMP/model" <<'PY'
import sys
with open (sys.argv[1], "r+b") as f:
    f.seek (8 << 20)
    f.write (bytes (4 << 20))
    f.seek ((40 << 20) + 123)
    f.write (b"x" * 1000)
PY
  crash_and_compare
  stop_server
  check_clean "$LOOP"
  same_as_raw "$TMP/model" "$LOOP"
  tool info "$LOOP" >/dev/null
  tool index "$LOOP" >/dev/null
  check_clean "$LOOP"
  sum=$(sha256sum <"$LOOP")
  start_server "$LOOP" -r
  served_as_raw "$TMP/model"
  stop_server
  equal "checksum after -r" "$(sha256sum <"$LOOP")" "$sum"

  say "sectors of $sector: a new image over one that was not closed"
  start_server "$LOOP"
  nbdcopy --flush "$TMP/b" "$URI"
  kill_server
  tool create --force "$LOOP" 48M
  model_of /dev/null
  start_server "$LOOP"
  served_as_raw "$TMP/model"
  model_of "$TMP/b"
  nbdcopy --flush "$TMP/b" "$URI"
  crash_and_compare
  stop_server
  check_clean "$LOOP"
  same_as_raw "$TMP/model" "$LOOP"

  say "sectors of $sector: a creation that was interrupted"
  printf 'DDUPUNFINISHED\0\0' | dd of="$LOOP" conv=notrunc status=none
  refused try_plugin "$LOOP"
  one_error_line "$LOOP" 'creation was interrupted'
  try_plugin "$LOOP" size=48M
  check_clean "$LOOP"

  say "sectors of $sector: an image that was copied to the device"
  tool create "$TMP/f.qcow2" 48M
  dd if="$TMP/f.qcow2" of="$LOOP" bs=1M conv=notrunc status=none
  rm "$TMP/f.qcow2"
  start_server "$LOOP"
  nbdcopy --flush "$TMP/b" "$URI"
  crash_and_compare
  stop_server
  check_clean "$LOOP"

  say "sectors of $sector: compressed data begins at a new one with each request"
  tool create --force -o compress=zstd "$LOOP" 48M
  start_server "$LOOP"
  nbdsh -u "$URI" -c - <<'PY'
for i in range (40):
    h.pwrite (b"".join (b"%d %d;" % (i, n) for n in range (2000))[:8192], 8192 * i)
    h.flush ()
PY
  kill_server
  tool recover "$LOOP" >/dev/null
  check_clean "$LOOP"
  $PY - "$LOOP" $sector <<'PY'
import struct, sys
with open (sys.argv[1], "rb") as f:
    f.seek (40)
    f.seek (struct.unpack (">Q", f.read (8))[0])      # the L1 table
    f.seek (struct.unpack (">Q", f.read (8))[0] & 0xfffffffffffe00)
    entries = struct.unpack (">80Q", f.read (640))
assert all (e >> 62 == 1 for e in entries), entries
starts = [e & (1 << 58) - 1 for e in entries[::2]]    # clusters of 4 KiB
assert all (s % int (sys.argv[2]) == 0 for s in starts), starts
if sys.argv[2] == "512":                              # else the test shows nothing
    assert any (s % 4096 for s in starts), starts
PY
  loop_off
done

say "a device that is write-protected is for reading"
loop_on "$TMP/dev" -r
sum=$(sha256sum <"$LOOP")
refused try_plugin "$LOOP"
one_error_line "$LOOP" 'is write-protected: it can only be read: readonly=on'
refused try_plugin "$LOOP" size=48M
one_error_line "$LOOP" 'is write-protected'
for command in recover "create --force"; do
  # shellcheck disable=SC2086
  refused tool $command "$LOOP" $([ "$command" = recover ] || echo 48M)
  one_error_line "$LOOP" 'is write-protected'
done
try_plugin "$LOOP" readonly=on
tool_check_clean "$LOOP"
equal "checksum of the device" "$(sha256sum <"$LOOP")" "$sum"
loop_off

say "an image that qemu-img made, with and without dedup"
device "$TMP/dev" 512
for dedup in on off; do
  qemu-img create -q -f qcow2 "$LOOP" 48M
  start_server "$LOOP" dedup=$dedup
  nbdcopy --flush "$TMP/b" "$URI"
  crash_and_compare
  stop_server
  check_clean "$LOOP"
done
loop_off

say "an empty device, a mounted one"
rm "$TMP/dev"
truncate -s 200M "$TMP/dev"
device "$TMP/dev" 512
try_plugin "$LOOP" size=48M
check_clean "$LOOP"
refused tool create "$LOOP" 48M
mkfs.ext4 -q -F "$LOOP"
refused tool create "$LOOP" 48M
one_error_line "$LOOP" 'first or the last MiB.*not zero'
mkdir "$TMP/mnt"
if mount "$LOOP" "$TMP/mnt"; then
  at_exit "umount $TMP/mnt 2>/dev/null"
  refused tool create --force "$LOOP" 48M
  one_error_line "$LOOP" 'mounted'
  umount "$TMP/mnt"
fi
loop_off

say "a full device is a state that ends"
truncate -s 0 "$TMP/dev"
truncate -s 40M "$TMP/dev"
device "$TMP/dev" 512
refused tool create "$LOOP" 0
tool create "$LOOP" 64M
start_server "$LOOP"
$PY - "$URI" <<'PY'
import errno, nbd, os, sys
h = nbd.NBD ()
h.connect_uri (sys.argv[1])
full = 0
for i in range (64):
    try:
        h.pwrite (os.urandom (1 << 20), i << 20)
    except nbd.Error as e:
        assert e.errnum == errno.ENOSPC, e
        full = i
        break
assert 20 <= full <= 40, full
h.flush ()
for i in range (100):                     # what is there can be overwritten
    h.pwrite (os.urandom (4096), i * 65536)
h.flush ()
h.trim (10 << 20, 0)
h.flush ()
for i in range (full, full + 5):
    h.pwrite (os.urandom (1 << 20), i << 20)
h.flush ()
PY
stop_server
check_clean "$LOOP"
truncate -s 0 "$TMP/dev"
loop_off
truncate -s 64K "$TMP/dev"
device "$TMP/dev" 512
refused tool create "$LOOP" 64M
one_error_line "$LOOP" 'too small'
loop_off
truncate -s 0 "$TMP/dev"
truncate -s 1M "$TMP/dev"
device "$TMP/dev" 512
refused try_plugin "$LOOP" size=1T
one_error_line "$LOOP" 'too small'
cmp -n 1048576 "$LOOP" /dev/zero || die 'a device that was refused was written to'
loop_off
truncate -s 6M "$TMP/dev"
device "$TMP/dev" 512
refused try_plugin "$LOOP" size=100G
one_error_line "$LOOP" 'too small'
tool create "$LOOP" 64M         # without --force
check_clean "$LOOP"
loop_off

say "a file that is longer than the image"
tool create "$TMP/long.qcow2" 48M
if truncate -s 9T "$TMP/long.qcow2"; then
  start_server "$TMP/long.qcow2"
  nbdcopy --flush "$TMP/b" "$URI"
  kill_server
  start_server "$TMP/long.qcow2"
  served_as_raw "$TMP/model"
  stop_server
  tool_check_clean "$TMP/long.qcow2"
  truncate -s 200M "$TMP/long.qcow2"
  check_clean "$TMP/long.qcow2"
fi
