#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Run by tools/check-package in a container that systemd has booted, with the
# packages installed, as root.  Makes /debs/passed if all is right.
#
# What is tested is what docs/service.md says: a first connection starts the
# server; the server is confined; clients with a time to wait see a pause and no
# error while it is replaced; after a kill the socket is closed; a removal closes
# images, and removes none.

set -euo pipefail
die () { echo "FAIL: $*" >&2; exit 1; }
trap 'echo "FAIL: line $LINENO: $BASH_COMMAND" >&2' ERR

state=/var/lib/nbdkit-dedup
sock=/run/nbdkit-dedup/vm1.sock
uri="nbd+unix:///?socket=$sock"
as_server () { runuser -u nbdkit-dedup -- "$@"; }
pid_of () { systemctl show --value -p MainPID "$1"; }
wait_for () # COMMAND: up to a minute
{
  local i
  for ((i = 0; i < 600; i++)); do
    ! "$@" >/dev/null 2>&1 || return 0
    sleep 0.1
  done
  die "in vain: $*"
}

echo "-- $(systemctl --version | head -n 1)"
[ "$(stat -c '%U %G %a' $state)" = 'nbdkit-dedup nbdkit-dedup 700' ] ||
  die "$state: $(stat -c '%U %G %a' $state)"
as_server qcow2-dedup create $state/vm1.qcow2 1G
systemctl start nbdkit-dedup@vm1.socket
[ "$(systemctl is-active nbdkit-dedup@vm1.service)" = inactive ] ||
  die 'the server runs already'
[ "$(nbdinfo --size "$uri")" = 1073741824 ] || die 'the size'
pid=$(pid_of nbdkit-dedup@vm1.service)
echo "-- the first connection has started the server, pid $pid"

# --- Confined -----------------------------------------------------------------

status () { sed -n "s/^$1:[[:space:]]*//p" "/proc/$pid/status"; }
[ "$(status CapEff)" = 0000000000000000 ] || die "CapEff $(status CapEff)"
[ "$(status CapBnd)" = 0000000000000000 ] || die "CapBnd $(status CapBnd)"
[ "$(status NoNewPrivs)" = 1 ] || die 'NoNewPrivs'
[ "$(status Seccomp)" = 2 ] || die 'Seccomp'
[ "$(status Uid | cut -f 1)" = "$(id -u nbdkit-dedup)" ] || die 'the user'
for ns in mnt net user; do
  [ "$(readlink /proc/$pid/ns/$ns)" != "$(readlink /proc/1/ns/$ns)" ] ||
    die "the server has systemd's name space $ns"
done

# Takes commands from root through its control socket, and from nobody else.
control=/run/nbdkit-dedup/vm1/control
ask () # as the user that runs this
{
  echo '{"execute":"qmp_capabilities"}{"execute":"query-status"}' |
    socat -t 2 - "UNIX-CONNECT:$control"
}
ask >/run/asked
grep '"running"' /run/asked >/dev/null || die "control: $(cat /run/asked)"
! runuser -u nobody -- bash -c "$(declare -f ask); control=$control; ask" \
  >/run/asked 2>&1 || die "anybody may give commands: $(cat /run/asked)"
echo '-- commands are taken from root only'

# A program in the place of the server tries what an attacker would.
cat >/usr/local/bin/attack <<'ATTACK'
#!/usr/bin/python3
import ctypes, mmap, os, socket
ok = []
open('/var/lib/nbdkit-dedup/allowed', 'w').close()
result = open('/var/lib/nbdkit-dedup/result', 'w')
def tried(name, f):
    try:
        f()
        ok.append(name)
    except Exception:
        pass
def writes(path):
    return lambda: open(path, 'w').close()
def libc(*args):
    def call():
        if ctypes.CDLL(None, use_errno=True).syscall(*args) < 0:
            raise OSError(ctypes.get_errno(), 'refused')
    return call
for path in '/etc/x', '/usr/x', '/run/x', '/var/lib/x', '/root/x', '/dev/shm/x':
    tried('write ' + path, writes(path))
tried('list /home', lambda: os.stat('/home/secret'))
tried('other processes', lambda: os.stat('/proc/1/status'))
tried('TCP', lambda: socket.socket(socket.AF_INET))
tried('raw', lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
tried('netlink', lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
tried('mount', libc(165, b'none', b'/tmp', b'tmpfs', 0, 0))
tried('ptrace', libc(101, 0, 0, 0, 0))
tried('write and execute', lambda: mmap.mmap(-1, 4096, prot=7))
tried('realtime', lambda: os.sched_setscheduler(0, os.SCHED_FIFO,
                                                os.sched_param(1)))
tried('mknod', lambda: os.mknod('/var/lib/nbdkit-dedup/d', 0o20600, 0x103))
tried('unshare', libc(272, 0x10000000))
result.write('\n'.join(ok) + '\n')
ATTACK
chmod +x /usr/local/bin/attack
mkdir -p /home/secret
# Not confined, most of it works: the attempts are real ones.
/usr/local/bin/attack
able=$(wc -l <$state/result)
umount /tmp
[ "$able" -ge 15 ] || die "not confined, only these work: $(cat $state/result)"
rm $state/allowed $state/result /etc/x /usr/x /run/x /var/lib/x /root/x /dev/shm/x
mkdir -p /etc/systemd/system/nbdkit-dedup@attack.service.d
cat >/etc/systemd/system/nbdkit-dedup@attack.service.d/test.conf <<'CONF'
[Service]
Type=oneshot
Restart=no
ExecStart=
ExecStart=/usr/local/bin/attack
CONF
systemctl daemon-reload
systemctl start nbdkit-dedup@attack.service
[ -e $state/allowed ] || die 'the server cannot write to its own directory'
[ "$(tr -d '\n' <$state/result)" = '' ] || die "it could: $(cat $state/result)"
systemctl stop nbdkit-dedup@attack.socket
echo "-- confined: none of $able things worked that others can"

# --- Upgraded and restarted under load ------------------------------------------

qemu-storage-daemon \
  --blockdev driver=nbd,node-name=disk,server.type=unix,server.path=$sock,reconnect-delay=60 \
  --nbd-server addr.type=unix,addr.path=/run/guest.sock \
  --export type=nbd,id=guest,node-name=disk,name=,writable=on &
qsd=$!
wait_for test -S /run/guest.sock
python3 /debs/replaced.py 'nbd+unix:///?socket=/run/guest.sock' 12 >/run/guest 2>&1 &
guest=$!
sleep 2
dpkg -i /debs/nbdkit-plugin-dedup_*.deb >/run/dpkg 2>&1 || die "$(cat /run/dpkg)"
grep -q 'nbdkit-dedup@vm1.service' /run/dpkg || die "not told: $(cat /run/dpkg)"
[ "$(pid_of nbdkit-dedup@vm1.service)" = "$pid" ] ||
  die 'the upgrade has replaced the server'
for i in 1 2 3; do
  sleep 1.5
  from=$(date +%s%3N)
  systemctl restart nbdkit-dedup@vm1.service
  echo "-- restart $i took $(($(date +%s%3N) - from)) ms"
done
[ "$(pid_of nbdkit-dedup@vm1.service)" != "$pid" ] || die 'the same server'
wait $guest || die "the guest saw: $(cat /run/guest)"
echo "-- $(tail -n 1 /run/guest)"
kill $qsd
wait $qsd || true

# --- Killed -------------------------------------------------------------------

kill -9 "$(pid_of nbdkit-dedup@vm1.service)"
closed () { [ "$(systemctl is-active nbdkit-dedup@vm1.socket)" != active ]; }
wait_for closed
[ ! -e $sock ] || die 'the socket of a killed server is there'
systemctl reset-failed 'nbdkit-dedup@vm1.*'
systemctl start nbdkit-dedup@vm1.socket
nbdinfo --size "$uri" >/dev/null
echo '-- after a kill the socket was closed; a start recovered the image'

# --- Removed --------------------------------------------------------------------

DEBIAN_FRONTEND=noninteractive apt-get -q purge -y nbdkit-plugin-dedup \
  >/run/purge 2>&1 || die "$(cat /run/purge)"
[ ! -e $sock ] || die 'a removed package serves'
qemu-img check $state/vm1.qcow2 | grep 'No errors' >/dev/null ||
  die 'the image was not closed'
! journalctl -u 'nbdkit-dedup@vm1.service' -p err --no-pager -q |
  grep -v 'Failed with result\|Main process exited\|kill' | grep . ||
  die 'errors in the journal'
echo '-- removed: the image is closed, and still there'
: >/debs/passed
