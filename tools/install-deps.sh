#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# install-deps.sh build|serve|check: install what is missing of the packages of
# Debian that building needs; those and what serving and the commands that
# ./serve prints need; or all that the tests and benchmarks need.  Does nothing,
# fast, when all of them are there.

set -euo pipefail

build=(
  gcc libc6-dev meson ninja-build pkg-config perl python3
  nbdkit-plugin-dev libgnutls28-dev libjansson-dev libuv1-dev
  libxxhash-dev libzstd-dev zlib1g-dev
)
# nbdinfo runs file.
serve=("${build[@]}" nbdkit libnbd-bin file)
check=(
  "${serve[@]}" libcmocka-dev libnbd-dev python3-libnbd
  e2fsprogs fio fuse3 mount qemu-system-x86 qemu-utils systemd
)

case "${1-}" in
  build) wanted=("${build[@]}") ;;
  serve) wanted=("${serve[@]}") ;;
  check) wanted=("${check[@]}") ;;
  *) echo "usage: $0 build|serve|check" >&2; exit 2 ;;
esac

# dpkg-query prints nothing on standard output for a package it never saw.
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
    echo "$0: needs root or sudo to install: ${missing[*]}" >&2
    exit 1
  fi
  root=(sudo)
fi
echo "Installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
"${root[@]}" apt-get -q update >&2
"${root[@]}" env DEBIAN_FRONTEND=noninteractive \
  apt-get -q install -y --no-install-recommends "${missing[@]}" >&2
