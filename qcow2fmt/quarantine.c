/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps clusters in quarantine that were freed by a record which is not known
 * to be durable yet (law 6), in the order of the records.
 *
 * While a new place of refcount table, snapshot table or anchor L1 is not in
 * the file's header, nothing leaves quarantine: the old place, freed by the
 * same group, is where the next open reads.
 *
 * Released clusters are returned to the allocator (alloc.c); in the part of the
 * file that is not scanned yet they are left for the scan to find.  If there is
 * no memory for an entry, its clusters are lost until the next open, but never
 * used too early.
 *
 * It has no threads; the image's lock protects it.  Giving the space of
 * released clusters back to the host is left to the caller.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bitset.h"
#include "checked.h"
#include "image.h"

static struct qcow2_quarantined *
ring_at (const struct qcow2_alloc *a, size_t i)
{
  return &a->q[(a->q_head + i) % a->q_max];
}

static int
grow_ring (struct qcow2_alloc *a)
{
  size_t max = a->q_max ? a->q_max * 2 : 64;
  struct qcow2_quarantined *q = calloc (max, sizeof *q);

  if (!q)
    return -ENOMEM;
  for (size_t i = 0; i < a->q_len; ++i)
    q[i] = *ring_at (a, i);
  free (a->q);
  a->q = q;
  a->q_max = max;
  a->q_head = 0;
  return 0;
}

/* Joins B to *A if they touch and are both trimmed or both not. */
static bool
join (struct qcow2_run *a, const struct qcow2_run *b)
{
  if (a->trimmed != b->trimmed)
    return false;
  if (b->host_idx + b->count == a->host_idx)
    a->host_idx = b->host_idx;
  else if (a->host_idx + a->count != b->host_idx)
    return false;
  a->count += b->count;
  return true;
}

void
qcow2_quarantine_locked (struct qcow2_image *img, const struct qcow2_run *run,
                         uint64_t seq)
{
  struct qcow2_alloc *a = &img->alloc;
  struct qcow2_quarantined *last;

  assert (lock_held (&img->lock));
  if (run->count == 0)
    return;
  if (mutation (MUTATION_LAW_6_NO_QUARANTINE)) {
    qcow2_alloc_found_free_locked (img, run->host_idx, run->count);
    return;
  }
  a->frontier = MAX_OF (a->frontier, run->host_idx + run->count);
  qcow2_alloc_keep_locked (img, run->host_idx, run->count);
  last = a->q_len > 0 ? ring_at (a, a->q_len - 1) : NULL;
  if (last && last->seq > seq)
    seq = last->seq;           /* keep the order: later is safe */
  if (!last || last->seq != seq || !join (&last->run, run)) {
    if (a->q_len == a->q_max && grow_ring (a) < 0) {
      a->frees_lost = true;    /* until the next open */
      return;
    }
    a->q_len++;
    *ring_at (a, a->q_len - 1) = (struct qcow2_quarantined) { seq, *run };
  }
  a->nr_quarantined += run->count;
}

static int
by_host_idx (const void *a, const void *b)
{
  const struct qcow2_run *ra = a, *rb = b;

  return (ra->host_idx > rb->host_idx) - (ra->host_idx < rb->host_idx);
}

size_t
qcow2_coalesce (struct qcow2_run *runs, size_t nr)
{
  size_t n = 0;

  qsort (runs, nr, sizeof *runs, by_host_idx);
  for (size_t i = 0; i < nr; ++i)
    if (n == 0 || !join (&runs[n - 1], &runs[i]))
      runs[n++] = runs[i];
  return n;
}

bool
qcow2_quarantine_shut_locked (struct qcow2_image *img)
{
  assert (lock_held (&img->lock));
  return img->header_dirty || img->header_writing;
}

size_t
qcow2_quarantine_take_locked (struct qcow2_image *img, uint64_t seq,
                              struct qcow2_run *runs, size_t max)
{
  struct qcow2_alloc *a = &img->alloc;
  size_t n;

  assert (lock_held (&img->lock));
  if (qcow2_quarantine_shut_locked (img))
    return 0;
  for (n = 0; n < max && a->q_len > 0 && a->q[a->q_head].seq <= seq; ++n) {
    runs[n] = a->q[a->q_head].run;
    a->nr_quarantined -= runs[n].count;
    a->q_head = (a->q_head + 1) % a->q_max;
    a->q_len--;
  }
  return n;
}

/* Remembers released clusters in the part that is not scanned yet, so that the
 * scan does not take them for suspects. */
static void
remember_released (struct qcow2_alloc *a, uint64_t first, uint64_t end)
{
  int r;

  first = MAX_OF (first, a->scan_next);
  end = MIN_OF (end, a->scan_end);
  if (first < end && (r = qcow2_bitset_set (a->released, first, end - first)) < 0)
    return;                      /* then they become suspects */
}

void
qcow2_release_locked (struct qcow2_image *img, const struct qcow2_run *runs,
                      size_t nr)
{
  struct qcow2_alloc *a = &img->alloc;
  uint64_t first, end;

  assert (lock_held (&img->lock));
  for (size_t i = 0; i < nr; ++i) {
    first = runs[i].host_idx;
    end = first + runs[i].count;
    qcow2_bitset_clear (a->busy, first, runs[i].count);
    /* The part in [scan_next, scan_end) is for the scan to find. */
    remember_released (a, first, end);
    if (first < a->scan_next)
      qcow2_alloc_found_free_locked (img, first,
                                     MIN_OF (end, a->scan_next) - first);
    first = MAX_OF (first, a->scan_end);
    if (first < end)
      qcow2_alloc_found_free_locked (img, first, end - first);
    if (runs[i].emptied)
      qcow2_stale_clear (a, runs[i].host_idx, runs[i].count);
  }
}

uint64_t
qcow2_quarantined_locked (struct qcow2_image *img)
{
  assert (lock_held (&img->lock));
  return img->alloc.nr_quarantined;
}

bool
qcow2_frees_lost_locked (struct qcow2_image *img)
{
  assert (lock_held (&img->lock));
  return img->alloc.frees_lost;
}
