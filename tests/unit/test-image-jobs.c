/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the jobs of an image that is served, with the loop and its threads: those that
 * users start, those that start by themselves, and how true their progress is.
 *
 * Breaks if: a job does not start or end by itself, a paused one works on, progress is
 * far from the time that was spent, or the image is not clean afterwards.
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
#include "image-internal.h"
#include "io.h"
#include "qcow2.h"
#include "server.h"

#define CLUSTER 4096u
#define MIB (UINT64_C (1) << 20)
#define SIZE (48 * MIB)
/* How far progress may be off at half way, in percent of the whole.  The bench
 * measures it better (bench/job-progress.c); here the machine may be busy. */
#define BOUND 20

static char dir[64], path[96];
static struct srv_image *image;

/* --- What is told ---------------------------------------------------------- */

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static char told[2048];         /* protected by mutex */
static unsigned due_at_start;   /* upkeep, when the job "disks" was last made; likewise */

static void
listen_cb (void *opaque, const struct srv_event *e)
{
  size_t len;

  if (e->kind != SRV_EVENT_JOB_STATUS)
    return;
  pthread_mutex_lock (&mutex);
  if (strcmp (e->type, "disks") == 0 && strcmp (e->status, "created") == 0)
    due_at_start = dedup_due (image->pool, NULL);
  len = strlen (told);
  snprintf (told + len, sizeof told - len, "%s:%s ", e->id, e->status);
  pthread_mutex_unlock (&mutex);
}

/* Waits until what is told since the last call ends in WHAT, and checks all of
 * it. */
static void
expect_told (const char *what)
{
  char buf[sizeof told];
  size_t len;

  for (unsigned i = 0; i < 3000; i++) {
    pthread_mutex_lock (&mutex);
    len = strlen (told);
    pthread_mutex_unlock (&mutex);
    if (len >= strlen (what))
      break;
    usleep (10000);
  }
  pthread_mutex_lock (&mutex);
  strcpy (buf, told);
  told[0] = '\0';
  pthread_mutex_unlock (&mutex);
  assert_string_equal (buf, what);
}

/* --- World ----------------------------------------------------------------- */

static int
make_dir (void **state)
{
  strcpy (dir, "/tmp/test-image-jobs-XXXXXX");
  if (mkdtemp (dir) == NULL)
    return -1;
  snprintf (path, sizeof path, "%s/image", dir);
  return 0;
}

static int
remove_dir (void **state)
{
  return rmdir (dir);
}

static void
log_write (void *opaque, enum log_level level, const char *line)
{
  if (level == LOG_ERROR)
    print_message ("log: %s\n", line);
}

static const struct log_sink sink = { .write = log_write };

static struct srv_image_params
params (void)
{
  struct srv_image_params p;

  srv_image_params_default (&p);
  p.path = path;
  p.commit_interval_ms = 20;
  p.log = &sink;
  return p;
}

static void
open_image (const struct srv_image_params *p)
{
  struct fault f = { 0 };

  if (srv_image_open (p, &image, &f) < 0)
    fail_msg ("srv_image_open: %s", f.msg);
  srv_image_set_listener (image, listen_cb, NULL);
  assert_int_equal (srv_image_start (image), 0);
}

static void
close_image (void)
{
  assert_int_equal (srv_image_close (image), 0);
  image = NULL;
}

static void
reopen (void)
{
  const struct srv_image_params p = params ();

  close_image ();
  told[0] = '\0';
  open_image (&p);
}

static void
make_file (unsigned refcount_order)
{
  const struct qcow2_create_params c = {
    .virtual_size = SIZE, .cluster_bits = 12, .refcount_order = refcount_order,
  };
  struct fault f = { 0 };
  struct io_store *io;

  unlink (path);
  assert_int_equal (io_file_open (path, IO_FILE_WRITE | IO_FILE_CREATE,
                                  IO_LOCK_WRITE, &io, &f), 0);
  assert_int_equal (qcow2_create (io, &c, &f), 0);
  io_close (io);
}

/* Returns the contents of the MIB that begins at NR MiB: each cluster's are its
 * own. */
static const void *
contents (uint64_t nr)
{
  static uint8_t buf[MIB];
  uint64_t x = nr + 1;

  for (size_t i = 0; i < sizeof buf; i += 512) {
    x = x * UINT64_C (6364136223846793005) + 1442695040888963407;
    memcpy (buf + i, &x, sizeof x);
  }
  return buf;
}

/* Writes all of the disk NAME. */
static void
fill (const char *name)
{
  struct fault f = { 0 };
  struct srv_disk *d;

  assert_int_equal (srv_image_disk (image, name, &d, &f), 0);
  for (uint64_t i = 0; i < SIZE / MIB; i++)
    assert_int_equal (srv_pwrite (d, contents (i), i * MIB, MIB, false), 0);
  assert_int_equal (srv_flush (d), 0);
  srv_disk_put (image, d);
}

/* Writes all of the active disk without a store. */
static void
fill_stock_image (void)
{
  const struct dedup_open_params op = {
    .path = path, .writable = true, .no_store = true, .max_incarnations = -1,
    .cache_bytes = 1 << 20,
  };
  struct fault f = { 0 };
  struct io_store *io;
  struct dedup_pool *pool;

  assert_int_equal (io_file_open (path, IO_FILE_WRITE, IO_LOCK_WRITE, &io, &f),
                    0);
  assert_int_equal (dedup_open (io, &op, &pool, &f), 0);
  for (uint64_t i = 0; i < SIZE / MIB; i++)
    assert_int_equal (dedup_write (pool, QCOW2_ROOT_ACTIVE, contents (i),
                                   i * MIB / CLUSTER, MIB / CLUSTER), 0);
  assert_int_equal (dedup_finish (pool), 0);
  dedup_free (pool);
  io_close (io);
}

/* An image whose data no dedup server has seen. */
static int
make_stock_image (void **state)
{
  const struct srv_image_params p = params ();

  make_file (4);
  fill_stock_image ();
  told[0] = '\0';
  open_image (&p);
  return 0;
}

/* A pool with the disk "a". */
static int
make_pool (void **state)
{
  const struct srv_image_params p = params ();
  struct fault f = { 0 };

  make_file (5);
  open_image (&p);
  assert_int_equal (srv_disk_create (image, "a", SIZE, &f), 0);
  fill ("a");
  reopen ();
  return 0;
}

static int
remove_image (void **state)
{
  if (image)
    close_image ();
  return unlink (path);
}

/* Closes the image and checks that any program can read it. */
static void
check_clean (void)
{
  struct srv_image_params p = params ();
  struct dedup_check_result r = { 0 };
  const struct qcow2_check_params c = { 0 };
  struct fault f = { 0 };
  struct io_store *io;
  struct dedup_pool *pool;
  const struct dedup_open_params op = {
    .path = path, .max_incarnations = -1, .cache_bytes = 1 << 20,
  };
  struct dedup_stats s;

  close_image ();
  assert_int_equal (io_file_open (path, 0, IO_LOCK_READ, &io, &f), 0);
  assert_int_equal (dedup_open (io, &op, &pool, &f), 0);
  dedup_get_stats (pool, &s);
  assert_false (s.needs_recovery);
  assert_int_equal (dedup_check (pool, &c, &r, &f), 0);
  assert_int_equal (r.store_errors + r.image.errors + r.image.leaks, 0);
  dedup_free (pool);
  io_close (io);
  open_image (&p);
}

/* --- Looking at jobs ------------------------------------------------------- */

static int
copy_info (void *opaque, const struct srv_job_info *info)
{
  struct srv_job_info *v = opaque;

  *v = *info;
  return 1;
}

/* Returns whether there is a job, and what it says; its strings are gone. */
static bool
look (struct srv_job_info *info)
{
  int r = srv_job_list (image, copy_info, info);

  assert_true (r >= 0);
  return r == 1;
}

/* Waits until the first job has done MIN bytes and counted what there is to do, and
 * sets *INFO. */
static void
wait_for_progress (uint64_t min, struct srv_job_info *info)
{
  for (unsigned i = 0; i < 30000; i++) {
    if (look (info) && info->total > 0 && info->done >= min)
      return;
    usleep (1000);
  }
  fail_msg ("no progress");
}

/* Waits until there is a job. */
static void
wait_for_job (void)
{
  struct srv_job_info info;

  for (unsigned i = 0; i < 30000 && !look (&info); i++)
    usleep (1000);
  assert_true (look (&info));
}

struct sample {
  double cpu_ns;
  double percent;
};

/* Returns how far the progress of the job that runs is off at half way, in percent of
 * what was left at the first look: on a busy machine that may come late, and so may the
 * looks before and behind half way, between which it is interpolated. */
static int
off_at_half_way (void)
{
  static struct sample v[100000];
  struct srv_job_info info;
  double half, mid, left;
  struct timespec t;
  size_t nr = 0, i;

  while (look (&info) && nr < sizeof v / sizeof v[0]) {
    clock_gettime (CLOCK_PROCESS_CPUTIME_ID, &t);
    v[nr++] = (struct sample) {
      .cpu_ns = 1e9 * (double) t.tv_sec + (double) t.tv_nsec,
      .percent = info.total ? 100 * (double) info.done / (double) info.total : 0,
    };
    usleep (200);
  }
  assert_true (nr > 10);
  half = (v[0].cpu_ns + v[nr - 1].cpu_ns) / 2;
  for (i = 1; v[i].cpu_ns < half; i++)
    ;
  mid = v[i - 1].percent + (v[i].percent - v[i - 1].percent) *
    (half - v[i - 1].cpu_ns) / MAX_OF (v[i].cpu_ns - v[i - 1].cpu_ns, 1);
  left = 100 - v[0].percent;
  assert_true (left > 10);
  return (int) (100 * (mid - v[0].percent) / left) - 50;
}

static void
expect_true_progress (const char *what, int off)
{
  print_message ("%s: off by %d %% at half way\n", what, off);
  assert_in_range (off + 50, 50 - BOUND, 50 + BOUND);
}

/* --- Indexing of existing data ---------------------------------------------- */

static uint64_t
nr_entries (void)
{
  struct dedup_stats s;

  dedup_get_stats (image->pool, &s);
  return s.index_entries;
}

static void
existing_data_is_indexed_when_asked (void **state)
{
  struct fault f = { 0 };

  assert_int_equal (nr_entries (), 0);
  assert_int_equal (srv_index_existing_start (image, "mine", NULL, &f), 0);
  expect_true_progress ("index-existing", off_at_half_way ());
  expect_told ("mine:created mine:running mine:waiting mine:pending "
               "mine:concluded mine:null ");
  assert_int_equal (nr_entries (), SIZE / CLUSTER);
  check_clean ();
}

static void
indexing_can_be_paused_and_cancelled (void **state)
{
  const struct srv_job_options o = { .rate = 8 * MIB };
  struct srv_job_info info;
  struct fault f = { 0 };
  uint64_t done;

  assert_int_equal (srv_index_existing_start (image, NULL, &o, &f), 0);
  assert_int_equal (srv_index_existing_start (image, "x", &o, &f), -EEXIST);
  wait_for_progress (1, &info);
  assert_int_equal (info.total, SIZE);
  assert_int_equal (info.rate, 8 * MIB);
  assert_true (info.can_cancel && info.can_pause && info.resumes);
  f = (struct fault) { 0 };
  assert_int_equal (srv_job_pause (image, "index-existing", &f), 0);
  expect_told ("index-existing:created index-existing:running "
               "index-existing:paused ");
  assert_true (look (&info));
  done = info.done;
  assert_int_equal (info.status, SRV_JOB_PAUSED);
  usleep (500000);
  assert_true (look (&info));
  assert_int_equal (info.done, done);
  assert_int_equal (srv_job_resume (image, "index-existing", &f), 0);
  wait_for_progress (done + 1, &info);
  assert_int_equal (srv_job_cancel (image, "index-existing", &f), 0);
  expect_told ("index-existing:running index-existing:aborting "
               "index-existing:concluded index-existing:null ");
  assert_false (look (&info));
  assert_in_range (nr_entries (), 1, SIZE / CLUSTER - 1);
  check_clean ();               /* opens it again */
  assert_false (look (&info));
}

/* The rests between steps are much shorter than the time between two looks of the
 * loop. */
static void
a_rate_is_kept_by_the_loop (void **state)
{
  const struct srv_job_options o = { .rate = 2 * SIZE, .manual_dismiss = true };
  struct srv_image_params p = params ();
  struct srv_job_info info;
  struct fault f = { 0 };

  close_image ();
  p.commit_interval_ms = 0;     /* no other timer */
  open_image (&p);
  assert_int_equal (srv_index_existing_start (image, "x", &o, &f), 0);
  expect_told ("x:created x:running x:waiting x:pending x:concluded ");
  assert_true (look (&info));
  assert_true (info.seconds > 0.4 && info.seconds < 3);
  assert_int_equal (srv_job_dismiss (image, "x", &f), 0);
}

/* A job of the parameter begins again with each server, and skips what is done. */
static void
indexing_goes_on_after_a_restart (void **state)
{
  struct srv_image_params p = params ();
  struct srv_job_info info;

  close_image ();
  p.index_existing = true;
  open_image (&p);
  srv_image_set_job_rate (image, 8 * MIB);
  wait_for_progress (2 * MIB, &info);
  assert_true (info.resumes);
  close_image ();
  told[0] = '\0';
  open_image (&p);
  wait_for_progress (0, &info);
  assert_in_range (info.total, SIZE / 2, SIZE - 2 * MIB);
  expect_told ("index-existing:created index-existing:running "
               "index-existing:waiting index-existing:pending "
               "index-existing:concluded index-existing:null ");
  assert_int_equal (nr_entries (), SIZE / CLUSTER);
  check_clean ();
}

/* One that a command has started does so until it has ended. */
static void
indexing_by_command_goes_on_after_a_restart (void **state)
{
  const struct srv_job_options o = { .rate = 8 * MIB };
  struct srv_job_info info;
  struct fault f = { 0 };

  assert_int_equal (srv_index_existing_start (image, "mine", &o, &f), 0);
  wait_for_progress (2 * MIB, &info);
  assert_true (info.resumes);
  reopen ();
  wait_for_progress (0, &info);
  assert_in_range (info.total, SIZE / 2, SIZE - 2 * MIB);
  assert_int_equal (srv_index_existing_start (image, "x", &o, &f), -EEXIST);
  expect_told ("index-existing:created index-existing:running "
               "index-existing:waiting index-existing:pending "
               "index-existing:concluded index-existing:null ");
  assert_int_equal (nr_entries (), SIZE / CLUSTER);
  reopen ();
  usleep (300000);
  assert_false (look (&info));
  expect_told ("");
  check_clean ();
}

static void
nothing_runs_where_nobody_may_write (void **state)
{
  struct srv_image_params p = params ();
  struct fault f = { 0 };

  close_image ();
  p.read_only = true;
  open_image (&p);
  assert_int_equal (srv_index_existing_start (image, NULL, NULL, &f), -EROFS);
  close_image ();
  p = params ();
  p.dedup = false;
  open_image (&p);
  f = (struct fault) { 0 };
  assert_int_equal (srv_index_existing_start (image, NULL, NULL, &f),
                    -ENOTSUP);
}

/* --- Work that disks leave --------------------------------------------------- */

static void
what_a_clone_leaves_is_done_by_itself (void **state)
{
  struct srv_job_info info;
  struct fault f = { 0 };

  assert_false (look (&info));
  assert_int_equal (srv_disk_clone (image, "a", "b", &f), 0);
  expect_told ("disks:created disks:running disks:waiting disks:pending "
               "disks:concluded disks:null ");
  assert_false (dedup_disks_pending (image->pool));
  assert_int_equal (srv_disk_delete (image, "b", false, &f), 0);
  expect_told ("disks:created disks:running disks:waiting disks:pending "
               "disks:concluded disks:null ");
  assert_false (dedup_disks_pending (image->pool));
  check_clean ();
}

static bool has_stepped;        /* atomic */

static int
costly_step (void *opaque)
{
  __atomic_store_n (&has_stepped, true, __ATOMIC_RELAXED);
  return 0;
}

static void
costly_progress (void *opaque, uint64_t *done, uint64_t *total)
{
  *total = 1000;
  *done = __atomic_load_n (&has_stepped, __ATOMIC_RELAXED) ? 1000 : 0;
}

static void
costly_end (void *opaque, int result)
{
  __atomic_store_n (&has_stepped, false, __ATOMIC_RELAXED);
}

static const struct srv_job_ops costly = {
  .type = "costly", .step = costly_step, .progress = costly_progress,
  .end = costly_end,
};

/* Makes all jobs wait: a job has done what is paid for in 1000 s.  A limit of 0 ends
 * that. */
static void
block_jobs (void)
{
  struct fault f = { 0 };

  srv_image_set_job_rate (image, 1);
  assert_int_equal (srv_job_start (image, NULL, &costly, NULL, NULL, &f), 0);
  expect_told ("costly:created costly:running costly:waiting costly:pending "
               "costly:concluded costly:null ");
}

static void
pause_disks_job (const char *then)
{
  struct fault f = { 0 };

  wait_for_job ();
  assert_int_equal (srv_job_cancel (image, "disks", &f), -EBUSY);
  assert_int_equal (srv_job_pause (image, "disks", NULL), 0);
  expect_told (then);
}

/* Ends the server, and opens the image as a crash would have left it. */
static void
crash (void)
{
  const struct srv_image_params p = params ();
  char copy[128], command[256];

  snprintf (copy, sizeof copy, "%s/copy", dir);
  snprintf (command, sizeof command, "cp %s %s", path, copy);
  assert_int_equal (system (command), 0);
  close_image ();
  assert_int_equal (rename (copy, path), 0);
  told[0] = '\0';
  open_image (&p);
}

static void
work_on_disks_can_be_paused_and_outlives_the_server (void **state)
{
  struct srv_job_info info;
  struct fault f = { 0 };

  block_jobs ();
  assert_int_equal (srv_disk_clone (image, "a", "b", &f), 0);
  pause_disks_job ("disks:created disks:running disks:paused ");
  usleep (300000);
  assert_true (look (&info));
  assert_int_equal (info.status, SRV_JOB_PAUSED);
  assert_true (info.resumes && !info.can_cancel);
  assert_true (dedup_disks_pending (image->pool));
  assert_int_equal (srv_job_resume (image, "disks", &f), 0);
  srv_image_set_job_rate (image, 0);
  expect_told ("disks:running disks:waiting disks:pending disks:concluded "
               "disks:null ");

  block_jobs ();
  assert_int_equal (srv_disk_clone (image, "a", "c", &f), 0);
  pause_disks_job ("disks:created disks:running disks:paused ");
  crash ();
  expect_told ("disks:created disks:running disks:waiting disks:pending "
               "disks:concluded disks:null ");
  assert_false (dedup_disks_pending (image->pool));
  check_clean ();
}

/* Else the time of the scan would be that of the job, in which it has done nothing. */
static void
work_that_is_found_at_open_begins_behind_the_scan (void **state)
{
  struct fault f = { 0 };

  block_jobs ();
  assert_int_equal (srv_disk_delete (image, "a", false, &f), 0);
  crash ();
  expect_told ("disks:created disks:running disks:waiting disks:pending "
               "disks:concluded disks:null ");
  assert_int_equal (due_at_start & DEDUP_JOB_SCAN, 0);
  check_clean ();
}

static void
progress_of_work_on_disks_is_true (void **state)
{
  struct srv_job_info info;
  struct fault f = { 0 };
  char name[16];
  unsigned i;

  /* Many small debts: progress of the one job for all. */
  for (i = 0; i < 40; i++) {
    snprintf (name, sizeof name, "clone%u", i);
    assert_int_equal (srv_disk_clone (image, i ? "clone0" : "a", name, &f), 0);
  }
  for (i = 0; i < 3000 &&
         (dedup_disks_pending (image->pool) || look (&info)); i++)
    usleep (10000);
  told[0] = '\0';
  block_jobs ();                /* until all disks are deleted */
  for (i = 0; i < 40; i++) {
    snprintf (name, sizeof name, "clone%u", i);
    assert_int_equal (srv_disk_delete (image, name, false, &f), 0);
  }
  wait_for_job ();
  srv_image_set_job_rate (image, 0);
  expect_true_progress ("deletions", off_at_half_way ());
  check_clean ();
}

int
main (void)
{
#define STOCK(f) cmocka_unit_test_setup_teardown (f, make_stock_image,  \
                                                  remove_image)
#define POOL(f) cmocka_unit_test_setup_teardown (f, make_pool, remove_image)
  const struct CMUnitTest tests[] = {
    STOCK (existing_data_is_indexed_when_asked),
    STOCK (indexing_can_be_paused_and_cancelled),
    STOCK (a_rate_is_kept_by_the_loop),
    STOCK (indexing_goes_on_after_a_restart),
    STOCK (indexing_by_command_goes_on_after_a_restart),
    STOCK (nothing_runs_where_nobody_may_write),
    POOL (what_a_clone_leaves_is_done_by_itself),
    POOL (work_on_disks_can_be_paused_and_outlives_the_server),
    POOL (work_that_is_found_at_open_begins_behind_the_scan),
    POOL (progress_of_work_on_disks_is_true),
  };

  return cmocka_run_group_tests (tests, make_dir, remove_dir);
}
