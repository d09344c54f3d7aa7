/* SPDX-License-Identifier: BSD-3-Clause */
/* From memory to the tables in place: checkpoint, and the end of a session.
 *
 * The order is that of the laws in docs/on-disk.md: copy the changed tables;
 * make every record of what is in the copies durable (law 3); write them and
 * sync; only then let the configuration say so (law 4), which is what frees
 * journal areas for reuse (law 7); and clear bit 48 last (law 5).
 *
 * Maintenance only: one caller at a time, beside any number of writers.
 */
#include "aligned.h"
#include "disk.h"

#include <errno.h>

int
dedup_sync (struct dedup_disk *d)
{
  int r = dedup_journal_sync (d->journal);

  return r < 0 ? dedup_fail (d, r, "making data durable failed") : 0;
}

/* --- checkpoint ------------------------------------------------------------------- */

/* All records below END are durable, and a durable block shall say so before
 * tables are written: a record that they hold must not be taken for the end
 * of the journal if it rots, or a recovery would add older changes to newer
 * tables.  A block made for that, without records, is as good as below the
 * checkpoint: *SEQ moves past it.  Where the areas are full, it has to do
 * without. */
static int
say_durable (struct dedup_disk *d, uint64_t end, uint64_t *seq)
{
  bool open, empty;

  lock_acquire (d->lock);
  if (!d->recovery_bit || d->checkpoint >= end ||
      dedup_journal_known_durable_locked (d->journal) >= end - 1) {
    lock_release (d->lock);
    return 0;
  }
  /* Clients may have begun to fill block *SEQ: then it stays above. */
  open = dedup_journal_seq_locked (d->journal) == *seq;
  empty = dedup_journal_force_locked (d->journal);
  if (open && (empty || mutation (MUTATION_LAW_4_OPEN_BLOCK)))
    *seq = dedup_journal_seq_locked (d->journal);
  lock_release (d->lock);
  return dedup_commit (d);
}

/* The copies hold all changes below *SEQ, and some below END. */
static int
write_tables (struct dedup_disk *d, struct qcow2_writeback *wb, uint64_t end,
              uint64_t *seq)
{
  int r;

  r = mutation (MUTATION_LAW_3) ? 0 : dedup_commit (d);   /* law 3 */
  if (r == 0 && !mutation (MUTATION_LAW_3) &&
      !mutation (MUTATION_LAW_3_NOT_RECORDED))
    r = say_durable (d, end, seq);
  if (r < 0)
    return r;
  r = qcow2_writeback_write (wb);
  if (r == 0 && !mutation (MUTATION_LAW_4))
    r = dedup_sync (d);
  /* A full disk passes: the tables stay in memory, the journal keeps what
   * they say. */
  if (r < 0 && r != -ENOSPC)
    return dedup_fail (d, r, "writing tables failed");
  return r;
}

int
dedup_checkpoint (struct dedup_disk *d)
{
  struct qcow2_writeback *wb;
  uint64_t seq, end;
  int r;

  lock_acquire (d->lock);
  if (d->failed) {
    lock_release (d->lock);
    return -EROFS;
  }
  seq = dedup_journal_seal_locked (d->journal);
  r = qcow2_writeback_begin_locked (d->img, &wb);
  end = dedup_journal_seal_locked (d->journal);
  lock_release (d->lock);
  if (r < 0)
    return r;
  r = write_tables (d, wb, end, &seq);
  lock_acquire (d->lock);
  qcow2_writeback_end_locked (wb, r == 0);
  lock_release (d->lock);
  if (r < 0)
    return r;
  d->config->checkpoint = seq;  /* law 4 */
  return dedup_config_commit (d);
}

/* --- the clean state ---------------------------------------------------------------- */

static bool
close_gate (struct dedup_disk *d)
{
  LOCK_FOR_SCOPE (d->lock);
  if (d->changing > 0 || d->gate_closed)
    return false;
  d->gate_closed = true;
  if (qcow2_quarantined_locked (d->img) > 0 || qcow2_frees_lost_locked (d->img))
    dedup_index_doubt_locked (d->index);
  return true;
}

static void
open_gate (struct dedup_disk *d, bool clean)
{
  LOCK_FOR_SCOPE (d->lock);
  if (clean)
    d->recovery_bit = false;
  d->gate_closed = false;
  pthread_cond_broadcast (&d->gate);
}

/* What a full disk keeps set is cleared some other time. */
static int
clear_recovery_bit (struct dedup_disk *d)
{
  int r = qcow2_set_recovery_bit (d->img, false);   /* law 5 */

  return r < 0 && r != -ENOSPC ?
    dedup_fail (d, r, "clearing bit 48 failed") : r;
}

/* What is in quarantine at the end of a session is free in the next one: the
 * index must have forgotten it by then, or no longer call itself exact. */
static int
drain_exact (struct dedup_disk *d)
{
  bool exact;
  int r = 0;

  lock_acquire (d->lock);
  exact = dedup_index_exact_locked (d->index);
  lock_release (d->lock);
  if (exact)
    r = dedup_drain_quarantine (d);
  return r;
}

int
dedup_clean (struct dedup_disk *d)
{
  bool dirty;
  int r;

  lock_acquire (d->lock);
  dirty = d->recovery_bit;
  lock_release (d->lock);
  if (!dirty)
    return 0;
  r = dedup_config_settle (d);  /* nothing leaves quarantine before */
  if (r == 0)
    r = drain_exact (d);
  if (r < 0)
    return r;
  if (!close_gate (d))
    return 1;
  if (mutation (MUTATION_LAW_5))
    r = qcow2_set_recovery_bit (d->img, false);
  r = dedup_checkpoint (d);
  if (r == 0)
    r = clear_recovery_bit (d);
  open_gate (d, r == 0);
  /* The checkpoint leaves no recovery that would look at what was freed. */
  return r == 0 ? dedup_release_quarantine (d) : r;
}

/* --- quarantine ------------------------------------------------------------------------ */

/* A tombstone for H, unless another cluster was entered for it since the tables
 * of VIEW were looked into.  -EAGAIN: there are others by now. */
static int
log_tombstone (struct dedup_disk *d, const struct dedup_index_view *view,
               const struct dedup_hash *h, uint64_t host_idx)
{
  uint64_t at = 0;              /* a log store may have been given up */
  LOCK_FOR_SCOPE (d->lock);

  if (!dedup_room_locked (d, 1, 1))
    return -EBUSY;
  if (!dedup_index_is_current_locked (d->index, view))
    return -EAGAIN;
  if (dedup_index_lookup_locked (d->index, h, &at) != DEDUP_PROBE && at != host_idx)
    return 0;
  dedup_entry_locked (d, h, DEDUP_DELETED);
  dedup_journal_end_locked (d->journal);
  return 0;
}

/* What cannot be read has a hash that nobody knows: its entry stays.  1: then
 * there is no use in forgetting others. */
static int
cannot_forget (struct dedup_disk *d, uint64_t host_idx, int r)
{
  log_line (d->log, LOG_ERROR, "%s: cannot read the freed cluster at 0x%llx: "
            "%s: from now on blocks are compared before they are shared",
            d->path, (unsigned long long) host_idx << d->cluster_bits,
            strerror (-r));
  LOCK_FOR_SCOPE (d->lock);
  dedup_index_doubt_locked (d->index);
  return 1;
}

/* What is entered for H is forgotten, if it is cluster HOST_IDX. */
static int
forget_entry (struct dedup_disk *d, const struct dedup_hash *h,
              uint64_t host_idx)
{
  struct dedup_probe p = { .hash = *h };
  struct dedup_index_view *view;
  int r = 0;

  lock_acquire (d->lock);
  p.found = dedup_index_lookup_locked (d->index, h, &p.value);
  view = dedup_index_view_locked (d->index);
  lock_release (d->lock);
  if (p.found == DEDUP_PROBE)
    dedup_index_probe (view, &p, 1);
  if (p.found == DEDUP_HIT && p.value == host_idx)
    r = log_tombstone (d, view, h, host_idx);
  dedup_index_view_put (d->index, view);
  return r;
}

/* With an exact index, an entry dies before its cluster is used again. */
static int
forget_cluster (struct dedup_disk *d, uint64_t host_idx, uint8_t *buf)
{
  struct dedup_hash h;
  int r;

  r = io_pread (d->io, buf, d->cluster_size, host_idx << d->cluster_bits);
  if (r < 0)
    return r == -ENOMEM ? r : cannot_forget (d, host_idx, r);
  r = dedup_hash_compute (&d->hasher, buf, d->cluster_size, &h);
  if (r < 0)
    return r;
  do
    r = forget_entry (d, &h, host_idx);
  while (r == -EAGAIN);
  return r;
}

/* Tombstones for the entries of RUNS, durable before the clusters are used
 * again. */
static int
forget_runs (struct dedup_disk *d, const struct qcow2_run *runs, size_t nr)
{
  CLEANUP_FREE uint8_t *buf = aligned_new (d->cluster_size);
  uint64_t k;
  size_t i;
  int r = buf ? dedup_change_begin (d) : -ENOMEM;

  if (r < 0)
    return r;
  for (i = 0; i < nr && r == 0; i++)
    for (k = 0; k < runs[i].count && r == 0; k++)
      r = forget_cluster (d, runs[i].host_idx + k, buf);
  dedup_change_end (d);
  return r < 0 ? r : dedup_commit (d);
}

/* Runs taken, put back or released under one hold of the lock: some hundred
 * microseconds. */
#ifdef DEDUP_MUTATIONS
#define RUNS_PER_HOLD 4        /* the crash harness has few */
#else
#define RUNS_PER_HOLD 2048
#endif

/* They could not be forgotten now: later. */
static void
requeue (struct dedup_disk *d, const struct qcow2_run *runs, size_t nr)
{
  size_t i;

  for (i = 0; i < nr; i++) {
    LOCK_FOR_SCOPE (d->lock);
    qcow2_quarantine_locked (d->img, &runs[i],
                             dedup_journal_seq_locked (d->journal));
  }
}

/* What may be reused (law 6): freed by records that are certain, or that no
 * recovery will look at again. */
static uint64_t
reusable_seq_locked (struct dedup_disk *d)
{
  if (mutation (MUTATION_LAW_6_NOT_RECORDED))
    return dedup_journal_durable_locked (d->journal);
  return MAX_OF (mutation (MUTATION_LAW_6_SAID_ONCE) ?
                 dedup_journal_known_durable_locked (d->journal) :
                 dedup_journal_certain_locked (d->journal), d->checkpoint - 1);
}

/* All that may be reused by now, taken in slices; what there is no memory for
 * stays. */
static int
take_reusable (struct dedup_disk *d, struct qcow2_run **runs, size_t *nr)
{
  struct qcow2_run *more;
  uint64_t seq;
  size_t n;

  *runs = NULL;
  *nr = 0;
  lock_acquire (d->lock);
  seq = reusable_seq_locked (d);
  lock_release (d->lock);
  do {
    more = realloc (*runs, (*nr + RUNS_PER_HOLD) * sizeof *more);
    if (more == NULL)
      return *nr == 0 ? -ENOMEM : 0;
    *runs = more;
    lock_acquire (d->lock);
    n = qcow2_quarantine_take_locked (d->img, seq, *runs + *nr, RUNS_PER_HOLD);
    lock_release (d->lock);
    *nr += n;
  } while (n == RUNS_PER_HOLD);
  return 0;
}

static void
release_runs (struct dedup_disk *d, const struct qcow2_run *runs, size_t nr)
{
  size_t i, k, n;

  for (i = 0; i < nr; i += n) {
    LOCK_FOR_SCOPE (d->lock);
    n = MIN_OF (nr - i, RUNS_PER_HOLD);
    d->releases++;
    qcow2_release_locked (d->img, runs + i, n);
    for (k = i; k < i + n; k++)
      dedup_spare_keep_locked (d, &runs[k]);
  }
}

static uint64_t
quarantined (struct dedup_disk *d)
{
  LOCK_FOR_SCOPE (d->lock);
  return qcow2_quarantined_locked (d->img);
}

static bool
is_exact (struct dedup_disk *d)
{
  LOCK_FOR_SCOPE (d->lock);
  return dedup_index_exact_locked (d->index);
}

static int
release_some (struct dedup_disk *d)
{
  CLEANUP_FREE struct qcow2_run *runs = NULL;
  size_t nr;
  int r;

  /* The durable configuration may call the index exact, and the one in memory
   * does not. */
  if (dedup_config_owed (d))
    return 0;
  r = take_reusable (d, &runs, &nr);
  if (r < 0 || nr == 0)
    return r;
  nr = qcow2_coalesce (runs, nr);
  if (is_exact (d))
    r = forget_runs (d, runs, nr);
  if (r < 0)
    requeue (d, runs, nr);
  if (r == -EBUSY)
    r = 0;                      /* no room for tombstones now: next time */
  else if (r == 0) {
    dedup_give_back_trimmed (d, runs, nr);
    release_runs (d, runs, nr);
  }
  return r;
}

static int
release_reusable (struct dedup_disk *d)
{
  int r;

  dedup_freeing_begin (d);
  r = release_some (d);
  dedup_freeing_end (d);
  return r;
}

/* With an exact index the disk is not closed as clean in between: what was
 * taken is not in quarantine any more, and not forgotten yet. */
int
dedup_release_quarantine (struct dedup_disk *d)
{
  int r;

  if (!is_exact (d))
    return release_reusable (d);
  if (quarantined (d) == 0)     /* else not without the gate */
    return 0;
  r = dedup_change_begin (d);
  if (r < 0)
    return r;
  r = release_reusable (d);
  dedup_change_end (d);
  return r;
}

/* A block without records, to make the durable number durable.  It too must
 * lie below the checkpoint when bit 48 is cleared, or the next session would
 * write its place again: so it is sealed inside the gate, if that is open. */
int
dedup_commit_empty (struct dedup_disk *d)
{
  lock_acquire (d->lock);
  if (d->recovery_bit && !d->gate_closed &&
      dedup_journal_room_locked (d->journal, 1, dedup_places_to_leave (d)))
    (void) dedup_journal_force_locked (d->journal);
  lock_release (d->lock);
  return dedup_commit (d);
}

int
dedup_drain_quarantine (struct dedup_disk *d)
{
  int r = 0, i;

  /* Once to make the records durable, once to say so, once to say that. */
  for (i = 0; i < 3 && r == 0 && quarantined (d) > 0; i++) {
    r = dedup_commit_empty (d);
    if (r == 0)
      r = dedup_release_quarantine (d);
  }
  return r;
}
