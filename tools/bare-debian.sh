# SPDX-License-Identifier: BSD-3-Clause
# Shell library of tools/check-on and tools/check-package; sourced, not run.
# Makes a bare Debian with debootstrap, and copies the tree into it.
#
# DEBIAN_MIRROR     the mirror for packages; default: that of the host's apt
# CHECK_ON_CACHE    the directory in which downloaded packages are kept
#
# The caller sets $tmp, a temporary directory, and has the function die.

# Prints the mirror from which the host's apt takes "main" of its release.
host_mirror ()
{
  apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' \
    'Created-By: Packages' |
    awk -v release="$(. /etc/os-release && echo "$VERSION_CODENAME")" \
      '$1 == release && $2 == "main" { print $3; exit }'
}

# Makes the Debian in ROOT, with the host's resolver and proxies.
bare_debian () # RELEASE ROOT
{
  local mirror=${DEBIAN_MIRROR:-$(host_mirror)} cache=()
  [ -n "$mirror" ] || die "apt names no mirror; set DEBIAN_MIRROR to one"
  if [ -n "${CHECK_ON_CACHE-}" ]; then
    mkdir -p "$CHECK_ON_CACHE/$1/partial"
    CHECK_ON_CACHE=$(cd "$CHECK_ON_CACHE/$1" && pwd)
    cache=(--cache-dir="$CHECK_ON_CACHE")
  fi
  echo "== $1, by debootstrap"
  debootstrap --variant=minbase ${cache[@]+"${cache[@]}"} "$1" "$2" \
    "$mirror" >"$tmp/debootstrap.log" 2>&1 ||
    { tail -n 20 "$tmp/debootstrap.log" >&2; die "debootstrap failed"; }
  cp /etc/hosts /etc/resolv.conf "$2/etc/"
  apt-config dump 2>/dev/null | grep -E '^Acquire::https?::' \
    >"$2/etc/apt/apt.conf.d/90host" || true
}

# Copies the files of the last commit, or of the working tree, to DIR.
copy_tree () # commit|worktree DIR
{
  mkdir "$2"
  if [ "$1" = commit ]; then
    git archive HEAD | tar -x -C "$2"
  else
    git ls-files -z --cached --others --exclude-standard |
      while IFS= read -r -d '' f; do [ ! -e "$f" ] || printf '%s\0' "$f"; done |
      tar -c --null -T - | tar -x -C "$2"
  fi
}
