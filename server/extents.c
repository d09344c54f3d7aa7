/* SPDX-License-Identifier: BSD-3-Clause */
/* Extents: tells which ranges of a disk hold data and which read as zeroes.
 *
 * The tables of the root are looked up first, and the backing chain where they
 * have no entry.  Adjacent extents of one type are merged.
 *
 * Threads: any.  No range lock is taken: the result shows one moment, and may
 * or may not include a write that is in flight.
 */
#include <errno.h>

#include "checked.h"
#include "clock.h"
#include "disk-internal.h"

#define EXTENTS_PER_MAP 64

struct extent_merge {
  int (*cb) (void *opaque, uint64_t guest_off, uint64_t len,
             enum srv_extent_type type);
  void *opaque;
  bool only_one, done;

  /* The extent that is being merged; none while len is 0: */
  uint64_t guest_off, len;
  enum srv_extent_type type;
};

static int MUST_CHECK
emit_extent (struct extent_merge *m)
{
  int r;

  if (m->len == 0 || m->done)
    return 0;
  r = m->cb (m->opaque, m->guest_off, m->len, m->type);
  m->done = r != 0 || m->only_one;
  m->guest_off += m->len;
  m->len = 0;
  return r;
}

static int MUST_CHECK
add_extent (struct extent_merge *m, uint64_t len, enum srv_extent_type type)
{
  int r = 0;

  if (m->len > 0 && m->type != type)
    r = emit_extent (m);
  m->type = type;
  m->len += len;
  return r;
}

/* Adds the extents that the backing chain has in a range where the root has no
 * entry. */
static int MUST_CHECK
add_unallocated (struct srv_disk *d, struct extent_merge *m,
                 uint64_t guest_off, uint64_t len)
{
  struct qcow2_image *img = dedup_image (d->pool);
  int r = 0;

  while (r == 0 && len > 0 && !m->done) {
    uint64_t run = len;
    enum qcow2_kind kind;

    r = qcow2_backing_status (img, guest_off, &run, &kind);
    if (r < 0)
      return srv_nbd_result (r);
    if (run == 0 || run > len)
      return -EIO;
    r = add_extent (m, run, kind == QCOW2_DATA ? SRV_DATA : SRV_HOLE_ZERO);
    guest_off += run;
    len -= run;
  }
  return r;
}

static int MUST_CHECK
add_mapped (struct srv_disk *d, struct extent_merge *m,
            const struct qcow2_extent *ext)
{
  switch (ext->kind) {
  case QCOW2_UNALLOCATED:
    return add_unallocated (d, m, ext->guest_off, ext->len);
  case QCOW2_ZERO:
    return add_extent (m, ext->len, SRV_ZERO);
  default:
    return add_extent (m, ext->len, SRV_DATA);
  }
}

/* Adds as many extents as one qcow2_map returns.  *COVERED: their length. */
static int MUST_CHECK
add_range (struct srv_disk *d, struct extent_merge *m, uint64_t guest_off,
           uint64_t len, uint64_t *covered)
{
  struct qcow2_extent ext[EXTENTS_PER_MAP];
  int nr, i, r = 0;

  *covered = 0;
  nr = qcow2_map (dedup_image (d->pool), d->root, guest_off, len, ext,
                  EXTENTS_PER_MAP);
  if (nr <= 0)
    return nr < 0 ? srv_nbd_result (nr) : -EIO;
  for (i = 0; i < nr && r == 0 && !m->done; ++i) {
    r = add_mapped (d, m, &ext[i]);
    *covered += ext[i].len;
  }
  return r;
}

static int MUST_CHECK
extents_inside (struct srv_disk *d, uint64_t guest_off, uint32_t len,
                bool only_one, srv_extent_cb cb, void *opaque)
{
  struct extent_merge m = {
    .cb = cb, .opaque = opaque, .only_one = only_one, .guest_off = guest_off,
  };
  uint64_t covered;
  int r = srv_disk_check_range (d, guest_off, len);

  while (r == 0 && len > 0 && !m.done) {
    r = add_range (d, &m, guest_off, len, &covered);
    guest_off += covered;
    len -= covered;
  }
  return r == 0 ? emit_extent (&m) : r;
}

static int MUST_CHECK
extents_gated (struct srv_disk *d, uint64_t guest_off, uint32_t len,
               bool only_one, srv_extent_cb cb, void *opaque)
{
  int r = srv_gate_enter (&d->gate);

  if (r < 0)
    return r;
  r = extents_inside (d, guest_off, len, only_one, cb, opaque);
  srv_gate_leave (&d->gate);
  return r;
}

int
srv_extents (struct srv_disk *d, uint64_t guest_off, uint32_t len,
             bool only_one, srv_extent_cb cb, void *opaque)
{
  const uint64_t start_ns = clock_now_ns ();

  return srv_disk_count (d, SRV_REQUEST_BLOCK_STATUS, guest_off, len, start_ns,
                         extents_gated (d, guest_off, len, only_one, cb,
                                        opaque));
}
