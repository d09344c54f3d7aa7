/* SPDX-License-Identifier: BSD-3-Clause */
/* Plays random worlds of the index against a plain map.  Each world combines
 * some of these: limits on incarnations, bounds on memory and store files that
 * come and go with the sessions, crashes, faults of reads, writes and memory,
 * rotten bytes in tables, packs of the journal, and writers and jobs at work
 * within merges.
 *
 * While the index is exact, no stale entry is found.  Every lost or stale entry
 * has a reason, and entries made after the reason are there.  The index is
 * never void.  No job fails without a fault.  A writer gets room in the end.
 *
 * Breaks if: an entry of one age comes to stand before a younger one, wherever
 * it was an incarnation, a run or a step of a merge; a tombstone is dropped
 * while it hides something; a replay, a pack or a spill changes what is
 * entered; the loss of entries with a table is not reported, so that the index
 * still calls itself exact; or work within a merge is lost at its end.
 *
 * INDEX_WORLDS=n, INDEX_SEED=n: how many worlds, the first one's seed.  A world
 * that fails prints what repeats it.
 */
#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "index-faults.h"
#include "index-kinds.h"

#define WORLDS 300               /* about 4 s */
#define SEED 1

/* The world under way, for whoever has to repeat it. */
static char what_repeats[400];

static void
tell (void)
{
  if (write (STDERR_FILENO, what_repeats, strlen (what_repeats)) < 0)
    _exit (1);
}

static int
tell_if_failed (void **state)
{
  fault_malloc_fails = NULL;
  if (what_repeats[0])
    tell ();
  return 0;
}

/* An assertion of the program's own. */
static void
tell_of_abort (int sig)
{
  tell ();                       /* it ends then, as it would have */
}

/* --- Operations ----------------------------------------------------------- */

#define PATIENCE 200             /* times that room is made for one operation */

/* For NR entries, and the lock; it is not waited for for ever. */
static int
get_room (struct dedup_pool *d, size_t nr)
{
  unsigned tries = 0;
  int r;

  lock_acquire (d->base.lock);
  while (!dedup_room_locked (&d->upkeep, nr, nr)) {
    lock_release (d->base.lock);
    r = dedup_make_room (&d->upkeep);
    if (r < 0)
      return r;
    if (++tries > PATIENCE)
      fail_msg ("a writer gets no room");
    lock_acquire (d->base.lock);
  }
  return 0;
}

/* VALUE 0: deleted. */
static void
enter_locked (uint64_t key, uint64_t value)
{
  const struct dedup_hash h = hash_of (key);

  dedup_entry_locked (&x.w.d->store, &h, value ? value : DEDUP_DELETED);
  x.w.values[key] = value;
  x.made[key] = ++x.now;
}

/* Without memory for another log store, what finds no place is lost.  FAULTS:
 * as many as there were before it was entered. */
static void
forgive (uint64_t faults)
{
  if (x.seen[SEEN_MEMORY_FAULTS] > faults)
    lose ();
}

/* With faults it may not come to that. */
static void
put (uint64_t key, uint64_t value)
{
  const uint64_t faults = x.seen[SEEN_MEMORY_FAULTS];
  struct dedup_pool *d = x.w.d;

  if (dedup_failed (d) < 0 || dedup_enter (&d->store.gate) < 0)
    return;
  if (get_room (d, 1) == 0) {
    enter_locked (key, value);
    forgive (faults);
    dedup_journal_end_locked (d->store.journal);
    lock_release (d->base.lock);
  }
  dedup_leave (&d->store.gate);
}

static void
count_merge (unsigned job, unsigned nr_incarnations)
{
  if (!x.merged || (job != DEDUP_JOB_MERGE && job != DEDUP_JOB_MERGE_IDLE))
    return;
  x.seen[SEEN_MERGES]++;
  x.seen[SEEN_IDLE_MERGES] += job == DEDUP_JOB_MERGE_IDLE;
  x.seen[SEEN_CONVERSIONS] +=
    x.w.d->store.index->manifest->nr_incarnations < nr_incarnations;
}

static void
run_job (unsigned job)
{
  const unsigned nr_incarnations = x.w.d->store.index->manifest->nr_incarnations;
  int r;

  if (!x.in_meanwhile)
    x.merged = false;
  r = dedup_run (x.w.d, job);
  if (r < 0 && !any_faults () && dedup_failed (x.w.d) == 0)
    fail_msg ("job %u: %s", job, strerror (-r));
  if (!x.in_meanwhile)
    count_merge (job, nr_incarnations);
}

static void
run_due_jobs (bool all)
{
  unsigned urgent, job;
  const unsigned due = dedup_due (x.w.d, &urgent);

  for (job = 1; job <= DEDUP_JOB_MERGE_IDLE; job <<= 1)
    if ((all ? due & ~DEDUP_JOB_CLEAN : urgent) & job)
      run_job (job);
  assert_outputs_stand_above (x.w.d->store.index->manifest);
}

static void
pack (void)
{
  int r;

  if (dedup_failed (x.w.d) < 0)
    return;
  pthread_mutex_lock (&x.w.d->upkeep.maintenance);
  r = dedup_relog_index (&x.w.d->upkeep);
  pthread_mutex_unlock (&x.w.d->upkeep.maintenance);
  if (r < 0 && !any_faults ())
    fail_msg ("packing: %s", strerror (-r));
  x.seen[SEEN_PACKS] += r == 0;
}

/* With more, a freeze would wait for the very merge it is called from. */
#define MANY_SEGMENTS (DEDUP_MAX_SEGMENTS - 3 * DEDUP_SPARE_SEGMENTS)

static void
work_meanwhile (void)
{
  unsigned n, job;

  x.seen[SEEN_MEANWHILE]++;
  for (n = (unsigned) rnd (40); n > 0; n--) {
    if (x.w.d->store.index->frozen != NULL && x.w.d->store.index->manifest->nr_segments > MANY_SEGMENTS)
      return;
    put (rnd (x.w.nr_keys), rnd (4) ? next_value++ : 0);
  }
  for (job = 1; job < DEDUP_JOB_CLEAN; job <<= 1)
    if (x.w.d->store.index->manifest->nr_segments < MANY_SEGMENTS && rnd (3) == 0)
      run_job (job);
}

/* --- The verdict ---------------------------------------------------------- */

static void
judge (uint64_t key, const struct dedup_probe *q)
{
  const uint64_t expected = x.w.values[key];
  const bool exact = x.w.d->store.index->exact;

  if (q->found == DEDUP_HIT ? q->value == expected : expected == 0) {
    x.seen[SEEN_EXACT] += exact;
    return;
  }
  if (!may_be_gone (key))
    fail_msg ("key %" PRIu64 " is gone without a reason: found %" PRIu64
              ", expected %" PRIu64, key,
              q->found == DEDUP_HIT ? q->value : 0, expected);
  if (q->found == DEDUP_MISS) {
    x.seen[SEEN_GONE]++;
    return;
  }
  if (exact)
    fail_msg ("key %" PRIu64 ": %" PRIu64 " is found in an exact index, not %"
              PRIu64, key, q->value, expected);
  x.seen[SEEN_STALE]++;
}

static void
check_key (uint64_t key)
{
  struct dedup_probe q = { .hash = hash_of (key) };
  struct dedup_index_view *set;

  lock_acquire (x.w.d->base.lock);
  set = dedup_index_view_locked (x.w.d->store.index);
  q.found = dedup_index_lookup_locked (x.w.d->store.index, &q.hash, &q.value);
  lock_release (x.w.d->base.lock);
  if (q.found == DEDUP_PROBE)
    dedup_index_probe (set, &q, 1);
  dedup_index_view_put (x.w.d->store.index, set);
  judge (key, &q);
}

static void
check_all_keys (void)
{
  uint64_t key;

  for (key = 0; key < x.w.nr_keys; key++)
    check_key (key);
}

/* --- Large operations ----------------------------------------------------- */

#define GROUP 160                /* entries; the smallest log store takes 59 */
#define GROUP_KEYS 100           /* as many as find a place, or are spilled */

static void
enter_group_locked (uint64_t first, uint64_t nr_keys)
{
  unsigned i;

  for (i = 0; i < GROUP; i++)
    enter_locked (first + rnd (nr_keys), rnd (4) ? next_value++ : 0);
  x.seen[SEEN_SPILLED] += x.w.d->store.index->nr_spilled > 0;
  dedup_journal_end_locked (x.w.d->store.journal);
}

/* Some keys come twice: what is spilled may be entered again. */
static void
put_group (uint64_t first)
{
  const uint64_t nr_keys = MIN_OF (GROUP_KEYS, x.w.nr_keys - first);
  const uint64_t faults = x.seen[SEEN_MEMORY_FAULTS];
  struct dedup_pool *d = x.w.d;
  uint64_t i;

  if (dedup_failed (d) < 0 || dedup_enter (&d->store.gate) < 0)
    return;
  if (get_room (d, GROUP) == 0) {
    enter_group_locked (first, nr_keys);
    forgive (faults);
    lock_release (d->base.lock);
    for (i = 0; i < nr_keys; i++)
      check_key (first + i);
  }
  dedup_leave (&d->store.gate);
}

/* --- Sessions ------------------------------------------------------------- */

static bool
limit_drops (void)
{
  return x.w.limit > 0 && x.w.limit != WIDE;
}

static void
choose_limit (void)
{
  x.w.limit = rnd (3) ? 0 : rnd (3) ? WIDE : 2 + (int64_t) rnd (20);
  x.seen[SEEN_LIMITS] += limit_drops ();
}

static uint64_t
least_bound (void)
{
  const unsigned order = x.w.d->store.index->manifest->order;
  const uint64_t nr = qcow2_geometry (x.w.d->base.img)->nr_clusters;

  return MAX_OF (dedup_index_least_memory (order, true, dedup_hints_size (nr)),
                 dedup_index_least_memory (order, false, dedup_hints_size (nr)));
}

static void
choose_bound (void)
{
  const uint64_t least = least_bound ();

  x.bound = rnd (2) ? 0 : least + rnd (least * 2);
  x.seen[SEEN_BOUNDS] += x.bound != 0;
}

static void
choose_store_file (void)
{
  if (x.store_file.io != NULL && rnd (3) == 0)
    return;
  if (x.store_file.io != NULL)
    lose_store_file ();
  if (rnd (4))
    make_store_file ();
}

static void
change_session (unsigned kinds)
{
  const bool crash = kinds & CRASHES && rnd (4) == 0;

  end_faults ();
  if (kinds & LIMITS)
    choose_limit ();
  if (kinds & BOUNDS)
    choose_bound ();
  close_disk (crash);
  if (kinds & STORE_FILES && rnd (3) == 0)
    choose_store_file ();
  if (x.losing)
    lose ();
  x.losing = limit_drops () || x.bound;
  open_disk ();
}

/* Less ROOM entries; with too few keys it never is. */
static bool
is_full (size_t room)
{
  const struct dedup_log_store *ls = x.w.d->store.index->current;

  return x.w.d->store.index->frozen != NULL ||
    dedup_log_store_count (ls) + room >= dedup_log_store_capacity (ls);
}

/* The replay meets the entries in another order than they came, and may find no
 * place for all of them, before the next log store or at its end. */
static void
replay_full_log_store (unsigned kinds)
{
  const size_t room = 1 + rnd (4);
  const bool set_aside = rnd (4) != 0;
  unsigned tries;

  if (x.w.d->store.index->frozen != NULL)
    run_job (DEDUP_JOB_FREEZE);
  for (tries = 0; tries < 1000 && !is_full (room); tries++)
    put (rnd (x.w.nr_keys), next_value++);
  if (rnd (2))
    put_group (rnd (x.w.nr_keys));
  pack ();
  for (tries = 0; tries < 100 && set_aside && !x.w.d->store.index->frozen; tries++)
    put (rnd (x.w.nr_keys), rnd (2) ? next_value++ : 0);
  change_session (kinds);
}

/* What it has acknowledged may be gone. */
static void
leave_failed_disk (void)
{
  close_disk (true);
  open_disk ();
}

/* Before writes fail, all is durable. */
static void
choose_faults (unsigned kinds)
{
  x.read_faults = kinds & READ_FAULTS && rnd (3) == 0 ?
    1 + (unsigned) rnd (200) : 0;
  x.memory_faults = kinds & MEMORY_FAULTS && rnd (3) == 0 ?
    3 + (unsigned) rnd (100) : 0;
  x.write_faults = 0;
  if (kinds & WRITE_FAULTS && rnd (6) == 0 && dedup_failed (x.w.d) == 0 &&
      dedup_flush (x.w.d) == 0)
    x.write_faults = 3 + (unsigned) rnd (200);
}

/* --- Worlds --------------------------------------------------------------- */

static void
operate (unsigned kinds)
{
  const uint64_t what = rnd (1000), key = rnd (x.w.nr_keys);

  if (what < 676)
    put (key, next_value++);
  else if (what < 680)
    put_group (key);
  else if (what < 800)
    put (key, 0);
  else if (what < 900)
    check_key (key);
  else if (what < 980)
    run_due_jobs (what < 905);
  else if (what < 984 && kinds & PACKS)
    pack ();
  else if (what < 985 && kinds & PACKS)
    replay_full_log_store (kinds);
  else if (what < 988 && kinds & (READ_FAULTS | WRITE_FAULTS | MEMORY_FAULTS))
    choose_faults (kinds);
  else if (what < 990 && kinds & ROT && rnd (10) == 0)
    flip_a_byte ();
  else if (what >= 990 && rnd (8) == 0)
    change_session (kinds);
}

static void
play (const struct plan *p)
{
  uint64_t i;

  for (i = 1; i <= p->nr_ops; i++) {
    operate (p->kinds);
    if (dedup_failed (x.w.d) < 0)
      leave_failed_disk ();
    if (i % 2000 == 0 && !x.memory_faults && !x.write_faults)
      check_all_keys ();
  }
}

static void
play_world (uint64_t seed)
{
  const struct plan p = plan_world (seed);

  describe (&p, what_repeats, sizeof what_repeats);
  make_disk (p.order, p.nr_keys, p.no_verify);
  x.meanwhile = p.kinds & MEANWHILE ? work_meanwhile : NULL;
  play (&p);
  close_disk (false);
  open_disk ();
  check_all_keys ();
  if (!(p.kinds & ROT))
    assert_store_is_right (&x.w);
  end_disk ();
  what_repeats[0] = 0;
}

/* A number of worlds in which each thing comes up. */
static void
test_worlds (void **state)
{
  const uint64_t nr = env ("INDEX_WORLDS", WORLDS);
  const uint64_t seed = env ("INDEX_SEED", SEED);
  uint64_t i;

  fault_malloc_fails = memory_fails;
  signal (SIGABRT, tell_of_abort);
  for (i = 0; i < nr; i++)
    play_world (seed + i);
  for (i = 0; i < NR_SEEN; i++) {
    printf ("%" PRIu64 " %s\n", x.seen[i], seen_names[i]);
    if (nr >= WORLDS && x.seen[i] == 0)
      fail_msg ("no %s in %" PRIu64 " worlds", seen_names[i], nr);
  }
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test_teardown (test_worlds, tell_if_failed),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
