#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Commands of qcow2-dedup disk that cannot be done say why in one line, and change
# no byte of the pool.
# Breaks if: a name that NBD or the shell cannot carry gets into a pool, a size
# that cannot be is rounded, an existing disk or file is written over without being
# asked for, or a file of another format is taken for a raw one.
. "$(dirname "$0")/lib.sh"

cd "$TMP"
pool=pool.qcow2
tool create --pool --max-disk-size=1G $pool
random_file a.raw 2 1
tool disk import $pool vm1 a.raw >/dev/null
tool disk snapshot $pool vm1 monday
tool disk clone $pool vm1 vm2
check_clean $pool
sum=$(sha256sum <$pool)

unchanged () { equal "the pool after: $1" "$(sha256sum <$pool)" "$sum"; }

# The command fails with one line that names the pool and says PATTERN.
no () # PATTERN COMMAND...
{
  local pattern=$1
  shift
  refused tool disk "$@"
  one_error_line $pool "$pattern"
  unchanged "$*"
}
# The same, where the line names FILE.
no_file () # FILE PATTERN COMMAND...
{
  local file=$1 pattern=$2
  shift 2
  refused tool disk "$@"
  one_error_line "$file" "$pattern"
  unchanged "$*"
}
# Wrong usage: the line names the command.
usage () # PATTERN COMMAND ARGS...
{
  local pattern=$1
  shift
  refused tool disk "$@"
  one_error_line "disk $1" "$pattern"
  grep -q -- --help "$TMP/refused" || die "no hint at --help: $(cat "$TMP/refused")"
  unchanged "$*"
}

say "names"
long=$(printf 'n%.0s' {1..256})
for name in '' "$long" a/b / a@b @ a@ @b $'a\nb' $'a\x7f' $'\xc2\x85' $'\xff' \
            $'\xc0\x80' $'\xed\xa0\x80'; do
  no 'name' create $pool "$name" 1M
  no 'name' clone $pool vm1 "$name"
  no 'name' rename $pool vm1 "$name"
  no 'name' import $pool "$name" a.raw
  no 'name' snapshot $pool vm1 "$name"
done
no 'name' rename $pool vm1@monday vm3
no 'name' rename $pool vm1 vm1@tuesday
no 'snapshot' snapshot $pool vm1@monday b
no 'name|snapshot' snapshot $pool "" b

say "settings"
no 'compression type is zlib' set $pool vm1 compress=zstd
no 'snapshot, which cannot be changed' set $pool vm1@monday compress=off
no 'active disk' set $pool "" compress=off
no 'no disk.*vm9' set $pool vm9 compress=off
for s in compress compress= compress=on compress=lz4 size=1G ''; do
  usage 'compress' set $pool vm1 "$s"
done
usage 'NAME' set $pool compress=off

say "names in use"
no 'already' create $pool vm1 1M
no 'already' clone $pool vm2 vm1
no 'already' rename $pool vm1 vm2
no 'already' snapshot $pool vm1 monday
no 'already.*--resume.*--force' import $pool vm1 a.raw

say "disks that are not there"
no 'no disk.*vm9' info $pool vm9
no 'no disk.*vm9' clone $pool vm9 vm3
no 'no disk.*vm9' snapshot $pool vm9 a
no 'no disk.*vm9' reset $pool vm1 vm9
no 'no disk.*vm9' reset $pool vm9 vm1
no 'no disk.*vm9' rename $pool vm9 vm3
no 'no disk.*vm9' resize $pool vm9 1G
no 'no disk.*vm9' delete $pool vm1 vm9
no 'no disk.*vm9' export $pool vm9 x
no 'no disk.*anchor' clone $pool $ANCHOR vm3
no 'no disk.*anchor' delete $pool $ANCHOR
no 'twice' delete $pool vm1 vm1
no 'active|no disk' delete $pool ""
no 'active|no disk' rename $pool "" vm3
no 'active|no disk' resize $pool "" 1G
no 'active|no disk' reset $pool "" vm1
no 'itself' reset $pool vm1 vm1
no 'snapshot' reset $pool vm1@monday vm2
no 'snapshot' resize $pool vm1@monday 1G
no 'name' import --force $pool vm1@monday a.raw

say "sizes"
for size in 0 513 x 1.5G 16E 99999999999999999999; do
  usage 'size' create $pool vm3 $size
  usage 'size' resize $pool vm1 $size
  usage 'size' import --size=$size $pool vm3 a.raw
done
no 'at the most' create $pool vm3 2G
no 'at the most' resize $pool vm1 2G
no 'at the most' import --size=2G $pool vm3 a.raw
no '--shrink' resize $pool vm1 1M

say "wrong usage"
usage 'needed' create $pool
usage 'needed' create $pool vm3
usage 'needed' create $pool vm3 1M more
usage 'needed' list
usage 'needed' list $pool more
usage 'needed' info $pool vm1 more
usage 'needed' info
usage 'needed' delete $pool
usage 'needed' clone --active $pool vm1 vm3
usage 'not a valid option' create --force $pool vm3 1M
usage 'not a valid option' list --no-wait $pool
usage 'not a valid option' delete --active $pool
usage 'not a valid option' create --nonsense $pool vm3 1M
usage '--output' list --output=xml $pool
usage '--format' import --format=vmdk $pool vm3 a.raw
usage '--store' list --store= $pool
usage 'together' import --resume --force $pool vm1 a.raw
refused tool disk
one_error_line disk 'command is needed'
refused tool disk frob $pool
one_error_line frob 'not a command'

say "files to import"
no_file gone 'No such file' import $pool vm3 gone
mkdir dir
no_file dir 'directory' import $pool vm3 dir
: >empty
no_file empty 'empty' import $pool vm3 empty
for kind in vmdk vdi vhdx vpc qed; do
  qemu-img create -q -f $kind other.img 1M
  no_file other.img "$kind.*qemu-img convert" import $pool vm3 other.img
done
gzip -c a.raw >a.raw.gz
no_file a.raw.gz 'compressed by gzip' import $pool vm3 a.raw.gz
qemu-img create -q -f qcow2 base.qcow2 1M
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 over.qcow2
no_file over.qcow2 'backing file.*qemu-img convert' import $pool vm3 over.qcow2
qemu-img create -q -f qcow2 -o data_file=data.raw ext.qcow2 1M
no_file ext.qcow2 'data file.*qemu-img convert' import $pool vm3 ext.qcow2
no_file a.raw 'qcow2' import --format=qcow2 $pool vm3 a.raw
no_file a.raw 'more than --size' import --size=1M $pool vm3 a.raw
printf 'QFI\xfb' >broken.qcow2
no_file broken.qcow2 . import $pool vm3 broken.qcow2
no 'not from an import' import --resume $pool vm1 base.qcow2
refused tool disk import --force $pool vm3 $pool
unchanged "import of the pool itself"

say "files to export to"
echo old >there
no_file there 'exists.*--force' export $pool vm1 there
equal "the file that was there" "$(cat there)" old
no_file dir 'directory' export --force $pool vm1 dir
ln -s there link
no_file link 'symbolic link' export --force $pool vm1 link
[ -L link ] || die "a symbolic link was replaced"
no_file gone/x 'No such|directory' export $pool vm1 gone/x
refused tool disk export --force $pool vm1 $pool
one_error_line $pool 'lock|use|process'
unchanged "export to the pool itself"
ln $pool alias
refused tool disk export --force $pool vm1 alias
unchanged "export to another name of the pool"
rm alias

say "a pool in use, and one that is no image"
start_server $pool
for command in "create $pool vm3 1M" "list $pool" "info $pool" \
               "export $pool vm1 x" "import $pool vm3 a.raw" \
               "delete $pool vm1"; do
  # shellcheck disable=SC2086
  refused tool disk $command
  one_error_line $pool 'lock|use|process'
done
stop_server
sum=$(sha256sum <$pool)         # serving it changed it
start_server base.qcow2
no_file base.qcow2 'lock|use|process' import $pool vm3 base.qcow2
no_file base.qcow2 'lock|use|process' export --force $pool vm1 base.qcow2
stop_server
for command in "create gone.qcow2 vm3 1M" "list gone.qcow2"; do
  # shellcheck disable=SC2086
  refused tool disk $command
  one_error_line gone.qcow2 'No such file'
done
refused tool disk list a.raw
one_error_line a.raw 'qcow2'
refused tool disk create a.raw vm3 1M
one_error_line a.raw 'qcow2'

say "a file that cannot be written"
sum=$(sha256sum <$pool)
if [ "$(id -u)" = 0 ]; then
  chmod 755 "$TMP"
  chmod 444 $pool
  as_nobody=(setpriv --reuid=65534 --clear-groups)
else
  chmod 444 $pool
  as_nobody=()
fi
if [ -x "$TOOL" ] && ${as_nobody[@]+"${as_nobody[@]}"} "$TOOL" --version >/dev/null 2>&1
then
  refused ${as_nobody[@]+"${as_nobody[@]}"} "$TOOL" disk create $pool vm3 1M
  one_error_line $pool 'permission'
  ${as_nobody[@]+"${as_nobody[@]}"} "$TOOL" disk list $pool >/dev/null
fi
chmod 644 $pool
unchanged "a pool that is read-only"

say "clones need refcounts of 32 bits; the line says how to get them"
tool create narrow.qcow2 4M
tool disk import narrow.qcow2 vm1 a.raw >/dev/null
tool disk create narrow.qcow2 vm2 1M
cp narrow.qcow2 wide.qcow2
qemu-img amend -o refcount_bits=64 wide.qcow2
for file in narrow.qcow2 wide.qcow2; do
  for command in "clone $file vm1 vm3" "snapshot $file vm1 a" \
                 "reset $file vm2 vm1"; do
    # shellcheck disable=SC2086
    refused tool disk $command
    one_error_line $file "qemu-img amend -o refcount_bits=32 .*$file"
  done
  check_clean $file
done

say "an image with a backing file: the line says how to get rid of that"
qemu-img create -q -f qcow2 -o cluster_size=4k base.qcow2 4M
qemu-io -c 'write -P 7 0 1M' base.qcow2 >/dev/null
qemu-img create -q -f qcow2 -o cluster_size=4k -b base.qcow2 -F qcow2 backed.qcow2
nbdkit -U - "$PLUGIN" backed.qcow2 backing=same-dir \
  --run 'qemu-io -f raw -c "write -P 9 2M 64k" "$uri"' >/dev/null  # it gets a store
refused tool disk create backed.qcow2 vm 1M
one_error_line backed.qcow2 "qemu-img rebase -f qcow2 -b '' backed.qcow2"
qemu-img rebase -f qcow2 -b '' backed.qcow2
rm base.qcow2
tool disk create backed.qcow2 vm 1M
qemu-io -r -c 'read -P 7 0 1M' -c 'read -P 9 2M 64k' backed.qcow2 >out
! grep -i 'verification failed' out || die "the data of the backing file is not there"
check_clean backed.qcow2

say "everything is still there"
check_clean $pool
equal disks "$(tool disk list --output=json $pool | $PY -c 'import json, sys
print(*[d["name"] for d in json.load(sys.stdin)["disks"]])')" "vm1 vm1@monday vm2"
