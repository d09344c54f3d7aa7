# SPDX-License-Identifier: BSD-3-Clause
# Shell library of test-guides-work-as-printed.sh; sourced by the script that
# guide.py makes of a guide, in mounts of its own.  Stands for a host on which the
# packages are installed: programs of the build, systemd's units, and libvirt.
#
# From the test: BIN (a directory for programs), PLUGIN, UNITS, NBDKIT, PRELOAD.

set -euo pipefail
shopt -s inherit_errexit

line=0
at_line () { line=$1; }
trap 'echo "line $line of the guide: $BASH_COMMAND" >&2' ERR
syntax () # LINE TEXT
{
  line=$1
  bash -n -c "$2"
}

program () # NAME, its text on standard input
{
  cat >"$BIN/$1"
  chmod +x "$BIN/$1"
}

program nbdkit <<SHIM
#!/bin/bash
args=()
for arg; do
  [ "\$arg" != dedup ] || arg='$PLUGIN'
  args+=("\$arg")
done
if [ -n '$PRELOAD' ]; then export LD_PRELOAD='$PRELOAD'; fi
exec '$NBDKIT' "\${args[@]}"
SHIM

# runuser -u USER -- COMMAND, without that user.
program runuser <<'SHIM'
#!/bin/bash
shift 3
exec "$@"
SHIM

# The same of files that belong to that user.
program install <<'SHIM'
#!/bin/bash
args=()
while [ $# -gt 0 ]; do
  case $1 in
    -o|-g) shift ;;
    *) args+=("$1") ;;
  esac
  shift
done
exec /usr/bin/install "${args[@]}"
SHIM

# Starts and ends servers as the units do, without systemd: the ExecStart= of the
# unit or of a drop-in, with the socket of the unit.
program systemctl <<SHIM
#!/bin/bash
set -euo pipefail
units='$UNITS'
SHIM
cat >>"$BIN/systemctl" <<'SHIM'
run=/run/nbdkit-dedup
etc=/etc/systemd/system
exec_start () # NAME
{
  local f=$units/nbdkit-dedup@.service drop
  for drop in "$etc/nbdkit-dedup@$1.service.d"/*.conf; do
    ! grep -qs '^ExecStart=/' "$drop" || f=$drop
  done
  sed -n "s/^ExecStart=\/usr\/bin\/nbdkit --foreground //p" "$f" | tail -n 1 |
    sed "s/%i/$1/g"
}
start () # NAME
{
  local words
  [ ! -e "$run/$1.pid" ] || return 0
  read -ra words <<<"$(exec_start "$1")"
  mkdir -p "$run/$1"
  rm -f "$run/$1.sock"
  nbdkit -U "$run/$1.sock" -P "$run/$1.pid" "${words[@]}"
  chmod 0666 "$run/$1.sock"
}
stop () # NAME
{
  local pid
  [ -e "$run/$1.pid" ] || return 0
  pid=$(cat "$run/$1.pid")
  kill "$pid" 2>/dev/null || true
  while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
  rm -f "$run/$1.pid" "$run/$1.sock"
}
verb=$1
shift
[ "$verb" != show ] || {
  name=${!#}; name=${name#nbdkit-dedup@}
  cat "$run/${name%.service}.pid"
  exit
}
for unit; do
  case $unit in
    -*) continue ;;
    nbdkit-dedup@*) ;;
    *) echo "systemctl: $unit is no unit of ours" >&2; exit 1 ;;
  esac
  name=${unit#nbdkit-dedup@}
  name=${name%.*}
  case $verb in
    start|enable) start "$name" ;;
    stop) stop "$name" ;;
    restart) stop "$name"; start "$name" ;;
    reset-failed) name=${name#'*'}; rm -f "$run/$name.pid" ;;
    daemon-reload|edit|set-property|status) ;;
    *) echo "systemctl: $verb is not known here" >&2; exit 1 ;;
  esac
done
SHIM

# libvirt of a user: it runs without systemd, and without root.
program virsh <<'SHIM'
#!/bin/bash
export XDG_RUNTIME_DIR=/run/libvirt-user HOME=/run/libvirt-user
exec setpriv --reuid=65534 --regid=65534 --clear-groups \
  /usr/bin/virsh -q -c qemu:///session "$@"
SHIM
/usr/bin/install -d -o 65534 -g 65534 /run/libvirt-user
mkdir -p /run/nbdkit-dedup
PATH=$BIN:$PATH

# Ends what the guide has left running, and checks every image there is.
finish ()
{
  local pidfile f
  for pidfile in /run/nbdkit-dedup/*.pid; do
    [ ! -e "$pidfile" ] || systemctl stop "nbdkit-dedup@$(basename "$pidfile" .pid).service"
  done
  for f in /var/lib/nbdkit-dedup/*.qcow2 ./*.qcow2; do
    [ -e "$f" ] || continue
    qemu-img check -q "$f" || { echo "qemu-img check $f" >&2; exit 1; }
  done
}
