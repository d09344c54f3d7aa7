/* SPDX-License-Identifier: BSD-3-Clause */
/* Owns an index without any image: on plain storage (tests/index-plain.h), a file
 * or memory, which has nothing but tables.
 *
 * There is no log to write: entry number I is known (index-owner.h), so a place in
 * the log is a number of entries, and the only entries that have to be kept are
 * those that were spilled, which are logged a second time.
 *
 * Threads: the caller's, and two in the background.  One freezes and loads
 * filters, the other one merges.  As the index wants it, one thread edits it at a
 * time, with the mutex "editor", which is taken before the index's lock.  A merge
 * step is worked on without it.
 */
#include "index-owner.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checked.h"
#include "index-plain.h"

#define SMALLEST_ORDER 10
#define USUAL_ORDER 16          /* of log stores; as a new image has it */
#define MAX_RELOGGED 4096
#define NAP_US 1000             /* between two looks for work */

struct owner {
  struct plain plain;
  bool in_memory;
  uint64_t nr_slots;            /* values are below */
  struct dedup_index *x;
  struct lock lock;
  pthread_mutex_t editor;
  pthread_cond_t worked;        /* a merge step was */
  pthread_t freezer, merger;
  bool running;

  /* Protected by editor: */
  bool merging;

  /* Atomic: */
  bool stop, idle;

  /* Protected by lock: */
  uint64_t nr_logged;           /* entries */
  uint64_t nr_waits;
  size_t nr_relogged;
  struct relogged { uint64_t mark; struct dedup_entry entry; }
    relogged[MAX_RELOGGED];
};

/* --- What the index asks for --------------------------------------------------- */

static uint64_t
values_end (void *opaque)
{
  return ((struct owner *) opaque)->nr_slots;
}

static uint64_t
slot (void *opaque, uint64_t value)
{
  return value;
}

static void
open_index (void *opaque)
{
  struct owner *w = opaque;
  struct dedup_index_params p = {
    .lock = &w->lock, .name = "index", .store_id = 1, .area_unit = PLAIN_UNIT,
    .mark = w->plain.mark, .storage = plain_storage (&w->plain),
    .values = { .end = values_end, .slot = slot, .opaque = w },
  };

  bench_must (dedup_index_open (&p, &w->plain.manifest, &w->x), "open");
}

/* --- Background work ----------------------------------------------------------- */

static bool
stopping (struct owner *w)
{
  return __atomic_load_n (&w->stop, __ATOMIC_RELAXED);
}

/* Asking dedup_index_stop makes work return -EINTR. */
static void
must_unless_stopped (struct owner *w, int r, const char *what)
{
  if (r != -EINTR || !stopping (w))
    bench_must (r, what);
}

static bool
is_frozen (struct owner *w)
{
  bool frozen;

  lock_acquire (&w->lock);
  frozen = dedup_index_frozen_locked (w->x);
  lock_release (&w->lock);
  return frozen;
}

static void
freeze (struct owner *w)
{
  pthread_mutex_lock (&w->editor);
  if (dedup_index_must_merge (w->x))
    while (w->merging)
      pthread_cond_wait (&w->worked, &w->editor);
  must_unless_stopped (w, dedup_index_freeze (w->x), "freeze");
  dedup_index_look (w->x, false);
  pthread_mutex_unlock (&w->editor);
}

static bool
load_one (struct owner *w)
{
  if (!(dedup_index_due (w->x) & DEDUP_INDEX_LOAD))
    return false;
  pthread_mutex_lock (&w->editor);
  must_unless_stopped (w, dedup_index_load_next (w->x), "filters");
  pthread_mutex_unlock (&w->editor);
  return true;
}

static void *
freeze_and_load (void *opaque)
{
  struct owner *w = opaque;

  while (!stopping (w)) {
    if (is_frozen (w))
      freeze (w);
    else if (!load_one (w))
      usleep (NAP_US);
  }
  return NULL;
}

/* Returns the flags of the step that is due, or -1. */
static int
step_due (struct owner *w)
{
  const unsigned due = dedup_index_due (w->x);

  if (due & DEDUP_INDEX_MERGE)
    return 0;
  if (due & DEDUP_INDEX_MERGE_IDLE && !is_frozen (w) &&
      __atomic_load_n (&w->idle, __ATOMIC_RELAXED))
    return DEDUP_STEP_IDLE;
  return -1;
}

static void
merge (struct owner *w, unsigned flags)
{
  struct dedup_index_step *step;
  int r;

  pthread_mutex_lock (&w->editor);
  r = dedup_index_step_start (w->x, flags, &step);
  if (r > 0) {
    w->merging = true;
    pthread_mutex_unlock (&w->editor);
    r = dedup_index_step_work (step);
    pthread_mutex_lock (&w->editor);
    w->merging = false;
    pthread_cond_broadcast (&w->worked);
    r = dedup_index_step_finish (step, r);
  }
  must_unless_stopped (w, r, "merge");
  dedup_index_look (w->x, false);
  pthread_mutex_unlock (&w->editor);
}

static void *
merge_runs (void *opaque)
{
  struct owner *w = opaque;
  int flags;

  while (!stopping (w)) {
    if ((flags = step_due (w)) >= 0)
      merge (w, (unsigned) flags);
    else
      usleep (NAP_US);
  }
  return NULL;
}

static void
start (struct owner *w)
{
  w->stop = false;
  w->running = true;
  bench_must (-pthread_create (&w->freezer, NULL, freeze_and_load, w), "thread");
  bench_must (-pthread_create (&w->merger, NULL, merge_runs, w), "thread");
}

static void
settle (void *opaque)
{
  struct owner *w = opaque;
  struct bench_timer t = bench_now ();
  bool busy;

  __atomic_store_n (&w->idle, true, __ATOMIC_RELAXED);
  do {
    usleep (10000);
    pthread_mutex_lock (&w->editor);
    busy = w->merging || is_frozen (w) || dedup_index_due (w->x) != 0;
    pthread_mutex_unlock (&w->editor);
  }
  while (busy);
  __atomic_store_n (&w->idle, false, __ATOMIC_RELAXED);
  printf ("merges done after   %.1f s more\n", bench_since (t).wall);
}

/* --- Entries --------------------------------------------------------------------- */

/* Forgets what the durable mark has passed. */
static void
trim_relogged_locked (struct owner *w)
{
  const uint64_t mark = dedup_index_mark_locked (w->x);
  size_t i, n = 0;

  for (i = 0; i < w->nr_relogged; i++)
    if (w->relogged[i].mark >= mark)
      w->relogged[n++] = w->relogged[i];
  w->nr_relogged = n;
}

static void
set_aside_locked (struct owner *w)
{
  struct dedup_entry spilled[DEDUP_MAX_SPILLED];
  size_t nr, i;

  bench_must (dedup_index_set_aside_locked (w->x, w->nr_logged, spilled, &nr),
              "set aside");
  trim_relogged_locked (w);
  bench_must (w->nr_relogged + nr > MAX_RELOGGED ? -E2BIG : 0, "spilled");
  for (i = 0; i < nr; i++) {
    w->relogged[w->nr_relogged++] =
      (struct relogged) { w->nr_logged, spilled[i] };
    dedup_index_insert_locked (w->x, &spilled[i].hash, spilled[i].value);
  }
}

static void
make_room_locked (struct owner *w, size_t nr)
{
  enum dedup_fit fit;

  while ((fit = dedup_index_fit_locked (w->x, nr)) != DEDUP_FITS) {
    if (fit == DEDUP_SET_ASIDE_FIRST) {
      set_aside_locked (w);
      continue;
    }
    w->nr_waits++;
    lock_release (&w->lock);
    freeze (w);
    lock_acquire (&w->lock);
  }
}

static void
insert (void *opaque, const struct dedup_hash *h, const uint64_t *values,
        size_t nr)
{
  struct owner *w = opaque;
  size_t i;

  lock_acquire (&w->lock);
  for (i = 0; i < nr; i++)
    dedup_index_prefetch_locked (w->x, &h[i]);
  make_room_locked (w, nr);
  for (i = 0; i < nr; i++)
    dedup_index_insert_locked (w->x, &h[i], values[i]);
  w->nr_logged += nr;
  lock_release (&w->lock);
}

/* Enters again what no table has, as from a log. */
static void
replay (struct owner *w)
{
  const uint64_t nr = w->nr_logged, mark = w->plain.mark;
  size_t i;

  for (i = 0; i < w->nr_relogged; i++)
    if (w->relogged[i].mark >= mark) {
      lock_acquire (&w->lock);
      dedup_index_insert_locked (w->x, &w->relogged[i].entry.hash,
                                 w->relogged[i].entry.value);
      lock_release (&w->lock);
    }
  for (w->nr_logged = mark; w->nr_logged < nr;) {
    const struct dedup_hash h = bench_key (w->nr_logged);
    const uint64_t value = w->nr_logged + 1;

    insert (w, &h, &value, 1);
  }
}

/* --- Open and close -------------------------------------------------------------- */

static uint32_t
order_for (uint64_t nr)
{
  uint32_t order = SMALLEST_ORDER;

  while (order < USUAL_ORDER &&
         ((uint64_t) DEDUP_BUCKET_SLOTS << order) * 93 / 100 < nr / 4)
    order++;
  return order;
}

static struct io_store *
open_storage (struct owner *w, const char *path)
{
  struct io_store *s;
  struct fault f = { 0 };

  if (w->in_memory)
    bench_must (io_memory_new (0, &s), "memory");
  else
    bench_must (io_file_open (path, IO_FILE_WRITE | IO_FILE_CREATE,
                              IO_LOCK_WRITE, &s, &f), f.msg);
  return bench_counted (s);
}

static void
create (void *opaque, const char *path, uint64_t nr)
{
  struct owner *w = opaque;

  w->plain.io = open_storage (w, path);
  w->plain.manifest.order = order_for (MAX_OF (nr, UINT64_C (1) << 18));
  w->plain.manifest.next_id = 1;
  w->nr_slots = 2 * nr + (UINT64_C (1) << 22);
  open_index (w);
  start (w);
}

/* A crash loses nothing that a clean close keeps: tables are durable when they
 * are listed, and the log is known. */
static void
close_index (void *opaque, bool crash)
{
  struct owner *w = opaque;

  if (w->running) {
    __atomic_store_n (&w->stop, true, __ATOMIC_RELAXED);
    dedup_index_stop (w->x);
    pthread_join (w->freezer, NULL);
    pthread_join (w->merger, NULL);
    w->running = false;
  }
  dedup_index_close (w->x);
  w->x = NULL;
  plain_restart (&w->plain);
}

static void
open_again (void *opaque)
{
  open_index (opaque);
  replay (opaque);
}

static void
load_filters (void *opaque)
{
  while (load_one (opaque))
    ;
}

static void
end (void *opaque)
{
  struct owner *w = opaque;

  io_close (w->plain.io);
  pthread_mutex_destroy (&w->editor);
  pthread_cond_destroy (&w->worked);
  lock_destroy (&w->lock);
  free (w);
}

static struct lock *
lock_of (void *opaque)
{
  return &((struct owner *) opaque)->lock;
}

static struct dedup_index *
index_of (void *opaque)
{
  return ((struct owner *) opaque)->x;
}

static void
figures (void *opaque, struct dedup_index_figures *f)
{
  struct owner *w = opaque;

  pthread_mutex_lock (&w->editor);
  lock_acquire (&w->lock);
  dedup_index_figures_locked (w->x, f);
  lock_release (&w->lock);
  pthread_mutex_unlock (&w->editor);
}

static uint64_t
nr_waits (void *opaque)
{
  return ((struct owner *) opaque)->nr_waits;
}

void
bench_plain_owner (struct bench_owner *o, bool in_memory)
{
  struct owner *w = calloc (1, sizeof *w);

  bench_must (w ? 0 : -ENOMEM, "memory");
  w->in_memory = in_memory;
  lock_init (&w->lock);
  pthread_mutex_init (&w->editor, NULL);
  pthread_cond_init (&w->worked, NULL);
  *o = (struct bench_owner) {
    .create = create, .insert = insert, .settle = settle, .close = close_index,
    .open = open_again, .load_filters = load_filters, .end = end,
    .lock = lock_of, .index = index_of, .figures = figures,
    .nr_waits = nr_waits, .opaque = w };
}
