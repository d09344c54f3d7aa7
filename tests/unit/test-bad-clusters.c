/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests what writers do about clusters that hold other bytes than the index says: which
 * of them they call bad (dedup/write/different.c), and that a bad cluster which turns
 * out to be good is not written (dedup/write/heal.c).
 *
 * On a byte store in memory.  The log stores have 128 entries, so that entries about
 * former data of a cluster stay in older tables.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include "checked.h"
#include "pool.h"
#include "splitmix.h"

#define CLUSTER 4096u
#define NR 512u                 /* guest clusters */
#define SPARE 500u              /* from here on they are written by tests */
#define MAX_PLACES 256u

struct world {
  struct io_store *memory, *io;
  struct dedup_pool *pool;
  uint64_t ids[NR];
  uint64_t last_id, rng;
  bool no_dedup;
  uint64_t watched;             /* host cluster; 0: none */
  unsigned writes;              /* ... to it */
};

static void
fill (uint8_t *p, uint64_t id)
{
  uint64_t x = id, v;
  size_t i;

  for (i = 0; i < CLUSTER / 8; i++) {
    v = id ? splitmix64 (&x) : 0;
    memcpy (p + 8 * i, &v, 8);
  }
}

/* Counts writes to the watched cluster. */
static int
look_on (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  struct world *w = opaque;
  const uint64_t at = w->watched * CLUSTER;

  if (call == IO_PWRITE && at > 0 && host_off < at + CLUSTER &&
      host_off + len > at)
    w->writes++;
  return 0;
}

/* --- The image ---------------------------------------------------------------- */

static void
open_image (struct world *w)
{
  const struct dedup_open_params p = {
    .path = "test", .writable = true, .dedup = !w->no_dedup, .verify = true,
    .max_incarnations = -1, .cache_bytes = 1 << 20,
  };
  struct fault f = { 0 };

  if (dedup_open (w->io, &p, &w->pool, &f) < 0)
    fail_msg ("open: %s", f.msg);
}

static void
close_image (struct world *w)
{
  assert_int_equal (dedup_finish (w->pool), 0);
  dedup_free (w->pool);
}

static void
reopen (struct world *w, bool no_dedup)
{
  close_image (w);
  w->no_dedup = no_dedup;
  open_image (w);
}

static struct world *
new_world (unsigned refcount_order)
{
  struct dedup_create_params p = {
    .image = { .virtual_size = NR * CLUSTER, .cluster_bits = 12,
               .refcount_order = refcount_order },
    .order = 5, .journal_areas = 4,
  };
  struct world *w = calloc (1, sizeof *w);
  struct fault f = { 0 };

  assert_non_null (w);
  w->rng = 0xbadc;
  assert_int_equal (io_memory_new (0, &w->memory), 0);
  assert_int_equal (io_faulty_new (w->memory, look_on, w, &w->io), 0);
  assert_int_equal (dedup_create (w->io, &p, &f), 0);
  open_image (w);
  return w;
}

static void
free_world (struct world *w)
{
  close_image (w);
  io_close (w->io);
  free (w);
}

static void
run_jobs (struct world *w)
{
  const unsigned jobs = DEDUP_JOB_COMMIT | DEDUP_JOB_JOURNAL |
    DEDUP_JOB_FREEZE | DEDUP_JOB_FILTERS | DEDUP_JOB_MERGE | DEDUP_JOB_SCAN;
  unsigned due, i;

  assert_int_equal (dedup_flush (w->pool), 0);
  for (i = 0; i < 8 && (due = dedup_due (w->pool, NULL) & jobs) != 0; i++)
    assert_int_equal (dedup_run (w->pool, due & -due), 0);
}

static void
write_id (struct world *w, uint64_t guest_idx, uint64_t id)
{
  uint8_t buf[CLUSTER];

  fill (buf, id);
  assert_int_equal (dedup_write (w->pool, QCOW2_ROOT_ACTIVE, buf, guest_idx, 1),
                    0);
  w->ids[guest_idx] = id;
}

static bool
reads_as (struct world *w, uint64_t guest_idx, uint64_t id)
{
  uint8_t got[CLUSTER], want[CLUSTER];

  fill (want, id);
  return dedup_read (w->pool, QCOW2_ROOT_ACTIVE, got, guest_idx * CLUSTER,
                     CLUSTER) == 0 && memcmp (got, want, CLUSTER) == 0;
}

static uint64_t
host_of (struct world *w, uint64_t guest_idx)
{
  struct qcow2_extent e;

  assert_int_equal (qcow2_map (dedup_image (w->pool), QCOW2_ROOT_ACTIVE,
                               guest_idx * CLUSTER, CLUSTER, &e, 1), 1);
  return e.kind == QCOW2_DATA ? e.host_off / CLUSTER : 0;
}

/* Overwrites guest clusters below SPARE with new data, NR_WRITES times. */
static void
age (struct world *w, unsigned nr_writes)
{
  unsigned i;

  for (i = 0; i < nr_writes; i++) {
    write_id (w, splitmix64 (&w->rng) % SPARE, ++w->last_id);
    if (i % 48 == 0)
      run_jobs (w);
  }
  run_jobs (w);
}

/* Writes each content that there ever was, one after the other. */
static void
write_old_contents (struct world *w)
{
  uint64_t id, g;

  for (id = 1; id <= w->last_id; id++) {
    g = SPARE + id % (NR - SPARE);
    write_id (w, g, id);
    assert_true (reads_as (w, g, id));
  }
}

static void
flip (struct world *w, uint64_t host_idx)
{
  uint8_t byte;

  assert_int_equal (io_pread (w->memory, &byte, 1, host_idx * CLUSTER + 77), 0);
  byte ^= 1;
  assert_int_equal (io_pwrite (w->memory, &byte, 1, host_idx * CLUSTER + 77),
                    0);
}

static void
scrub (struct world *w, struct dedup_scrub_figures *f)
{
  const struct dedup_scrub_params p = { .restart = true };
  struct dedup_scrub *sc;
  int r;

  assert_int_equal (dedup_scrub_begin (w->pool, &p, &sc), 0);
  while ((r = dedup_scrub_step (sc)) == 1)
    ;
  assert_int_equal (r, 0);
  dedup_scrub_figures (sc, f);
  dedup_scrub_end (sc);
}

static uint64_t
nr_bad (struct world *w)
{
  struct dedup_scrub_memory m;

  dedup_scrub_remembered (w->pool, &m);
  return m.bad;
}

/* Asserts that every guest cluster has its contents. */
static void
assert_contents (struct world *w)
{
  uint64_t g;

  for (g = 0; g < NR; g++)
    assert_true (reads_as (w, g, w->ids[g]));
}

/* --- What writers call bad ------------------------------------------------------ */

/* A writer that meets rot stores its data elsewhere, and the cluster is known to be
 * bad from then on, once and for all sessions. */
static void
test_rot_is_called_bad (void **state)
{
  struct world *w = new_world (4);
  struct dedup_scrub_figures f;
  uint64_t places[2], h, id;

  age (w, 1500);
  h = host_of (w, 7);
  id = w->ids[7];
  assert_true (h > 0);
  flip (w, h);
  write_id (w, SPARE, id);
  assert_int_not_equal (host_of (w, SPARE), h);
  assert_true (reads_as (w, SPARE, id));
  assert_int_equal (dedup_scrub_bad_places (w->pool, places, 2), 1);
  assert_int_equal (places[0], h * CLUSTER);
  write_id (w, SPARE + 1, id);
  assert_int_equal (host_of (w, SPARE + 1), host_of (w, SPARE));
  assert_int_equal (nr_bad (w), 1);
  reopen (w, false);
  assert_int_equal (nr_bad (w), 1);
  scrub (w, &f);
  assert_int_equal (f.different, 1);
  assert_int_equal (f.doubtful, 0);
  free_world (w);
}

/* ... also after a close with lent tables, which is no crash: the cluster has a mark,
 * so that nothing but the note tells. */
static void
test_close_with_work_left (void **state)
{
  struct world *w = new_world (5);
  struct dedup_scrub_figures f;
  struct fault why;
  unsigned root;

  age (w, 500);
  flip (w, host_of (w, 7));
  write_id (w, SPARE, w->ids[7]);
  assert_int_equal (nr_bad (w), 1);
  assert_int_equal (dedup_disk_clone (w->pool, QCOW2_ROOT_ACTIVE, "copy", true,
                                      &root, &why), 0);
  assert_true (dedup_disks_pending (w->pool));
  reopen (w, false);
  assert_true (dedup_disks_pending (w->pool));
  scrub (w, &f);
  assert_int_equal (f.different, 1);
  assert_int_equal (f.unknown, 0);
  free_world (w);
}

/* An entry about former data of a cluster is no rot. */
static void
test_old_entries (void **state)
{
  struct world *w = new_world (4);

  age (w, 2500);
  write_old_contents (w);
  assert_int_equal (nr_bad (w), 0);
  assert_contents (w);
  free_world (w);
}

/* ... nor is it where the data has no entry, because a session had dedup=off. */
static void
test_incomplete_index (void **state)
{
  struct world *w = new_world (4);

  age (w, 1200);
  reopen (w, true);
  age (w, 1200);
  reopen (w, false);
  write_old_contents (w);
  assert_int_equal (nr_bad (w), 0);
  assert_contents (w);
  free_world (w);
}

/* ... nor where the data has left its entry to another cluster, because its own can
 * take no more references. */
static void
test_full_clusters (void **state)
{
  struct world *w = new_world (3);      /* 127 references */
  uint64_t g;
  unsigned round;

  for (round = 0; round < 4; round++) {
    age (w, 900);
    for (g = 0; g < SPARE; g++) {
      write_id (w, g, 1000000 + 2 * round + g % 2);
      if (g % 48 == 0)
        run_jobs (w);
    }
    age (w, 100);                       /* they are full no longer */
    write_old_contents (w);
    assert_int_equal (nr_bad (w), 0);
  }
  assert_contents (w);
  free_world (w);
}

/* --- Bad clusters that are good -------------------------------------------------- */

/* A cluster was found bad, and its medium returns the right bytes again: a write of
 * them ends that, but does not write there. */
static void
test_good_again (void **state)
{
  struct world *w = new_world (4);
  struct dedup_scrub_figures f;
  struct dedup_scrub_memory m;

  write_id (w, SPARE + 9, ++w->last_id);     /* a cluster with one hash */
  age (w, 200);
  w->watched = host_of (w, SPARE + 9);
  flip (w, w->watched);
  scrub (w, &f);
  assert_int_equal (f.different, 1);
  flip (w, w->watched);
  w->writes = 0;
  write_id (w, SPARE, w->ids[SPARE + 9]);
  assert_int_equal (host_of (w, SPARE), w->watched);
  assert_int_equal (w->writes, 0);
  dedup_scrub_remembered (w->pool, &m);
  assert_int_equal (m.bad, 0);
  assert_int_equal (m.healed, 0);
  assert_contents (w);
  free_world (w);
}

/* The note about a cluster is wrong: it says that it lost data which it never had.
 * Whoever writes that data must not destroy what the cluster holds. */
static void
test_wrong_note (void **state)
{
  struct world *w = new_world (4);
  struct dedup_bad_cluster c = { .flags = DEDUP_BAD_SURE | DEDUP_BAD_HASH };
  const uint64_t lost = 4711;
  uint8_t buf[CLUSTER];

  age (w, 200);
  write_id (w, 9, ++w->last_id);
  w->watched = c.host_idx = host_of (w, 9);
  fill (buf, lost);
  assert_int_equal (dedup_hash_compute (&w->pool->base.hasher, buf, CLUSTER,
                                        &c.hash), 0);
  lock_acquire (w->pool->base.lock);
  assert_true (dedup_bad_add_locked (&w->pool->store.bad, &c));
  lock_release (w->pool->base.lock);
  w->writes = 0;
  write_id (w, SPARE, lost);
  assert_int_equal (w->writes, 0);
  assert_int_not_equal (host_of (w, SPARE), w->watched);
  assert_int_equal (nr_bad (w), 0);
  assert_contents (w);
  free_world (w);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_rot_is_called_bad),
    cmocka_unit_test (test_close_with_work_left),
    cmocka_unit_test (test_old_entries),
    cmocka_unit_test (test_incomplete_index),
    cmocka_unit_test (test_full_clusters),
    cmocka_unit_test (test_good_again),
    cmocka_unit_test (test_wrong_note),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
