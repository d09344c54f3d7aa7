/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests what a served image tells of itself: requests are counted exactly, by type,
 * disk and client, with their times; space is what the tables say; errors and the
 * lack of space become events, few where there are many; and all of that while
 * threads write.
 */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "checked.h"
#include "clock.h"
#include "image-internal.h"
#include "pool.h"
#include "qcow2.h"
#include "server.h"

#define CLUSTER 4096u
#define SECOND UINT64_C (1000000000)

static char dir[64], path[128];
static struct srv_image *image;

/* --- Events --------------------------------------------------------------- */

static pthread_mutex_t events_mutex = PTHREAD_MUTEX_INITIALIZER;
static unsigned nr_io_errors, nr_read_only, nr_space;
static char last_name[64], last_operation[32], last_reason[200], spaces[200];
static int last_error;
static uint64_t last_offset, last_length, last_bytes;

static void
copy_string (char *to, size_t len, const char *from)
{
  snprintf (to, len, "%s", from ? from : "(null)");
}

static void
event_cb (void *opaque, const struct srv_event *e)
{
  pthread_mutex_lock (&events_mutex);
  if (e->kind == SRV_EVENT_IO_ERROR) {
    nr_io_errors++;
    copy_string (last_name, sizeof last_name, e->name);
    copy_string (last_operation, sizeof last_operation, e->operation);
    last_error = e->error;
    last_offset = e->offset;
    last_length = e->length;
  } else if (e->kind == SRV_EVENT_READ_ONLY)
    nr_read_only++;
  else if (e->kind == SRV_EVENT_SPACE) {
    nr_space++;
    strncat (spaces, e->status, sizeof spaces - strlen (spaces) - 2);
    strcat (spaces, " ");
    last_bytes = e->bytes;
  }
  copy_string (last_reason, sizeof last_reason, e->reason);
  pthread_mutex_unlock (&events_mutex);
}

static const struct srv_listener listener = { .event = event_cb };

static void
forget_events (void)
{
  nr_io_errors = nr_read_only = nr_space = 0;
  spaces[0] = '\0';
}

/* Waits until there were NR events on space; for five seconds at most. */
static void
wait_for_space_events (unsigned nr)
{
  unsigned seen = 0;

  for (int i = 0; i < 500 && seen < nr; i++) {
    usleep (10000);
    pthread_mutex_lock (&events_mutex);
    seen = nr_space;
    pthread_mutex_unlock (&events_mutex);
  }
  assert_int_equal (seen, nr);
}

/* --- Helpers -------------------------------------------------------------- */

static int
make_dir (void **state)
{
  strcpy (dir, "/tmp/test-server-stats-XXXXXX");
  if (mkdtemp (dir) == NULL)
    return -1;
  snprintf (path, sizeof path, "%s/disk", dir);
  return 0;
}

static int
remove_dir (void **state)
{
  unlink (path);
  return rmdir (dir);
}

static void
log_nothing (void *opaque, enum log_level level, const char *line)
{
}

static const struct log_sink sink = { .write = log_nothing };

/* Makes an empty image that can have disks. */
static void
make_image (void)
{
  const struct qcow2_create_params p = {
    .virtual_size = 64 << 20, .cluster_bits = 12, .refcount_order = 5,
  };
  struct fault f = { 0 };
  struct io_store *io;

  unlink (path);
  assert_int_equal (io_file_open (path, IO_FILE_WRITE | IO_FILE_CREATE,
                                  IO_LOCK_WRITE, &io, &f), 0);
  assert_int_equal (qcow2_create (io, &p, &f), 0);
  io_close (io);
}

static struct srv_disk *
open_image (bool start)
{
  struct srv_image_params p;
  struct srv_disk *d;
  struct fault f = { 0 };

  make_image ();
  srv_image_params_default (&p);
  p.path = path;
  p.commit_interval_ms = 20;
  p.log = &sink;
  if (srv_image_open (&p, &image, &f) < 0)
    fail_msg ("srv_image_open: %s", f.msg);
  forget_events ();
  srv_image_set_listener (image, event_cb, NULL);
  if (start)
    assert_int_equal (srv_image_start (image), 0);
  assert_int_equal (srv_image_disk (image, "", &d, NULL), 0);
  return d;
}

static void
close_image (struct srv_disk *d)
{
  srv_disk_put (image, d);
  assert_int_equal (srv_image_close (image), 0);
  unlink (path);
}

static void
fill (uint8_t *buf, size_t len, uint64_t seed)
{
  for (size_t i = 0; i < len; i++) {
    seed = seed * UINT64_C (6364136223846793005) + 1442695040888963407u;
    buf[i] = (uint8_t) (seed >> 56);
  }
}

static void
write_distinct (struct srv_disk *d, uint64_t guest_idx, unsigned nr)
{
  uint8_t buf[CLUSTER];

  for (unsigned i = 0; i < nr; i++) {
    fill (buf, sizeof buf, guest_idx + i + 1);
    assert_int_equal (srv_pwrite (d, buf, (guest_idx + i) * CLUSTER, CLUSTER,
                                  false), 0);
  }
}

static int
no_extents_cb (void *opaque, uint64_t guest_off, uint64_t len,
               enum srv_extent_type type)
{
  return 0;
}

static uint64_t
sum_of (const uint64_t *v, size_t nr)
{
  uint64_t sum = 0;

  while (nr-- > 0)
    sum += v[nr];
  return sum;
}

static void
expect_count (const struct srv_counter *c, uint64_t nr, uint64_t errors,
              uint64_t bytes)
{
  assert_int_equal (c->nr, nr);
  assert_int_equal (c->errors, errors);
  assert_int_equal (c->bytes, bytes);
}

/* --- Requests ------------------------------------------------------------- */

static void
each_type_is_counted_alone (void **state)
{
  struct srv_disk *d = open_image (false);
  struct srv_stats s;
  uint8_t buf[CLUSTER];
  unsigned i;

  write_distinct (d, 0, 7);
  for (i = 0; i < 5; i++)
    assert_int_equal (srv_pread (d, buf, 512, 1000), 0);
  assert_int_equal (srv_flush (d), 0);
  assert_int_equal (srv_flush (d), 0);
  assert_int_equal (srv_trim (d, 0, 3 * CLUSTER, false), 0);
  assert_int_equal (srv_zero (d, 0, 9, true, false, true), 0);
  assert_int_equal (srv_cache (d, 0, 2 << 20), 0);
  assert_int_equal (srv_extents (d, 0, 1 << 20, false, no_extents_cb, NULL), 0);
  srv_image_stats (image, &s);
  expect_count (&s.requests[SRV_REQUEST_WRITE].count, 7, 0, 7 * CLUSTER);
  expect_count (&s.requests[SRV_REQUEST_READ].count, 5, 0, 5000);
  expect_count (&s.requests[SRV_REQUEST_FLUSH].count, 2, 0, 0);
  expect_count (&s.requests[SRV_REQUEST_TRIM].count, 1, 0, 3 * CLUSTER);
  expect_count (&s.requests[SRV_REQUEST_ZERO].count, 1, 0, 9);
  expect_count (&s.requests[SRV_REQUEST_CACHE].count, 1, 0, 2 << 20);
  expect_count (&s.requests[SRV_REQUEST_BLOCK_STATUS].count, 1, 0, 1 << 20);
  close_image (d);
}

static void
a_histogram_has_each_request_once (void **state)
{
  struct srv_meter *m = srv_meter_new ();
  struct srv_request_stats s[SRV_NR_REQUESTS];
  const struct srv_request_stats *w = &s[SRV_REQUEST_WRITE];
  const uint64_t huge = 100 * SECOND;

  srv_meter_count (m, SRV_REQUEST_WRITE, 1, 0, 0);
  srv_meter_count (m, SRV_REQUEST_WRITE, 1, 1, 0);
  srv_meter_count (m, SRV_REQUEST_WRITE, 1, 1023, 0);
  srv_meter_count (m, SRV_REQUEST_WRITE, 1, 1024, -EIO);
  srv_meter_count (m, SRV_REQUEST_WRITE, 1, huge, 0);
  srv_meter_sum (m, s);
  assert_int_equal (w->latency[0], 2);
  assert_int_equal (w->latency[9], 1);
  assert_int_equal (w->latency[10], 1);
  assert_int_equal (w->latency[31], 1);
  assert_int_equal (sum_of (w->latency, SRV_LATENCY_BUCKETS), 5);
  expect_count (&w->count, 5, 1, 4);
  assert_int_equal (w->max_ns, huge);
  assert_int_equal (w->total_ns, huge + 1 + 1023 + 1024);
  assert_int_equal (s[SRV_REQUEST_READ].count.nr, 0);
  srv_meter_free (m);
}

static void
times_are_those_that_a_caller_sees (void **state)
{
  struct srv_disk *d = open_image (false);
  const uint64_t start = clock_now_ns ();
  struct srv_stats s;
  const struct srv_request_stats *w = &s.requests[SRV_REQUEST_WRITE];
  uint64_t took;

  write_distinct (d, 0, 100);
  took = clock_now_ns () - start;
  srv_image_stats (image, &s);
  assert_int_equal (sum_of (w->latency, SRV_LATENCY_BUCKETS), 100);
  assert_in_range (w->total_ns, 100 * 500, took);
  assert_in_range (w->max_ns, w->total_ns / 100, w->total_ns);
  close_image (d);
}

#define NR_THREADS 4
#define WRITES_EACH 500

static void *
writer_main (void *opaque)
{
  struct srv_disk *d = opaque;

  for (unsigned i = 0; i < WRITES_EACH; i++)
    write_distinct (d, i, 1);
  return NULL;
}

static void
threads_lose_no_count (void **state)
{
  struct srv_disk *d = open_image (true);
  struct srv_stats s;
  pthread_t t[NR_THREADS];
  unsigned i;

  for (i = 0; i < NR_THREADS; i++)
    assert_int_equal (pthread_create (&t[i], NULL, writer_main, d), 0);
  for (i = 0; i < 200; i++)
    srv_image_stats (image, &s);
  for (i = 0; i < NR_THREADS; i++)
    pthread_join (t[i], NULL);
  srv_image_stats (image, &s);
  expect_count (&s.requests[SRV_REQUEST_WRITE].count, NR_THREADS * WRITES_EACH, 0,
                (uint64_t) NR_THREADS * WRITES_EACH * CLUSTER);
  close_image (d);
}

/* --- Disks and clients ---------------------------------------------------- */

struct wanted {
  const char *name;
  unsigned nr;
  struct srv_disk_info info;
};

static int
disk_cb (void *opaque, const struct srv_disk_info *info)
{
  struct wanted *w = opaque;

  if (strcmp (info->name, w->name) != 0)
    return 0;
  w->nr++;
  w->info = *info;
  return 0;
}

static struct srv_disk_info
look_at_disk (const char *name)
{
  struct wanted w = { .name = name };

  assert_int_equal (srv_image_list_disks (image, disk_cb, &w), 0);
  assert_int_equal (w.nr, 1);
  return w.info;
}

static struct srv_disk *
get_disk (const char *name)
{
  struct srv_disk *d;

  assert_int_equal (srv_image_disk (image, name, &d, NULL), 0);
  return d;
}

static struct srv_disk *
open_pool_of_two (void)
{
  struct srv_disk *active = open_image (true);
  struct fault f = { 0 };

  assert_int_equal (srv_disk_create (image, "a", 1 << 20, &f), 0);
  assert_int_equal (srv_disk_create (image, "b", 1 << 20, &f), 0);
  return active;
}

static void
a_disk_keeps_its_counts_when_clients_go (void **state)
{
  struct srv_disk *active = open_pool_of_two (), *d = get_disk ("a");
  struct srv_disk_info info;

  write_distinct (d, 0, 3);
  srv_disk_put (image, d);
  d = get_disk ("a");
  write_distinct (d, 0, 2);
  info = look_at_disk ("a");
  expect_count (&info.counters.v[SRV_REQUEST_WRITE], 5, 0, 5 * CLUSTER);
  info = look_at_disk ("b");
  expect_count (&info.counters.v[SRV_REQUEST_WRITE], 0, 0, 0);
  srv_disk_put (image, d);
  info = look_at_disk ("a");
  expect_count (&info.counters.v[SRV_REQUEST_WRITE], 5, 0, 5 * CLUSTER);
  close_image (active);
}

static void
a_new_disk_begins_at_zero (void **state)
{
  struct srv_disk *active = open_pool_of_two (), *d = get_disk ("a");
  struct srv_disk_info info;
  struct fault f = { 0 };
  uint8_t buf[1];

  write_distinct (d, 0, 3);
  assert_int_equal (srv_disk_delete (image, "a", true, &f), 0);
  assert_int_equal (srv_pread (d, buf, 0, 1), -ESHUTDOWN);
  assert_int_equal (srv_disk_create (image, "a", 1 << 20, &f), 0);
  srv_disk_put (image, d);
  /* Once the deleted disk is gone, its number is used again. */
  while (dedup_disks_pending (image->pool))
    usleep (1000);
  assert_int_equal (srv_disk_create (image, "c", 1 << 20, &f), 0);
  info = look_at_disk ("a");
  expect_count (&info.counters.v[SRV_REQUEST_WRITE], 0, 0, 0);
  expect_count (&info.counters.v[SRV_REQUEST_READ], 0, 0, 0);
  info = look_at_disk ("c");
  expect_count (&info.counters.v[SRV_REQUEST_WRITE], 0, 0, 0);
  close_image (active);
}

struct seen_clients {
  unsigned nr;
  struct srv_client_info v[4];
};

static int
client_cb (void *opaque, const struct srv_client_info *c)
{
  struct seen_clients *s = opaque;

  assert_in_range (s->nr, 0, 3);
  s->v[s->nr] = *c;
  s->v[s->nr].export_name = strcmp (c->export_name, "disk") == 0 ? "disk" : "";
  s->v[s->nr++].address = strcmp (c->address, "here:1") == 0 ? "here:1" : "";
  return 0;
}

static struct seen_clients
list_clients (uint64_t after)
{
  struct seen_clients s = { 0 };

  assert_int_equal (srv_image_list_clients (image, after, client_cb, &s), 0);
  return s;
}

static void
clients_are_listed_while_they_are_there (void **state)
{
  struct srv_disk *d = open_image (false);
  struct srv_client *c[3];
  struct seen_clients s;
  struct srv_stats st;

  for (int i = 0; i < 3; i++)
    assert_int_equal (srv_client_new (image, "disk", "here:1", &c[i]), 0);
  srv_client_count (c[1], SRV_REQUEST_READ, 100, 0);
  srv_client_count (c[1], SRV_REQUEST_READ, 100, -EIO);
  srv_client_count (NULL, SRV_REQUEST_READ, 100, 0);
  s = list_clients (0);
  assert_int_equal (s.nr, 3);
  assert_int_equal (s.v[0].id, 1);
  assert_string_equal (s.v[0].export_name, "disk");
  assert_string_equal (s.v[0].address, "here:1");
  assert_in_range ((uint64_t) time (NULL) - s.v[0].since, 0, 60);
  expect_count (&s.v[1].counters.v[SRV_REQUEST_READ], 2, 1, 100);
  srv_client_free (c[1]);
  s = list_clients (0);
  assert_int_equal (s.nr, 2);
  assert_int_equal (s.v[1].id, 3);
  s = list_clients (1);
  assert_int_equal (s.nr, 1);
  srv_image_stats (image, &st);
  assert_int_equal (st.nr_clients, 2);
  srv_client_free (c[0]);
  srv_client_free (c[2]);
  assert_int_equal (list_clients (0).nr, 0);
  assert_int_equal (srv_client_new (image, "disk", "here:1", &c[0]), 0);
  close_image (d);              /* with a client that nobody freed */
}

/* --- Space ---------------------------------------------------------------- */

static void
space_is_what_the_tables_say (void **state)
{
  struct srv_disk *active = open_pool_of_two (), *a = get_disk ("a");
  struct fault f = { 0 };
  struct srv_stats s;

  write_distinct (a, 0, 100);
  write_distinct (active, 0, 30);       /* the same bytes */
  write_distinct (active, 1000, 5);
  assert_int_equal (srv_disk_snapshot (image, "a", "a@1", &f), 0);
  assert_int_equal (srv_image_count_space (image), 0);
  srv_image_stats (image, &s);
  assert_int_equal (s.space.logical_bytes, 135 * CLUSTER);
  assert_int_equal (s.space.logical_bytes_with_snapshots, 235 * CLUSTER);
  assert_int_equal (s.space.stored_bytes, 105 * CLUSTER);
  assert_int_equal (s.space.nr_disks, 3);
  assert_int_equal (s.space.nr_snapshots, 1);
  assert_in_range ((uint64_t) time (NULL) - s.space.counted_at, 0, 60);
  assert_int_equal (look_at_disk ("a").mapped_bytes, 100 * CLUSTER);
  assert_int_equal (look_at_disk ("b").mapped_bytes, 0);
  assert_int_equal (look_at_disk ("").mapped_bytes, 35 * CLUSTER);
  assert_in_range (s.space.file_bytes, 105 * CLUSTER, 64 << 20);
  assert_in_range (s.space.host_free_bytes, 1, s.space.host_bytes);
  assert_string_equal (s.space.status, "ok");
  assert_false (s.read_only);
  srv_disk_put (image, a);
  close_image (active);
}

static int
sample_cb (void *opaque, const struct dedup_sample *s)
{
  *(struct dedup_sample *) opaque = *s;
  return 0;
}

static void
a_count_leaves_a_sample (void **state)
{
  struct srv_disk *d = open_image (true);
  struct dedup_sample s = { 0 };

  write_distinct (d, 0, 10);
  write_distinct (d, 100, 1);
  /* A count leaves none while a job of the engine runs. */
  for (int i = 0; i < 100 && s.time == 0; i++) {
    assert_int_equal (srv_image_count_space (image), 0);
    usleep (50000);
    assert_int_equal (dedup_samples (image->pool, sample_cb, &s), 0);
  }
  assert_in_range ((uint64_t) time (NULL) - s.time, 0, 60);
  assert_int_equal (s.logical_bytes, 11 * CLUSTER);
  assert_int_equal (s.stored_bytes, 11 * CLUSTER);
  assert_in_range (s.free_bytes, 1, UINT64_MAX - 1);
  close_image (d);
}

/* The count does not keep its sample while a job of the engine has the store; nobody
 * counts again. */
static void
a_sample_is_kept_when_the_store_is_free (void **state)
{
  struct srv_disk *d = open_image (true);
  struct dedup_sample s = { 0 };

  write_distinct (d, 0, 10);
  dedup_maintenance_begin (&image->pool->upkeep);
  assert_int_equal (srv_image_count_space (image), 0);
  dedup_maintenance_end (&image->pool->upkeep);
  assert_int_equal (dedup_samples (image->pool, sample_cb, &s), 0);
  for (int i = 0; i < 600 && s.time == 0; i++) {
    usleep (50000);
    assert_int_equal (dedup_samples (image->pool, sample_cb, &s), 0);
  }
  assert_int_not_equal (s.time, 0);
  assert_int_equal (s.logical_bytes, 10 * CLUSTER);
  close_image (d);
}

static void
counting_needs_a_thread (void **state)
{
  struct srv_disk *d = open_image (false);

  assert_int_equal (srv_image_count_space (image), -ESHUTDOWN);
  close_image (d);
}

static void
low_space_is_told_once_and_its_end_once (void **state)
{
  struct srv_space s = { .path = "disk", .log = &sink, .listener = &listener };

  forget_events ();
  srv_space_measured (&s, 1000, 800);
  srv_space_measured (&s, 799, 800);
  assert_int_equal (last_bytes, 799);
  srv_space_measured (&s, 700, 800);
  srv_space_measured (&s, 899, 800);    /* not yet: an eighth more */
  assert_string_equal (srv_space_status (&s), "low");
  srv_space_measured (&s, 900, 800);
  srv_space_measured (&s, 801, 800);
  assert_string_equal (spaces, "low ok ");
}

static void
space_that_is_gone_is_told_over_low (void **state)
{
  struct srv_space s = { .path = "disk", .log = &sink, .listener = &listener };

  forget_events ();
  srv_space_note (&s, -ENOSPC);
  srv_space_note (&s, -ENOSPC);
  assert_int_equal (last_bytes, UINT64_MAX);
  srv_space_measured (&s, 10, 800);
  assert_string_equal (srv_space_status (&s), "gone");
  s.quiet_ns = 0;
  srv_space_note (&s, 0);
  srv_space_measured (&s, 5000, 800);
  assert_string_equal (spaces, "gone low ok ");
}

static void
the_threshold_can_be_set (void **state)
{
  struct srv_disk *d = open_image (true);
  struct srv_stats s;

  srv_image_set_space_low (image, UINT64_MAX / 2);
  assert_int_equal (srv_image_space_low (image), UINT64_MAX / 2);
  wait_for_space_events (1);
  assert_string_equal (spaces, "low ");
  srv_image_stats (image, &s);
  assert_string_equal (s.space.status, "low");
  assert_int_equal (s.space.low_bytes, UINT64_MAX / 2);
  srv_image_set_space_low (image, 1);
  wait_for_space_events (2);
  assert_string_equal (spaces, "low ok ");
  close_image (d);
}

/* --- Errors --------------------------------------------------------------- */

static void
errors_of_the_image_are_told_at_most_once_a_second (void **state)
{
  struct srv_disk *d = open_image (false);
  unsigned i;

  for (i = 0; i < 1000; i++)
    srv_io_failed (image, d, SRV_REQUEST_WRITE, 8192, 512, EIO);
  assert_int_equal (nr_io_errors, 1);
  assert_string_equal (last_name, "");
  assert_string_equal (last_operation, "write");
  assert_int_equal (last_error, EIO);
  assert_int_equal (last_offset, 8192);
  assert_int_equal (last_length, 512);
  srv_io_failed (image, d, SRV_REQUEST_READ, 0, 1, EIO);
  assert_int_equal (nr_io_errors, 2);
  image->io_errors.rates[SRV_REQUEST_WRITE].told_ns -= SECOND;
  srv_io_failed (image, d, SRV_REQUEST_WRITE, 0, 1, ENOSPC);
  assert_int_equal (nr_io_errors, 3);
  assert_non_null (strstr (last_reason, "999 like it before"));
  close_image (d);
}

static void
errors_of_clients_are_counted_and_not_told (void **state)
{
  struct srv_disk *d = open_image (false);
  struct srv_stats s;
  uint8_t buf[1];

  assert_int_equal (srv_pread (d, buf, UINT64_C (1) << 40, 1), -EINVAL);
  srv_image_stats (image, &s);
  expect_count (&s.requests[SRV_REQUEST_READ].count, 1, 1, 0);
  assert_int_equal (nr_io_errors, 0);
  close_image (d);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (each_type_is_counted_alone),
    cmocka_unit_test (a_histogram_has_each_request_once),
    cmocka_unit_test (times_are_those_that_a_caller_sees),
    cmocka_unit_test (threads_lose_no_count),
    cmocka_unit_test (a_disk_keeps_its_counts_when_clients_go),
    cmocka_unit_test (a_new_disk_begins_at_zero),
    cmocka_unit_test (clients_are_listed_while_they_are_there),
    cmocka_unit_test (space_is_what_the_tables_say),
    cmocka_unit_test (a_count_leaves_a_sample),
    cmocka_unit_test (a_sample_is_kept_when_the_store_is_free),
    cmocka_unit_test (counting_needs_a_thread),
    cmocka_unit_test (low_space_is_told_once_and_its_end_once),
    cmocka_unit_test (space_that_is_gone_is_told_over_low),
    cmocka_unit_test (the_threshold_can_be_set),
    cmocka_unit_test (errors_of_the_image_are_told_at_most_once_a_second),
    cmocka_unit_test (errors_of_clients_are_counted_and_not_told),
  };

  return cmocka_run_group_tests (tests, make_dir, remove_dir);
}
