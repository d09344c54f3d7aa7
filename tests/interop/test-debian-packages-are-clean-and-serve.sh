#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# dpkg-buildpackage makes the two packages from the files of the tree, in a folder
# of their own; lintian has no errors and no warnings; nothing is installed that
# no package has; what is unpacked serves an image, and each subcommand and each
# command on disks has a manual page.  The upgrade script names the servers that
# run an old version, and restarts none.
# This does not install the packages: tools/check-package does, on a bare Debian.
# Breaks if: a file is installed that debian/ does not know, or a dependency, a
# maintainer script or a page is wrong.
. "$(dirname "$0")/lib.sh"
need dpkg-buildpackage dh lintian nbdcopy nbdinfo man

top=$(cd "$HERE/../.." && pwd)
case $(dpkg-architecture -qDEB_HOST_GNU_TYPE 2>/dev/null) in
  '') skip 'no Debian' ;;
esac

say 'build'
mkdir "$TMP/pkg" "$TMP/pkg/src"
# Without what the packages do not need, and build directories.
tar -C "$top" -c --exclude=./.git --exclude='./build*' --exclude=./tests \
  --exclude=./bench . | tar -x -C "$TMP/pkg/src"
cd "$TMP/pkg/src"
# Debug packages double the time, and have nothing of ours in them.
env DEB_BUILD_OPTIONS="noautodbgsym parallel=$(nproc)" \
  dpkg-buildpackage -us -uc -b >"$TMP/build.log" 2>&1 ||
  { tail -n 30 "$TMP/build.log" >&2; die 'dpkg-buildpackage failed'; }
if grep -i 'dh_missing: .*installed by\|dh_missing: warning' "$TMP/build.log"
then
  die 'a file is in no package'
fi

say 'lintian'
cd "$TMP/pkg"
rc=0
as=()
[ "$(id -u)" != 0 ] || as=(setpriv --reuid=65534 --regid=65534 --clear-groups)
chmod -R go+rX "$TMP"
HOME=/nonexistent "${as[@]}" lintian --fail-on error,warning \
  nbdkit-dedup_*.changes >"$TMP/lintian" 2>&1 || rc=$?
[ $rc = 0 ] && ! grep '^[EW]:' "$TMP/lintian" ||
  { cat "$TMP/lintian" >&2; die "lintian: status $rc"; }

say 'unpack, and serve'
root=$TMP/pkg/root
for deb in nbdkit-plugin-dedup_*.deb qcow2-dedup_*.deb; do
  dpkg-deb -x "$deb" "$root"
done
plugin=$(find "$root/usr/lib" -path '*/nbdkit/plugins/nbdkit-dedup-plugin.so')
[ -n "$plugin" ] || die 'the plugin is not in the package'
equal 'the place of the plugin' "${plugin#"$root"}" \
  "$(pkg-config --variable=plugindir nbdkit)/nbdkit-dedup-plugin.so"
tool=$root/usr/bin/qcow2-dedup
random_file "$TMP/in.raw" 4
"$tool" create "$TMP/disk.qcow2" 16M
nbdkit -f -U "$TMP/deb.sock" "$plugin" file="$TMP/disk.qcow2" \
  --run "nbdcopy '$TMP/in.raw' \"\$uri\" && nbdinfo --size \"\$uri\"" \
  >"$TMP/served" 2>&1 || die "serving: $(cat "$TMP/served")"
equal 'the size that is served' "$(grep -x '[0-9]*' "$TMP/served")" 16777216
check_clean "$TMP/disk.qcow2"
qemu-img dd -f qcow2 -O raw bs=1M count=4 if="$TMP/disk.qcow2" of="$TMP/out.raw"
cmp "$TMP/in.raw" "$TMP/out.raw" || die 'other bytes came back'

say 'manual pages'
page () # NAME: is there, and troff has no complaint
{
  local f=$root/usr/share/man/man1/$1.1.gz
  [ -f "$f" ] || die "no manual page $1(1) in the packages"
  LC_ALL=C.UTF-8 MANWIDTH=80 man --warnings -E UTF-8 -l -Tutf8 -Z "$f" \
    2>"$TMP/man" >/dev/null || die "man $1"
  [ ! -s "$TMP/man" ] || die "$1: $(head -n 3 "$TMP/man")"
}
page nbdkit-dedup-plugin
page qcow2-dedup
nr=0
for sub in $("$tool" --help |
             sed -n 's/^    qcow2-dedup \([a-z][a-z-]*\) .*/\1/p' | sort -u); do
  page "qcow2-dedup-$sub"
  nr=$((nr + 1))
done
at_least 'subcommands' $nr 7
gunzip -c "$root/usr/share/man/man1/qcow2-dedup-disk.1.gz" >"$TMP/disk.1"
for command in $("$tool" disk --help | sed -n 's/^    disk \([a-z]*\) .*/\1/p')
do
  grep -qE "^\.IP .*\\\\fB${command}\\\\fR" "$TMP/disk.1" ||
    die "qcow2-dedup-disk(1) does not have $command"
done

say 'needrestart proposes no restart'
perl -e 'our %nrconf; do $ARGV[0]; die $@ if $@;
         my ($re) = keys %{$nrconf{override_rc}};
         exit !("nbdkit-dedup\@vm1.service" =~ $re &&
                $nrconf{override_rc}{$re} == 0)' \
  "$root/etc/needrestart/conf.d/nbdkit-dedup.conf" || die 'needrestart'

say 'an upgrade names the servers that run'
dpkg-deb -e nbdkit-plugin-dedup_*.deb "$TMP/control"
# Only our part: the rest, by debhelper, would make users on this host.
sed '/^# Automatically added/,$d; s,/run/systemd/system,'"$TMP"',' \
  "$TMP/control/postinst" >"$TMP/postinst"
mkdir "$TMP/bin"
cat >"$TMP/bin/systemctl" <<'SHIM'
#!/bin/sh
echo "$*" >>"$CALLS"
case "$*" in
  *list-units*) echo 'nbdkit-dedup@vm1.service loaded active running x' ;;
esac
SHIM
chmod +x "$TMP/bin/systemctl"
upgrade ()
{
  : >"$TMP/calls"
  CALLS=$TMP/calls PATH=$TMP/bin:$PATH sh "$TMP/postinst" "$@" >"$TMP/told"
}
upgrade configure 0.0.1-1
grep -q 'nbdkit-dedup@vm1.service' "$TMP/told" || die 'the server is not named'
grep -q 'reconnect-delay' "$TMP/told" || die 'nothing says what to do'
! grep -E 'restart|stop|start ' "$TMP/calls" || die 'a server was restarted'
said=$(sed -n 's,^\(/usr/share/doc[^ ]*\.md\).*,\1,p' "$TMP/told")
[ -f "$root$said" ] || die "it names $said, which is not in the package"
upgrade configure ''
[ ! -s "$TMP/told" ] || die 'a first installation has nothing to tell'
