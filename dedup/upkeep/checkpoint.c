/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes a checkpoint: the changed tables in their place, and then the number
 * of the block from which on a recovery reads the journal.
 *
 * The order is that of the laws in docs/on-disk.md: copy the changed tables;
 * make every record of what is in the copies durable (law 3); write them and
 * sync; only then write the configuration that says so (law 4), which lets
 * journal areas be reused (law 7).  Bit 48 is cleared later still (law 5,
 * clean.c).
 *
 * Maintenance only: one caller at a time, beside any number of writers.
 */
#include "upkeep-private.h"

#include <errno.h>

/* Makes a durable block say that all records below END are durable, as they
 * are.  That comes before tables are written: if a record that they hold rots,
 * it must not be taken for the end of the journal, or a recovery would add
 * older changes to newer tables.  If an empty block was made for it, *SEQ, the
 * new checkpoint, moves past that block.  Where the areas are full, none is
 * made. */
static int
say_durable (struct dedup_store *s, uint64_t end, uint64_t *seq)
{
  bool open, empty;

  lock_acquire (s->b->lock);
  if (!s->gate.recovery_bit || s->checkpoint >= end ||
      dedup_journal_known_durable_locked (s->journal) >= end - 1) {
    lock_release (s->b->lock);
    return 0;
  }
  /* If clients have begun to fill block *SEQ, *SEQ stays. */
  open = dedup_journal_seq_locked (s->journal) == *seq;
  empty = dedup_journal_force_locked (s->journal);
  if (open && (empty || mutation (MUTATION_LAW_4_OPEN_BLOCK)))
    *seq = dedup_journal_seq_locked (s->journal);
  lock_release (s->b->lock);
  return dedup_commit (s);
}

/* Writes the copies, which hold all changes below *SEQ, and some below END. */
static int
write_tables (struct dedup_store *s, struct qcow2_writeback *wb, uint64_t end,
              uint64_t *seq)
{
  int r;

  r = mutation (MUTATION_LAW_3) ? 0 : dedup_commit (s);   /* law 3 */
  if (r == 0 && !mutation (MUTATION_LAW_3) &&
      !mutation (MUTATION_LAW_3_NOT_RECORDED))
    r = say_durable (s, end, seq);
  if (r < 0)
    return r;
  r = qcow2_writeback_write (wb);
  if (r == 0 && !mutation (MUTATION_LAW_4))
    r = dedup_sync (s);
  /* A full host does not end the session: the tables stay changed in memory,
   * and the journal keeps their records. */
  if (r < 0 && r != -ENOSPC)
    return dedup_fail (&s->gate, r, "writing tables failed");
  return r;
}

/* Lets tables that were copied or freed before the mark be changed and reused: no
 * replay reads them any more. */
static void
settle_tables (struct dedup_store *s, uint64_t token)
{
  LOCK_FOR_SCOPE (s->b->lock);
  qcow2_tables_settled_locked (s->b->img, token);
}

int
dedup_checkpoint (struct dedup_store *s)
{
  struct qcow2_writeback *wb;
  uint64_t seq, end, token;
  int r;

  lock_acquire (s->b->lock);
  if (s->gate.failed) {
    lock_release (s->b->lock);
    return -EROFS;
  }
  seq = dedup_journal_seal_locked (s->journal);
  token = qcow2_tables_mark_locked (s->b->img);
  r = qcow2_writeback_begin_locked (s->b->img, &wb);
  end = dedup_journal_seal_locked (s->journal);
  lock_release (s->b->lock);
  if (r < 0)
    return r;
  r = write_tables (s, wb, end, &seq);
  lock_acquire (s->b->lock);
  qcow2_writeback_end_locked (wb, r == 0);
  lock_release (s->b->lock);
  if (r < 0)
    return r;
  s->config->checkpoint = seq;  /* law 4 */
  r = dedup_config_commit (s);
  if (r == 0)
    settle_tables (s, token);
  return r;
}
