#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# With compress-when=idle the server compresses data when no client changes anything any
# more: the disk takes less space then, data that was there twice is still stored once,
# what is written again is found, data that does not shrink stays as it is, and no byte
# changes.  qcow2-dedup compact --compress does the same to a closed image, also after
# kills in the middle.
# Breaks if: the data stays plain, the job never ends, something is stored twice, or a
# byte changes.
. "$(dirname "$0")/lib.sh"
need qemu-img

cd "$TMP"
MB=12
# Words, which compress; of ten clusters one is a copy of an earlier one, and one does not
# compress.
$PY - $MB <<'END'
import random
import sys
r = random.Random(5)
words = [r.randbytes(5) for _ in range(300)]
v = []
for i in range(int(sys.argv[1]) << 8):
    if i % 10 == 9:
        v.append(v[r.randrange(i // 10 + 1) * 10])
    elif i % 10 == 4:
        v.append(r.randbytes(4096))
    else:
        v.append(b''.join(r.choice(words) for _ in range(820))[:4096])
open('disk.raw', 'wb').write(b''.join(v))
END
field () { $PY -c 'import json, sys
info = json.load(sys.stdin)
print(info.get("pool", info)["compression"][sys.argv[1]])' "$1"; }
figure () { tool info --output=json "$1" | field "$2"; }   # IMAGE NAME

# The data is compressed when no more than this is stored: 8 of 10 clusters of words at
# half their size, one that does not shrink, and half of all that for the ends of sectors
# and runs.
LITTLE=$((MB * 1024 * 1024 * 3 / 4))
wait_until_little () # CONTROL
{
  local i
  for ((i = 0; i < 480; i++)); do       # 4 minutes: the server must be idle for seconds
    tool control "$1" count-space >space.json
    tool control "$1" query-jobs >jobs.json
    [ "$(json stored-bytes <space.json)" -le $LITTLE ] &&
      ! grep -q '"compress"' jobs.json && return
    sleep 0.5
  done
  die "not compressed: $(cat space.json jobs.json)"
}

for kind in zstd-4096 zlib-65536; do
  disk=$kind.qcow2 size=${kind#*-}
  say "$disk"
  start_server $disk size=${MB}M compress=${kind%-*} cluster-size=$size \
    compress-when=idle control="$TMP/control"
  $PY "$HERE/put.py" "$URI" disk.raw 0
  wait_until_little control
  stored=$(json stored-bytes <space.json)
  # Its first MiB once more, over the second half, and what was there again: all of that
  # is found.
  $PY "$HERE/nbdrun.py" "$URI" "
f = open('disk.raw', 'rb')
n = $MB << 19
h.pwrite(f.read(1 << 20), n)
h.flush()
f.seek(n)
h.pwrite(f.read(1 << 20), n)
h.flush()"
  tool control control count-space >space.json
  at_most "stored bytes, written again" "$(json stored-bytes <space.json)" \
    $((stored + (1 << 20)))
  stop_server
  grep -q 'compressed: ' "$SRV_LOG" || die "the log does not tell"
  check_clean $disk
  same_as_raw disk.raw $disk
  at_least "pieces" "$(figure $disk pieces)" $(((MB << 20) / size / 2))
done

say "a closed image, and kills"
start_server closed.qcow2 size=${MB}M compress=zstd compress-when=idle
$PY "$HERE/put.py" "$URI" disk.raw 0
stop_server
for ms in 30 80 160 300; do
  "$TOOL" compact --compress closed.qcow2 >compact.out 2>&1 &
  pid=$!
  sleep $(printf '0.%03d' $ms)
  kill -9 $pid 2>/dev/null || true
  wait $pid 2>/dev/null || true
  tool recover closed.qcow2 >recover.out
  check_clean closed.qcow2
  same_as_raw disk.raw closed.qcow2
done
tool compact --compress --output=json closed.qcow2 >compact.out
at_most "stored bytes" "$(json stored-bytes <compact.out)" $LITTLE
check_clean closed.qcow2
same_as_raw disk.raw closed.qcow2
tool compact --compress --output=json closed.qcow2 >compact.out
equal "compressed the second time" "$(json compressed-bytes <compact.out)" 0
equal "clusters that do not shrink" "$(json plain-clusters <compact.out)" \
  $(((MB * 256 + 5) / 10))

say "what has no effect, and what is refused"
start_server plain.qcow2 size=1M compress-when=idle
stop_server
grep -q 'compress-when=idle is not used' "$SRV_LOG" || die "no line: $(cat "$SRV_LOG")"
refused tool compact --compress plain.qcow2
one_error_line plain 'not compressed'
