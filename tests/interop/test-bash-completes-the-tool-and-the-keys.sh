#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Tab in an interactive bash completes subcommands, commands of "disk", options,
# values, files, the names of a pool's disks, and the keys of the plugin with
# their values; other command lines of nbdkit are completed as nbdkit does it.
# Breaks if: the help of a command loses its shape, a name with a blank is not
# quoted, or "@" and "=" confuse bash.
. "$(dirname "$0")/lib.sh"
need bash
[ -r /usr/share/bash-completion/bash_completion ] ||
  missing 'bash-completion is not installed'
files=$HERE/../../contrib/bash-completion

mkdir "$TMP/bin" "$TMP/dir"
ln -s "$TOOL" "$TMP/bin/qcow2-dedup"
cat >"$TMP/bin/nbdkit" <<SHIM
#!/bin/bash
args=()
for arg; do
  [ "\$arg" != dedup ] || arg='$PLUGIN'
  args+=("\$arg")
done
if [ -n '$preload' ]; then export LD_PRELOAD='$preload'; fi
exec '$(command -v nbdkit)' "\${args[@]}"
SHIM
chmod +x "$TMP/bin/nbdkit"
cd "$TMP/dir"
tool create --pool pool.qcow2
for disk in vm1 vm2 'with blank'; do
  tool disk create pool.qcow2 "$disk" 1M
done
tool disk snapshot pool.qcow2 vm1 monday
tool disk snapshot pool.qcow2 vm1 tuesday
touch other.raw

PATH=$TMP/bin:$PATH $PY "$HERE/completion.py" "$TMP/dir" "$files/qcow2-dedup" \
  "$files/nbdkit-dedup" >"$TMP/out" 2>&1 <<'CASES' || { cat "$TMP/out" >&2; die 'completion'; }
qcow2-dedup  ?> create info check recover index measure disk report status metrics control --help --version
qcow2-dedup cre => qcow2-dedup create|
qcow2-dedup mea => qcow2-dedup measure|
qcow2-dedup disk  ?> create list info clone snapshot reset rename resize delete import export
qcow2-dedup disk sn => qcow2-dedup disk snapshot|
qcow2-dedup disk i ?> info import
qcow2-dedup disk i !> list index
qcow2-dedup info --ver ?> --verbose --version
qcow2-dedup info --verb => qcow2-dedup info --verbose|
qcow2-dedup info --ou => qcow2-dedup info --output=
qcow2-dedup info --output=j => qcow2-dedup info --output=json|
qcow2-dedup info --output= ?> human json
qcow2-dedup index --hash= ?> sha256 sha3-256 skein-256-256 xxh3-128
qcow2-dedup index --hash=xx => qcow2-dedup index --hash=xxh3-128|
qcow2-dedup info --store=oth => qcow2-dedup info --store=other.raw|
qcow2-dedup status --control=oth => qcow2-dedup status --control=other.raw|
qcow2-dedup status --out => qcow2-dedup status --output=
qcow2-dedup metrics -o oth => qcow2-dedup metrics -o other.raw|
qcow2-dedup report pool.qcow2 -o oth => qcow2-dedup report pool.qcow2 -o other.raw|
qcow2-dedup control oth => qcow2-dedup control other.raw|
qcow2-dedup info po => qcow2-dedup info pool.qcow2|
qcow2-dedup create -o clus => qcow2-dedup create -o cluster-size=
qcow2-dedup create -o hash=sha256,ref => qcow2-dedup create -o hash=sha256,refcount-bits=
qcow2-dedup disk list po => qcow2-dedup disk list pool.qcow2|
qcow2-dedup disk list --si => qcow2-dedup disk list --sizes|
qcow2-dedup disk list --s !> --shrink
qcow2-dedup disk resize --shr => qcow2-dedup disk resize --shrink|
qcow2-dedup disk import --format= ?> raw qcow2
qcow2-dedup disk clone pool.qcow2  ?> vm1 vm2 vm1@monday vm1@tuesday
qcow2-dedup disk clone --no-wait ./pool.qcow2 vm2 => qcow2-dedup disk clone --no-wait ./pool.qcow2 vm2|
qcow2-dedup disk delete pool.qcow2 vm2 w => qcow2-dedup disk delete pool.qcow2 vm2 with\ blank|
qcow2-dedup disk reset pool.qcow2 vm1 vm1@mo => qcow2-dedup disk reset pool.qcow2 vm1 vm1@monday|
qcow2-dedup disk export pool.qcow2 vm1 oth => qcow2-dedup disk export pool.qcow2 vm1 other.raw|
qcow2-dedup disk set pool.qcow2 vm2 com ?> compress=zstd compress=zlib compress=off compress=pool
qcow2-dedup disk set pool.qcow2 vm2 compress=p => qcow2-dedup disk set pool.qcow2 vm2 compress=pool|
qcow2-dedup disk create pool.qcow2 v => qcow2-dedup disk create pool.qcow2 v
qcow2-dedup disk clone none.qcow2 v => qcow2-dedup disk clone none.qcow2 v
nbdkit --fil => nbdkit --filter|
nbdkit -f -U x dedup ver => nbdkit -f -U x dedup verify=
nbdkit -f -U x dedup pool.qcow2 verify= ?> on off
nbdkit dedup pool.qcow2 readonly=a => nbdkit dedup pool.qcow2 readonly=auto|
nbdkit dedup pool.qcow2 hash= ?> sha256 sha3-256 skein-256-256 xxh3-128
nbdkit dedup pool.qcow2 backing=sa => nbdkit dedup pool.qcow2 backing=same-dir|
nbdkit dedup po => nbdkit dedup pool.qcow2|
nbdkit dedup pool.qcow2 control=oth => nbdkit dedup pool.qcow2 control=other.raw|
nbdkit dedup file=po => nbdkit dedup file=pool.qcow2|
nbdkit dedup pool.qcow2 verify=on  ?> dedup= readonly= index-memory= store=
nbdkit dedup pool.qcow2 verify=on  !> verify= other.raw
CASES
say "$(tail -n 1 "$TMP/out")"
