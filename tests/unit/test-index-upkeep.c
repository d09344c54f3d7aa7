/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests background work on the tables of an index: it loads the filters, even
 * if one of them cannot be loaded, and it frees the space that was kept for
 * incarnations when there will be none.
 *
 * Breaks if: a table whose head cannot be read holds up the filters of the
 * others, is not reported or not tried again, or loses its entries; or if limbo
 * areas stay listed in sessions without a limit where no incarnation is left,
 * or are lost or freed twice when limbo is emptied.
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

#include <cmocka.h>

#include "index-world.h"

#define ORDER 4
#define KEYS 1000

static unsigned
nr_tables (const struct world *w)
{
  return w->d->store.index->manifest->nr_incarnations + w->d->store.index->manifest->nr_segments;
}

static void
fill_log_store (struct world *w)
{
  while (w->d->store.index->frozen == NULL)
    set_value (w, rnd (w->nr_keys), rnd (5) ? next_value++ : 0);
}

static void
freeze_one (struct world *w)
{
  fill_log_store (w);
  assert_int_equal (dedup_run (w->d, DEDUP_JOB_FREEZE), 0);
}

static void
make_tables (struct world *w, unsigned nr)
{
  while (nr-- > 0)
    freeze_one (w);
}

/* --- Filters ------------------------------------------------------------ */

#define NOWHERE UINT64_MAX

static int
bad_page_cb (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  const uint64_t bad = *(uint64_t *) opaque;

  return call == IO_PREAD && host_off <= bad && bad - host_off < len
    ? -EIO : 0;
}

/* Segments, and incarnations which are younger; on a file with a bad page. */
static void
make_mixed (struct world *w, uint64_t *bad)
{
  make_world (w, ORDER, KEYS);
  make_tables (w, 4);
  w->limit = WIDE;
  reopen (w, false);
  make_tables (w, 4);
  assert_int_equal (w->d->store.index->manifest->nr_incarnations, 4);
  assert_int_equal (w->d->store.index->manifest->nr_segments, 4);
  *bad = NOWHERE;
  assert_int_equal (io_faulty_new (w->io, bad_page_cb, bad, &w->io), 0);
  reopen (w, false);
}

/* Table I: incarnations first. */
static bool
is_loaded (const struct world *w, unsigned i)
{
  const struct dedup_index_view *set = w->d->store.index->view;

  return i < set->nr ? dedup_incarnation_loaded (set->v[i])
    : dedup_segment_meta (set->segments[i - set->nr]) != NULL;
}

static uint64_t
head_of (const struct world *w, unsigned i)
{
  const struct dedup_index_view *set = w->d->store.index->view;

  return i < set->nr ? dedup_incarnation_desc (set->v[i])->host_off
    : dedup_segment_desc (set->segments[i - set->nr])->host_off;
}

static unsigned
nr_loaded (const struct world *w)
{
  unsigned i, n = 0;

  for (i = 0; i < nr_tables (w); i++)
    n += is_loaded (w, i);
  return n;
}

static bool
filters_due (struct world *w)
{
  return dedup_due (w->d, NULL) & DEDUP_JOB_FILTERS;
}

/* The result of the last of so many runs of the job as load all, and more. */
static int
load_filters (struct world *w)
{
  unsigned left;
  int r = 0;

  for (left = nr_tables (w) + 1; left > 0 && filters_due (w); left--)
    r = dedup_run (w->d, DEDUP_JOB_FILTERS);
  return r;
}

/* Any of them: the youngest and the oldest are tried first or last. */
static void
test_one_bad_head_holds_up_no_other_filter (void **state)
{
  uint64_t bad;
  struct world w;
  unsigned i, nr;

  make_mixed (&w, &bad);
  nr = nr_tables (&w);
  for (i = 0; i < nr; i++) {
    reopen (&w, rnd (2));
    assert_int_equal (nr_loaded (&w), 0);
    bad = head_of (&w, i);
    assert_int_equal (load_filters (&w), -EIO);
    assert_false (is_loaded (&w, i));
    assert_int_equal (nr_loaded (&w), nr - 1);
    assert_true (filters_due (&w));
    check_all (&w);              /* its pages can be read */
    bad = NOWHERE;
    assert_int_equal (load_filters (&w), 0);
    assert_false (filters_due (&w));
    assert_int_equal (nr_loaded (&w), nr);
    check_all (&w);
  }
  assert_store_is_right (&w);
  end_world (&w);
}

/* --- Limbo -------------------------------------------------------------- */

/* No table is left: only the log store answers. */
static void
forget_what_is_lost (struct world *w)
{
  uint64_t key, at;
  LOCK_FOR_SCOPE (w->d->base.lock);

  assert_int_equal (w->d->store.index->view->nr_tables, 0);
  for (key = 0; key < w->nr_keys; key++) {
    const struct dedup_hash h = hash_of (key);

    if (dedup_index_lookup_locked (w->d->store.index, &h, &at) != DEDUP_HIT)
      w->values[key] = 0;
  }
}

/* All incarnations turn out to be bad under a limit: their areas are kept for
 * others.  Then a session without a limit begins. */
static void
make_limbo_alone (struct world *w)
{
  const struct dedup_index_manifest *c;
  unsigned i;

  make_world (w, ORDER, KEYS);
  w->limit = 6;
  reopen (w, false);
  make_tables (w, 9);
  for (c = w->d->store.index->manifest, i = 0; i < c->nr_incarnations; i++)
    damage (w, c->incarnations[i].host_off + 16);
  reopen (w, false);
  assert_int_equal (load_filters (w), 0);
  forget_what_is_lost (w);
  w->limit = 0;
  reopen (w, false);
  assert_int_equal (w->d->store.index->manifest->nr_incarnations, 0);
  assert_true (w->d->store.index->manifest->nr_limbo > 1);
}

static void
test_limbo_goes_without_an_incarnation (void **state)
{
  struct dedup_stats s;
  struct world w;

  make_limbo_alone (&w);
  freeze_one (&w);
  assert_int_equal (w.d->store.index->manifest->nr_limbo, 0);
  assert_int_equal (w.d->store.index->nr_retired, 0);
  dedup_get_stats (w.d, &s);
  assert_int_equal (s.index_disk_bytes, w.d->store.index->manifest->segments[0].size_bytes);
  check_all (&w);
  assert_clean (&w);
  end_world (&w);
}

/* T is a copy of W, on a file that fails as B says, with a log store to be
 * frozen that a crash does not lose. */
static void
open_copy (struct world *t, const struct world *w, struct breaker *b)
{
  const size_t size = w->nr_keys * sizeof *w->values;

  *b = (struct breaker) { 0, UINT64_MAX };
  *t = *w;
  t->values = malloc (size);
  assert_non_null (t->values);
  memcpy (t->values, w->values, size);
  t->io = copy_of (w->io);
  assert_int_equal (io_faulty_new (t->io, break_cb, b, &t->io), 0);
  open_world (t);
  fill_log_store (t);
  assert_int_equal (dedup_flush (t->d), 0);
  assert_true (t->d->store.index->manifest->nr_limbo > 0);
}

/* The call fails that is number NR, and all after it.  True: none was. */
static bool
break_freeze (const struct world *w, uint64_t nr)
{
  struct breaker b;
  struct world t;
  bool whole;

  open_copy (&t, w, &b);
  b.fail_at = b.calls + nr;
  whole = dedup_run (t.d, DEDUP_JOB_FREEZE) == 0 && dedup_flush (t.d) == 0;
  dedup_free (t.d);
  b.fail_at = UINT64_MAX;
  open_world (&t);
  assert_int_equal (dedup_run (t.d, DEDUP_JOB_FREEZE), 0);
  assert_int_equal (t.d->store.index->manifest->nr_limbo, 0);
  check_all (&t);
  assert_clean (&t);
  end_world (&t);
  return whole;
}

static void
test_limbo_may_go_at_any_call (void **state)
{
  struct world w;
  uint64_t nr;

  make_limbo_alone (&w);
  assert_int_equal (dedup_finish (w.d), 0);
  dedup_free (w.d);
  for (nr = 1; nr < 1000 && !break_freeze (&w, nr); nr++)
    ;
  assert_in_range (nr, 6, 999);
  io_close (w.io);
  free (w.values);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_one_bad_head_holds_up_no_other_filter),
    cmocka_unit_test (test_limbo_goes_without_an_incarnation),
    cmocka_unit_test (test_limbo_may_go_at_any_call),
  };

  rng = env ("INDEX_SEED", (uint64_t) time (NULL));
  printf ("INDEX_SEED=%" PRIu64 "\n", rng);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
