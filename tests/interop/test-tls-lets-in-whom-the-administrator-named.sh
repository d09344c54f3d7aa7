#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# contrib/tls/nbd-tls makes certificates and keys that nbdkit, libnbd and QEMU take
# as they are.  Over TLS, with certificates (TCP on loopback) and with pre-shared
# keys (a Unix socket), nbdcopy, qemu-img and qemu-io write and read the disk, and
# what they wrote twice is stored once.  Refused are clients without TLS, without a
# certificate, with one of another authority or with another key, and a server whose
# certificate has another name or that the client's authority did not sign; and this
# program never connects where libnbd would not verify the server.  An image
# on an export behind TLS (uri=nbds://..., uri=nbds+unix://...) is created, served and
# checked in the same ways, and refused in one line to those without the right key.
# nbd-tls never writes over a file, and no key can be read by others.
# Breaks if: a file that nbd-tls makes is not what these programs expect, or a
# stranger gets in.
. "$(dirname "$0")/lib.sh"
need certtool psktool nbdcopy nbdinfo qemu-img qemu-io
nbd_tls=$HERE/../../contrib/tls/nbd-tls
cd "$TMP"

say 'keys and certificates'
"$nbd_tls" ca pki 'test authority'
"$nbd_tls" server pki localhost 127.0.0.1
"$nbd_tls" client pki vm1
"$nbd_tls" psk alice/keys.psk alice 2>/dev/null && die 'a folder was invented'
mkdir alice bob
"$nbd_tls" psk alice/keys.psk alice
"$nbd_tls" psk bob/keys.psk bob
(umask 077; printf %s "$(cat alice/keys.psk)" >all.psk)   # a line without its end
"$nbd_tls" psk all.psk al
"$nbd_tls" ca strangers
"$nbd_tls" client strangers vm1
"$nbd_tls" server strangers localhost 127.0.0.1

equal 'the keys that others can read' \
  "$(find . \( -name '*-key.pem' -o -name '*.psk' \) -perm /077)" ''
for purpose in server=1.3.6.1.5.5.7.3.1 client=1.3.6.1.5.5.7.3.2; do
  kind=${purpose%=*}
  certtool --verify --verify-purpose="${purpose#*=}" \
    --load-ca-certificate pki/ca-cert.pem \
    --infile "$(echo pki/*/$kind-cert.pem)" >verify 2>&1 ||
    die "$kind: $(cat verify)"
done
find . -name '*.pem' -o -name '*.psk' | sort | xargs cksum >before
for again in 'ca pki' 'server pki localhost' 'client pki vm1' \
             'psk all.psk alice'; do
  # Words on purpose.
  refused "$nbd_tls" $again
  one_error_line nbd-tls already
done
for name in ../vm2 -x 'a b' 'a"' ''; do
  refused "$nbd_tls" client pki "$name"
  one_error_line nbd-tls 'is no name'
done
refused "$nbd_tls" client nowhere vm1
one_error_line nowhere/ca-cert.pem missing
find . -name '*.pem' -o -name '*.psk' | sort | xargs cksum | cmp - before

say 'certificates, over TCP'
# Listens on a free port of loopback, prints it, and becomes the command.
cat >listen.py <<'PYTHON'
import os, socket, sys
s = socket.create_server(('127.0.0.1', 0))
os.dup2(s.fileno(), 3)
os.set_inheritable(3, True)
with open(sys.argv[1], 'w') as f:
    print(s.getsockname()[1], file=f)
os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))
os.execvp(sys.argv[2], sys.argv[2:])
PYTHON
serve_tcp () # FOLDER FLAG...: sets SRV_PID, SRV_LOG and PORT
{
  serve_on_tcp "$@" "$PLUGIN" disk.qcow2 size=64M
}
serve_on_tcp () # FOLDER ARGUMENT...
{
  SRV_LOG=$TMP/tcp.log
  rm -f port
  (
    if [ -n "$preload" ]; then export LD_PRELOAD=$preload; fi
    exec $PY listen.py port nbdkit -f --tls=require --tls-certificates="$1" \
      "${@:2}"
  ) >"$SRV_LOG" 2>&1 &
  SRV_PID=$!
  server_pids+=("$SRV_PID")
  local i
  for ((i = 0; i < 600; i++)); do
    [ ! -s port ] || break
    sleep 0.05
  done
  PORT=$(cat port)
}
certificates () # FOLDER
{
  echo "nbds://localhost:$PORT/?tls-certificates=$TMP/$1"
}
qemu_opts () # ID, HOST: options that come first, and the disk
{
  printf '%s\n' --image-opts \
    "driver=nbd,server.type=inet,server.host=$2,server.port=$PORT,tls-creds=$1"
}
x509 () # FOLDER
{
  echo "tls-creds-x509,id=tls,endpoint=client,verify-peer=yes,dir=$TMP/$1"
}
turned_away () # REASON COMMAND...
{
  refused briefly "${@:2}"
  has -iE -- "$1" refused || die "not because of '$1': $(cat refused)"
}
briefly () { with_timeout 60 "$@"; }
# Which of the two says why depends on the version of libnbd.
plain_is_turned_away () # URI
{
  turned_away 'requires TLS' sh -c 'nbdinfo --size "$0" || nbdinfo "$0"' "$1"
}

random_file in.raw 8
truncate -s 64M in.raw
serve_tcp "$TMP/pki/localhost" --tls-verify-peer
briefly nbdcopy --flush --connections=4 in.raw "$(certificates pki/vm1)"
mapfile -t disk < <(qemu_opts tls 127.0.0.1)
briefly qemu-io --object "$(x509 pki/vm1)" "${disk[@]}" -c 'read -P 0 60M 1M' \
  -c 'write -P 9 32M 1M' -c flush -c 'read -P 9 32M 1M' >qemu-io.out 2>&1
! has -i 'fail\|error' qemu-io.out || die "$(cat qemu-io.out)"
equal 'qemu-io: reads and writes' "$(grep -c '^[a-z]* 1048576/1048576' qemu-io.out)" 3
cp in.raw want.raw
$PY -c 'import sys; sys.stdout.buffer.write(b"\x09" * 1048576)' |
  dd of=want.raw bs=1M seek=32 conv=notrunc status=none
briefly qemu-img convert --object "$(x509 pki/vm1)" "${disk[@]}" -O raw out.raw
cmp want.raw out.raw
briefly nbdcopy "$(certificates pki/vm1)" out.raw
cmp want.raw out.raw

say 'strangers'
plain_is_turned_away "nbd://localhost:$PORT/"
turned_away 'certificate' nbdinfo --size "$(certificates strangers/vm1)"
mkdir none
cp pki/ca-cert.pem none
turned_away TLS nbdinfo --size "$(certificates none)"
turned_away TLS qemu-img info --object "$(x509 none)" "${disk[@]}"
turned_away 'certificate' qemu-img info --object "$(x509 strangers/vm1)" "${disk[@]}"
# A client that trusts us, with a certificate that we did not sign.
cp -r strangers/vm1 mixed
cp pki/ca-cert.pem mixed
turned_away TLS nbdinfo --size "$(certificates mixed)"
briefly nbdinfo --size "$(certificates pki/vm1)" >size
equal 'the size, after them' "$(cat size)" 67108864
stop_server

say 'servers that are not the one that was meant'
"$nbd_tls" server pki elsewhere
serve_tcp "$TMP/pki/elsewhere" --tls-verify-peer
turned_away 'certificate' nbdinfo --size "$(certificates pki/vm1)"
mapfile -t disk < <(qemu_opts tls 127.0.0.1)
turned_away 'certificate' qemu-img info --object "$(x509 pki/vm1)" "${disk[@]}"
stop_server
serve_tcp "$TMP/strangers/localhost"
turned_away 'certificate' nbdinfo --size "$(certificates pki/vm1)"
# It wants no certificate, and libnbd takes it if there is none to compare with.
as_uri () # URI PATTERN: plugin and tool refuse it
{
  refused try_plugin "uri=$1"
  one_error_line "$1" "$2"
  refused briefly "$TOOL" unlock "$1"
  one_error_line "$1" "$2"
}
as_uri "nbds://localhost:$PORT/" 'would not be verified: add'
as_uri "nbds://localhost:$PORT/?tls-certificate=$TMP/pki/vm1" 'would not be verified: add'
as_uri "$(certificates nowhere)" 'nowhere/ca-cert.pem: No such file.*would not be verified'
as_uri "$(certificates bob)" 'bob/ca-cert.pem: No such file.*would not be verified'
as_uri "$(certificates nowhere)&tls-certificates=$TMP/pki/vm1" 'nowhere/ca-cert.pem'
cp -r pki/vm1 half
rm half/client-key.pem
as_uri "$(certificates half)" 'half/client-key.pem: No such file'
tcp_pid=$SRV_PID
tool create --pool pool.qcow2
start_server pool.qcow2 control="$TMP/control"
tool control "$TMP/control" import name=x uri="nbds://localhost:$PORT/" >job || true
for ((i = 0; i < 600; i++)); do
  ! grep -qE "import of 'x'|'x' was imported" "$SRV_LOG" || break
  sleep 0.05
done
# The last words come from libnbd, on a host that has an authority.
grep -qE "import of 'x'.*(would not be verified|certificate verification)" "$SRV_LOG" ||
  die "an import does not look at the server's certificate"
stop_server
SRV_PID=$tcp_pid
SRV_LOG=$TMP/tcp.log
stop_server

say 'pre-shared keys, over a Unix socket'
start_server disk.qcow2 --tls=require --tls-psk="$TMP/all.psk"
key () # FOLDER USER
{
  echo "nbds+unix://$2@/?socket=$SOCK&tls-psk-file=$TMP/$1/keys.psk"
}
psk_opts () # FOLDER USER
{
  printf '%s\n' --object \
    "tls-creds-psk,id=tls,endpoint=client,dir=$TMP/$1,username=$2" --image-opts \
    "driver=nbd,server.type=unix,server.path=$SOCK,tls-creds=tls"
}
briefly nbdcopy "$(key alice alice)" out.raw
cmp want.raw out.raw
mapfile -t disk < <(psk_opts alice alice)
briefly qemu-img convert "${disk[@]}" -O raw out.raw
cmp want.raw out.raw
briefly qemu-io "${disk[@]}" -c 'write -P 9 48M 1M' -c flush >/dev/null
briefly qemu-io "${disk[@]}" -c 'read -P 9 48M 1M' >qemu-io.out
! has -i 'fail' qemu-io.out || die "$(cat qemu-io.out)"
plain_is_turned_away "$URI"
turned_away TLS nbdinfo --size "$(key bob bob)"
sed 's/^bob/alice/' bob/keys.psk >none/keys.psk
turned_away TLS nbdinfo --size "$(key none alice)"
mapfile -t disk < <(psk_opts bob bob)
turned_away TLS qemu-img info "${disk[@]}"
stop_server

say 'written twice, stored once'
check_clean disk.qcow2
$PY -c 'import sys; sys.stdout.buffer.write(b"\x09" * 1048576)' |
  dd of=want.raw bs=1M seek=48 conv=notrunc status=none
same_as_raw want.raw disk.qcow2
equal data-clusters "$(data_clusters disk.qcow2)" "$(distinct_blocks want.raw)"

say 'an image behind TLS, with certificates'
truncate -s 256M remote.raw
serve_on_tcp "$TMP/pki/localhost" --tls-verify-peer file remote.raw
remote_pid=$SRV_PID
remote=$(certificates pki/vm1)
turned_away TLS "$TOOL" create "$(certificates none)" 64M
one_error_line "$(certificates none)" "did not accept the client's certificate"
turned_away certificate "$TOOL" create "$(certificates strangers/vm1)" 64M
one_error_line "$(certificates strangers/vm1)"
turned_away TLS "$TOOL" create "nbd://localhost:$PORT/" 64M
equal 'bytes that strangers wrote' "$(disk_usage remote.raw)" 0
briefly "$TOOL" create "$remote" 64M
start_server uri="$remote"
briefly nbdcopy --flush --connections=4 want.raw "$URI"
served_as_raw want.raw
stop_server
briefly "$TOOL" check "$remote" >check.out || die "$(cat check.out)"
equal 'data-clusters of the remote image' "$(data_clusters "$remote")" \
  "$(distinct_blocks want.raw)"
SRV_PID=$remote_pid
SRV_LOG=$TMP/tcp.log
stop_server

say 'an image behind TLS, with a pre-shared key'
start_remote ()
{
  SOCK=$TMP/remote.sock
  SRV_LOG=$TMP/remote.log
  nbdkit -f -U "$SOCK" --tls=require --tls-psk="$TMP/all.psk" file remote.raw \
    >"$SRV_LOG" 2>&1 &
  SRV_PID=$!
  server_pids+=("$SRV_PID")
  local i
  for ((i = 0; i < 600; i++)); do
    [ ! -S "$SOCK" ] || break
    sleep 0.05
  done
}
start_remote
remote=$(key alice alice)
refused briefly "$TOOL" info "$(key bob bob)"
one_error_line "$(key bob bob)" TLS
start_server uri="$remote" -r
served_as_raw want.raw
stop_server
