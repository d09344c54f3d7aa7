#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A tool dug holes into a closed image (fallocate -d, cp --sparse), and the host
# (ext4) is full.  Where there was space when the image was opened, its journal
# and tables have theirs again, and overwriting works.  Where there was none,
# writes and flushes get ENOSPC and nothing else, until there is space: then all
# works without a restart, nothing that was written is lost, and the image is
# closed cleanly.  Killed while full, it recovers.
# Breaks if: one ENOSPC stops all writing, or areas are not filled at open.
. "$(dirname "$0")/fault.sh"
need fallocate

small_disk "$TMP/fs" 120
IMAGE=$TMP/fs/disk.qcow2

# client WHAT SEED: 300 writes over 12 MiB with flushes; prints what came of it.
# "fill" must all succeed, "full" may get ENOSPC.  The model is in $TMP/model.
client ()
{
  $PY - "$URI" "$TMP/model" "$1" "$2" <<'PYTHON'
import collections, errno, os, pickle, random, sys
import nbd
uri, model, what, seed = sys.argv[1:]
have = pickle.load(open(model, 'rb')) if os.path.exists(model) else {}
h = nbd.NBD()
h.connect_uri(uri)
rng = random.Random(int(seed))
seen = collections.Counter()

def attempt(name, call):
    try:
        call()
        seen[name + ' ok'] += 1
        return True
    except nbd.Error as e:
        seen[name + ' ' + errno.errorcode.get(e.errnum, str(e.errnum))] += 1
        return False

for k in range(300):
    i = k if what == 'fill' else rng.randrange(300)
    data = rng.randbytes(16384)
    if attempt('write', lambda: h.pwrite(data, i * 7 * 16384)):
        have[i] = data
    if k % 20 == 0:
        attempt('flush', h.flush)
    if k % 10 == 0:
        i = rng.randrange(300)
        assert h.pread(16384, i * 7 * 16384) == have.get(i, bytes(16384)), i
for i in range(300):
    assert h.pread(16384, i * 7 * 16384) == have.get(i, bytes(16384)), i
pickle.dump(have, open(model, 'wb'))
print(dict(seen))
bad = [s for s in seen if not s.endswith((' ok', ' ENOSPC'))]
assert not bad, bad
if what != 'full':
    assert not [s for s in seen if not s.endswith(' ok')], seen
PYTHON
}

# Take all space of the host, but LEAVE MiB.
ballast () # LEAVE
{
  dd if=/dev/zero of="$TMP/fs/ballast" bs=64k 2>/dev/null || true
  if [ "$1" -gt 0 ]; then
    truncate -s "-$1M" "$TMP/fs/ballast"
  else
    dd if=/dev/zero of="$TMP/fs/ballast2" bs=1k 2>/dev/null || true
  fi
  sync -f "$TMP/fs"
}

dig ()
{
  fallocate -d "$IMAGE"
  sync -f "$TMP/fs"
}

say "with space at the start"
start_server "$IMAGE" size=2G commit-interval=1
client fill 1
stop_server
dig
start_server "$IMAGE" commit-interval=1
ballast 3
client over 2
rm -f "$TMP/fs/ballast"*
stop_server

say "without space at the start"
dig
ballast 0
start_server "$IMAGE" commit-interval=1
client full 3 | tee "$TMP/seen"
grep -q ENOSPC "$TMP/seen" || die "the host was not full"
rm -f "$TMP/fs/ballast"*
client over 3

say "while it is served, and rests"
wait_until_clean "$IMAGE" 20
dig
ballast 0
client full 3 | tee "$TMP/seen"
grep -q 'flush ENOSPC' "$TMP/seen" || die "the journal had no holes"
rm "$TMP/fs/ballast2"
truncate -s -30M "$TMP/fs/ballast"
sync -f "$TMP/fs"
client over 4
rm -f "$TMP/fs/ballast"*
client over 5
stop_server
check_clean "$IMAGE"

say "killed while full"
dig
ballast 0
start_server "$IMAGE" commit-interval=1
client full 6
kill_server
rm -f "$TMP/fs/ballast"*
start_server "$IMAGE"
$PY - "$URI" "$TMP/model" <<'PYTHON'
import pickle, sys
import nbd
h = nbd.NBD()
h.connect_uri(sys.argv[1])
have = pickle.load(open(sys.argv[2], 'rb'))
for i in have:                  # a mix of whole blocks, none of them torn
    h.pread(16384, i * 7 * 16384)
h.pwrite(bytes(16384), 0)
h.flush()
PYTHON
stop_server
check_clean "$IMAGE"
