/* SPDX-License-Identifier: BSD-3-Clause */
/* Index entries and their records: each entry that is made has a record in the
 * journal, in the group of the operation that makes it, so that a replay builds
 * the same log stores.
 *
 * All under the image's lock.
 */
#include "disk.h"

void
dedup_entry_record_locked (struct dedup_disk *d, const struct dedup_hash *h,
                           uint64_t value)
{
  struct dedup_record rec = {
    .type = value == DEDUP_DELETED ? DEDUP_REC_DELETE : DEDUP_REC_INDEX,
    .hash = *h, .host_idx = value,
  };

  dedup_journal_append_locked (d->journal, &rec);
}

void
dedup_entry_locked (struct dedup_disk *d, const struct dedup_hash *h,
                    uint64_t value)
{
  dedup_entry_record_locked (d, h, value);
  dedup_index_insert_locked (d->index, h, value);
}

int
dedup_set_aside_locked (struct dedup_disk *d)
{
  const struct dedup_record freeze = { .type = DEDUP_REC_FREEZE };
  struct dedup_entry spilled[DEDUP_MAX_SPILLED];
  size_t i, nr;
  int r;

  r = dedup_index_set_aside_locked (d->index,
                                    dedup_journal_seal_locked (d->journal),
                                    spilled, &nr);
  if (r < 0)
    return r;
  dedup_journal_append_locked (d->journal, &freeze);
  for (i = 0; i < nr; i++)       /* they open the new log store */
    dedup_entry_locked (d, &spilled[i].hash, spilled[i].value);
  dedup_journal_end_locked (d->journal);
  dedup_wake (d);
  return 0;
}

bool
dedup_index_room_locked (struct dedup_disk *d, size_t nr)
{
  switch (dedup_index_fit_locked (d->index, nr)) {
  case DEDUP_FITS:
    return true;
  case DEDUP_FULL:
    return false;
  case DEDUP_SET_ASIDE_FIRST:
    break;
  }
  /* Without memory for another log store, entries that find no place are
   * lost: so may tombstones be. */
  if (dedup_set_aside_locked (d) < 0)
    dedup_index_doubt_locked (d->index);
  return true;
}
