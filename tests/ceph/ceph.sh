# SPDX-License-Identifier: BSD-3-Clause
# Sourced by the tests here, which put images on a real Ceph cluster: one monitor and
# one OSD in $TMP, as children of the test, and qemu-nbd for each RBD image.
#
# All sockets are on 127.0.0.1 or below $TMP.  There is one copy of the data and no
# manager: usage of the whole cluster ("ceph df") is not counted.  Needs neither root
# nor systemd nor kernel modules; about 200 MB of memory.
#
# Skips, under ./check as well, where the packages are missing: they are large, and
# tools/install-deps.sh ceph installs them only if they come soon.
. "$(dirname "${BASH_SOURCE[0]}")/../interop/lib.sh"
CEPH=$TMP/ceph
POOL=vms
# Seconds until the OSD drops a client that is silent.  A writer waits for so long
# if the one before it died without giving up the image's lock.
WATCH_TIMEOUT=10

need_ceph ()
{
  local c
  for c in ceph-mon ceph-osd ceph-authtool monmaptool ceph rbd; do
    command -v "$c" >/dev/null || skip "Ceph is not installed ($c)"
  done
  need qemu-nbd nbdinfo
  qemu-img --help | has '^Supported formats:.* rbd' ||
    skip "QEMU's driver for RBD is not installed"
}

# Ceph's own programs wait without end for a monitor that does not answer.
ceph_ () { timeout -k 5 60 ceph -c "$CEPH/ceph.conf" "$@"; }
rbd_ () { timeout -k 5 120 rbd -c "$CEPH/ceph.conf" "$@"; }

wait_for () # SECONDS WHAT COMMAND...
{
  local end=$((SECONDS + $1))
  until "${@:3}" >"$TMP/wait.out" 2>&1; do
    [ $SECONDS -lt $end ] || die "no $2 after $1 s: $(tail -n 1 "$TMP/wait.out")"
    sleep 0.2
  done
}

# Runs a daemon as a child and sets PART_PID.
start_part () # NAME COMMAND...
{
  "${@:2}" >>"$CEPH/$1.out" 2>&1 </dev/null &
  PART_PID=$!
  server_pids+=("$PART_PID")
}

end_part () # SIGNAL PID
{
  kill "-$1" "$2" || die "process $2 has ended by itself"
  wait "$2" 2>/dev/null || true
  forget_server "$2"
}

free_port ()
{
  $PY -c 'import socket
s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

write_conf () # PORT UUID
{
  cat >"$CEPH/ceph.conf" <<CONF
[global]
fsid = $2
mon_host = v2:127.0.0.1:$1
mon_initial_members = a
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_ipv4 = true
ms_bind_ipv6 = false
ms_bind_msgr1 = false
keyring = $CEPH/keyring
auth_allow_insecure_global_id_reclaim = false
# One copy of the data.
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
run_dir = $CEPH/run
crash_dir = $CEPH/crash
pid_file =
admin_socket =
log_file = $CEPH/\$name.log
mon_cluster_log_file = $CEPH/cluster.log
[mon]
mon_data = $CEPH/mon
# The disk of a machine for tests may be rather full.
mon_data_avail_warn = 2
mon_data_avail_crit = 1
[osd]
osd_data = $CEPH/osd
admin_socket = $CEPH/osd.asok
osd_class_update_on_start = false
crush_location = root=default host=test
bluestore_block_size = 12884901888
bluestore_cache_autotune = false
bluestore_cache_size = 67108864
osd_op_num_shards = 2
osd_op_num_threads_per_shard = 1
osd_client_watch_timeout = $WATCH_TIMEOUT
[client]
log_file =
# By default librbd drops trims of less than 64 KiB.
rbd_discard_granularity_bytes = 4096
# Keeps writes for a second, where the default sends them at once: a flush that is
# lost on the way shows.
rbd_cache_policy = writeback
rbd_cache_writethrough_until_flush = false
CONF
}

# The keys of all, before there is a monitor that could make them.
make_keys ()
{
  local k=$CEPH/keyring
  ceph-authtool -C "$k" -n mon. --gen-key --cap mon 'allow *'
  ceph-authtool "$k" -n client.admin --gen-key --cap mon 'allow *' \
    --cap mgr 'allow *' --cap osd 'allow *'
  ceph-authtool "$k" -n osd.0 --gen-key --cap mon 'allow profile osd' \
    --cap mgr 'allow profile osd' --cap osd 'allow *'
}

osd_is_up () { ceph_ osd stat -f json | has '"num_up_osds":1[,}]'; }

start_osd ()
{
  start_part osd ceph-osd -f -i 0 -c "$CEPH/ceph.conf"
  OSD_PID=$PART_PID
  wait_for 90 OSD osd_is_up
}

start_cluster ()
{
  local port fsid osd
  fsid=$(cat /proc/sys/kernel/random/uuid)
  osd=$(cat /proc/sys/kernel/random/uuid)
  port=$(free_port)
  mkdir -p "$CEPH"/{run,crash,mon,osd}
  {
    write_conf "$port" "$fsid"
    make_keys
    monmaptool --create --fsid "$fsid" --addv a "[v2:127.0.0.1:$port]" "$CEPH/monmap"
    ceph-mon -i a -c "$CEPH/ceph.conf" --mkfs --monmap "$CEPH/monmap" \
      --keyring "$CEPH/keyring"
  } >"$CEPH/setup.out" 2>&1 || die "Ceph: $(tail -n 3 "$CEPH/setup.out")"
  start_part mon ceph-mon -f -i a -c "$CEPH/ceph.conf"
  wait_for 90 monitor ceph_ mon stat
  {
    ceph_ osd new "$osd" 0
    ceph-osd -i 0 -c "$CEPH/ceph.conf" --mkfs --osd-uuid "$osd"
  } >"$CEPH/setup.out" 2>&1 || die "Ceph: $(tail -n 3 "$CEPH/setup.out")"
  start_osd
}

make_pool ()
{
  {
    ceph_ osd pool create $POOL 8 8 replicated
    ceph_ osd pool application enable $POOL rbd
  } >"$CEPH/setup.out" 2>&1 || die "Ceph: $(tail -n 3 "$CEPH/setup.out")"
}

# Bytes that an RBD image takes in the cluster.
rbd_used () # IMAGE
{
  rbd_ du --format json "$POOL/$1" |
    $PY -c 'import json, sys; print(json.load(sys.stdin)["images"][0]["used_size"])'
}

# Bytes of data that the OSD has allocated, for all images.
osd_allocated ()
{
  timeout 60 ceph --admin-daemon "$CEPH/osd.asok" perf dump bluestore | $PY -c '
import json, sys
print(json.load(sys.stdin)["bluestore"]["bluestore_allocated"])'
}

# Puts the only client that has an RBD image open on the blocklist, and sets CLIENT to its
# address.  The next one need not wait then until the OSD misses a client that was killed.
fence_client () # IMAGE
{
  rbd_ status "$POOL/$1" >"$TMP/status"
  CLIENT=$(sed -n 's/.*watcher=\([^ ]*\) .*/\1/p' "$TMP/status")
  equal "clients that have the image $1 open" "$(wc -w <<<"$CLIENT")" 1
  ceph_ osd blocklist add "$CLIENT" >/dev/null 2>&1
}

# Serves an RBD image on RBD_URI, from the process RBD_PID.  NAME tells several servers
# of one image apart.  The raw layer above matters: with the driver rbd alone, QEMU
# 7.2 answers FUA writes that were not flushed.
serve_rbd () # IMAGE [NAME]
{
  local name=${2-$1}
  rm -f "$TMP/$name.sock"
  start_part "$name" qemu-nbd -t -k "$TMP/$name.sock" -e 16 --cache=writeback \
    --discard=unmap --image-opts \
    "driver=raw,file.driver=rbd,file.pool=$POOL,file.image=$1,file.conf=$CEPH/ceph.conf"
  RBD_PID=$PART_PID
  RBD_URI="nbd+unix:///?socket=$TMP/$name.sock"
  wait_for 90 "server of $1" nbdinfo --size "$RBD_URI"
}
