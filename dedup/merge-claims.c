/* SPDX-License-Identifier: BSD-3-Clause */
/* Which clusters do the younger inputs of a merge into the bottom name?
 *
 * A cluster has one content at a time.  So where a younger entry names it, an
 * older one with another hash is dead: its block was overwritten or trimmed,
 * and the cluster given to a new one.  Nothing else would tell that from the
 * index alone, and the bottom would grow for as long as blocks are rewritten.
 *
 * One bit for each cluster of the file, while the merge lasts (32 MiB for a
 * terabyte in clusters of 4 KiB), made by reading the younger inputs once more.
 * It is not kept over a restart: what the merge had done by then is claimed by
 * fewer entries in the next one, and those that stay for it die in a later
 * merge.  Without memory for it, nothing is dropped.
 *
 * The thread that carries out a step, and no other (d->merging).
 */
#include "merge.h"

#include <errno.h>

struct merge_claims {
  uint32_t merge;
  uint64_t nr_bits;
  uint64_t bits[];
};

static struct merge_claims *
new_claims (struct dedup_disk *d, uint32_t merge)
{
  struct merge_claims *c;
  uint64_t nr;

  lock_acquire (d->lock);
  nr = qcow2_frontier_locked (d->img);
  lock_release (d->lock);
  c = calloc (1, sizeof *c + (nr / 64 + 1) * sizeof c->bits[0]);
  if (c != NULL) {
    c->merge = merge;
    c->nr_bits = nr;
  }
  return c;
}

static int
claim_segment (struct dedup_disk *d, struct merge_claims *c,
               struct dedup_segment *s, uint32_t from)
{
  struct dedup_cursor *cursor;
  const struct dedup_hash *hash;
  uint64_t host_idx, ordinal, n = 0;
  int r;

  r = dedup_cursor_open (s, from, &cursor);
  if (r < 0)
    return r;
  while ((r = dedup_cursor_next (cursor, &hash, &host_idx, &ordinal)) == 1) {
    if (host_idx < c->nr_bits)
      c->bits[host_idx / 64] |= UINT64_C (1) << host_idx % 64;
    if (++n % 4096 == 0 && __atomic_load_n (&d->stop, __ATOMIC_RELAXED)) {
      r = -EINTR;
      break;
    }
  }
  dedup_cursor_free (cursor);
  return r;
}

int
merge_claims_make (struct dedup_disk *d, const struct merge_plan *p)
{
  struct merge_claims *c;
  size_t i;
  int r = 0;

  if (!p->look_for_dead || !p->bottom || p->out.level != DEDUP_MAX_LEVEL ||
      (d->merge_claims && d->merge_claims->merge == p->merge))
    return 0;
  merge_claims_free (d);
  c = new_claims (d, p->merge);
  for (i = 0; c && i < p->nr_younger && r == 0; i++)
    r = claim_segment (d, c, p->younger[i], p->out.lo);
  if (r < 0)
    free (c);
  else
    d->merge_claims = c;
  return r;
}

bool
merge_claims_has (const struct dedup_disk *d, const struct merge_plan *p,
                  uint64_t host_idx)
{
  const struct merge_claims *c = d->merge_claims;

  return p->look_for_dead && c && c->merge == p->merge &&
    host_idx < c->nr_bits && (c->bits[host_idx / 64] >> host_idx % 64 & 1);
}

void
merge_claims_free (struct dedup_disk *d)
{
  free (d->merge_claims);
  d->merge_claims = NULL;
}
