#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Images are made, served, and worked on by the tool on exports of another NBD
# server, in place of a file.
# Breaks if: anything of an image needs a file (growth, locks, a path), bytes that
# an export held before count as zeroes, space is not given back by trims, the
# threads of the connections do not survive the fork into the background, a relative
# path in the URI is not found from there, a lease without an image keeps it from being
# made, or what cannot be served is refused by anything but one line.

. "$(dirname "$0")/lib.sh"
need nbdkit qemu-img nbdcopy nbdinfo nbdsh

# remote FILE [nbdkit flag | key]...: exports FILE.  Sets REMOTE (a URI) and
# REMOTE_PID.
remote_nr=0
remote ()
{
  local sock i
  remote_nr=$((remote_nr + 1))
  sock=$TMP/remote$remote_nr
  nbdkit -f -U "$sock" "${@:2}" file "$1" >"$TMP/remote.log" 2>&1 &
  REMOTE_PID=$!
  REMOTE="nbd+unix:///?socket=$sock"
  at_exit "kill $REMOTE_PID 2>/dev/null"
  for ((i = 0; i < 400; i++)); do
    [ ! -S "$sock" ] || return 0
    sleep 0.05
  done
  die "the remote server does not listen"
}

model_of () # FILE: 48 MiB that begin with it
{
  cp "$1" "$TMP/model"
  truncate -s 48M "$TMP/model"
}

crash_and_compare ()
{
  kill_server
  start_server "uri=$REMOTE"
  served_as_raw "$TMP/model"
}

host_kb () { du -k "$TMP/place" | cut -f1; }

random_file "$TMP/a" 24 1
random_file "$TMP/b" 12 2
cat "$TMP/b" "$TMP/b" >"$TMP/twice"

say "an export that holds something"
random_file "$TMP/place" 200 3
remote "$TMP/place"
sum=$(sha256sum <"$TMP/place")
refused try_plugin "uri=$REMOTE" size=48M
one_error_line "$REMOTE" 'not a qcow2 image|last 64 KiB.*hold something else'
refused tool create "$REMOTE" 48M
one_error_line "$REMOTE" 'first or the last MiB.*not zero.*--force'
equal "checksum of the export" "$(sha256sum <"$TMP/place")" "$sum"

say "an image among random bytes"
tool create --force "$REMOTE" 48M
model_of /dev/null
start_server "uri=$REMOTE"
served_as_raw "$TMP/model"
nbdcopy --flush "$TMP/a" "$URI"
model_of "$TMP/a"
crash_and_compare
nbdcopy --flush "$TMP/twice" "$URI"
model_of "$TMP/twice"
crash_and_compare
stop_server
check_clean "$TMP/place"
tool_check_clean "$REMOTE"
tool info --output=json "$REMOTE" >"$TMP/info"
equal "stored bytes of equal halves" \
  "$($PY -c 'import json,sys; print (json.load (sys.stdin)["stored-bytes"])' \
     <"$TMP/info")" $((12 << 20))
tool index "$REMOTE" >/dev/null
tool scrub "$REMOTE" >/dev/null
tool disk create "$REMOTE" second 48M
tool disk clone "$REMOTE" second third
tool disk list "$REMOTE" >"$TMP/list"
has third "$TMP/list"
check_clean "$TMP/place"

say "read-only, and in the background"
sum=$(sha256sum <"$TMP/place")
kill "$REMOTE_PID"
remote "$TMP/place" -r
refused try_plugin "uri=$REMOTE"
one_error_line "$REMOTE" 'read-only'
start_server "uri=$REMOTE" readonly=on
served_as_raw "$TMP/model"
stop_server
equal "checksum after readonly=on" "$(sha256sum <"$TMP/place")" "$sum"
kill "$REMOTE_PID"
remote "$TMP/place"
mkdir "$TMP/it's 1 %41 &ü"
(cd "$TMP/it's 1 %41 &ü"
 nbdkit_cmd -U "$TMP/background" --pidfile "$TMP/background.pid" "$PLUGIN" \
   "uri=nbd+unix:///?socket=../${REMOTE##*/}")
at_exit "kill \$(cat '$TMP/background.pid') 2>/dev/null"
# The socket is found again after a loss, though the server left its directory.
kill -9 "$REMOTE_PID"
wait "$REMOTE_PID" 2>/dev/null || true
rm "$TMP/${REMOTE##*/}"
remote_nr=$((remote_nr - 1))
remote "$TMP/place"
nbdcopy --flush "$TMP/a" "nbd+unix:///?socket=$TMP/background"
model_of "$TMP/a"
nbdcopy "nbd+unix:///?socket=$TMP/background" - | cmp - "$TMP/model"
kill "$(cat "$TMP/background.pid")"
for ((i = 0; i < 200; i++)); do
  kill -0 "$(cat "$TMP/background.pid")" 2>/dev/null || break
  sleep 0.1
done
check_clean "$TMP/place"

say "an export is full, and space comes back"
kill "$REMOTE_PID"
rm "$TMP/place"
truncate -s 60M "$TMP/place"
remote "$TMP/place"
start_server "uri=$REMOTE" size=1G commit-interval=1
nbdsh -u "$URI" -c '
import errno, os
full = None
for i in range (100):
    try:
        h.pwrite (os.urandom (1 << 20), i << 20)
    except nbd.Error as e:
        full = i
        assert e.errnum == errno.ENOSPC, e
        break
assert full and full > 20, full
h.flush ()
data = h.pread (1 << 20, 0)
h.trim (10 << 20, 10 << 20)
h.flush ()
import time
end = time.monotonic () + 120
while True:
    try:
        h.pwrite (b"n" * 4096 + os.urandom (1 << 20), 500 << 20)
        break
    except nbd.Error:
        assert time.monotonic () < end
        time.sleep (0.2)
h.flush ()
assert h.pread (1 << 20, 0) == data'
before=$(host_kb)               # the server may give space back before it is stopped
nbdsh -u "$URI" -c 'h.trim (60 << 20, 0)' -c 'h.flush ()'
stop_server
at_most "kB of the trimmed export" "$(host_kb)" $((before - 10000))
check_clean "$TMP/place"

say "an index beside the server can be lost"
kill "$REMOTE_PID"
rm "$TMP/place"
truncate -s 300M "$TMP/place"
remote "$TMP/place"
start_server "uri=$REMOTE" size=48M store="$TMP/store"
nbdcopy --flush "$TMP/twice" "$URI"
model_of "$TMP/twice"
stop_server
rm "$TMP/store"
start_server "uri=$REMOTE" store="$TMP/store"
served_as_raw "$TMP/model"
nbdcopy --flush "$TMP/a" "$URI"
model_of "$TMP/a"
kill_server
start_server "uri=$REMOTE" store="$TMP/store"
served_as_raw "$TMP/model"
stop_server
check_clean "$TMP/place"

say "size= comes late: a start without it has left its lease"
kill "$REMOTE_PID"
rm "$TMP/place"
truncate -s 100M "$TMP/place"
remote "$TMP/place"
refused try_plugin "uri=$REMOTE"
one_error_line "$REMOTE" 'not a qcow2 image'
try_plugin "uri=$REMOTE" size=48M
check_clean "$TMP/place"
# Nor does the lease of a killed start keep the image from being made; but the rest of an
# image, without its first MiB, is never written over.
start_server "uri=$REMOTE"
nbdcopy --flush "$TMP/a" "$URI"
kill_server
cp "$TMP/place" "$TMP/rest"
fallocate -p -o 0 -l $(((100 << 20) - (64 << 10))) "$TMP/place"
tool create "$REMOTE" 48M
check_clean "$TMP/place"
kill "$REMOTE_PID"
dd if=/dev/zero of="$TMP/rest" bs=1M count=1 conv=notrunc status=none
remote "$TMP/rest"
refused try_plugin "uri=$REMOTE" size=48M
one_error_line "$REMOTE" 'not a qcow2 image'
refused tool create "$REMOTE" 48M
one_error_line "$REMOTE" 'first or the last MiB.*not zero'

say "what cannot be served"
kill "$REMOTE_PID"
refused try_plugin "uri=nbd+unix:///?socket=$TMP/nobody"
one_error_line "$TMP/nobody" 'No such file'
refused try_plugin "uri=$TMP/place"
one_error_line 'uri=' 'URI of an NBD export'
refused try_plugin "uri=$REMOTE" "file=$TMP/place"
one_error_line 'second image' 'a server serves one'
truncate -s 1M "$TMP/tiny"
remote "$TMP/tiny"
refused try_plugin "uri=$REMOTE" size=1G
one_error_line "$REMOTE" 'too small'
