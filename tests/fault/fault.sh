# SPDX-License-Identifier: BSD-3-Clause
# Sourced by the tests here, which drive real servers into real trouble.
. "$(dirname "${BASH_SOURCE[0]}")/../interop/lib.sh"
FAULT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SEED=${SEED:-$RANDOM}
# The clients end by os._exit, in mid-sentence.
export PYTHONUNBUFFERED=1
say "seed $SEED (SEED=$SEED $0)"

# small_disk DIR MB: a file system of its own, of that size.
small_disk ()
{
  need_root
  need mkfs.ext4
  truncate -s "$2M" "$1.img"
  mkfs.ext4 -q -m 0 -F -O ^has_journal "$1.img"
  mkdir "$1"
  mount -o loop "$1.img" "$1" 2>/dev/null || skip "no loop devices"
  at_exit "kill_servers; umount '$1'"
}

kill_servers ()
{
  local pid
  for pid in ${server_pids[@]+"${server_pids[@]}"}; do
    kill -9 "$pid" 2>/dev/null && wait "$pid" 2>/dev/null
  done
}

# Kilobytes that a file system has left.
free_kb () { df -k --output=avail "$1" | tail -n 1 | tr -d ' '; }

# Wait until the server, being idle, has made the image clean.
wait_until_clean () # FILE SECONDS
{
  local i
  for ((i = 0; i < $2 * 10; i++)); do
    [ "$(bit48 "$1")" = 0 ] && return 0
    sleep 0.1
  done
  die "$1 is not clean after $2 s without requests"
}

now_ms () { date +%s%3N; }
