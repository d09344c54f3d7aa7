#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Each bad configuration gives one line that names the file or the key, a
# non-zero exit, and leaves all files as they were.
# Breaks if: a check is missing, a file is touched before it is checked, a name that the
# user gave makes two lines of one, or a long one leaves no room for what is wrong.
. "$(dirname "$0")/lib.sh"

good=$TMP/good.qcow2
qemu-img create -q -f qcow2 "$good" 16M
qemu-io -f qcow2 -c 'write -P 3 0 1M' "$good" >/dev/null
mkdir "$TMP/dir" "$TMP/empty"
head -c 100000 /dev/urandom >"$TMP/noise"
: >"$TMP/nothing"
ln -s nowhere "$TMP/dangling"
head -c 60 "$good" >"$TMP/short"
head -c 200 "$good" >"$TMP/cut"
head -c 70000 "$good" >"$TMP/truncated"
cp "$good" "$TMP/version9"
printf '\0\0\0\11' | dd of="$TMP/version9" bs=1 seek=4 conv=notrunc status=none
cp "$good" "$TMP/badcluster"
printf '\0\0\0\77' | dd of="$TMP/badcluster" bs=1 seek=20 conv=notrunc \
  status=none
cp "$good" "$TMP/hugel1"
printf '\377\377\377\377' | dd of="$TMP/hugel1" bs=1 seek=36 conv=notrunc \
  status=none
printf 'QFI\373\0\0\0\3' >"$TMP/eight"

deep=$TMP/$(printf '%0200d/%0200d/%0200d/%0200d/%0200d/%0200d' 1 2 3 4 5 6)
mkdir -p "$deep"

sums () { (cd "$TMP" && find . -type f ! -name refused ! -name sums\* |
           sort | xargs sha256sum; find . ! -name refused ! -name sums\* |
           sort); }
sums >"$TMP/sums1" || true
nr=0
bad () # NAMED PATTERN ARGS...
{
  local named=$1 pattern=$2
  shift 2
  refused try_plugin "$@"
  sed -i '/^$/d' "$TMP/refused"
  one_error_line "$named" "$pattern"
  nr=$((nr + 1))
}

bad missing 'no such file: size=SIZE creates' "$TMP/missing"
bad missing 'its directory does not exist' "$TMP/none/missing"
bad missing 'its directory does not exist' "$TMP/none/missing" size=1G
bad dangling 'symbolic link to a file that does not exist' "$TMP/dangling"
bad dangling 'symbolic link to a file that does not exist' "$TMP/dangling" size=1G
bad 'new?line' 'no such file: size=SIZE creates' "$TMP"/$'new\nline'
bad missing 'no such file: size=SIZE creates' "$deep/missing"
bad good 'store=.*none/store: its directory does not exist' "$good" \
  store="$TMP/none/store"
bad dir 'directory' "$TMP/dir"
bad dir 'directory' "$TMP/dir" size=1G
bad noise 'qcow2' "$TMP/noise"
bad nothing 'is an empty file: size=SIZE creates' "$TMP/nothing"
bad short '' "$TMP/short"
bad eight '' "$TMP/eight"
bad cut '' "$TMP/cut"
bad truncated '' "$TMP/truncated"
bad version9 'version 9' "$TMP/version9"
bad badcluster 'cluster' "$TMP/badcluster"
bad hugel1 'L1' "$TMP/hugel1"
bad null '' /dev/null
bad colour 'unknown' "$good" colour=red
bad dedup 'on or off' "$good" dedup=maybe
bad verify 'on or off' "$good" verify=2
bad readonly 'on, off or auto' "$good" readonly=maybe
bad index-existing 'on or off' "$good" index-existing=all
bad defragment 'idle or off' "$good" defragment=on
bad compress-when 'write or idle' "$good" compress-when=never
bad hash 'md5.*sha256.*xxh3-128' "$good" hash=md5
bad good 'verify=off.*xxh3-128' "$good" hash=xxh3-128 verify=off
bad new 'verify=off.*xxh3-128' "$TMP/new" size=1G hash=xxh3-128 verify=off
bad size 'size' "$TMP/new" size=lots
bad 'size=1?G' 'must be a size' "$TMP/new" size=$'1\nG'
bad size '' "$TMP/new" size=-1
bad size 'large|too big' "$TMP/new" size=8E
bad new 'large|too big|size' "$TMP/new" size=1E cluster-size=512
bad cluster-size 'power of two' "$TMP/new" size=1G cluster-size=3000
bad cluster-size '' "$TMP/new" size=1G cluster-size=4M
bad cluster-size '' "$TMP/new" size=1G cluster-size=256
bad max-incarnations '' "$good" max-incarnations=many
bad max-incarnations '' "$good" max-incarnations=-1
bad max-incarnations 'to 1024' "$good" max-incarnations=1025
bad missing 'second image' "$good" file="$TMP/missing"
bad l2-cache-size '' "$good" l2-cache-size=huge
bad index-memory "" "$good" index-memory=much
bad good "index-memory=4096.*at least [0-9]* bytes" "$good" index-memory=4k
bad new "index-memory=4096.*at least" "$TMP/new" size=1G index-memory=4k
bad commit-interval '' "$good" commit-interval=often
bad commit-interval '' "$good" commit-interval=-1
bad file '' size=1G
bad export 'is the URI of an NBD export: uri= takes it' nbd://localhost/export
bad vsock 'is the URI of an NBD export: uri= takes it' nbd+vsock://2/ size=1G
bad vsock 'begin with nbd://, nbds://, nbd\+unix:// or nbds\+unix://' uri=nbd+vsock://2/
bad good.qcow2 'is the image itself' "$good" store="$good"
bad new 'is the image itself' store="$TMP/new" "$TMP/new" size=1G
if [ "$(id -u)" != 0 ]; then
  install -m 000 "$good" "$TMP/secret"
  bad secret 'permission denied' "$TMP/secret"
  rm -f "$TMP/secret"
fi
sums >"$TMP/sums2" || true
diff "$TMP/sums1" "$TMP/sums2" || die "files changed"
say "$nr bad configurations refused"

say "read-only file"
if [ "$(id -u)" != 0 ]; then
  chmod 444 "$good"
  bad good.qcow2 'permission denied' "$good"
  try_plugin -r "$good"
fi

say "the tool"
for args in "info $TMP/missing" "check $TMP/noise" "recover $TMP/dir" \
            "create $good 1G" "create $TMP/new 0x" "create $TMP/new" \
            "create -o colour=red $TMP/new 1G" "frob $good" \
            "create -o cluster-size=3000 $TMP/new 1G" \
            "create -o hash=md5 $TMP/new 1G" \
            "index" "index $TMP/missing" "index $TMP/noise" \
            "index --hash=md5 $good" "index --some $good" \
            "index $good $good" "index --output=xml $good" \
            "create -o refcount-bits=3 $TMP/new 1G" \
            "create -o refcount-bits=1 $TMP/new 1G" \
            "create $TMP/none/new 1G" "create $TMP/new 8E" ""; do
  # shellcheck disable=SC2086
  refused tool $args
  [ ! -e "$TMP/new" ] || die "qcow2-dedup $args: made a file"
  equal "lines of: qcow2-dedup $args" "$(grep -c . "$TMP/refused")" 1
done
wrong () # PATTERN SUBCOMMAND ARGS...
{
  local pattern=$1
  shift
  refused tool "$@"
  one_error_line "$1" "$pattern"
}
wrong "'--frob' is not a valid option" info --frob "$good"
wrong "'--frob=1' is not a valid option" unlock --frob=1 "$good"
wrong "'-vx' is not a valid option" info -vx "$good"
wrong "'-xv' is not a valid option" info --output=json -xv "$good"
wrong "'-x' is not a valid option" create -x "$TMP/new" 1G
wrong "'--output' is not a valid option" recover --output json "$good"
wrong "'--format' is not a valid option" disk list --format raw "$good"
wrong "'--output' needs a value" info "$good" --output
wrong "'--max-disk-size' needs a value" create --max-disk-size
wrong "'-o' needs a value" create "$TMP/new" 1G -o
wrong "'--control' needs a value" status --control
wrong "'--timeout' needs a value" control --timeout
wrong "'--force' takes no value" create --force=yes "$TMP/new" 1G
wrong "'--verbose' takes no value" info --verbose=1 "$good"
refused tool info "$TMP"/$'new\nline'
one_error_line 'new?line' 'no such file'
refused tool info "$deep/missing"
one_error_line missing 'no such file'
refused tool create "$TMP/none/new" 1G
one_error_line none/new 'its directory does not exist'
refused tool create "$TMP/dangling" 1G
one_error_line dangling 'symbolic link to a file that does not exist'
refused tool create "$good" 1G
one_error_line good 'exists already'
refused tool info "$TMP/none/missing"
one_error_line missing 'its directory does not exist'
for sub in info check recover index; do
  refused tool $sub --store= "$good"
  one_error_line "$sub" '--store must name a file'
done
refused tool info "$TMP/nothing"
one_error_line nothing 'is an empty file, not a qcow2 image'
sums >"$TMP/sums2" || true
diff "$TMP/sums1" "$TMP/sums2" || die "files changed"
