/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes changes together with their records: every change to a table is
 * appended to the journal before it is applied, and every index entry has a
 * record in the group of the operation that makes it, so that a replay builds
 * the same tables and log stores.
 *
 * In an image with disks a record of L2 entries has their place in the file, so
 * that a replay needs no L1 tables (docs/on-disk.md section 11).
 *
 * All under the image lock.  Nothing is made durable here: see commit.c.
 */
#include "mutation.h"
#include "store.h"
#include "value.h"
#include "wire.h"

#include <errno.h>

/* --- tables ------------------------------------------------------------- */

/* A REFCOUNT record takes 23 bytes, a cluster of a REFLIST 2 to 3, and a new
 * REFLIST 11 besides.  So short runs go to lists.  With up to 5 bytes for the
 * distance of the first cluster and 5 for each refcount, 6 clusters add at most
 * 10 + 11 + 5 * 6 bytes to the journal: no more than one record may. */
#define MAX_LISTED 6

/* Returns whether a change goes to a REFLIST record, which images without disks
 * do not have. */
static bool
is_listed (const struct dedup_store *s, const struct qcow2_change *c)
{
  return c->type == QCOW2_CHANGE_REFCOUNT && c->count <= MAX_LISTED &&
    c->refcount <= UINT32_MAX && qcow2_has_disks (s->b->img);
}

void
dedup_append_change_locked (struct dedup_store *s, const struct qcow2_change *c)
{
  struct dedup_record rec;

  if (is_listed (s, c)) {
    for (uint32_t i = 0; i < c->count; i++)
      dedup_journal_append_refcount_locked (s->journal, c->host_idx + i,
                                            c->refcount, c->anchored);
    return;
  }

  assert (c->type != QCOW2_CHANGE_L2 ||
          (c->place != 0) == qcow2_has_disks (s->b->img));
  dedup_record_of_change (c, &rec);
  dedup_journal_append_locked (s->journal, &rec);
  if (mutation (MUTATION_LAW_14_TWO_GROUPS) && c->is_l1)
    dedup_journal_end_locked (s->journal);
}

/* Notes clusters that became anchored with the data of another program: an entry
 * that names one is about what it held before that.  If there is no room for
 * their marks, the index is complete no longer. */
static void
note_taken_over (struct dedup_store *s, const struct qcow2_change *c)
{
  uint32_t i;

  if (!dedup_index_complete_locked (s->index))
    return;
  if (!dedup_journal_room_locked (s->journal, c->count +
                                  DEDUP_OPERATION_RECORDS, 0)) {
    dedup_index_incomplete_locked (s->index);
    return;
  }
  for (i = 0; i < c->count; i++) {
    dedup_bad_new_data_locked (&s->bad, c->host_idx + i);
    dedup_unknown_data_locked (s, c->host_idx + i);
  }
}

static void
append_locked (void *opaque, const struct qcow2_change *c)
{
  dedup_append_change_locked (opaque, c);
  if (c->taken_over)
    note_taken_over (opaque, c);
}

static uint64_t
journal_seq_locked (void *opaque)
{
  struct dedup_store *s = opaque;

  return dedup_journal_seq_locked (s->journal);
}

/* Tells a writer whether NR records of a lent table that it copies have room,
 * beside those of the largest operation, which it may be about to append.  A
 * writer that is told -EBUSY makes room, a whole area: where the records of one
 * table take more than that, no writer can copy it (-ENOSPC). */
static int
copy_room_locked (void *opaque, size_t nr)
{
  struct dedup_store *s = opaque;
  const uint64_t blocks = dedup_area_blocks (s);
  const size_t all = nr + DEDUP_OPERATION_RECORDS +
    (size_t) DEDUP_CHUNK_CLUSTERS * DEDUP_RECORDS_PER_CLUSTER;

  if (all / (DEDUP_BLOCK_SIZE / DEDUP_REC_MAX - 1) >= blocks)
    return -ENOSPC;
  /* The last half area is for maintenance, as in dedup_room_locked. */
  return dedup_journal_left_locked (s->journal) >= blocks / 2 &&
    dedup_journal_room_locked (s->journal, all, 0) ? 0 : -EBUSY;
}

void
dedup_attach_log (struct dedup_store *s)
{
  struct qcow2_log log = {
    append_locked, journal_seq_locked, s, copy_room_locked,
  };

  qcow2_set_log (s->b->img, &log);
}

/* Returns C, a change of L2 entries of one table, with the place of the first
 * one. */
static struct qcow2_change
with_place (struct dedup_store *s, struct qcow2_txn *txn,
            const struct qcow2_change *c)
{
  const uint64_t per = qcow2_geometry (s->b->img)->l2_entries;
  struct qcow2_change placed = *c;

  assert (c->count <= per - c->guest_idx % per);
  placed.place = qcow2_entry_place_locked (txn, c->root, c->guest_idx);
  return placed;
}

void
dedup_change_locked (struct dedup_store *s, struct qcow2_txn *txn,
                     const struct qcow2_change *c)
{
  struct qcow2_change placed;
  int r;

  if (c->type == QCOW2_CHANGE_L2 && qcow2_has_disks (s->b->img)) {
    placed = with_place (s, txn, c);
    c = &placed;
  }
  dedup_append_change_locked (s, c);
  r = qcow2_apply_locked (txn, c);
  assert (r == 0);              /* the caller prepared it */
}

/* --- index entries ------------------------------------------------------ */

void
dedup_entry_record_locked (struct dedup_store *s, const struct dedup_hash *h,
                           uint64_t value)
{
  struct dedup_record rec = {
    .type = value == DEDUP_DELETED ? DEDUP_REC_DELETE : DEDUP_REC_INDEX,
    .hash = *h, .host_idx = value,
  };

  dedup_journal_append_locked (s->journal, &rec);
}

void
dedup_entry_locked (struct dedup_store *s, const struct dedup_hash *h,
                    uint64_t value)
{
  dedup_entry_record_locked (s, h, value);
  dedup_index_insert_locked (s->index, h, value);
}

/* Mixes the bits of X, so that marks are spread over the index as hashes are. */
static uint64_t
mix (uint64_t x)
{
  x = (x ^ (x >> 30)) * UINT64_C (0xbf58476d1ce4e5b9);
  x = (x ^ (x >> 27)) * UINT64_C (0x94d049bb133111eb);
  return x ^ (x >> 31);
}

struct dedup_hash
dedup_unknown_mark (uint64_t value)
{
  struct dedup_hash h;
  uint64_t x, i;

  for (i = 0; i < 4; i++) {
    x = mix (value * 4 + i + UINT64_C (0x9e3779b97f4a7c15));
    memcpy (h.b + 8 * i, be64_make (x).b, 8);
  }
  return h;
}

bool
dedup_is_unknown_mark (const struct dedup_hash *h, uint64_t value)
{
  const struct dedup_hash mark = dedup_unknown_mark (value);

  return dedup_hash_equal (h, &mark);
}

void
dedup_unknown_data_locked (struct dedup_store *s, uint64_t value)
{
  const struct dedup_hash mark = dedup_unknown_mark (value);

  dedup_entry_locked (s, &mark, value);
}

int
dedup_set_aside_locked (struct dedup_store *s)
{
  const struct dedup_record freeze = { .type = DEDUP_REC_FREEZE };
  struct dedup_entry spilled[DEDUP_MAX_SPILLED];
  size_t i, nr;
  int r;

  r = dedup_index_set_aside_locked (s->index,
                                    dedup_journal_seal_locked (s->journal),
                                    spilled, &nr);
  if (r < 0)
    return r;
  dedup_journal_append_locked (s->journal, &freeze);
  for (i = 0; i < nr; i++) {     /* the first entries of the new log store */
    dedup_entry_locked (s, &spilled[i].hash, spilled[i].value);
    if (spilled[i].value != DEDUP_DELETED &&     /* it would seem younger than
                                                  * an entry that may not be */
        !dedup_value_is_compressed (spilled[i].value) && /* no rank counts */
        dedup_index_frozen_names_locked (s->index, &spilled[i]))
      dedup_unknown_data_locked (s, spilled[i].value);
  }
  dedup_journal_end_locked (s->journal);
  dedup_wake (s->b);
  return 0;
}

bool
dedup_index_room_locked (struct dedup_store *s, size_t nr)
{
  switch (dedup_index_fit_locked (s->index, nr)) {
  case DEDUP_FITS:
    return true;
  case DEDUP_FULL:
    return false;
  case DEDUP_SET_ASIDE_FIRST:
    break;
  }
  /* Without memory for another log store, entries that find no place are lost,
   * among them perhaps tombstones. */
  if (dedup_set_aside_locked (s) < 0)
    dedup_index_doubt_locked (s->index);
  return true;
}
