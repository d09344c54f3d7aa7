/* SPDX-License-Identifier: BSD-3-Clause */
/* Releases clusters from quarantine, in which they are when they were freed.
 *
 * A cluster may be used again when a durable block says that the record which
 * freed it is durable, and another durable block says so of that block
 * (law 6).  While the header in the file lacks the new place of a table that was moved,
 * nothing leaves quarantine, so commits do not help: a checkpoint, which writes the
 * header, is due instead; also where many clusters are tables that were freed, which come
 * to quarantine when a checkpoint is complete (qcow2_tables_mark_locked).  On the way from
 * quarantine to the free ones an exact index forgets the cluster (forget.c), and the space
 * of a trimmed one is given back to the host.  Whoever does that counts as freeing
 * (freeing.c), since the cluster is in neither place meanwhile.
 *
 * Law 18: what an entry led to that was changed in place may still be read.  So the wait
 * for readers comes between quarantine and all that follows.  It is short: a reader waits
 * for I/O only.
 *
 * Any thread, without locks.
 */
#include "upkeep-private.h"

#include <errno.h>

/* --- Limits -------------------------------------------------------------- */

/* Clusters in quarantine take space besides the data.  A commit is due when
 * they are a quarter of what is in use, within bounds: rare commits cost less,
 * but a small disk that is rewritten for ever must not take many times its
 * size.  Three commits make a freed cluster usable, so writers may get ahead
 * of them; from twice that limit on each writer commits before it begins. */
#define QUARANTINE_LEAST (UINT64_C (24) << 20)
#define QUARANTINE_MOST (UINT64_C (256) << 20)
#define QUARANTINE_SHARE 4

static uint64_t
quarantine_high_locked (const struct dedup_base *b)
{
  uint64_t bytes = qcow2_in_use_locked (b->img) << b->cluster_bits;

  assert (lock_held (b->lock));
  bytes = MAX_OF (bytes / QUARANTINE_SHARE, QUARANTINE_LEAST);
  return MIN_OF (bytes, QUARANTINE_MOST);
}

uint64_t
dedup_quarantined_locked (struct dedup_store *s)
{
  assert (lock_held (s->b->lock));
  return dedup_config_owed (s) || qcow2_quarantine_shut_locked (s->b->img) ? 0
    : qcow2_quarantined_locked (s->b->img);
}

static uint64_t
quarantined_bytes_locked (struct dedup_store *s)
{
  assert (lock_held (s->b->lock));
  return dedup_quarantined_locked (s) << s->b->cluster_bits;
}

bool
dedup_quarantine_due_locked (struct dedup_store *s)
{
  assert (lock_held (s->b->lock));
  return quarantined_bytes_locked (s) > quarantine_high_locked (s->b);
}

bool
dedup_quarantine_shut_locked (struct dedup_store *s)
{
  uint64_t n = qcow2_tables_kept_locked (s->b->img);

  assert (lock_held (s->b->lock));
  if (qcow2_quarantine_shut_locked (s->b->img))
    n += qcow2_quarantined_locked (s->b->img);
  return n << s->b->cluster_bits > quarantine_high_locked (s->b);
}

/* --- Release ------------------------------------------------------------- */

/* Runs that are taken, put back or released under one hold of the lock, which
 * takes some hundred microseconds. */
#ifdef DEDUP_MUTATIONS
#define RUNS_PER_HOLD 4        /* the crash harness has few */
#else
#define RUNS_PER_HOLD 2048
#endif

/* Puts runs back that could not be forgotten now. */
static void
requeue (struct dedup_store *s, const struct qcow2_run *runs, size_t nr)
{
  size_t i;

  for (i = 0; i < nr; i++) {
    LOCK_FOR_SCOPE (s->b->lock);
    qcow2_quarantine_locked (s->b->img, &runs[i],
                             dedup_journal_seq_locked (s->journal));
  }
}

/* Returns the last block whose records freed clusters that may be reused
 * (law 6): it is certain, or no recovery will read it. */
static uint64_t
reusable_seq_locked (struct dedup_store *s)
{
  assert (lock_held (s->b->lock));
  if (mutation (MUTATION_LAW_6_NOT_RECORDED))
    return dedup_journal_durable_locked (s->journal);
  return MAX_OF (mutation (MUTATION_LAW_6_SAID_ONCE) ?
                 dedup_journal_known_durable_locked (s->journal) :
                 dedup_journal_certain_locked (s->journal), s->checkpoint - 1);
}

/* Takes all runs that may be reused by now out of quarantine, in slices; the
 * caller frees *RUNS.  Those for which memory is short stay. */
static int
take_reusable (struct dedup_store *s, struct qcow2_run **runs, size_t *nr)
{
  struct qcow2_run *more;
  uint64_t seq;
  size_t n;

  *runs = NULL;
  *nr = 0;
  lock_acquire (s->b->lock);
  seq = reusable_seq_locked (s);
  lock_release (s->b->lock);
  do {
    more = realloc (*runs, (*nr + RUNS_PER_HOLD) * sizeof *more);
    if (more == NULL)
      return *nr == 0 ? -ENOMEM : 0;
    *runs = more;
    lock_acquire (s->b->lock);
    n = qcow2_quarantine_take_locked (s->b->img, seq, *runs + *nr,
                                      RUNS_PER_HOLD);
    lock_release (s->b->lock);
    *nr += n;
  } while (n == RUNS_PER_HOLD);
  return 0;
}

/* Gives the space of the trimmed ones of RUNS back to the host, and marks them
 * as emptied.  At close all clusters are emptied later (give-back.c). */
static void
empty_trimmed (struct dedup_upkeep *u, struct qcow2_run *runs, size_t nr)
{
  size_t i;

  if (dedup_cannot_empty (&u->give) || dedup_stopping (u))
    return;
  for (i = 0; i < nr; i++)
    if (runs[i].trimmed) {
      if (dedup_empty_run (&u->give, &runs[i]) < 0)
        return;                 /* new data uses that space */
      runs[i].emptied = true;
    }
}

/* Makes RUNS free; the overwrite reserve takes what it lacks first. */
static void
release_runs (struct dedup_upkeep *u, const struct qcow2_run *runs, size_t nr)
{
  size_t i, k, n;

  for (i = 0; i < nr; i += n) {
    LOCK_FOR_SCOPE (u->b->lock);
    n = MIN_OF (nr - i, RUNS_PER_HOLD);
    u->releases++;
    qcow2_release_locked (u->b->img, runs + i, n);
    for (k = i; k < i + n && u->s->bad.nr > 0 &&
           !mutation (MUTATION_HEAL_USED_AGAIN); k++)
      (void) dedup_bad_remove_locked (&u->s->bad, runs[k].host_idx,
                                      runs[k].count);
    for (k = i; k < i + n; k++)
      dedup_reserve_keep_locked (&u->reserve, &runs[k]);
  }
}

static uint64_t
quarantined (const struct dedup_base *b)
{
  LOCK_FOR_SCOPE (b->lock);
  return qcow2_quarantined_locked (b->img);
}

static bool
is_exact (struct dedup_store *s)
{
  LOCK_FOR_SCOPE (s->b->lock);
  return dedup_index_exact_locked (s->index);
}

/* Waits for those who may still read RUNS, which entries led to that were changed in
 * place (law 18), and forgets what they have kept expanded. */
static void
wait_for_readers (struct dedup_store *s, const struct qcow2_run *runs, size_t nr)
{
  size_t i;

  if (qcow2_readers_settle (s->b->img))
    for (i = 0; i < nr; i++)
      qcow2_expanded_forget (s->b->img, runs[i].host_idx, runs[i].count);
}

/* Releases what may be reused, as a thread that counts as freeing.  FORGET: its
 * entries are forgotten first. */
static int
release_reusable (struct dedup_upkeep *u, bool forget)
{
  CLEANUP_FREE struct qcow2_run *runs = NULL;
  size_t nr;
  int r;

  /* While a configuration is owed, the durable one may call the index exact
   * when the one in memory does not. */
  if (dedup_config_owed (u->s))
    return 0;
  r = take_reusable (u->s, &runs, &nr);
  if (r < 0 || nr == 0)
    return r;
  nr = qcow2_coalesce (runs, nr);
  wait_for_readers (u->s, runs, nr);
  if (forget)
    r = dedup_forget_runs (u, runs, nr);
  if (r < 0)
    requeue (u->s, runs, nr);
  if (r == -EBUSY)
    r = 0;                      /* no room for tombstones: a later call frees */
  else if (r == 0) {
    empty_trimmed (u, runs, nr);
    release_runs (u, runs, nr);
  }
  return r;
}

static int
release_as_freeing (struct dedup_upkeep *u, bool forget)
{
  int r;

  dedup_freeing_begin (&u->give);
  r = release_reusable (u, forget);
  dedup_freeing_end (&u->give);
  return r;
}

/* With an exact index it runs inside the gate, so that the image does not
 * become clean meanwhile: clusters that were taken are not in quarantine any
 * more, and not forgotten yet. */
int
dedup_release_quarantine (struct dedup_upkeep *u)
{
  int r;

  if (!is_exact (u->s))
    return release_as_freeing (u, false);
  if (quarantined (u->b) == 0)     /* no need to set bit 48 */
    return 0;
  r = dedup_enter (&u->s->gate);
  if (r < 0)
    return r;
  r = release_as_freeing (u, is_exact (u->s));
  dedup_leave (&u->s->gate);
  return r;
}

/* No entry of the index names a table, so none has to be forgotten. */
int
dedup_release_tables (struct dedup_upkeep *u)
{
  return release_as_freeing (u, false);
}

/* --- Commit and release -------------------------------------------------- */

int
dedup_wait_for_quarantine (struct dedup_upkeep *u)
{
  uint64_t bytes, high;
  int r;

  lock_acquire (u->b->lock);
  bytes = quarantined_bytes_locked (u->s);
  high = quarantine_high_locked (u->b);
  if (bytes > high)
    dedup_ask_for_commit_locked (&u->s->gate);
  lock_release (u->b->lock);
  if (bytes <= 2 * high)
    return 0;
  r = dedup_commit_empty (u->s);
  return r == 0 ? dedup_release_quarantine (u) : r;
}

int
dedup_drain_quarantine (struct dedup_upkeep *u)
{
  int r = 0, i;

  /* The first block makes the records durable, the second says so, and the
   * third says so of the second. */
  for (i = 0; i < 3 && r == 0 && quarantined (u->b) > 0; i++) {
    r = dedup_commit_empty (u->s);
    if (r == 0)
      r = dedup_release_quarantine (u);
  }
  return r;
}
