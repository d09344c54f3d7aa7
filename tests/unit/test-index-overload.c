/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests merges that cannot keep up: as many segments are listed as the
 * configuration can hold, and freezes wait for merges or make steps of them.
 * The index stays right, and work continues, whoever comes first.
 *
 * Breaks if: two freezes that wait for a step both list the log store which
 * they found frozen before, though it is in use again by the second time; a
 * step in a freeze makes room in the journal by another freeze; or merges list
 * outputs, and free no inputs, until there is no place for the next output.
 *
 * INDEX_SEED=n
 */
#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "index-world.h"
#include "upkeep-private.h"

#define ORDER 4
#define KEYS 8000

static bool
frozen (struct world *w)
{
  LOCK_FOR_SCOPE (w->d->base.lock);
  return w->d->store.index->frozen != NULL;
}

static void
change (struct world *w)
{
  set_value (w, rnd (w->nr_keys), rnd (5) ? next_value++ : 0);
}

static void
change_until_frozen (struct world *w)
{
  while (!frozen (w))
    change (w);
}

/* As many segments as there may be. */
static void
fill_list (struct world *w)
{
  do {
    change_until_frozen (w);
    assert_int_equal (dedup_run (w->d, DEDUP_JOB_FREEZE), 0);
  } while (!dedup_manifest_full (w->d->store.index->manifest));
}

/* Likewise, and a log store that waits to be the next one. */
static void
fill (struct world *w)
{
  fill_list (w);
  change_until_frozen (w);
}

static void
make_full_world (struct world *w, io_faulty_cb cb, void *opaque)
{
  make_world (w, ORDER, KEYS);
  assert_int_equal (dedup_finish (w->d), 0);
  dedup_free (w->d);
  assert_int_equal (io_faulty_new (w->io, cb, opaque, &w->io), 0);
  open_world (w);
  fill (w);
}

static void
assert_no_run_is_empty (const struct world *w)
{
  uint32_t i;

  for (i = 0; i < w->d->store.index->manifest->nr_segments; i++)
    assert_int_not_equal (w->d->store.index->manifest->segments[i].nr_entries, 0);
}

/* It gets on, and lost nothing; not over a restart either. */
static void
assert_right (struct world *w)
{
  unsigned i;

  check_all (w);
  assert_no_run_is_empty (w);
  for (i = 0; i < 20; i++) {
    change_until_frozen (w);
    assert_int_equal (dedup_run (w->d, DEDUP_JOB_FREEZE), 0);
  }
  check_all (w);
  reopen (w, rnd (2));
  check_all (w);
  assert_store_is_right (w);
}

/* --- Two freezes and a step of a merge ---------------------------------- */

#define PATIENCE 20000           /* ms: only a failure takes so long */
#define A_WHILE 100              /* ms, for threads to get to where they wait */

struct race {
  struct world w;
  unsigned done, failed;         /* jobs */
  bool merging, late;            /* a thread got there, and stopped */
  bool merge_on, late_on;        /* until it is told so */
};

static __thread enum dedup_job my_job;

static void
tell (bool *flag)
{
  __atomic_store_n (flag, true, __ATOMIC_RELEASE);
}

static bool
told (const bool *flag)
{
  return __atomic_load_n (flag, __ATOMIC_ACQUIRE);
}

static bool
wait_for (const bool *flag)
{
  unsigned ms;

  for (ms = 0; !told (flag) && ms < PATIENCE; ms++)
    usleep (1000);
  return told (flag);
}

static unsigned
nr_done (const struct race *r)
{
  return __atomic_load_n (&r->done, __ATOMIC_ACQUIRE);
}

/* Holds up the merge in its step, and a freeze that writes though nothing is
 * frozen. */
static int
race_cb (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  struct race *r = opaque;

  if (call != IO_PWRITE)
    return 0;
  if (my_job == DEDUP_JOB_MERGE && r->w.d->upkeep.merging) {
    tell (&r->merging);
    (void) wait_for (&r->merge_on);
  }
  if (my_job == DEDUP_JOB_FREEZE && !frozen (&r->w)) {
    tell (&r->late);
    (void) wait_for (&r->late_on);
  }
  return 0;
}

static void
run_job (struct race *r, enum dedup_job job)
{
  my_job = job;
  if (dedup_run (r->w.d, job) < 0)
    __atomic_add_fetch (&r->failed, 1, __ATOMIC_RELAXED);
  __atomic_add_fetch (&r->done, 1, __ATOMIC_RELEASE);
}

static void *
merge_thread (void *r)
{
  run_job (r, DEDUP_JOB_MERGE);
  return NULL;
}

static void *
freeze_thread (void *r)
{
  run_job (r, DEDUP_JOB_FREEZE);
  return NULL;
}

/* The merge is in its step, and both freezes wait for it. */
static void
start_race (struct race *r, pthread_t threads[3])
{
  unsigned i;

  assert_int_equal (pthread_create (&threads[0], NULL, merge_thread, r), 0);
  assert_true (wait_for (&r->merging));
  for (i = 1; i < 3; i++)
    assert_int_equal (pthread_create (&threads[i], NULL, freeze_thread, r), 0);
  usleep (A_WHILE * 1000);
  assert_int_equal (nr_done (r), 0);
}

static void
end_race (struct race *r, pthread_t threads[3])
{
  unsigned ms, i;

  for (ms = 0; nr_done (r) < 3 && ms < PATIENCE; ms++)
    usleep (1000);
  assert_int_equal (nr_done (r), 3);
  for (i = 0; i < 3; i++)
    pthread_join (threads[i], NULL);
  assert_int_equal (r->failed, 0);
}

/* Where the second one goes on, the log store that it found is the clients'
 * again, and set aside again. */
static void
test_of_two_freezes_one_lists_the_log_store (void **state)
{
  static struct race r;          /* threads may outlive a failure */
  pthread_t threads[3];
  unsigned ms;

  make_full_world (&r.w, race_cb, &r);
  start_race (&r, threads);
  tell (&r.merge_on);
  for (ms = 0; !told (&r.late) && nr_done (&r) < 3 && ms < PATIENCE; ms++)
    usleep (1000);
  change_until_frozen (&r.w);
  tell (&r.late_on);
  end_race (&r, threads);
  assert_right (&r.w);
  end_world (&r.w);
}

/* No function that runs under the maintenance mutex lets go of it: a freeze that
 * needs the end of a merge step says so, and changes nothing. */
static void
test_a_freeze_under_the_mutex_does_not_wait (void **state)
{
  static struct race r;
  struct dedup_upkeep *u;
  pthread_t thread;

  make_full_world (&r.w, race_cb, &r);
  u = &r.w.d->upkeep;
  assert_int_equal (pthread_create (&thread, NULL, merge_thread, &r), 0);
  assert_true (wait_for (&r.merging));
  pthread_mutex_lock (&u->maintenance);
  assert_int_equal (dedup_freeze (u), -EBUSY);
  assert_true (u->merging);
  pthread_mutex_unlock (&u->maintenance);
  assert_true (frozen (&r.w));
  tell (&r.merge_on);
  pthread_join (thread, NULL);
  assert_int_equal (r.failed, 0);
  assert_int_equal (dedup_run (r.w.d, DEDUP_JOB_FREEZE), 0);
  assert_right (&r.w);
  end_world (&r.w);
}

/* --- A freeze that makes room in the journal ---------------------------- */

#define MANY_WRITES 1000         /* it takes 40 */
#define MANY_CHANGES 200000      /* and 32000 */

static int
count_cb (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  uint64_t *left = opaque;

  if (call == IO_PWRITE && *left > 0)
    --*left;
  return *left == 0 ? -EIO : 0;
}

/* The same few keys fill the journal, not the log store, until what is frozen
 * holds up all of it. */
static void
test_freeze_for_the_journal_ends (void **state)
{
  uint64_t left = UINT64_MAX, i;
  struct world w;

  make_full_world (&w, count_cb, &left);
  left = MANY_WRITES;
  for (i = 0; frozen (&w) && i < MANY_CHANGES; i++) {
    set_value (&w, i % 8, next_value++);
    if (dedup_due (w.d, NULL) & DEDUP_JOB_JOURNAL &&
        dedup_run (w.d, DEDUP_JOB_JOURNAL) < 0)
      fail_msg ("no end after %d writes", MANY_WRITES);
  }
  assert_false (frozen (&w) || dedup_manifest_full (w.d->store.index->manifest));
  left = UINT64_MAX;
  assert_right (&w);
  end_world (&w);
}

/* --- Steps and places --------------------------------------------------- */

/* Freezes make steps where they have to, the merges' own job now and then. */
static void
freeze_late (struct world *w, unsigned freezes)
{
  unsigned i;

  for (i = 0; i < freezes; i++) {
    change_until_frozen (w);
    if (dedup_run (w->d, DEDUP_JOB_FREEZE) < 0)
      fail_msg ("stuck at freeze %u, with %u segments", i,
                w->d->store.index->manifest->nr_segments);
    if (rnd (16) == 0)
      assert_int_equal (dedup_run (w->d, DEDUP_JOB_MERGE), 0);
    assert_outputs_stand_above (w->d->store.index->manifest);
  }
}

/* It took 4600 to 5300 freezes to be stuck. */
static void
test_late_merges_get_on (void **state)
{
  struct world w;

  make_world (&w, ORDER, KEYS);
  freeze_late (&w, 6000);
  assert_right (&w);
  end_world (&w);
}

/* All are one merge, of more steps than there are places.  No log store waits at
 * the close: an open that has to freeze it merges before open_world says that no
 * entry is dead, and these entries lead to clusters that nobody uses. */
static void
test_steps_are_no_more_than_places (void **state)
{
  struct dedup_index_manifest *c;
  struct world w;
  unsigned i;

  make_world (&w, ORDER, KEYS);
  fill_list (&w);
  for (c = w.d->store.index->manifest, i = 0; i < c->nr_segments; i++)
    c->segments[i].level = DEDUP_MAX_LEVEL;
  w.d->store.config->index = *c;
  reopen (&w, false);
  freeze_late (&w, 100);
  assert_right (&w);
  end_world (&w);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_of_two_freezes_one_lists_the_log_store),
    cmocka_unit_test (test_a_freeze_under_the_mutex_does_not_wait),
    cmocka_unit_test (test_freeze_for_the_journal_ends),
    cmocka_unit_test (test_late_merges_get_on),
    cmocka_unit_test (test_steps_are_no_more_than_places),
  };

  rng = env ("INDEX_SEED", (uint64_t) time (NULL));
  printf ("INDEX_SEED=%" PRIu64 "\n", rng);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
