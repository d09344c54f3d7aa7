/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests bugs that a review found on hosts without space.
 *
 * Breaks if: a request is refused although the disk still has the space that it
 * needs, or could make it.
 */
#include "regress.h"

#include <errno.h>

#include "image.h"
#include "wire.h"

/* A host that is full: what has no space there gets none. */
static struct {
  bool full;
  bool areas_only;              /* only areas of the store get none */
  uint64_t area_bytes, incarnation_bytes;
  uint64_t config_off, config_end;   /* only this finds none */
  uint8_t *backed;              /* by cluster; NULL: by LIMIT */
  uint64_t limit;
} host;

#define HOST_CLUSTERS (UINT64_C (1) << 18)

static int
give_space (uint64_t off, uint64_t len)
{
  uint64_t i, end = (off + len + CLUSTER - 1) / CLUSTER;

  if (host.backed == NULL)
    return host.full && off + len > host.limit ? -ENOSPC : 0;
  for (i = off / CLUSTER; i < end; i++) {
    if (i >= HOST_CLUSTERS || (host.full && !host.backed[i]))
      return -ENOSPC;
    host.backed[i] = 1;
  }
  return 0;
}

static int
host_call (void *opaque, enum io_call call, uint64_t off, uint64_t len)
{
  uint64_t i;

  if (host.config_end > 0)
    return host.full && call == IO_PWRITE && off >= host.config_off &&
      off < host.config_end ? -ENOSPC : 0;
  if (host.areas_only)
    return call == IO_ALLOCATE && host.full &&
      (len == host.area_bytes || len == host.incarnation_bytes) ? -ENOSPC : 0;
  if (call == IO_PWRITE || call == IO_ALLOCATE)
    return give_space (off, len);
  if (call == IO_DISCARD && host.backed)
    for (i = (off + CLUSTER - 1) / CLUSTER; i < (off + len) / CLUSTER; i++)
      host.backed[i] = 0;
  return 0;
}

/* A disk on such a host, of NR_GUEST clusters; the image itself is backed. */
static struct dedup_pool *
open_on_host (const struct shape *s, uint64_t nr_guest, struct io_store **io)
{
  struct qcow2_create_params p = { nr_guest * CLUSTER, 12, 4 };
  struct io_store *mem;
  struct dedup_pool *d;
  struct fault f = { 0 };

  assert_int_equal (io_memory_new (0, &mem), 0);
  assert_int_equal (qcow2_create (mem, &p, &f), 0);
  assert_int_equal (io_faulty_new (mem, host_call, NULL, io), 0);
  d = must_open (s, *io, true);
  host.area_bytes = d->store.config->journal_area_size;
  host.incarnation_bytes =
    round_up_pow2 (dedup_incarnation_size (s->order), CLUSTER);
  return d;
}

static void
host_init (bool track)
{
  free (host.backed);
  memset (&host, 0, sizeof host);
  if (track)
    host.backed = calloc (HOST_CLUSTERS, 1);
}

static void
finish_on_host (const struct shape *s, struct dedup_pool *d,
                struct io_store *io)
{
  host.full = false;
  assert_int_equal (dedup_finish (d), 0);
  dedup_free (d);
  assert_clean (s, io);
  io_close (io);
}

/* --- no space for areas -------------------------------------------------- */

#define ROUND 1500

static void
run_urgent (struct dedup_pool *d)
{
  unsigned urgent, job;

  for (job = 1; job <= DEDUP_JOB_GIVE_BACK; job <<= 1) {
    dedup_due (d, &urgent);
    if (urgent & job)
      assert_int_not_equal (dedup_run (d, job), -EIO);
  }
}

static void
work_without_areas (const struct shape *s, unsigned rounds, bool trim)
{
  struct io_store *io;
  struct dedup_pool *d;
  uint64_t n = 0, rng = 12345;
  unsigned i, k;

  host_init (false);
  host.areas_only = true;
  d = open_on_host (s, 4096, &io);
  host.full = true;
  for (k = 0; k < rounds; k++)
    for (i = 0; i < ROUND; i++, n++) {
      if (trim && k > 1 && n % 3)
        assert_int_equal (dedup_unmap (d, 0, rnd (&rng, ROUND), 1, n & 1 ?
                                       DEDUP_ZERO : DEDUP_TRIM), 0);
      else
        assert_int_equal (write_id (d, i, 1 + n), 0);
      if (n % 500 == 0)
        run_urgent (d);
    }
  assert_int_equal (dedup_unmap (d, 0, 0, ROUND, DEDUP_TRIM), 0);
  assert_int_equal (dedup_flush (d), 0);
  assert_int_equal (write_id (d, 1, 1), 0);
  assert_int_equal (dedup_finish (d), 0);
  dedup_free (d);
  d = must_open (s, io, true);
  assert_int_equal (dedup_unmap (d, 0, 3, 100, DEDUP_TRIM), 0);
  assert_int_equal (write_id (d, 1, 77777777), 0);
  finish_on_host (s, d, io);
}

/* The index gives entries up, rather than writes be refused for ever because
 * neither journal nor incarnations could grow. */
static void
test_overwrites_and_trims_go_on_without_space_for_areas (void **state)
{
  static const struct shape shapes[] = {
    { .order = 4, .journal_areas = 16 }, { .order = 10, .journal_areas = 16 },
    { .order = 13, .journal_areas = 16 },
  };
  size_t i;

  for (i = 0; i < 3; i++) {
    work_without_areas (&shapes[i], 20, false);
    work_without_areas (&shapes[i], 20, true);
  }
}

/* --- free clusters with and without space -------------------------------- */

static void
overwrite (struct dedup_pool *d, uint64_t idx, uint64_t id)
{
  unsigned i;

  for (i = 0; i < 50; i++) {
    assert_int_equal (write_id (d, idx + i, id + i), 0);
    assert_int_equal (read_id (d, idx + i), id + i);
  }
}

/* Some free clusters have space of the host's, others were given back: the
 * first ENOSPC does not mean that there is none. */
static void
test_overwrites_find_the_free_clusters_that_have_space (void **state)
{
  static const struct shape s = { .order = 12, .journal_areas = 16 };
  CLEANUP_FREE uint8_t *buf = malloc (512 * CLUSTER);
  struct io_store *io;
  struct dedup_pool *d;
  uint64_t i;

  host_init (true);
  d = open_on_host (&s, 4096, &io);
  for (i = 0; i < 1000; i++)
    assert_int_equal (write_id (d, i, 1000 + i), 0);
  for (i = 0; i < 500; i++)
    assert_int_equal (write_id (d, i, 5000 + i), 0);
  for (i = 0; i < 3; i++)
    assert_int_equal (dedup_run (d, DEDUP_JOB_COMMIT), 0);
  assert_int_equal (dedup_run (d, DEDUP_JOB_CHECKPOINT), 0);
  host.full = true;
  lock_acquire (d->base.lock);       /* as after much work: behind all that is free */
  d->base.img->alloc.cursor = d->base.img->alloc.frontier;
  lock_release (d->base.lock);
  overwrite (d, 1500, 9000);
  /* What does not fit runs past the clusters that have space. */
  for (i = 0; i < 512; i++)
    fill_cluster (buf + i * CLUSTER, 20000 + i);
  assert_int_equal (dedup_write (d, 0, buf, 2000, 512), -ENOSPC);
  overwrite (d, 100, 9500);
  assert_int_equal (dedup_unmap (d, 0, 600, 300, DEDUP_TRIM), 0);
  overwrite (d, 100, 9700);
  host.full = false;
  overwrite (d, 100, 9900);
  finish_on_host (&s, d, io);
}

/* New data may not take what is spared for overwriting; an overwrite may, from
 * the first one on, the largest too; and what it frees is spared again. */
static void
test_spare_clusters_take_overwrites_on_a_full_host (void **state)
{
  static const struct shape s = { .order = 12, .journal_areas = 16 };
  CLEANUP_FREE uint8_t *buf = malloc (512 * CLUSTER);
  struct io_store *io;
  struct dedup_pool *d;
  uint64_t i, k;

  host_init (true);
  d = open_on_host (&s, 4096, &io);
  for (i = 0; i < 600; i++)
    assert_int_equal (write_id (d, i, 1000 + i), 0);
  while (dedup_due (d, NULL) & DEDUP_JOB_SCAN)
    assert_int_equal (dedup_run (d, DEDUP_JOB_SCAN), 0);
  assert_int_equal (dedup_run (d, DEDUP_JOB_COMMIT), 0);
  assert_int_equal (d->upkeep.reserve.nr, 512);
  host.full = true;
  for (k = 0; k < 5; k++)
    assert_int_equal (write_id (d, 2000 + k, 2000 + k), -ENOSPC);
  assert_int_equal (d->upkeep.reserve.nr, 512);
  for (i = 0; i < 3000; i++) {
    assert_int_equal (write_id (d, i % 600, 5000 + i), 0);
    assert_int_equal (read_id (d, i % 600), 5000 + i);
    if (i % 700 == 0)
      assert_int_equal (dedup_flush (d), 0);
  }
  for (k = 0; k < 4; k++) {
    for (i = 0; i < 512; i++)
      fill_cluster (buf + i * CLUSTER, 20000 + 1000 * k + i);
    assert_int_equal (dedup_write (d, 0, buf, 50, 512), 0);
  }
  assert_int_equal (write_id (d, 2000, 2000), -ENOSPC);
  assert_int_equal (dedup_unmap (d, 0, 0, 100, DEDUP_TRIM), 0);
  for (i = 0; i < 3; i++)
    assert_int_equal (dedup_run (d, DEDUP_JOB_COMMIT), 0);
  assert_int_equal (d->upkeep.reserve.nr, 512);
  host.full = false;
  assert_int_equal (write_id (d, 2000, 2000), 0);
  finish_on_host (&s, d, io);
}

/* The search for space frees clusters, and with verify=off each needs room in
 * the journal for its tombstone: where there was none, clients got EBUSY. */
static void
test_no_client_meets_ebusy (void **state)
{
  static const struct shape s = { .order = 4, .journal_areas = 4,
                                  .exact = true };
  struct io_store *io;
  struct dedup_pool *d;
  uint64_t id = 1, i;
  int r;

  host_init (true);
  d = open_on_host (&s, 4096, &io);
  assert_true (d->store.index->exact);
  for (i = 0; i < 600; i++)
    assert_int_equal (write_id (d, i % 300, id++), 0);
  assert_int_equal (dedup_run (d, DEDUP_JOB_COMMIT), 0);
  host.full = true;
  for (i = 0; i < 600; i++) {
    r = write_id (d, i % 300, id++);
    assert_true (r == 0 || r == -ENOSPC);
  }
  finish_on_host (&s, d, io);
}

/* --- opening ------------------------------------------------------------- */

#define SIZE_AT 24              /* in the header: virtual size, be64 */

static void
set_virtual_size (struct io_store *io, uint64_t size)
{
  be64 wire = be64_make (size);

  assert_int_equal (io_pwrite (io, &wire, sizeof wire, SIZE_AT), 0);
}

/* Raised to a size for which refcount table and anchor L1 must grow: if there
 * is no space for that, the old ones do. */
static void
test_a_grown_image_opens_on_a_full_disk (void **state)
{
  static const struct shape s = { .order = 4, .journal_areas = 4 };
  const uint64_t large = UINT64_C (200) << 30;
  struct qcow2_create_params p = { large, 12, 4 };
  struct io_store *mem, *io;
  struct dedup_pool *d;
  struct fault f = { 0 };
  int round;

  host_init (false);
  assert_int_equal (io_memory_new (0, &mem), 0);
  assert_int_equal (qcow2_create (mem, &p, &f), 0);
  assert_int_equal (io_faulty_new (mem, host_call, NULL, &io), 0);
  set_virtual_size (mem, UINT64_C (4) << 20);
  d = must_open (&s, io, true);
  assert_int_equal (write_id (d, 3, 33), 0);
  assert_int_equal (dedup_finish (d), 0);
  dedup_free (d);
  set_virtual_size (mem, large);
  host.limit = (uint64_t) io_size (mem);
  for (round = 0; round < 2; round++) {
    host.full = round == 0;
    d = must_open (&s, io, true);
    if (host.full)
      assert_int_equal (dedup_unmap (d, 0, 3, 1, DEDUP_TRIM), 0);
    else
      assert_int_equal (write_id (d, (large / CLUSTER) - 1, 34), 0);
    assert_int_equal (dedup_finish (d), 0);
    dedup_free (d);
    assert_clean (&s, io);
  }
  io_close (io);
}

/* --- a configuration that finds no space ---------------------------------- */

/* Both slots must have it before areas are used again (law 7) or anything
 * leaves quarantine (law 6); writes go on meanwhile, and the job makes it. */
static void
test_a_configuration_without_space_is_not_acted_upon (void **state)
{
  static const struct shape s = { .order = 12, .journal_areas = 4 };
  uint64_t i, checkpoint, left;
  struct io_store *io;
  struct dedup_pool *d;

  host_init (false);
  d = open_on_host (&s, 4096, &io);
  host.config_off = d->store.ext.config_off;
  host.config_end = d->store.ext.config_off + d->store.ext.config_size;
  for (i = 0; i < 300; i++) {
    assert_int_equal (write_id (d, i % 100, 1 + i), 0);
    assert_int_equal (dedup_flush (d), 0);
  }
  host.full = true;
  checkpoint = d->store.checkpoint;
  assert_int_equal (dedup_run (d, DEDUP_JOB_CHECKPOINT), -ENOSPC);
  assert_true (dedup_config_owed (&d->store));
  assert_true (dedup_due (d, NULL) & DEDUP_JOB_CHECKPOINT);
  lock_acquire (d->base.lock);
  left = qcow2_quarantined_locked (d->base.img);
  lock_release (d->base.lock);
  assert_true (left > 0);
  for (i = 0; i < 3; i++)
    assert_int_equal (dedup_run (d, DEDUP_JOB_COMMIT), 0);
  assert_int_equal (d->store.checkpoint, checkpoint);
  lock_acquire (d->base.lock);
  assert_int_equal (qcow2_quarantined_locked (d->base.img), left);
  lock_release (d->base.lock);
  assert_int_equal (dedup_failed (d), 0);
  assert_int_equal (write_id (d, 7, 77777), 0);
  assert_int_equal (dedup_flush (d), 0);
  host.full = false;
  assert_int_equal (dedup_run (d, DEDUP_JOB_CHECKPOINT), 0);
  assert_false (dedup_config_owed (&d->store));
  assert_true (d->store.checkpoint > checkpoint);
  assert_int_equal (read_id (d, 7), 77777);
  finish_on_host (&s, d, io);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_a_configuration_without_space_is_not_acted_upon),
    cmocka_unit_test (test_overwrites_and_trims_go_on_without_space_for_areas),
    cmocka_unit_test (test_overwrites_find_the_free_clusters_that_have_space),
    cmocka_unit_test (test_spare_clusters_take_overwrites_on_a_full_host),
    cmocka_unit_test (test_no_client_meets_ebusy),
    cmocka_unit_test (test_a_grown_image_opens_on_a_full_disk),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
