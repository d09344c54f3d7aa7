#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The commands of README.md's section "Use" work as they are printed, and work
# again: each server is started, ended by SIGTERM, and started again in the same
# directory; the disk is filled, and the control socket used, over the sockets that
# README names; the tools' commands come after that.  The host "storage", on which README
# has an NBD server, is this one, in a network of the command's own.  Not run: QEMU with
# a window, and commands on block devices of the reader's.
# Breaks if: README says something that does not work, or works once only.
. "$(dirname "$0")/lib.sh"
need nbdcopy qemu-img qemu-nbd socat unshare
readme=$HERE/../../README.md
nbdkit=$(command -v nbdkit)
mkdir "$TMP/bin" "$TMP/dir"
cd "$TMP/dir"
random_file debian.raw 4

# As if installed: nbdkit knows the plugin by name.
cat >"$TMP/bin/nbdkit" <<SHIM
#!/bin/bash
args=()
for arg; do
  [ "\$arg" != dedup ] || arg='$PLUGIN'
  args+=("\$arg")
done
if [ -n '$preload' ]; then export LD_PRELOAD='$preload'; fi
exec '$nbdkit' --pidfile '$TMP/pid' "\${args[@]}"
SHIM
chmod +x "$TMP/bin/nbdkit"
ln -s "$TOOL" "$TMP/bin/qcow2-dedup"
PATH=$TMP/bin:$PATH

commands () # PATTERN: those that begin so
{
  awk '/^## /{ on = $0 == "## Use" } on && sub (/^    /, "")' "$readme" |
    grep -E "^$1" | grep -v ' /dev/' || true
}

# All images that a command names without saying how large they are exist.
make_images () # COMMAND
{
  local word
  case $1 in *size=*) return ;; esac
  for word in $1; do
    case $word in
      pool.qcow2) [ -e "$word" ] || qcow2-dedup create --pool "$word" ;;
      *.qcow2) [ -e "$word" ] ||
                 qemu-img create -q -f qcow2 "$word" 16M >/dev/null ;;
    esac
  done
}

# Gives the loopback device of this network the name "storage", with an NBD server that
# has the export "disk", and becomes the command.
cat >"$TMP/bin/with-storage" <<'STORAGE'
#!/bin/bash
set -e
python3 -c '
import fcntl, socket, struct
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
fcntl.ioctl(socket.socket(), SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))'
mount --bind "$TMP/hosts" /etc/hosts
qemu-nbd --fork -t -f raw -x disk -b 127.0.0.1 --pid-file "$TMP/storage.pid" \
  --discard=unmap "$TMP/storage.raw"
exec "$@"
STORAGE
chmod +x "$TMP/bin/with-storage"
echo '127.0.0.1 localhost storage' >"$TMP/hosts"
truncate -s 1G "$TMP/storage.raw"

serve () # COMMAND: sets pid, once it listens
{
  local i in_private=()
  # A port of this host may be in use.
  case $1 in
    *//storage/*)
      in_private=(env TMP="$TMP" unshare --net --mount --propagation
                  "$(mount_propagation)" with-storage) ;;
    *' -U '*) ;;
    *) in_private=(unshare --net) ;;
  esac
  rm -f "$TMP/pid"
  SRV_LOG=$TMP/server.log
  ${in_private[@]+"${in_private[@]}"} bash -c "exec $1" >"$SRV_LOG" 2>&1 &
  SRV_PID=$!
  case $1 in *' -f '*) ;; *) wait "$SRV_PID" || die "failed: $1" ;; esac
  for ((i = 0; i < 1200; i++)); do
    [ ! -s "$TMP/pid" ] || break
    case $1 in *' -f '*)
      kill -0 "$SRV_PID" 2>/dev/null || die "failed: $1" ;;
    esac
    sleep 0.05
  done
  [ -s "$TMP/pid" ] || die "does not listen: $1"
  pid=$(cat "$TMP/pid")
  server_pids+=("$pid")
}

stop () # COMMAND
{
  local i
  kill -TERM "$pid" 2>/dev/null || true       # README may have ended it
  case $1 in *' -f '*) wait "$SRV_PID" || die "status $?: $1" ;; esac
  for ((i = 0; i < 600; i++)); do
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  ! kill -0 "$pid" 2>/dev/null || die "does not end: $1"
  no_crash_in "$SRV_LOG"
  if [ -e "$TMP/storage.pid" ]; then
    kill "$(cat "$TMP/storage.pid")"
    rm "$TMP/storage.pid"
  fi
}

run () # COMMAND
{
  say "$1"
  bash -c "$1" >"$TMP/out" 2>&1 || { cat "$TMP/out" >&2; die "failed: $1"; }
}

# README's commands for the control socket want a disk vm1 in the pool, without the
# snapshot that they make.
control_disk ()
{
  (echo '{"execute": "qmp_capabilities"} {"execute": "disk-create", "arguments":
          {"name": "vm1", "size": 1048576}} {"execute": "disk-delete", "arguments":
          {"name": "vm1@monday"}}'; sleep 1) |
    socat - UNIX:pool.control >/dev/null
}

nr_served=0 nr_filled=0 nr_orders=0
while IFS= read -r command; do
  case $command in *//storage/*) ;; *' -U '*) false ;; esac && [ "$(id -u)" != 0 ] &&
    { say "not without root: $command"; continue; }
  make_images "$command"
  for time in once again; do
    say "$time: $command"
    serve "$command"
    case $command in
      *' -U disk.sock '*)
        while IFS= read -r fill; do
          run "$fill" && nr_filled=$((nr_filled + 1))
        done < <(commands nbdcopy) ;;
      *' control=pool.control'*)
        control_disk
        while IFS= read -r order; do
          run "$order" && nr_orders=$((nr_orders + 1))
          ! grep '"error"' "$TMP/out" || die "refused: $order"
        done < <(commands '\(echo .*pool.control') ;;
    esac
    stop "$command"
    nr_served=$((nr_served + 1))
  done
done < <(commands nbdkit)
at_least "servers started" $nr_served 2
at_least "times filled" $nr_filled 2
at_least "commands over the control socket" $nr_orders 6
check_clean disk.qcow2
qemu-img dd -f qcow2 -O raw bs=1M count=4 if=disk.qcow2 of=filled.raw
cmp filled.raw debian.raw || die "it was filled with something else"
for time in once again; do
  rm -f pool.qcow2              # what creates it comes first
  while IFS= read -r command; do
    run "$command"
  done < <(commands qcow2-dedup)
  check_clean pool.qcow2
done
