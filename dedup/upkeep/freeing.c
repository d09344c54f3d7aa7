/* SPDX-License-Identifier: BSD-3-Clause */
/* Counts the threads that are about to free clusters, and punches the holes
 * that give clusters' space back to the host.
 *
 * Such a thread has taken clusters from the free ones or out of quarantine, so
 * that no writer stores data there meanwhile.  A writer that finds no cluster
 * waits for these threads before it reports that there is none; while one
 * waits, no more holes are punched.
 *
 * Any thread, without locks.
 */
#include "upkeep-private.h"

#include <errno.h>

/* Bytes of one hole: the host keeps writers out of the file while it
 * punches. */
#define DISCARD_BYTES (UINT64_C (16) << 20)
/* A writer waits until so many freeings have ended, or all have: by then
 * those that it met have most likely ended, and there are clusters. */
#define ENOUGH_FREED 64

void
dedup_freeing_begin (struct dedup_give_back *gb)
{
  LOCK_FOR_SCOPE (gb->b->lock);
  gb->freeing++;
}

void
dedup_freeing_end (struct dedup_give_back *gb)
{
  LOCK_FOR_SCOPE (gb->b->lock);
  assert (gb->freeing > 0);
  gb->freeing--;
  gb->freed++;
  pthread_cond_broadcast (&gb->changed);
}

void
dedup_wait_for_freeing (struct dedup_give_back *gb)
{
  LOCK_FOR_SCOPE (gb->b->lock);
  const uint64_t before = gb->freed;

  gb->waiting++;
  gb->left = 0;                 /* free clusters are needed */
  while (gb->freeing > 0 && gb->freed - before < ENOUGH_FREED)
    lock_wait (gb->b->lock, &gb->changed);
  gb->waiting--;
}

static bool
somebody_waits (struct dedup_give_back *gb)
{
  LOCK_FOR_SCOPE (gb->b->lock);
  return gb->waiting > 0;
}

int
dedup_empty_run (struct dedup_give_back *gb, const struct qcow2_run *run)
{
  uint64_t off = run->host_idx << gb->b->cluster_bits, n;
  uint64_t left = run->count << gb->b->cluster_bits;
  int r = 0;

  for (; left > 0 && r == 0; off += n, left -= n) {
    n = MIN_OF (left, DISCARD_BYTES);
    r = somebody_waits (gb) ? -EINTR : io_discard (gb->b->io, off, n);
  }
  return r;
}

bool
dedup_cannot_empty (struct dedup_give_back *gb)
{
  LOCK_FOR_SCOPE (gb->b->lock);
  return gb->unable;
}

void
dedup_note_cannot_empty (struct dedup_give_back *gb)
{
  LOCK_FOR_SCOPE (gb->b->lock);
  gb->unable = true;
}
