#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The commands of docs/guides/ceph.md work as they are printed, on a real cluster: from
# an empty one to a machine that boots from a clone in a pool on RBD.
# Breaks if: a command in the guide is wrong, or needs something that the guide does
# not say.
. "$(dirname "$0")/ceph.sh"
need_root
need_ceph
need qemu-system-x86_64 unshare

start_cluster
mkdir "$TMP/etc"
grep -v '^keyring' "$CEPH/ceph.conf" >"$TMP/etc/ceph.conf"
cp "$CEPH/keyring" "$TMP/etc/ceph.client.admin.keyring"
CEPH_ETC=$TMP/etc "$HERE/test-guides-work-as-printed.sh" ceph
