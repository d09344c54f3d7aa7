#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Each value of hash= works, on a new image and on a stock one: equal data is
# stored once, also after kill -9 and recovery and in a later session that gives
# no hash; info names it; another value is refused in one line that names the
# image's, and changes no byte; the header has the number of docs/on-disk.md.
# Breaks if: a hash is not recorded, not the same after reopening (the key of
# xxh3-128 is lost), or another one is taken for it.
. "$(dirname "$0")/lib.sh"
need qemu-img

random_file "$TMP/a.raw" 2 1
blocks=$(distinct_blocks "$TMP/a.raw")

hash_number () # FILE: byte 20 of the header extension
{
  $PY -c '
import struct, sys
b = open(sys.argv[1], "rb").read(65536)
at = struct.unpack(">I", b[100:104])[0]
while True:
    kind, length = struct.unpack(">II", b[at:at + 8])
    if kind == 0xCD8E819B:
        print(b[at + 8 + 20]); break
    if kind == 0:
        sys.exit("no extension")
    at += 8 + (length + 7) // 8 * 8
' "$1"
}

put () { $PY "$HERE/put.py" "$URI" "$TMP/a.raw" $(($1 << 20)); }

one_hash () # NAME NUMBER OTHER DISK [KEYS]...
{
  local name=$1 number=$2 other=$3 disk=$4 sum
  shift 4
  say "$name on $(basename "$disk")"
  start_server "$disk" "$@"
  put 0
  put 2
  kill_server
  equal "bit 48 of a crashed image" "$(bit48 "$disk")" 1
  equal "hash of a crashed image" "$(info_field "$disk" hash)" "$name"
  start_server "$disk"
  put 4
  stop_server
  start_server "$disk" hash="$name"
  put 6
  stop_server
  check_clean "$disk"
  equal "stored clusters with $name" "$(data_clusters "$disk")" "$blocks"
  equal "hash in info" "$(info_field "$disk" hash)" "$name"
  equal "number of the hash" "$(hash_number "$disk")" "$number"
  cat "$TMP"/a.raw{,,,} >"$TMP/want.raw"
  truncate -s 16M "$TMP/want.raw"
  same_as_raw "$TMP/want.raw" "$disk"

  sum=$(sha256sum <"$disk")
  refused try_plugin "$disk" hash="$other"
  one_error_line "$disk" "hash=$other.*hash=$name"
  refused try_plugin -r "$disk" hash="$other"
  one_error_line "$disk" "hash=$other.*hash=$name"
  if [ "$name" = xxh3-128 ]; then
    refused try_plugin "$disk" verify=off
    one_error_line "$disk" 'verify=off.*xxh3-128'
    refused try_plugin "$disk" hash=xxh3-128 verify=off
  fi
  equal "the refused image" "$(sha256sum <"$disk")" "$sum"
}

while read -r name number other; do
  tool create -o hash="$name" "$TMP/$name-created" 16M
  equal "hash of a new image" "$(info_field "$TMP/$name-created" hash)" "$name"
  one_hash "$name" "$number" "$other" "$TMP/$name-created"
  qemu-img create -q -f qcow2 -o cluster_size=4k "$TMP/$name-stock" 16M
  one_hash "$name" "$number" "$other" "$TMP/$name-stock" hash="$name"
done <<END
sha256 0 sha3-256
sha3-256 1 skein-256-256
skein-256-256 2 xxh3-128
xxh3-128 16 sha256
END

say "a store that is void is replaced by one with the same hash"
disk=$TMP/xxh3-128-created
$PY -c '
import sys
f = open(sys.argv[1], "r+b")
b = f.read()
at = b.find(b"DDUPCONF")
while at >= 0:                  # both slots
    f.seek(at)
    f.write(b"XXXX")
    at = b.find(b"DDUPCONF", at + 1)' "$disk"
start_server "$disk"
put 8
stop_server
check_clean "$disk"
equal "hash of the new store" "$(info_field "$disk" hash)" xxh3-128

say "two images have different keys, and so different hashes of equal data"
for i in 1 2; do
  start_server "$TMP/k$i" size=16M hash=xxh3-128
  put 0
  stop_server
done
$PY - "$TMP/k1" "$TMP/k2" <<'END'
import sys
def key(path):
    b = open(path, 'rb').read()
    at = b.find(b'DDUPCONF')
    return b[at + 112:at + 128]
keys = [key(p) for p in sys.argv[1:]]
assert keys[0] != keys[1] and bytes(16) not in keys, keys
END
