#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The commands of docs/guides/*.md work as they are printed, in the order in which
# they are printed.  guide.py extracts them; guide-host.sh stands for a host.  Each
# guide has mounts of its own, with an empty /var/lib/nbdkit-dedup and /run.  Blocks
# that need a real host are only parsed.  Afterwards all images are clean.
# test-guides-work-as-printed.sh [NAME]... runs these guides only.  The guide "ceph"
# needs a cluster: CEPH_ETC is a folder with what /etc/ceph has on its hosts
# (tests/ceph/test-the-guide-works-as-printed.sh).
# Breaks if: a command in a guide is wrong, or needs something that the guide does
# not say.
. "$(dirname "$0")/lib.sh"
need_root
need nbdcopy nbdinfo qemu-img qemu-io qemu-system-x86_64 qemu-storage-daemon virsh \
  certtool socat unshare setpriv promtool systemd-analyze
guides=$(cd "$HERE/../../docs/guides" && pwd)
[ $# -gt 0 ] ||
  set -- $(cd "$guides" && printf '%s\n' *.md | sed 's/\.md$//' | grep -vx ceph)

say 'blocks that are not marked are refused'
refused () # TEXT
{
  printf '%s\n' "$1" >"$TMP/bad.md"
  ! $PY "$HERE/guide.py" "$TMP/bad.md" >/dev/null 2>&1 || die "taken: $1"
}
refused $'text\n\n    indented'
refused $'```\ncommand\n```'
refused $'```sh hots\ncommand\n```'
refused $'```sh\nno end'

propagation=$(mount_propagation)

run_guide () # NAME
{
  local dir=$TMP/$1 rc=0
  mkdir "$dir" "$dir/work" "$dir/bin"
  chmod -R go+rX "$TMP"
  ln -s "$TOOL" "$dir/bin/qcow2-dedup"
  ln -s "$HERE/../../contrib/tls/nbd-tls" "$dir/bin/nbd-tls"
  { echo ". '$HERE/guide-host.sh'"
    $PY "$HERE/guide.py" "$guides/$1.md"
    echo 'at_line 0; finish'; } >"$dir/script" || die "$1.md: $(cat "$dir/script")"
  # The processes end with the name space, whatever the guide does.
  (cd "$dir/work" &&
   timeout -k 5 120 unshare --mount --propagation $propagation --pid --fork \
     --kill-child --mount-proc env BIN="$dir/bin" PLUGIN="$PLUGIN" \
     REPLACED="$HERE/replaced.py" NBDKIT="$(command -v nbdkit)" PRELOAD="$preload" \
     UNITS="$HERE/../../contrib/systemd" CEPH_ETC="${CEPH_ETC-}" bash -c '
       if [ -n "$CEPH_ETC" ]; then
         mount -t tmpfs tmpfs /etc/ceph
         cp "$CEPH_ETC"/* /etc/ceph
       fi
       mount -t tmpfs tmpfs /run
       mount -t tmpfs tmpfs /etc/systemd/system
       mkdir -p /var/lib/nbdkit-dedup
       mount -t tmpfs -o size=2g tmpfs /var/lib/nbdkit-dedup
       exec bash "$1"' - "$dir/script") >"$dir/out" 2>&1 </dev/null || rc=$?
  no_crash_in "$dir/out"
  [ $rc = 0 ] || { tail -n 30 "$dir/out" >&2; die "$1.md: status $rc"; }
}
had_state=$(ls -d /var/lib/nbdkit-dedup 2>/dev/null || true)
[ -n "$had_state" ] || at_exit 'rmdir /var/lib/nbdkit-dedup 2>/dev/null'
for guide; do
  from=$SECONDS
  run_guide "$guide"
  say "$guide.md, $((SECONDS - from)) s"
done
