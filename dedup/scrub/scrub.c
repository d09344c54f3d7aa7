/* SPDX-License-Identifier: BSD-3-Clause */
/* Runs a scrub, window by window, through the phases of scrub-private.h.
 *
 * A cluster is judged by what the index said after the cluster was read.  In
 * between it may have been freed, and used for other data.  Its new entry is made
 * in the hold of the image lock that links the data, and the same hold sets the
 * cluster's print to PRINT_CHANGED (store/bad.h).  So a cluster that is in use
 * and has not changed when it is called bad had the same data all the while.
 *
 * A scrub ends where the file ended when it began.  What clients have added since is
 * younger than the scrub, and they may add more than it reads in the same time.
 *
 * Threads: any number in dedup_scrub_step.  Batches of clusters are read side by
 * side; the other phases belong to the thread that has set BUSY, and the others
 * wait.  sc->lock is taken alone.
 */
#include "scrub-private.h"

#include <errno.h>
#include <stdlib.h>

/* The position of a scrub that is in its first window.  (Cluster 0 is the
 * header, so no window begins at 1.) */
#define STARTED 1

static uint64_t
frontier (const struct dedup_base *b)
{
  LOCK_FOR_SCOPE (b->lock);
  return qcow2_frontier_locked (b->img);
}

/* --- Windows -------------------------------------------------------------- */

static void
watch (struct dedup_scrub *sc, bool on)
{
  struct dedup_bad *bad = &sc->s->bad;
  LOCK_FOR_SCOPE (sc->b->lock);

  bad->watch = on ? sc->prints : NULL;
  bad->watch_from = sc->from;
  bad->watch_nr = sc->nr + BEHIND;
}

/* Begins the window that starts at cluster FROM; false: the scrub ends there. */
static bool
begin_window (struct dedup_scrub *sc, uint64_t from)
{
  const uint64_t end = sc->end;

  if (from >= end)
    return false;
  watch (sc, false);
  pthread_mutex_lock (&sc->lock);
  sc->from = sc->next = from;
  sc->nr = MIN_OF (sc->window, end - from);
  pthread_mutex_unlock (&sc->lock);
  memset (sc->prints, 0, (sc->nr + BEHIND) * sizeof *sc->prints);
  memset (sc->ranks, 0, sc->nr);
  sc->lossy = false;
  sc->at = 0;
  watch (sc, true);
  return true;
}

/* Forgets bad clusters of the window that are good by now. */
static void
forget_good (struct dedup_scrub *sc)
{
  struct dedup_bad *bad = &sc->s->bad;
  size_t i;
  LOCK_FOR_SCOPE (sc->b->lock);

  for (i = bad->nr; i-- > 0; ) {
    const uint64_t k = bad->v[i].host_idx - sc->from;

    if (k < sc->nr && print_load (sc, k) == PRINT_GOOD)
      (void) dedup_bad_remove_locked (bad, bad->v[i].host_idx, 1);
  }
}

/* Remembers that everything below POSITION is scrubbed.  Where the host has no
 * space for that, it is written with the next configuration. */
static int
save_position (struct dedup_scrub *sc, uint64_t position)
{
  int r;

  lock_acquire (sc->b->lock);
  sc->s->bad.scrub_position = position;
  lock_release (sc->b->lock);
  if (!sc->b->writable || !sc->s->has_store)
    return 0;
  dedup_maintenance_begin (sc->u);
  r = dedup_config_commit (sc->s);
  dedup_maintenance_end (sc->u);
  return r == -ENOSPC ? 0 : r;
}

/* Ends a window and begins the next one.  0: it was the last. */
static int
next_window (struct dedup_scrub *sc)
{
  const uint64_t end = sc->from + sc->nr;
  const bool last = end >= sc->end;
  int r;

  forget_good (sc);
  r = save_position (sc, last ? 0 : end);
  return r < 0 ? r : !last && begin_window (sc, end);
}

/* --- Phases ---------------------------------------------------------------- */

/* Moves on from a phase that is over. */
static void
next_phase (struct dedup_scrub *sc)
{
  switch (sc->phase) {
  case SCRUB_JUDGE:
    sc->phase = SCRUB_COLLECT;
    break;
  case SCRUB_COLLECT:
    sc->phase = sc->nr_suspects > 0 ? SCRUB_EXPECT : SCRUB_FIND;
    break;
  case SCRUB_EXPECT:
    sc->phase = SCRUB_VERIFY;
    break;
  case SCRUB_VERIFY:
    sc->phase = SCRUB_LOCATE;
    break;
  case SCRUB_LOCATE:            /* more suspects may be left */
    sc->phase = SCRUB_COLLECT;
    break;
  case SCRUB_FIND:
    sc->phase = sc->packed.w.nr > 0 ? SCRUB_EXPAND : SCRUB_NEXT;
    break;
  case SCRUB_EXPAND:
    sc->phase = SCRUB_MATCH;
    break;
  case SCRUB_MATCH:
    sc->phase = SCRUB_CHOOSE;
    break;
  case SCRUB_CHOOSE:
    sc->phase = sc->nr_suspects > 0 ? SCRUB_EXPECT_PACKED : SCRUB_FIND;
    break;
  case SCRUB_EXPECT_PACKED:
    sc->phase = SCRUB_PROVE;
    break;
  case SCRUB_PROVE:
    sc->phase = SCRUB_LOCATE_PACKED;
    break;
  case SCRUB_LOCATE_PACKED:
    sc->phase = SCRUB_CHOOSE;
    break;
  case SCRUB_NEXT:
    sc->phase = SCRUB_DONE;
    break;
  case SCRUB_READ: case SCRUB_DONE:
    break;
  }
}

/* Does a slice of a phase that takes one thread. */
static int
work (struct dedup_scrub *sc)
{
  switch (sc->phase) {
  case SCRUB_JUDGE: return scrub_judge (sc);
  case SCRUB_COLLECT: return scrub_collect (sc);
  case SCRUB_EXPECT: return scrub_expect (sc);
  case SCRUB_VERIFY: return scrub_verify (sc);
  case SCRUB_LOCATE: return scrub_locate (sc);
  case SCRUB_FIND: return scrub_find (sc);
  case SCRUB_EXPAND: return scrub_expand (sc);
  case SCRUB_MATCH: return scrub_match (sc);
  case SCRUB_CHOOSE: return scrub_choose (sc);
  case SCRUB_EXPECT_PACKED: return scrub_expect_packed (sc);
  case SCRUB_PROVE: return scrub_prove (sc);
  case SCRUB_LOCATE_PACKED: return scrub_locate_packed (sc);
  case SCRUB_NEXT: return next_window (sc);
  case SCRUB_READ: case SCRUB_DONE: break;
  }
  return 0;
}

/* Returns whether a batch is left that nobody reads. */
static bool
has_batch (const struct dedup_scrub *sc)
{
  return sc->nr_missed > 0 || sc->next < sc->from + sc->nr;
}

/* Takes the next batch to be read, of BYTES at the most if that is a cluster; one that was
 * put back as it was. */
static struct scrub_batch
take_batch (struct dedup_scrub *sc, size_t bytes)
{
  struct scrub_batch batch = { .first = sc->next };

  if (sc->nr_missed > 0)
    return sc->missed[--sc->nr_missed];
  batch.nr = MAX_OF (1, MIN_OF (BATCH_CLUSTERS, bytes >> sc->b->cluster_bits));
  batch.nr = (size_t) MIN_OF (batch.nr, sc->from + sc->nr - batch.first);
  sc->next += batch.nr;
  return batch;
}

/* Puts a batch back of which nothing was counted, to be tried again. */
static int
put_back (struct dedup_scrub *sc, struct scrub_batch batch)
{
  if (sc->nr_missed == MAX_MISSED)
    return -EAGAIN;             /* it is missing for good */
  sc->missed[sc->nr_missed++] = batch;
  return -ENOMEM;
}

/* Reads a batch.  With the lock, which is released meanwhile. */
static int
read_step (struct dedup_scrub *sc, size_t bytes)
{
  const struct scrub_batch batch = take_batch (sc, bytes);
  int r;

  sc->readers++;
  pthread_mutex_unlock (&sc->lock);
  r = scrub_read (sc, batch.first, batch.nr);
  pthread_mutex_lock (&sc->lock);
  if (r == -ENOMEM)
    r = put_back (sc, batch);
  if (--sc->readers == 0 && !has_batch (sc))
    sc->phase = SCRUB_JUDGE;
  return r;
}

/* Does a slice alone.  With the lock, which is released meanwhile. */
static int
single_step (struct dedup_scrub *sc)
{
  int r;

  sc->busy = true;
  pthread_mutex_unlock (&sc->lock);
  r = work (sc);
  pthread_mutex_lock (&sc->lock);
  sc->busy = false;
  if (r == 0)
    next_phase (sc);
  else if (r == 1 && sc->phase == SCRUB_NEXT)
    sc->phase = SCRUB_READ;
  return r;
}

/* Reads a batch of BYTES, or does a slice of another phase. */
static int
step (struct dedup_scrub *sc, size_t bytes)
{
  int r = 0;

  pthread_mutex_lock (&sc->lock);
  while (sc->failed == 0 && sc->phase != SCRUB_DONE &&
         (sc->busy || (sc->phase == SCRUB_READ && !has_batch (sc))))
    pthread_cond_wait (&sc->changed, &sc->lock);
  if (sc->failed == 0 && sc->phase != SCRUB_DONE)
    r = sc->phase == SCRUB_READ ? read_step (sc, bytes) : single_step (sc);
  if (r < 0 && r != -ENOMEM && sc->failed == 0)
    sc->failed = r;
  if (r != -ENOMEM)
    r = sc->failed ? sc->failed : sc->phase != SCRUB_DONE;
  pthread_cond_broadcast (&sc->changed);
  pthread_mutex_unlock (&sc->lock);
  return r;
}

int
dedup_scrub_step (struct dedup_scrub *sc)
{
  return step (sc, BATCH_BYTES);
}

int
dedup_scrub_small_step (struct dedup_scrub *sc)
{
  return step (sc, SMALL_BATCH_BYTES);
}

/* --- Begin and end --------------------------------------------------------- */

void
dedup_scrub_figures (struct dedup_scrub *sc, struct dedup_scrub_figures *f)
{
  const unsigned bits = sc->b->cluster_bits;
  uint64_t file, in_use;

  lock_acquire (sc->b->lock);
  file = qcow2_frontier_locked (sc->b->img) << bits;
  in_use = qcow2_in_use_locked (sc->b->img) << bits;
  lock_release (sc->b->lock);
  pthread_mutex_lock (&sc->lock);
  *f = sc->figures;
  f->bytes_done = sc->next << bits;
  pthread_mutex_unlock (&sc->lock);
  f->bytes_total = MAX_OF (f->bytes_done, sc->end << bits);
  f->bytes_left = (uint64_t) ((double) in_use * (double)
                              (f->bytes_total - f->bytes_done) /
                              (double) MAX_OF (file, f->bytes_total));
}

static bool
is_running (struct dedup_store *s, uint64_t *position)
{
  LOCK_FOR_SCOPE (s->b->lock);
  *position = s->bad.scrub_position;
  if (*position == STARTED)
    *position = 0;
  return s->bad.watch != NULL;
}

/* Remembers that a scrub runs, before its first window ends. */
static int
note_started (struct dedup_scrub *sc)
{
  return sc->phase == SCRUB_READ && sc->from == 0 ?
    save_position (sc, STARTED) : 0;
}

static int
allocate (struct dedup_scrub *sc)
{
  sc->window = MIN_OF (WINDOW_BYTES >> sc->b->cluster_bits, WINDOW_CLUSTERS);
  if (sc->p.window_clusters > 0)
    sc->window = MIN_OF (sc->window, sc->p.window_clusters);
  sc->prints = calloc (sc->window + BEHIND, sizeof *sc->prints);
  sc->ranks = calloc (sc->window, 1);
  sc->suspects = calloc (MAX_SUSPECTS, sizeof *sc->suspects);
  return sc->prints && sc->ranks && sc->suspects ? 0 : -ENOMEM;
}

int
dedup_scrub_new (const struct dedup_base *b, struct dedup_store *s,
                 struct dedup_upkeep *u, const struct dedup_scrub_params *p,
                 struct dedup_scrub **out)
{
  struct dedup_scrub *sc;
  uint64_t position;
  int r;

  if (is_running (s, &position))
    return -EBUSY;
  sc = calloc (1, sizeof *sc);
  if (sc == NULL)
    return -ENOMEM;
  sc->b = b;
  sc->s = s;
  sc->u = u;
  sc->p = *p;
  sc->end = frontier (b);
  pthread_mutex_init (&sc->lock, NULL);
  pthread_cond_init (&sc->changed, NULL);
  r = allocate (sc);
  if (r < 0) {
    dedup_scrub_end (sc);
    return r;
  }
  sc->phase = begin_window (sc, p->restart ? 0 : position) ||
    begin_window (sc, 0) ? SCRUB_READ : SCRUB_DONE;
  r = note_started (sc);
  if (r < 0) {
    dedup_scrub_end (sc);
    return r;
  }
  *out = sc;
  return 0;
}

void
dedup_scrub_abandon (struct dedup_scrub *sc)
{
  LOCK_FOR_SCOPE (sc->b->lock);
  sc->s->bad.scrub_position = 0;
}

void
dedup_scrub_end (struct dedup_scrub *sc)
{
  if (sc == NULL)
    return;
  if (sc->nr > 0)
    watch (sc, false);
  dedup_index_walk_end (sc->walk);
  scrub_packed_free (sc);
  pthread_cond_destroy (&sc->changed);
  pthread_mutex_destroy (&sc->lock);
  while (sc->nr_buffers > 0)
    free (sc->buffers[--sc->nr_buffers]);
  free (sc->suspects);
  free (sc->ranks);
  free (sc->prints);
  free (sc);
}
