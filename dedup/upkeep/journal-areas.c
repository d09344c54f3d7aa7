/* SPDX-License-Identifier: BSD-3-Clause */
/* Adds an area to the journal: it is allocated, zeroed and made durable, then a
 * configuration lists it, and only then the journal uses it.
 *
 * Maintenance only.
 */
#include "upkeep-private.h"

#include <errno.h>

/* Frees an area that is not listed, and returns R.  If that fails, a later scan
 * for garbage frees it. */
static int
free_area (struct dedup_store *s, const struct dedup_journal_area *a, int r)
{
  if (dedup_area_free (s, a->host_off, s->config->journal_area_size) < 0)
    log_line (s->b->log, LOG_DEBUG,
              "%s: an unused area is left to a later scan for garbage",
              s->b->path);
  return r;
}

/* Writes an owed configuration first: without space for that, another area is
 * of no use. */
int
dedup_add_journal_area (struct dedup_store *s)
{
  struct dedup_config *c = s->config;
  struct dedup_journal_area a = {
    .nr_blocks = (uint32_t) dedup_area_blocks (s),
  };
  int r;

  if (c->nr_areas >= DEDUP_MAX_JOURNAL_AREAS)
    return -ENOSPC;
  r = dedup_config_settle (s);
  if (r == 0)
    r = dedup_area_alloc (s, c->journal_area_size, &a.host_off);
  if (r < 0)
    return r;
  r = dedup_area_write_zeroes (s->b->io, a.host_off, c->journal_area_size);
  if (r == 0)
    r = dedup_sync (s);
  if (r == 0 && io_tainted (s->b->io, a.host_off, c->journal_area_size))
    r = -EAGAIN;                /* a connection was lost just now */
  if (r < 0)
    r = free_area (s, &a, r);
  return r == -EAGAIN ? dedup_add_journal_area (s) : r < 0 ? r
    : dedup_config_add_area (s, &a);
}
