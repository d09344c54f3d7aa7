/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests that the work which clones leave rests behind each table while clients use
 * the image, and does not rest while nobody does.
 *
 * A disk of many tables is cloned, and the job DISKS run until nothing is left, with
 * and without a thread that reads a cluster every 50 us.  The first must take the
 * rests at least, however fast the machine is; it is tried again where the reader
 * had no processor while the tables were paid for, which takes few milliseconds.  The
 * second must hardly ever give up the processor by itself, however slow it is.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "checked.h"
#include "clock.h"
#include "dedup.h"

#define CLUSTER 512
#define PER_TABLE 64                    /* clusters of one L2 table */
#define NR_TABLES 512
#define NR_TRIES 50
#define REST_NS UINT64_C (500000)       /* pace.c */

struct world {
  struct io_store *io;
  struct dedup_pool *d;
  unsigned disk;
  bool reads, stop;                     /* atomic */
};

/* Returns how often this thread has given up the processor to wait. */
static long
nr_waits (void)
{
  struct rusage u;

  assert_int_equal (getrusage (RUSAGE_THREAD, &u), 0);
  return u.ru_nvcsw;
}

/* Makes a disk with one cluster of data in each table. */
static void
begin (struct world *w)
{
  struct dedup_create_params c = {
    .image = { .virtual_size = NR_TABLES * PER_TABLE * CLUSTER,
               .cluster_bits = 9, .refcount_order = 5 },
    .order = 5, .journal_areas = 8,
  };
  struct dedup_open_params p = {
    .path = "test", .writable = true, .dedup = true, .verify = true,
    .max_incarnations = -1, .cache_bytes = 16 << 20,
  };
  uint8_t buf[CLUSTER] = { 0 };
  struct fault f = { 0 };

  memset (w, 0, sizeof *w);
  assert_int_equal (io_memory_new (0, &w->io), 0);
  if (dedup_create (w->io, &c, &f) < 0 ||
      dedup_open (w->io, &p, &w->d, &f) < 0 ||
      dedup_disk_create (w->d, "disk", c.image.virtual_size, &w->disk, &f) < 0)
    fail_msg ("%s", f.msg);
  for (uint64_t i = 0; i < NR_TABLES; i++) {
    buf[0] = (uint8_t) (i + 1);
    assert_int_equal (dedup_write (w->d, w->disk, buf, i * PER_TABLE, 1), 0);
  }
  assert_int_equal (dedup_flush (w->d), 0);
}

static void
end (struct world *w)
{
  assert_int_equal (dedup_finish (w->d), 0);
  dedup_free (w->d);
  io_close (w->io);
}

/* Pays for a clone; returns the time that this took. */
static uint64_t
pay (struct world *w, const char *name)
{
  struct fault f = { 0 };
  unsigned clone;
  uint64_t start;

  assert_int_equal (dedup_disk_clone (w->d, w->disk, name, true, &clone, &f), 0);
  start = clock_now_ns ();
  while (dedup_due (w->d, NULL) & DEDUP_JOB_DISKS)
    assert_int_equal (dedup_run (w->d, DEDUP_JOB_DISKS), 0);
  assert_false (dedup_disks_pending (w->d));
  return clock_now_ns () - start;
}

static void *
read_again_and_again (void *opaque)
{
  struct world *w = opaque;
  uint8_t buf[CLUSTER];

  while (!__atomic_load_n (&w->stop, __ATOMIC_RELAXED)) {
    if (dedup_read (w->d, w->disk, buf, 0, sizeof buf) < 0)
      return w;
    __atomic_store_n (&w->reads, true, __ATOMIC_RELAXED);
    usleep (50);
  }
  return NULL;
}

static void
test_rests_beside_clients_only (void **state)
{
  struct world w;
  pthread_t reader;
  /* Some tables pass before the first request is seen. */
  const uint64_t enough = NR_TABLES * REST_NS / 2;
  uint64_t took = 0;
  char name[16];
  void *failed;
  long before;

  (void) state;
  begin (&w);
  before = nr_waits ();
  (void) pay (&w, "alone");
  assert_in_range (nr_waits () - before, 0, NR_TABLES / 4);

  pthread_create (&reader, NULL, read_again_and_again, &w);
  while (!__atomic_load_n (&w.reads, __ATOMIC_RELAXED))
    usleep (100);
  for (int i = 0; i < NR_TRIES && took < enough; i++) {
    snprintf (name, sizeof name, "beside%d", i);
    took = pay (&w, name);
  }
  __atomic_store_n (&w.stop, true, __ATOMIC_RELAXED);
  pthread_join (reader, &failed);
  assert_null (failed);
  assert_in_range (took, enough, UINT64_MAX);
  end (&w);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_rests_beside_clients_only),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
