/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the store file (docs/on-disk.md section 9), on byte stores in memory:
 * the index is written there and found again; a lost or damaged file costs
 * entries and a message, never data; and a file that is not this image's is
 * refused and not changed.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <cmocka.h>

#include "checked.h"
#include "config.h"
#include "pool.h"

#define CLUSTER 4096
#define NR 1024           /* guest clusters */
#define BATCH 200         /* clusters that a session writes: some freezes */

static char last_line[600];
static unsigned nr_lost;  /* lines that say so */
static int fail_from = -1, calls;      /* calls of the store file that fail */
static int fail_with = -EIO;

static void
note_line (void *opaque, enum log_level level, const char *line)
{
  snprintf (last_line, sizeof last_line, "%s", line);
  nr_lost += strstr (line, "are lost") != NULL;
}

static const struct log_sink sink = { note_line, NULL };

static int
store_cb (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  if (call == IO_PREAD || fail_from < 0)
    return 0;
  return calls++ >= fail_from ? fail_with : 0;
}

static bool no_config;    /* no space for a configuration; its place: */
static struct dedup_ext config_place;

static int
image_cb (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  return no_config && call == IO_PWRITE &&
    host_off - config_place.config_off < config_place.config_size ? -ENOSPC : 0;
}

/* --- Disks ---------------------------------------------------------------- */

static void
fill (uint8_t *p, uint64_t id)
{
  uint64_t v;
  size_t i;

  for (i = 0; i < CLUSTER / 8; i++) {
    v = id * 0x100000001b3u + i * (id | 1);
    memcpy (p + 8 * i, &v, 8);
  }
}

static struct io_store *
new_file (void)
{
  struct io_store *io;

  assert_int_equal (io_memory_new (0, &io), 0);
  return io;
}

static struct io_store *
copy_file (struct io_store *from)
{
  int64_t size = io_size (from);
  uint8_t *buf = malloc ((size_t) size + 1);
  struct io_store *io = new_file ();

  assert_int_equal (io_pread (from, buf, (size_t) size, 0), 0);
  assert_int_equal (io_pwrite (io, buf, (size_t) size, 0), 0);
  free (buf);
  return io;
}

static bool
same_bytes (struct io_store *a, struct io_store *b)
{
  int64_t n = io_size (a);
  uint8_t *x = malloc ((size_t) n + 1), *y = malloc ((size_t) n + 1);
  bool same = n == io_size (b) && io_pread (a, x, (size_t) n, 0) == 0 &&
    io_pread (b, y, (size_t) n, 0) == 0 && memcmp (x, y, (size_t) n) == 0;

  free (x);
  free (y);
  return same;
}

static struct io_store *
create_disk (unsigned max_incarnations)
{
  struct dedup_create_params p = {
    .image = { .virtual_size = NR * CLUSTER, .cluster_bits = 12,
               .refcount_order = 4 },
    .order = 4, .max_incarnations = max_incarnations, .journal_areas = 4,
  };
  struct fault f = { 0 };
  struct io_store *io = new_file ();

  if (dedup_create (io, &p, &f) < 0)
    fail_msg ("create: %s", f.msg);
  return io;
}

static int
try_open (struct io_store *io, struct io_store *store, bool writable,
          struct dedup_pool **d, struct fault *f)
{
  struct dedup_open_params p = {
    .path = "test", .writable = writable, .dedup = true, .verify = false,
    .max_incarnations = -1, .cache_bytes = 1 << 20, .log = &sink,
    .store = store, .store_path = "ssd",
  };

  memset (f, 0, sizeof *f);
  *d = NULL;
  return dedup_open (io, &p, d, f);
}

static struct dedup_pool *
open_disk (struct io_store *io, struct io_store *store, bool writable)
{
  struct dedup_pool *d;
  struct fault f;

  if (try_open (io, store, writable, &d, &f) < 0)
    fail_msg ("open: %s", f.msg);
  return d;
}

static void
run_jobs (struct dedup_pool *d)
{
  unsigned due, job, rounds = 0;

  while ((due = dedup_due (d, NULL) & ~(unsigned) DEDUP_JOB_COMMIT) != 0 &&
         rounds++ < 1000)
    for (job = 1; job <= DEDUP_JOB_MERGE; job <<= 1)
      if (due & job)
        assert_int_equal (dedup_run (d, (enum dedup_job) job), 0);
}

/* Contents FIRST, FIRST + 1 and so on at AT. */
static void
write_batch (struct dedup_pool *d, uint64_t first, uint64_t at)
{
  uint8_t buf[8 * CLUSTER];
  size_t i, k;

  for (i = 0; i < BATCH; i += 8) {
    for (k = 0; k < 8; k++)
      fill (buf + k * CLUSTER, first + i + k);
    assert_int_equal (dedup_write (d, 0, buf, at + i, 8), 0);
    run_jobs (d);
  }
}

static void
assert_batch (struct dedup_pool *d, uint64_t first, uint64_t at)
{
  uint8_t want[CLUSTER], got[CLUSTER];
  size_t i;

  for (i = 0; i < BATCH; i++) {
    fill (want, first + i);
    assert_int_equal (dedup_read (d, 0, got, (at + i) * CLUSTER, CLUSTER), 0);
    assert_memory_equal (got, want, CLUSTER);
  }
}

static void
close_disk (struct dedup_pool *d)
{
  assert_int_equal (dedup_finish (d), 0);
  dedup_free (d);
}

/* One session that writes a batch.  How many clusters it stored. */
static uint64_t
session (struct io_store *io, struct io_store *store, uint64_t first,
         uint64_t at)
{
  struct dedup_pool *d = open_disk (io, store, true);
  struct dedup_stats s;

  write_batch (d, first, at);
  assert_batch (d, first, at);
  dedup_get_stats (d, &s);
  close_disk (d);
  return s.stored;
}

/* Bytes of the areas of the index that lie in the image, or in the file. */
static uint64_t
index_bytes (struct io_store *io, bool in_file, uint64_t *session_nr)
{
  struct dedup_pool *d = open_disk (io, NULL, false);
  struct dedup_config *c = calloc (1, sizeof *c);
  struct dedup_ext ext;
  struct fault f = { 0 };
  uint64_t sum = 0;
  size_t i;

  assert_int_equal (dedup_ext_decode (qcow2_store_extension (dedup_image (d)),
                                      &ext), 0);
  assert_int_equal (dedup_config_read (io, &ext, CLUSTER, c, &f), 0);
  for (i = 0; i < c->index.nr_segments; i++)
    if (dedup_in_store_file (c->index.segments[i].host_off) == in_file)
      sum += c->index.segments[i].size_bytes;
  for (i = 0; i < c->index.nr_incarnations; i++)
    if (dedup_in_store_file (c->index.incarnations[i].host_off) == in_file)
      sum += c->index.incarnations[i].size_bytes;
  if (session_nr)
    *session_nr = c->store_session;
  free (c);
  dedup_free (d);
  return sum;
}

static void
note_problem (void *opaque, bool is_leak, const char *line)
{
  print_message ("%s: %s\n", is_leak ? "leak" : "problem", line);
}

static void
assert_clean (struct io_store *io, struct io_store *store)
{
  struct qcow2_check_params p = { .problem = note_problem };
  struct dedup_pool *d = open_disk (io, store, false);
  struct dedup_check_result r;
  struct fault f = { 0 };

  assert_int_equal (dedup_check (d, &p, &r, &f), 0);
  assert_int_equal (r.image.corruptions, 0);
  assert_int_equal (r.image.leaks, 0);
  assert_int_equal (r.store_errors, 0);
  dedup_free (d);
}

/* An image whose index of one batch at 0 lies in *STORE. */
static struct io_store *
two_files (struct io_store **store)
{
  struct io_store *io = create_disk (0);

  *store = new_file ();
  assert_int_equal (session (io, *store, 1, 0), BATCH);
  assert_true (index_bytes (io, true, NULL) > 0);
  nr_lost = 0;
  last_line[0] = '\0';
  return io;
}

/* --- Tests ---------------------------------------------------------------- */

static void
is_found_again (void **state)
{
  struct io_store *store, *io = two_files (&store);

  assert_int_equal (index_bytes (io, false, NULL), 0);
  assert_int_equal (session (io, store, 1, 300), 0);
  assert_int_equal (nr_lost, 0);
  assert_clean (io, store);
  io_close (io);
  io_close (store);
}

static void
incarnations_lie_there_too (void **state)
{
  struct io_store *io = create_disk (100), *store = new_file ();

  assert_int_equal (session (io, store, 1, 0), BATCH);
  assert_true (index_bytes (io, true, NULL) > 0);
  assert_int_equal (index_bytes (io, false, NULL), 0);
  assert_int_equal (session (io, store, 1, 300), 0);
  assert_clean (io, store);
  io_close (io);
  io_close (store);
}

/* What happens to the file: the index starts anew, data stays. */
static void
after_damage (struct io_store *io, struct io_store *store, const char *why)
{
  struct dedup_pool *d = open_disk (io, store, true);
  uint64_t stored;

  if (why) {
    assert_int_equal (nr_lost, 1);
    assert_non_null (strstr (last_line, why));
  }
  assert_batch (d, 1, 0);
  run_jobs (d);
  close_disk (d);
  stored = session (io, store, 1, 300);
  assert_in_range (stored, 1, BATCH);    /* not found again, some of it */
  assert_int_equal (session (io, store, 1, 600), 0);
  d = open_disk (io, store, false);
  assert_batch (d, 1, 0);
  assert_batch (d, 1, 300);
  assert_batch (d, 1, 600);
  dedup_free (d);
  assert_clean (io, store);
  io_close (io);
  io_close (store);
}

static void
lost_it_starts_anew (void **state)
{
  struct io_store *store, *io = two_files (&store);

  io_close (store);
  after_damage (io, new_file (), "it is new");
}

static void
older_copy_starts_anew (void **state)
{
  struct io_store *store, *old, *io = two_files (&store);

  old = copy_file (store);
  assert_int_equal (session (io, store, 1001, 700), BATCH);
  io_close (store);
  after_damage (io, old, "older or newer");
}

static void
header_damaged_starts_anew (void **state)
{
  struct io_store *store, *io = two_files (&store);

  assert_int_equal (io_pwrite (store, "spoilt", 6, 24), 0);
  after_damage (io, store, "header is damaged");
}

/* The image's configuration is one that can't be relied on, an old one of its
 * own, say: a new store is made in its place, which takes the file over. */
static void
void_store_starts_anew (void **state)
{
  struct io_store *store, *io = two_files (&store);
  struct dedup_pool *d = open_disk (io, store, false);
  struct dedup_config *c = malloc (sizeof *c);
  const struct dedup_ext ext = d->store.ext;

  assert_non_null (c);
  *c = *d->store.config;
  dedup_free (d);
  c->index.limbo[c->index.nr_limbo++] = (struct dedup_limbo_area) {
    (uint64_t) io_size (io) + 100 * CLUSTER, CLUSTER };   /* not anchored */
  assert_int_equal (dedup_config_write (io, &ext, c), 0);
  assert_int_equal (dedup_config_write (io, &ext, c), 0);
  free (c);
  after_damage (io, store, NULL);
}

static void
cut_off_loses_entries (void **state)
{
  struct io_store *store, *io = two_files (&store);

  assert_int_equal (io_truncate (store, 2 * CLUSTER), 0);
  after_damage (io, store, NULL);
}

static void
pages_overwritten_lose_entries (void **state)
{
  struct io_store *store, *io = two_files (&store);
  uint8_t page[CLUSTER];
  uint64_t off, size = (uint64_t) io_size (store);

  memset (page, 0xbd, sizeof page);
  for (off = CLUSTER; off < size; off += CLUSTER)
    assert_int_equal (io_pwrite (store, page, sizeof page, off), 0);
  after_damage (io, store, NULL);
}

static void
left_out_it_is_served (void **state)
{
  struct io_store *store, *io = two_files (&store);
  struct dedup_pool *d = open_disk (io, NULL, false);
  uint64_t nr;

  assert_batch (d, 1, 0);                /* read-only: all the same */
  dedup_free (d);
  assert_int_equal (session (io, store, 1, 300), 0);
  nr_lost = 0;
  assert_in_range (session (io, NULL, 1, 600), BATCH / 2, BATCH);
  assert_int_equal (nr_lost, 1);
  assert_int_equal (index_bytes (io, true, &nr), 0);
  assert_int_equal (nr, 0);
  assert_true (index_bytes (io, false, NULL) > 0);
  assert_clean (io, NULL);
  /* Given again: those in the image count, and new ones go to the file. */
  assert_int_equal (session (io, store, 1, 300), 0);
  assert_int_equal (session (io, store, 2001, 0), BATCH);
  assert_true (index_bytes (io, true, NULL) > 0);
  assert_clean (io, store);
  io_close (io);
  io_close (store);
}

static void
assert_refused (struct io_store *io, struct io_store *store, bool writable,
                const char *why)
{
  struct io_store *io2 = copy_file (io), *store2 = copy_file (store);
  struct dedup_pool *d;
  struct fault f;

  assert_int_equal (try_open (io, store, writable, &d, &f), -EINVAL);
  assert_null (d);
  assert_non_null (strstr (f.msg, why));
  assert_non_null (strstr (f.msg, "store=ssd"));
  assert_true (same_bytes (io, io2));
  assert_true (same_bytes (store, store2));
  io_close (io2);
  io_close (store2);
}

static void
another_images_is_refused (void **state)
{
  struct io_store *store, *store2, *io = two_files (&store);
  struct io_store *io2 = two_files (&store2), *fresh = create_disk (0);
  struct qcow2_create_params plain = {
    .virtual_size = NR * CLUSTER, .cluster_bits = 12, .refcount_order = 4 };
  struct io_store *stock = new_file ();
  struct fault f = { 0 };

  assert_int_equal (qcow2_create (stock, &plain, &f), 0);
  assert_refused (io, store2, true, "belongs to another image");
  assert_refused (io, store2, false, "belongs to another image");
  assert_refused (fresh, store2, true, "belongs to another image");
  assert_refused (stock, store2, true, "belongs to another image");
  assert_int_equal (session (io2, store2, 1, 300), 0);
  io_close (io);
  io_close (io2);
  io_close (fresh);
  io_close (stock);
  io_close (store);
  io_close (store2);
}

static void
anything_else_is_refused (void **state)
{
  struct io_store *store, *io = two_files (&store), *other;

  other = copy_file (io);                /* an image */
  assert_refused (io, other, true, "not a store file");
  io_close (other);
  other = new_file ();                   /* a disk that begins with zeroes */
  assert_int_equal (io_pwrite (other, "x", 1, 100000), 0);
  assert_refused (io, other, true, "not a store file");
  io_close (other);
  other = new_file ();
  assert_int_equal (io_pwrite (other, "hello", 5, 0), 0);
  assert_refused (io, other, true, "not a store file");
  io_close (other);
  io_close (io);
  io_close (store);
}

/* Ids of new segments are the same in both. */
static void
copies_of_an_image_take_it_over (void **state)
{
  struct io_store *store, *a = two_files (&store), *b = copy_file (a);
  struct dedup_pool *d;

  assert_int_equal (session (a, store, 1001, 300), BATCH);
  assert_int_equal (nr_lost, 0);
  assert_int_equal (session (b, store, 2001, 300), BATCH);
  assert_int_equal (nr_lost, 1);
  /* A does not take the pages of B, which name other clusters, for its own. */
  assert_int_equal (session (a, store, 2001, 600), BATCH);
  assert_int_equal (nr_lost, 2);
  d = open_disk (a, NULL, false);
  assert_batch (d, 1, 0);
  assert_batch (d, 1001, 300);
  assert_batch (d, 2001, 600);
  dedup_free (d);
  d = open_disk (b, NULL, false);
  assert_batch (d, 1, 0);
  assert_batch (d, 2001, 300);
  dedup_free (d);
  assert_clean (a, store);
  io_close (a);
  io_close (b);
  io_close (store);
}

/* A session that ends at any call of the store file: nothing is lost. */
static void
crash_while_it_begins_loses_nothing (void **state)
{
  struct io_store *store, *io = two_files (&store), *io2, *store2, *faulty;
  struct dedup_pool *d;
  int from;

  for (from = 0; from < 6; from++) {
    io2 = copy_file (io);
    store2 = copy_file (store);
    assert_int_equal (io_faulty_new (store2, store_cb, NULL, &faulty), 0);
    calls = 0;
    fail_from = from;
    nr_lost = 0;
    d = open_disk (io2, faulty, true);
    write_batch (d, 1001, 300);
    assert_int_equal (dedup_flush (d), 0);
    dedup_free (d);                      /* a crash */
    assert_true (calls > from);
    fail_from = -1;
    assert_int_equal (session (io2, faulty, 1, 600), 0);
    assert_int_equal (session (io2, faulty, 1001, 600), 0);
    assert_int_equal (nr_lost, 0);
    assert_clean (io2, faulty);
    io_close (faulty);
    io_close (io2);
  }
  io_close (io);
  io_close (store);
}

/* Twice it finds no space to say which session is the file's.  The next one finds
 * that of the configuration that is durable. */
static void
no_space_when_it_begins_loses_nothing (void **state)
{
  struct io_store *store, *io = two_files (&store), *faulty;
  struct dedup_pool *d;

  assert_int_equal (io_faulty_new (io, image_cb, NULL, &faulty), 0);
  nr_lost = 0;
  d = open_disk (faulty, store, true);
  config_place = d->store.ext;
  no_config = true;
  pthread_mutex_lock (&d->upkeep.maintenance);
  assert_false (dedup_store_file_ready (&d->store));
  assert_false (dedup_store_file_ready (&d->store));
  pthread_mutex_unlock (&d->upkeep.maintenance);
  dedup_free (d);                        /* a crash */
  no_config = false;
  assert_int_equal (session (faulty, store, 1, 600), 0);
  assert_int_equal (nr_lost, 0);
  assert_clean (faulty, store);
  io_close (faulty);
  io_close (store);
}

/* Writes go on, and the index in the image. */
static void
full_it_lets_writes_go_on (void **state)
{
  struct io_store *store, *io = two_files (&store), *faulty;

  assert_int_equal (io_faulty_new (store, store_cb, NULL, &faulty), 0);
  calls = 0;
  fail_from = 6;
  fail_with = -ENOSPC;
  assert_int_equal (session (io, faulty, 1001, 300), BATCH);
  assert_true (calls > 6);
  fail_from = -1;
  fail_with = -EIO;
  assert_true (index_bytes (io, false, NULL) > 0);
  assert_int_equal (session (io, faulty, 1001, 600), 0);
  assert_int_equal (session (io, faulty, 1, 600), 0);
  assert_clean (io, faulty);
  io_close (io);
  io_close (faulty);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (is_found_again),
    cmocka_unit_test (incarnations_lie_there_too),
    cmocka_unit_test (lost_it_starts_anew),
    cmocka_unit_test (older_copy_starts_anew),
    cmocka_unit_test (header_damaged_starts_anew),
    cmocka_unit_test (void_store_starts_anew),
    cmocka_unit_test (cut_off_loses_entries),
    cmocka_unit_test (pages_overwritten_lose_entries),
    cmocka_unit_test (left_out_it_is_served),
    cmocka_unit_test (another_images_is_refused),
    cmocka_unit_test (anything_else_is_refused),
    cmocka_unit_test (copies_of_an_image_take_it_over),
    cmocka_unit_test (crash_while_it_begins_loses_nothing),
    cmocka_unit_test (no_space_when_it_begins_loses_nothing),
    cmocka_unit_test (full_it_lets_writes_go_on),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
