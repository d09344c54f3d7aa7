#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# `ninja install`, into DESTDIR, installs plugin, program, manual pages and
# systemd units, an AppArmor profile and completion for bash.  The units are valid
# for systemd, confine the server (an exposure of at most 2.0), and have the
# settings that keep guests safe.  The program that asks servers finds the one that opens
# images, also below DESTDIR, and needs no library but jansson.  A second install replaces the plugin's file and does not
# write into it, because a running server has it mapped.
# Breaks if: a file is not installed, a unit has a word that systemd ignores, or asking a
# server loads the libraries that only images need.
. "$(dirname "$0")/lib.sh"
need meson ninja pkg-config readelf systemd-analyze apparmor_parser

[ -e "$BUILD_DIR/build.ninja" ] || skip 'not a build directory of meson'
dest=$TMP/dest
install_all ()
{
  DESTDIR=$dest meson install -C "$BUILD_DIR" --no-rebuild >"$TMP/install.log" \
    2>&1 || die "$(tail -n 5 "$TMP/install.log")"
}
install_all
installed () # NAME
{
  local f
  f=$(find "$dest" -name "$1")
  [ -f "$f" ] || die "$1 is not installed"
  echo "$f"
}
plugin=$(installed nbdkit-dedup-plugin.so)
equal 'the place of the plugin' "${plugin#"$dest"}" \
  "$(pkg-config --variable=plugindir nbdkit)/nbdkit-dedup-plugin.so"
for f in nbdkit-dedup-plugin.1 nbdkit-dedup-control.7 qcow2-dedup.1; do
  installed $f >/dev/null
done
for f in bin/qcow2-dedup share/bash-completion/completions/qcow2-dedup \
         share/nbdkit-dedup/bash-completion share/nbdkit-dedup/apparmor/nbdkit-dedup \
         share/nbdkit-dedup/nbd-tls
do
  [ -n "$(find "$dest" -path "*/$f")" ] || die "$f is not installed"
done
service=$(installed 'nbdkit-dedup@.service')
socket=$(installed 'nbdkit-dedup@.socket')
if pkg-config --exists systemd; then
  equal 'the place of the units' "$(dirname "${service#"$dest"}")" \
    "$(pkg-config --variable=systemdsystemunitdir systemd)"
fi

say 'the two programs'
front=$(find "$dest" -path '*/bin/qcow2-dedup')
image_program=$(installed qcow2-dedup-image)
case ${image_program#"$dest"} in
  */nbdkit-dedup/qcow2-dedup-image) ;;
  *) die "the program for images is ${image_program#"$dest"}" ;;
esac
ln -s "$front" "$TMP/link"
"$TMP/link" measure 1M | has 'required size' || die 'measure does not run'
"$image_program" --help >"$TMP/refused" 2>&1 && die 'that is no program for users'
has 'is a part of qcow2-dedup' <"$TMP/refused" || die "it says $(cat "$TMP/refused")"
# Each library of a sanitizer, and libgcc, comes with the compiler.
needed=$(readelf -d "$front" | sed -n 's/.*(NEEDED).*\[\(lib[a-z]*\).*/\1/p' |
         grep -vxE 'lib(c|m|pthread|gcc|asan|ubsan|tsan)' || true)
equal 'the libraries for asking a server' "$needed" libjansson
mv "$image_program" "$TMP/elsewhere"
refused "$front" measure 1M
one_error_line qcow2-dedup-image 'No such file'
mv "$TMP/elsewhere" "$image_program"

before=$(stat -c %i "$plugin")
exec 7<"$plugin"                # keeps the inode's number from being used again
install_all
exec 7<&-
[ "$(stat -c %i "$plugin")" != "$before" ] ||
  die 'the plugin of a running server was written over'

say 'the units'
# unit VALUE KEY: among the values of KEY
unit ()
{
  sed -n "s/^$2=//p" "$service" | tr ' ' '\n' | has -xF -- "$1" ||
    die "the service lacks $1 in $2="
}
# At shutdown guests go first: what is before in start is after in stop.
for u in libvirt-guests.service libvirtd.service virtqemud.service \
         virt-guest-shutdown.target; do
  unit $u Before
done
# A server that was killed does not come back under running guests.
for signal in SIGKILL SIGABRT SIGSEGV SIGBUS; do
  unit $signal RestartPreventExitStatus
done
grep -q '^ExecStopPost=.*EXIT_CODE.*stop .*@%i.socket' "$service" ||
  die 'the socket stays open'
unit 5 StartLimitBurst

# It wants the programs that are named to be there, and the manual pages not.
mkdir "$TMP/units"
sed "s,^ExecStart=[^ ]*,ExecStart=$(command -v nbdkit)," "$service" \
  >"$TMP/units/nbdkit-dedup@.service"
cp "$socket" "$TMP/units"
rc=0
for u in "$TMP/units/nbdkit-dedup@.service" "$TMP/units/nbdkit-dedup@.socket"
do
  systemd-analyze verify --man=no "$u" >"$TMP/verify" 2>&1 || rc=$?
  [ $rc = 0 ] && [ ! -s "$TMP/verify" ] || die "$u: $(cat "$TMP/verify")"
done
systemd-analyze security --offline=true --threshold=20 --no-pager \
  "$TMP/units/nbdkit-dedup@.service" >"$TMP/security" 2>&1 ||
  die "the service is exposed: $(tail -n 1 "$TMP/security")"
say "$(sed -n 's/.*\(Overall exposure.*[0-9]\).*/\1/p' "$TMP/security")"

say 'the AppArmor profile'
profile=$(find "$dest" -path '*/apparmor/nbdkit-dedup')
grep -qx 'AppArmorProfile=-nbdkit-dedup' "$service" ||
  die 'the service does not name the profile'
# -Q: compile it, and do not load it into the kernel.
apparmor_parser -Q -K "$profile" >"$TMP/parser" 2>&1 ||
  die "apparmor_parser: $(cat "$TMP/parser")"
apparmor_parser -N "$profile" | has -x nbdkit-dedup ||
  die 'the profile has another name than the service says'
