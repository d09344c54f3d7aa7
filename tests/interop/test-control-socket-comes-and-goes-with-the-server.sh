#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The control socket has mode 0600, is there before the server is in the background, and
# is gone when it has ended.  One that a dead server left is replaced; one of a live
# server, a file, and a path that is too long are refused in one line, and the image
# stays as it was.  Images that are open for reading and images that can have no disks
# refuse changes in one line; all else works there.
# Breaks if: others can connect, a second server takes the socket away from the first,
# a killed server keeps the next from starting, or a read-only image is changed.
. "$(dirname "$0")/lib.sh"

cd "$TMP"
tool create --pool pool.qcow2
tool disk create pool.qcow2 vm1 1M
tool create single.qcow2 1M
ask () # SOCKET PYTHON...: runs the lines with c, a client
{
  $PY - "$1" "$HERE" "$2" <<'PYTHON'
import sys
sys.path.insert(0, sys.argv[2])
from controlclient import Client
c = Client(sys.argv[1])
exec(sys.argv[3])
PYTHON
}

say "mode, and a second server"
start_server pool.qcow2 control="$TMP/control"
equal "mode of the socket" "$(stat -c '%F %a' control)" "socket 600"
ask control "assert c.greeting['version']['qemu']['major'] >= 0"
cp single.qcow2 before.qcow2
refused try_plugin single.qcow2 control="$TMP/control"
one_error_line "$TMP/control" 'server'
cmp single.qcow2 before.qcow2 || die "the image of the refused server has changed"
ask control "assert c.ok('query-status')['running']"
stop_server
[ ! -e control ] || die "the socket is still there"

say "other paths"
echo keep >file
refused try_plugin single.qcow2 control="$TMP/file"
one_error_line "$TMP/file"
equal "the file" "$(cat file)" keep
refused try_plugin single.qcow2 control="$TMP/no/such/directory"
one_error_line "$TMP/no/such/directory"
refused try_plugin single.qcow2 control=
one_error_line control=
refused try_plugin single.qcow2 control="$TMP/$(printf 'x%.0s' {1..120})"
one_error_line control= 'too long'
cmp single.qcow2 before.qcow2 || die "the image of a refused server has changed"

say "a relative path, and a server that is killed"
start_server pool.qcow2 control=control
ask "$TMP/control" "assert c.ok('query-block-exports')[0]['id'] == 'vm1'"
kill_server
[ -S control ] || die "kill -9 removed the socket"
start_server pool.qcow2 control="$TMP/control"
ask control "assert c.ok('query-block-exports')[0]['id'] == 'vm1'"
stop_server

say "an image that is open for reading"
tool recover pool.qcow2 >/dev/null
cp pool.qcow2 before.qcow2
start_server -r pool.qcow2 control="$TMP/control"
ask control "
s = c.ok('query-status')
assert s['running'] and s['read-only'] and '-r' in s['reason'], s
assert c.ok('query-named-block-nodes')[0]['ro']
for name, args in (
    ('disk-create', dict(name='x', size=512)),
    ('disk-clone', dict(source='vm1', name='x')),
    ('disk-snapshot', dict(name='vm1', snapshot='x')),
    ('disk-reset', dict(name='vm1', source='vm1@x')),
    ('disk-rename', dict(name='vm1', new_name='x')),
    ('disk-resize', dict(name='vm1', size=2 << 20)),
    ('disk-set', dict(name='vm1', compress='off')),
    ('disk-delete', dict(name='vm1')),
    ('index-existing', {}), ('checkpoint', {})):
    c.error(name, '', **args)
assert [d['name'] for d in c.ok('query-disks')] == ['vm1']
assert c.ok('query-jobs') == []
c.ok('flush')
c.ok('set', commit_interval=1)
"
stop_server
cmp pool.qcow2 before.qcow2 || die "a read-only image has changed"

say "an image that can have one disk only"
qemu-img create -q -f qcow2 -o compat=0.10 single.qcow2 1M
start_server single.qcow2 dedup=off control="$TMP/control"
ask control "
c.error('disk-create', 'store', name='x', size=1 << 20)
c.error('disk-clone', 'store', source='', name='x')
c.error('disk-snapshot', '', name='', snapshot='x')
assert [d['kind'] for d in c.ok('query-disks')] == ['active']
assert c.ok('query-block-exports') == [
    {'id': '', 'shutting-down': False, 'node-name': 'image', 'type': 'nbd'}]
c.ok('checkpoint')
c.ok('quit')
c.rest()
"
rc=0
wait "$SRV_PID" || rc=$?
forget_server "$SRV_PID"
equal "status of the server after quit" $rc 0
[ ! -e control ] || die "the socket is still there"
check_clean single.qcow2

say "in the background"
nbdkit_cmd -U "$TMP/s" --pidfile "$TMP/pid" "$PLUGIN" single.qcow2 \
  dedup=off control="$TMP/control" &
wait $!
at_exit 'kill -9 $(cat "$TMP/pid") 2>/dev/null'
equal "mode of the socket" "$(stat -c '%F %a' control)" "socket 600"
ask control "c.ok('quit'); c.rest()"
for ((i = 0; i < 200; i++)); do
  kill -0 "$(cat pid)" 2>/dev/null || break
  sleep 0.05
done
! kill -0 "$(cat pid)" 2>/dev/null || die "the server in the background did not end"
[ ! -e control ] || die "the socket is still there"
check_clean single.qcow2
