/* SPDX-License-Identifier: BSD-3-Clause */
/* Gives up young parts of the index where the host has no space for them and
 * writers cannot wait.  It costs ratio only.
 *
 * Giving something up takes writes, too: where there is no space for those,
 * everything stays as it is.
 *
 * Maintenance only.
 */
#include "disk.h"

static int
can_give_up (struct dedup_disk *d)
{
  int r = dedup_config_settle (d);

  return r < 0 ? r : dedup_commit (d);
}

int
dedup_drop_frozen (struct dedup_disk *d)
{
  int r = can_give_up (d);

  return r < 0 ? r : dedup_index_drop_frozen (d->index);
}

int
dedup_drop_current (struct dedup_disk *d)
{
  int r = can_give_up (d);

  if (r < 0)
    return r;
  log_line (d->log, LOG_ERROR, "%s: no space for the journal to grow: the "
            "youngest part of the index is given up", d->path);
  lock_acquire (d->lock);
  r = dedup_index_reset_locked (d->index,
                                dedup_journal_seal_locked (d->journal));
  dedup_index_doubt_locked (d->index);
  lock_release (d->lock);
  return r < 0 ? r : dedup_config_commit (d);
}
