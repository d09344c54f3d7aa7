/* SPDX-License-Identifier: BSD-3-Clause */
/* Remembers tables that are no longer listed, and whose areas wait to be freed
 * (reap.c).
 *
 * If an area is forgotten here, by a crash or because memory is short, it is
 * one that no manifest lists: garbage, which the owner's sweep frees in the
 * next session.
 *
 * Editing functions only.
 */
#include "index-private.h"

void
index_retire (struct index_retired **v, size_t *nr,
              const struct index_retired *what)
{
  struct index_retired *more = realloc (*v, (*nr + 1) * sizeof *more);

  if (more == NULL)
    return;
  *v = more;
  if (what->segment)
    dedup_segment_get (what->segment);
  if (what->inc)
    dedup_incarnation_get (what->inc);
  more[(*nr)++] = *what;
}

void
index_retired_put (const struct index_retired *p)
{
  dedup_segment_put (p->segment);
  dedup_incarnation_put (p->inc);
}

void
index_retired_free (struct index_retired *v, size_t nr)
{
  size_t i;

  for (i = 0; i < nr; i++)
    index_retired_put (&v[i]);
  free (v);
}

void
index_give_up_area (struct dedup_index *x, uint64_t host_off, uint64_t size)
{
  if (size > 0 && x->storage.free (x->storage.opaque, host_off, size) < 0)
    log_line (x->log, LOG_DEBUG, "%s: an area of the index is left to the next "
              "sweep for garbage", x->name);
}
