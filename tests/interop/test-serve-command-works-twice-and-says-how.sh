#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# ./serve, README's first command, makes an image and serves it, and serves it again.  The
# nbdinfo commands that it prints work, whatever characters the name has; for a pool they
# name a disk of it.  SIGTERM, as Ctrl-C, closes the image.  What cannot be served is
# refused in one line.  The build is that of BUILD_DIR: packages and building are for
# tools/check-on.
# Breaks if: what is printed does not work, or a second start does not.
. "$(dirname "$0")/lib.sh"
need nbdinfo ninja
[ -z "$preload" ] || skip 'a sanitizer would have to be loaded into every program'

tree=$TMP/tree
mkdir -p "$tree/tools" "$tree/build" "$TMP/dir"
cp "$HERE/../../serve" "$tree"
printf '#!/bin/sh\n' >"$tree/tools/install-deps.sh"
chmod +x "$tree/tools/install-deps.sh"
ln -s "$BUILD_DIR/plugin" "$BUILD_DIR/tools" "$tree/build"
cat >"$tree/build/build.ninja" <<'NINJA'
build plugin/nbdkit-dedup-plugin.so: phony
build tools/qcow2-dedup: phony
NINJA
cd "$TMP/dir"

serve () # ARGS...
{
  local i
  SRV_LOG=$TMP/serve.log
  : >"$SRV_LOG"                 # before the other process, which may come late
  "$tree/serve" "$@" >>"$SRV_LOG" 2>&1 &
  SRV_PID=$!
  server_pids+=("$SRV_PID")
  for ((i = 0; i < 1200; i++)); do
    ! grep -q '^Ctrl-C closes' "$SRV_LOG" || return 0
    kill -0 "$SRV_PID" 2>/dev/null || die "./serve $* ended"
    sleep 0.05
  done
  die "./serve $* is not ready after 60 s"
}

# The printed commands of nbdinfo work; the last one prints SIZE.
printed_work () # SIZE
{
  local command
  while IFS= read -r command; do
    eval "$command" >"$TMP/nbdinfo" 2>&1 || die "$command: $(cat "$TMP/nbdinfo")"
  done < <(sed -n 's/^ *\(nbdinfo .*\)/\1/p' "$SRV_LOG")
  has "export-size: $1 " <"$TMP/nbdinfo" || die "not $1 bytes: $(cat "$TMP/nbdinfo")"
}

closed () # FILE
{
  stop_server
  grep -q '^Closed ' "$SRV_LOG" || die "$1 was not closed"
  check_clean "$1"
}

for name in disk.qcow2 "it's 1 \"%d\" & \$HOME,ü.qcow2"; do
  for time in once again; do
    say "$time: $name"
    serve "$name" 20M
    printed_work $((20 << 20))
    if [ "$name" = disk.qcow2 ]; then
      refused "$tree/serve" "$name"
      one_error_line "$name" 'is served already'
    fi
    closed "$name"
  done
  serve "$name" -r
  printed_work $((20 << 20))
  closed "$name"
done

serve keyed.qcow2 size=20M
printed_work $((20 << 20))
closed keyed.qcow2

say "a pool"
tool create --pool pool.qcow2
serve pool.qcow2
grep -q 'This is a pool' "$SRV_LOG" && die "a pool without disks has commands for one"
closed pool.qcow2
tool disk create pool.qcow2 'vm one' 3M
serve pool.qcow2
printed_work $((3 << 20))
grep -q 'for its disk vm one;' "$SRV_LOG" || die "no disk is named"
closed pool.qcow2

say "refused"
refused "$tree/serve" none.qcow2
one_error_line none.qcow2 'does not exist; to create it, give a size'
refused "$tree/serve" nbd://storage/disk 1M
one_error_line nbd://storage/disk 'start nbdkit with uri='
refused "$tree/serve" nodir/new.qcow2 1M
one_error_line new.qcow2 'the directory does not exist'
echo precious >disk.qcow2.sock
refused "$tree/serve" disk.qcow2
one_error_line disk.qcow2 'is not a socket'
equal "the file" "$(cat disk.qcow2.sock)" precious
rm disk.qcow2.sock
refused "$tree/serve" disk.qcow2 colour=red
grep -v '^$' "$TMP/refused" >"$TMP/lines"
equal "lines on an unknown key" "$(wc -l <"$TMP/lines")" 1
[ ! -e disk.qcow2.sock ] || die "a start that failed left its socket"
