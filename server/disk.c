/* SPDX-License-Identifier: BSD-3-Clause */
/* A disk: one root of an image as an export.
 *
 * Owns what the requests to one root share: its size, the gate that counts them,
 * the range lock that keeps them apart, and the sequential readers.  The requests
 * themselves are in request.c and extents.c; exports.c decides when there is a
 * disk for a root.
 *
 * A disk that gets larger does so for all its clients at once: a request that
 * completes the partial last cluster must know where the disk ends.  No request
 * is under way at that moment.
 *
 * Threads: any.
 */
#include <errno.h>
#include <string.h>

#include "checked.h"
#include "clock.h"
#include "disk-internal.h"
#include "root.h"

static void
set_size (struct srv_disk *d, uint64_t size_bytes)
{
  __atomic_store_n (&d->size_bytes, size_bytes, __ATOMIC_RELAXED);
  __atomic_store_n (&d->nr_clusters,
                    div_round_up (size_bytes, UINT64_C (1) << d->cluster_bits),
                    __ATOMIC_RELAXED);
}

void
srv_disk_init (struct srv_disk *d, struct dedup_pool *pool, unsigned root,
               bool writable, struct srv_space *space)
{
  struct srv_root info;

  srv_root_look (dedup_image (pool), root, &info);
  memset (d, 0, sizeof *d);
  d->pool = pool;
  d->root = root;
  d->writable = writable && info.writable;
  d->cluster_bits = qcow2_geometry (dedup_image (pool))->cluster_bits;
  d->space = space;
  d->last_change_ns = &d->own_last_change_ns;
  set_size (d, info.size);
  srv_gate_init (&d->gate);
  srv_range_lock_init (&d->ranges);
  srv_read_ahead_init (&d->read_ahead);
}

void
srv_disk_destroy (struct srv_disk *d)
{
  srv_gate_destroy (&d->gate);
  srv_range_lock_destroy (&d->ranges);
  srv_read_ahead_destroy (&d->read_ahead);
  srv_scattered_destroy (&d->scattered);
}

void
srv_disk_shut (struct srv_disk *d)
{
  srv_gate_shut (&d->gate);
  srv_range_lock_shut (&d->ranges);
  srv_gate_drain (&d->gate);
}

void
srv_disk_grow (struct srv_disk *d)
{
  struct srv_root info;

  srv_root_look (dedup_image (d->pool), d->root, &info);
  if (info.size <= srv_disk_size (d))
    return;
  srv_gate_pause (&d->gate);
  srv_gate_drain (&d->gate);
  set_size (d, info.size);
  srv_gate_resume (&d->gate);
}

/* --- Activity and counters ------------------------------------------------ */

void
srv_disk_note_change (struct srv_disk *d)
{
  __atomic_store_n (d->last_change_ns, clock_now_ns (), __ATOMIC_RELAXED);
}

int
srv_disk_count (struct srv_disk *d, enum srv_request type, uint64_t guest_off,
                uint64_t len, uint64_t start_ns, int r)
{
  const struct srv_accounts *a = d->accounts;

  if (a == NULL)
    return r;
  srv_counters_note (&d->counters, type, len, r);
  srv_meter_count (a->meter, type, len, clock_now_ns () - start_ns, r);
  if (r < 0)
    a->failed (a->opaque, d, type, guest_off, len, -r);
  return r;
}

/* --- For all requests ----------------------------------------------------- */

uint64_t
srv_disk_max_piece (const struct srv_disk *d)
{
  uint64_t nr = DEDUP_CHUNK_BYTES >> d->cluster_bits;

  return MAX_OF (1, MIN_OF (nr, DEDUP_CHUNK_CLUSTERS));
}

/* A file can fail with more errors than NBD has.  -EINVAL from below means
 * bytes that contradict the format, which is no error of the client's. */
int
srv_nbd_result (int r)
{
  switch (-r) {
  case 0: case EIO: case ENOSPC: case ENOMEM: case EPERM: case EROFS:
  case ENOTSUP: case ESHUTDOWN:
    return r;
  case EDQUOT: case EFBIG:
    return -ENOSPC;
  default:
    return r > 0 ? 0 : -EIO;
  }
}

int
srv_disk_check_range (const struct srv_disk *d, uint64_t guest_off,
                      uint64_t len)
{
  const uint64_t size = srv_disk_size (d);

  return guest_off > size || len > size - guest_off ? -EINVAL : 0;
}

/* --- Properties ----------------------------------------------------------- */

uint64_t
srv_disk_size (const struct srv_disk *d)
{
  return __atomic_load_n (&d->size_bytes, __ATOMIC_RELAXED);
}

bool
srv_disk_writable (const struct srv_disk *d)
{
  return d->writable;
}

uint32_t
srv_disk_preferred_block (const struct srv_disk *d)
{
  return UINT32_C (1) << d->cluster_bits;
}
