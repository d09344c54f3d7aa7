#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# install-deps.sh build|serve|check|ceph: installs the packages of Debian that are
# missing.  build: those that the build needs.  serve: these, and those that
# serving and the commands of libnbd that ./serve prints need.  check: these,
# and those that the tests and benchmarks need.  ceph: those that tests/ceph needs
# besides (54 MB to load); they must come within CEPH_SECONDS (120), or it fails and
# nothing is installed.  If none is missing it returns at once.

set -euo pipefail

build=(
  gcc libc6-dev meson ninja-build pkg-config perl python3
  nbdkit-plugin-dev libgnutls28-dev libjansson-dev libnbd-dev libuv1-dev
  libxxhash-dev libzstd-dev zlib1g-dev
)
# nbdinfo runs the program file.
serve=("${build[@]}" nbdkit libnbd-bin file)
check=(
  "${serve[@]}" libcmocka-dev python3-libnbd
  apparmor bash-completion build-essential debhelper dh-apparmor lintian man-db
  e2fsprogs fio fuse3 gnutls-bin libvirt-clients libvirt-daemon libvirt-daemon-driver-qemu
  mount prometheus qemu-system-common qemu-system-x86 qemu-utils socat strace systemd
  chromium fonts-dejavu-core libxml2-utils
)
# Without the manager: the tests do not ask for the usage of a whole cluster.
ceph=(ceph-common ceph-mon ceph-osd qemu-block-extra)

case "${1-}" in
  build) wanted=("${build[@]}") ;;
  serve) wanted=("${serve[@]}") ;;
  check) wanted=("${check[@]}") ;;
  ceph) wanted=("${ceph[@]}") ;;
  *) echo "usage: $0 build|serve|check|ceph" >&2; exit 2 ;;
esac

# For a package that it does not know dpkg-query prints nothing to standard
# output.
installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' \
              "${wanted[@]}" 2>/dev/null || true)
missing=()
for package in "${wanted[@]}"; do
  grep -qx "installed $package" <<<"$installed" || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

root=()
if [ "$(id -u)" != 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "$0: run it as root, or install sudo, to install: ${missing[*]}" >&2
    exit 1
  fi
  root=(sudo)
fi
echo "Installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
install=(install -y --no-install-recommends "${missing[@]}")
# Only the download may be cut short: dpkg would leave packages half installed.
if [ "$1" = ceph ]; then
  timeout "${CEPH_SECONDS:-120}" "${root[@]}" sh -c 'apt-get -q update &&
    exec apt-get -q --download-only "$@"' - "${install[@]}" >&2
else
  "${root[@]}" apt-get -q update >&2
fi
"${root[@]}" env DEBIAN_FRONTEND=noninteractive \
  apt-get -q "${install[@]}" >&2
