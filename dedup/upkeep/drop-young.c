/* SPDX-License-Identifier: BSD-3-Clause */
/* Drops log stores where the host has no space for their tables or their
 * records, and writers cannot wait.  That costs only ratio.
 *
 * Dropping a log store takes writes, too: where there is no space for those,
 * everything stays as it is.
 *
 * Maintenance only.
 */
#include "upkeep-private.h"

/* Returns 0 if what is owed and pending could be written. */
static int
settle (struct dedup_store *s)
{
  int r = dedup_config_settle (s);

  return r < 0 ? r : dedup_commit (s);
}

int
dedup_drop_frozen (struct dedup_store *s)
{
  int r = settle (s);

  return r < 0 ? r : dedup_index_drop_frozen (s->index);
}

int
dedup_drop_current (struct dedup_store *s)
{
  int r = settle (s);

  if (r < 0)
    return r;
  log_line (s->b->log, LOG_ERROR, "%s: no space for the journal to grow: the "
            "newest entries of the index are dropped", s->b->path);
  lock_acquire (s->b->lock);
  r = dedup_index_reset_locked (s->index,
                                dedup_journal_seal_locked (s->journal));
  dedup_index_doubt_locked (s->index);
  dedup_index_incomplete_locked (s->index);
  lock_release (s->b->lock);
  return r < 0 ? r : dedup_config_commit (s);
}
