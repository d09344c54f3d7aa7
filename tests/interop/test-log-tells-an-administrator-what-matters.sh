#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The log without -v has a line when the server serves, when a client comes or goes, when
# the host has no space left, when it has some again, the progress of index-existing, and a
# line when the image is closed.  Of clients that come and go all the time it has some only.  Damage that a client meets with each request is
# reported a few times only.  Where standard error is the journal's, lines begin
# with a priority.  With -v, nbdkit's line for each request can be left out.
# Breaks if: an event is not reported, or reported for each request.
. "$(dirname "$0")/lib.sh"
need prlimit

disk=$TMP/disk.qcow2
lines () { grep -c -- "$1" "$SRV_LOG" || true; }
run () { $PY "$HERE/nbdrun.py" "$URI" "$1"; }

say 'it serves, and closes; lines name the whole path'
cd "$TMP"
start_server disk.qcow2 size=20M
run 'h.pwrite(b"a" * 4096, 0)'
stop_server
equal 'lines' "$(lines .)" 4
equal 'lines on serving' \
  "$(lines 'disk.qcow2: serving a disk of 20 MiB, clusters of 4 KiB, sha256 index')" 1
equal 'lines on closing' "$(lines " $disk: closed cleanly")" 1
start_server "$disk" -r
stop_server
equal 'lines' "$(lines .)" 1
equal 'lines on serving' "$(lines ', read-only')" 1

say 'who comes and goes; of many the first of a minute, unless all are asked for'
start_server "$disk" control="$TMP/control"
wait_until_alone ()
{
  local i
  for ((i = 0; i < 600; i++)); do
    [ "$(tool control "$TMP/control" query-clients)" != '[]' ] || return 0
    sleep 0.1
  done
  die 'a client stays in the list'
}
run 'h.pread(512, 0)'
wait_until_alone
for what in 'has opened' 'has left'; do
  equal "lines on a client that $what" \
    "$(lines " $disk: client 1 (unix:pid=[0-9]*,uid=$UID) $what the export ''")" 1
done
for i in {1..30}; do
  run ''
done
wait_until_alone
at_least "lines on 31 clients" "$(lines 'the export')" 20
at_most "lines on 31 clients, unless two minutes began" "$(lines 'the export')" 40
tool control "$TMP/control" set log-level=debug
run ''
wait_until_alone
tool control "$TMP/control" set log-level=info
stop_server
for what in 'has opened' 'has left'; do
  equal "lines on client 32 that $what" \
    "$(lines ": client 32 .* $what the export ''")" 1
done

deep=$TMP/$(printf '%0200d/%0200d/%0200d/%0200d/%0200d/%0200d' 1 2 3 4 5 6)
mkdir -p "$deep"
start_server "$deep/disk.qcow2" size=20M
stop_server
equal 'lines on serving from a long path' \
  "$(lines "$deep/disk.qcow2: serving a disk of 20 MiB, clusters of 4 KiB, sha256 index")" 1
equal 'lines on closing it' "$(lines " $deep/disk.qcow2: closed cleanly")" 1

say 'no space, for many requests; then there is some'
rm "$disk"
ulimit -S -f $((24 << 10))      # 24 MiB
start_server "$disk" size=200M commit-interval=0
ulimit -S -f "$(ulimit -H -f)"
run '
import random
failed = 0
for i in range(3000):
    try:
        h.pwrite(random.randbytes(16384), i * 16384)
    except nbd.Error as e:
        assert e.errnum == errno.ENOSPC, e
        failed += 1
assert failed > 500, failed'
equal 'lines on no space' "$(lines 'no space left on the host')" 1
at_most 'lines' "$(lines .)" 5
prlimit --pid "$SRV_PID" --fsize=unlimited
sleep 3.2
run '
import random
for i in range(100):
    h.pwrite(random.randbytes(16384), i * 16384)
h.flush()'
equal 'lines on space' "$(lines 'there is space on the host again')" 1
equal 'lines on no space' "$(lines 'no space left on the host')" 1
stop_server

say 'a corrupt L2 entry, for many requests'
rm "$disk"
qemu-img create -q -f qcow2 -o cluster_size=4k "$disk" 16M
qemu-io -f qcow2 -c 'write 0 1M' "$disk" >/dev/null
PYTHONPATH=$HERE $PY - "$disk" <<'EOF'
import crosslink
import sys
image = crosslink.Image(sys.argv[1])
entry = image.l2(0) + 5 * 8
image.put(entry, image.u64(entry) | 2)          # a reserved bit
EOF
start_server "$disk" -r
run 'for i in range(200): fails(h.pread, 65536, i % 4 * 4096)'
stop_server
equal 'lines on the entry' "$(lines 'corrupt L2 entry')" 10
equal 'lines on the lines' "$(lines 'no more of them are logged')" 1
at_most 'lines' "$(lines .)" 24

say 'progress of index-existing, while a client writes now and then'
rm "$disk"
random_file "$TMP/raw" 120
qemu-img create -q -f qcow2 -o cluster_size=4k "$disk" 121M
qemu-img convert -q -n -f raw -O qcow2 "$TMP/raw" "$disk"
start_server "$disk" control="$TMP/control"
PYTHONPATH=$HERE $PY -c '
import sys
from controlclient import Client
Client(sys.argv[1]).ok("index-existing", speed=40 << 20)' "$TMP/control"
run '
import time
for i in range(400):
    if "existing data is indexed" in open("'"$SRV_LOG"'").read():
        break
    h.pwrite(bytes([i % 256]) * 512, 120 << 20)
    time.sleep(0.25)'
equal 'lines at the end' "$(lines 'existing data is indexed')" 1
at_least 'lines on progress' "$(lines 'indexing existing data: [0-9]* %')" 1
at_most 'lines on progress' "$(lines 'indexing existing data: [0-9]* %')" 10
stop_server

say 'priorities where standard error is the journal'
SRV_LOG=$TMP/journal
journal () # ARGS: a server that ends by itself
{
  : >"$SRV_LOG"
  (JOURNAL_STREAM=$stream nbdkit_cmd -U - "$PLUGIN" "$@" --run true) \
    2>"$SRV_LOG"
}
: >"$SRV_LOG"
stream=$(stat -c %d:%i "$SRV_LOG")
journal "$disk"
equal 'lines' "$(lines .)" 2
equal 'lines of priority 6' "$(lines '^<6>nbdkit: dedup: .*disk.qcow2: ')" 2
! journal "$disk" size=x || die 'a wrong size is taken'
equal 'errors' "$(lines '^<3>nbdkit: dedup: error: size=x: must be')" 1
! journal "$TMP/none.qcow2" || die 'a missing file is taken'
equal 'errors' "$(lines '^<3>nbdkit: dedup: error: .*none.qcow2: ')" 1
stream=1:1                      # another one's: standard error was redirected
! journal "$TMP/none.qcow2" || die 'a missing file is taken'
equal 'lines with a priority' "$(lines '^<')" 0

say '-v without a line for each request'
start_server "$disk" -v --debug=nbdkit.backend.datapath=0
run 'for i in range(1000): h.pwrite(b"b" * 512, i * 512)'
stop_server
at_most 'lines' "$(lines .)" 120
at_least 'lines on what it did' "$(lines 'lookups')" 1
