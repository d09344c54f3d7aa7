/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests that work on many clusters is done in parts, so that nobody waits for
 * all of it behind the image's lock: areas made, checked and freed, and
 * clusters leaving quarantine.
 *
 * Breaks if: a part is too long, or a part that fails causes a cluster to be
 * freed twice, lost, or allocated while it is in use.
 *
 * The functions that change many clusters under one hold are wrapped
 * (meson.build), and count.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "pool.h"

#define MOST 4096              /* clusters or runs under one hold */
#define CLUSTER_BITS 9

/* --- what is wrapped ------------------------------------------------------ */

static uint64_t most_changed, nr_changed;      /* by one REFCOUNT change */
static size_t most_taken, most_released;
static int fail_prepare;       /* the so-manieth call fails; 0: none */

int __real_qcow2_apply_locked (struct qcow2_txn *txn,
                               const struct qcow2_change *c);
int __wrap_qcow2_apply_locked (struct qcow2_txn *txn,
                               const struct qcow2_change *c);
int __real_qcow2_prepare_host_locked (struct qcow2_txn *txn,
                                      uint64_t host_idx, uint64_t count);
int __wrap_qcow2_prepare_host_locked (struct qcow2_txn *txn,
                                      uint64_t host_idx, uint64_t count);
size_t __real_qcow2_quarantine_take_locked (struct qcow2_image *img,
                                            uint64_t seq,
                                            struct qcow2_run *runs,
                                            size_t max);
size_t __wrap_qcow2_quarantine_take_locked (struct qcow2_image *img,
                                            uint64_t seq,
                                            struct qcow2_run *runs,
                                            size_t max);
void __real_qcow2_release_locked (struct qcow2_image *img,
                                  const struct qcow2_run *runs, size_t nr);
void __wrap_qcow2_release_locked (struct qcow2_image *img,
                                  const struct qcow2_run *runs, size_t nr);

int
__wrap_qcow2_apply_locked (struct qcow2_txn *txn, const struct qcow2_change *c)
{
  if (c->type == QCOW2_CHANGE_REFCOUNT) {
    most_changed = MAX_OF (most_changed, c->count);
    nr_changed += c->count;
  }
  return __real_qcow2_apply_locked (txn, c);
}

int
__wrap_qcow2_prepare_host_locked (struct qcow2_txn *txn, uint64_t host_idx,
                                  uint64_t count)
{
  if (fail_prepare > 0 && --fail_prepare == 0)
    return -ENOSPC;
  return __real_qcow2_prepare_host_locked (txn, host_idx, count);
}

size_t
__wrap_qcow2_quarantine_take_locked (struct qcow2_image *img, uint64_t seq,
                                     struct qcow2_run *runs, size_t max)
{
  size_t n = __real_qcow2_quarantine_take_locked (img, seq, runs, max);

  most_taken = MAX_OF (most_taken, n);
  return n;
}

void
__wrap_qcow2_release_locked (struct qcow2_image *img,
                             const struct qcow2_run *runs, size_t nr)
{
  most_released = MAX_OF (most_released, nr);
  __real_qcow2_release_locked (img, runs, nr);
}

/* --- the world ------------------------------------------------------------- */

struct world {
  struct io_store *io;
  struct dedup_pool *d;
};

static void
open_world (struct world *w)
{
  struct dedup_open_params p = { .path = "memory", .writable = true,
    .dedup = true, .verify = true, .max_incarnations = -1,
    .cache_bytes = 8 << 20 };
  struct fault f = { 0 };

  if (dedup_open (w->io, &p, &w->d, &f) < 0)
    fail_msg ("open: %s", f.msg);
}

static void
make_world (struct world *w)
{
  struct dedup_create_params p = {
    .image = { .virtual_size = 64 << 20, .cluster_bits = CLUSTER_BITS,
               .refcount_order = 4 },
    .order = 10, .journal_areas = 4,
  };
  struct fault f = { 0 };

  memset (w, 0, sizeof *w);
  assert_int_equal (io_memory_new (0, &w->io), 0);
  if (dedup_create (w->io, &p, &f) < 0)
    fail_msg ("create: %s", f.msg);
  open_world (w);
  most_changed = nr_changed = most_taken = most_released = 0;
  fail_prepare = 0;
}

static void
close_world (struct world *w)
{
  assert_int_equal (dedup_finish (w->d), 0);
  dedup_free (w->d);
  w->d = NULL;
}

/* It is as it should be, with so many clusters of garbage. */
static void
check_world (struct world *w, uint64_t garbage)
{
  struct dedup_open_params o = { .path = "memory", .dedup = true,
    .max_incarnations = -1, .cache_bytes = 1 << 20 };
  struct qcow2_check_params p = { 0 };
  struct dedup_check_result r;
  struct fault f = { 0 };

  close_world (w);
  if (dedup_open (w->io, &o, &w->d, &f) < 0)
    fail_msg ("open: %s", f.msg);
  if (dedup_check (w->d, &p, &r, &f) < 0)
    fail_msg ("check: %s", f.msg);
  assert_int_equal (r.image.corruptions, 0);
  assert_int_equal (r.image.leaks, 0);
  assert_int_equal (r.store_errors, 0);
  assert_int_equal (r.image.garbage, garbage);
  dedup_free (w->d);
}

static void
end_world (struct world *w)
{
  io_close (w->io);
}

static void
refcount_of (struct dedup_pool *d, uint64_t host_idx, uint64_t *refcount,
             bool *anchored)
{
  struct qcow2_txn txn;
  int r;

  qcow2_txn_begin (d->base.img, &txn);
  for (;;) {
    lock_acquire (d->base.lock);
    r = qcow2_get_refcount_locked (&txn, host_idx, refcount, anchored);
    lock_release (d->base.lock);
    if (r != -EAGAIN)
      break;
    assert_int_equal (qcow2_txn_load (&txn), 0);
  }
  assert_int_equal (r, 0);
  qcow2_txn_end (&txn);
}

static void
set_refcount (struct dedup_pool *d, uint64_t host_idx, uint64_t refcount,
              bool anchored)
{
  struct qcow2_change c = {
    .type = QCOW2_CHANGE_REFCOUNT, .host_idx = host_idx, .count = 1,
    .refcount = refcount, .anchored = anchored,
  };
  struct qcow2_txn txn;
  int r;

  assert_int_equal (dedup_enter (&d->store.gate), 0);
  qcow2_txn_begin (d->base.img, &txn);
  for (;;) {
    lock_acquire (d->base.lock);
    r = qcow2_prepare_host_locked (&txn, host_idx, 1);
    if (r == 0)
      dedup_change_locked (&d->store, &txn, &c);
    dedup_journal_end_locked (d->store.journal);
    lock_release (d->base.lock);
    if (r != -EAGAIN)
      break;
    assert_int_equal (qcow2_txn_load (&txn), 0);
  }
  assert_int_equal (r, 0);
  qcow2_txn_end (&txn);
  dedup_leave (&d->store.gate);
}

/* --- areas ----------------------------------------------------------------- */

#define AREA_CLUSTERS (3 * MOST + 100u)

static void
assert_area (struct dedup_pool *d, uint64_t host_off, uint64_t want)
{
  uint64_t idx = host_off >> CLUSTER_BITS, i, refcount;
  bool anchored;

  for (i = 0; i < AREA_CLUSTERS; i++) {
    refcount_of (d, idx + i, &refcount, &anchored);
    assert_int_equal (refcount, want);
    assert_int_equal (anchored, want);
  }
}

static void
test_a_large_area_is_made_and_freed_in_parts (void **state)
{
  uint64_t off, again;
  struct world w;

  make_world (&w);
  assert_int_equal (dedup_area_alloc (&w.d->store, AREA_CLUSTERS << CLUSTER_BITS,
                                      &off), 0);
  assert_true (most_changed <= MOST);
  assert_true (nr_changed >= AREA_CLUSTERS);
  assert_area (w.d, off, 1);
  most_changed = nr_changed = 0;
  assert_int_equal (dedup_area_free (&w.d->store, off, AREA_CLUSTERS << CLUSTER_BITS),
                    0);
  assert_true (most_changed <= MOST);
  assert_int_equal (nr_changed, AREA_CLUSTERS);
  assert_area (w.d, off, 0);
  assert_int_equal (dedup_drain_quarantine (&w.d->upkeep), 0);
  assert_int_equal (dedup_area_alloc (&w.d->store, AREA_CLUSTERS << CLUSTER_BITS,
                                      &again), 0);
  assert_int_equal (again, off);
  check_world (&w, AREA_CLUSTERS);     /* no configuration lists it */
  end_world (&w);
}

/* Whichever part fails, all of it is free afterwards, once. */
static void
test_an_area_that_fails_half_way_is_free_again (void **state)
{
  uint64_t off, other;
  struct world w;
  int n, r = -ENOSPC;

  for (n = 1; r == -ENOSPC; n++) {
    make_world (&w);
    fail_prepare = n;
    r = dedup_area_alloc (&w.d->store, AREA_CLUSTERS << CLUSTER_BITS, &off);
    if (fail_prepare > 0)
      break;                    /* there are not as many calls */
    assert_int_equal (r, -ENOSPC);
    assert_area (w.d, off, 0);
    assert_int_equal (dedup_drain_quarantine (&w.d->upkeep), 0);
    assert_int_equal (dedup_area_alloc (&w.d->store, AREA_CLUSTERS << CLUSTER_BITS,
                                        &other), 0);
    assert_int_equal (other, off);       /* nothing of it was lost */
    assert_area (w.d, other, 1);
    assert_int_equal (dedup_area_free (&w.d->store, other,
                                       AREA_CLUSTERS << CLUSTER_BITS), 0);
    check_world (&w, 0);
    end_world (&w);
  }
  assert_true (n > 4);          /* a part each, and what had to be loaded */
  assert_int_equal (r, 0);
  close_world (&w);
  end_world (&w);
}

/* The check looks at each cluster, at the ends of parts too. */
static void
test_one_wrong_cluster_in_an_area_is_found (void **state)
{
  static const struct { uint64_t refcount; bool anchored; } wrong[] = {
    { 2, true }, { 1, false }, { 0, false },
  };
  uint64_t off, idx, nr;
  struct world w;
  size_t i, k;
  bool ok;

  make_world (&w);
  assert_int_equal (dedup_area_check (&w.d->store, &ok), 0);
  assert_true (ok);
  /* As one of the index would be. */
  assert_int_equal (dedup_area_alloc (&w.d->store, AREA_CLUSTERS << CLUSTER_BITS,
                                      &off), 0);
  w.d->store.config->index.limbo[w.d->store.config->index.nr_limbo++] =
    (struct dedup_limbo_area) {
    .host_off = off, .size_bytes = AREA_CLUSTERS << CLUSTER_BITS };
  assert_int_equal (dedup_area_check (&w.d->store, &ok), 0);
  assert_true (ok);
  idx = off >> CLUSTER_BITS;
  nr = AREA_CLUSTERS;
  const uint64_t where[] = { idx, idx + 1, idx + MOST - 1, idx + MOST,
                             idx + MOST + 1, idx + nr / 2, idx + nr - 1 };
  for (i = 0; i < sizeof where / sizeof where[0]; i++)
    for (k = 0; k < sizeof wrong / sizeof wrong[0]; k++) {
      set_refcount (w.d, where[i], wrong[k].refcount, wrong[k].anchored);
      assert_int_equal (dedup_area_check (&w.d->store, &ok), 0);
      assert_false (ok);
      set_refcount (w.d, where[i], 1, true);
      assert_int_equal (dedup_area_check (&w.d->store, &ok), 0);
      assert_true (ok);
    }
  close_world (&w);
  end_world (&w);
}

/* --- quarantine ------------------------------------------------------------ */

/* Every other cluster, so that none are joined. */
static void
test_many_clusters_leave_quarantine_in_parts (void **state)
{
  enum { NR = 3 * MOST + 7 };
  uint64_t i, size = UINT64_C (1) << CLUSTER_BITS, frontier;
  uint8_t *buf = calloc (1, size);
  struct world w;

  make_world (&w);
  assert_non_null (buf);
  for (i = 0; i < 2 * NR; i++) {
    memcpy (buf, &(uint64_t) { i + 1 }, 8);
    assert_int_equal (dedup_write (w.d, 0, buf, i, 1), 0);
  }
  assert_int_equal (dedup_drain_quarantine (&w.d->upkeep), 0);
  for (i = 0; i < 2 * NR; i += 2)
    assert_int_equal (dedup_unmap (w.d, 0, i, 1, DEDUP_TRIM), 0);
  most_taken = most_released = 0;
  assert_int_equal (dedup_drain_quarantine (&w.d->upkeep), 0);
  assert_true (most_taken > 1 && most_taken <= MOST);
  assert_true (most_released > 1 && most_released <= MOST);
  lock_acquire (w.d->base.lock);
  assert_int_equal (qcow2_quarantined_locked (w.d->base.img), 0);
  frontier = qcow2_frontier_locked (w.d->base.img);
  lock_release (w.d->base.lock);
  /* All of them can be used again. */
  for (i = 0; i < 2 * NR; i += 2) {
    memcpy (buf, &(uint64_t) { i + (1 << 20) }, 8);
    assert_int_equal (dedup_write (w.d, 0, buf, i, 1), 0);
  }
  lock_acquire (w.d->base.lock);
  /* Runs of the index are made meanwhile. */
  assert_true (qcow2_frontier_locked (w.d->base.img) < frontier + NR);
  lock_release (w.d->base.lock);
  free (buf);
  check_world (&w, 0);
  end_world (&w);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_a_large_area_is_made_and_freed_in_parts),
    cmocka_unit_test (test_an_area_that_fails_half_way_is_free_again),
    cmocka_unit_test (test_one_wrong_cluster_in_an_area_is_found),
    cmocka_unit_test (test_many_clusters_leave_quarantine_in_parts),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
