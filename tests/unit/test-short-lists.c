/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests that who asks a server for its disks and figures keeps writers waiting for
 * short pieces of work only, whatever the number of disks is.
 *
 * Breaks if: a list is copied under one hold of the image's lock or of that of the
 * exports, or asking for figures takes the image's lock once for each disk.
 *
 * What is done under a hold is counted, and not timed.  pthread_mutex_trylock, with which
 * each lock is taken (common/lock.h), is wrapped (meson.build).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checked.h"
#include "image-internal.h"
#include "qcow2.h"
#include "server.h"

#define NR_DISKS 40
#define MOST 8                  /* disks under one hold of the exports' lock */

static char dir[64], path[96];
static struct srv_image *image;

/* --- What is wrapped ------------------------------------------------------- */

static pthread_mutex_t *image_mutex, *exports_mutex;    /* NULL: not counted */
static unsigned nr_image, nr_exports;   /* how often they were taken */
static unsigned looks, most_looks;      /* image's, since the exports' was taken */

int __real_pthread_mutex_trylock (pthread_mutex_t *m);
int __wrap_pthread_mutex_trylock (pthread_mutex_t *m);

int
__wrap_pthread_mutex_trylock (pthread_mutex_t *m)
{
  if (m == exports_mutex) {
    nr_exports++;
    looks = 0;
  } else if (m == image_mutex) {
    nr_image++;
    looks++;
    most_looks = MAX_OF (most_looks, looks);
  }
  return __real_pthread_mutex_trylock (m);
}

static void
begin_counting (void)
{
  nr_image = nr_exports = looks = most_looks = 0;
  image_mutex = &qcow2_lock (dedup_image (image->pool))->mutex;
  exports_mutex = &image->exports.lock.mutex;
}

static void
end_counting (void)
{
  image_mutex = exports_mutex = NULL;
}

/* --- Helpers --------------------------------------------------------------- */

static void
log_nothing (void *opaque, enum log_level level, const char *line)
{
}

static const struct log_sink sink = { .write = log_nothing };

static void
make_image (void)
{
  const struct qcow2_create_params p = {
    .virtual_size = 1 << 20, .cluster_bits = 12, .refcount_order = 5,
  };
  struct fault f = { 0 };
  struct io_store *io;

  assert_int_equal (io_file_open (path, IO_FILE_WRITE | IO_FILE_CREATE,
                                  IO_LOCK_WRITE, &io, &f), 0);
  assert_int_equal (qcow2_create (io, &p, &f), 0);
  io_close (io);
}

/* Opens an image, without the threads of a server. */
static int
set_up (void **state)
{
  struct srv_image_params p;
  struct fault f = { 0 };

  strcpy (dir, "/tmp/test-short-lists-XXXXXX");
  assert_non_null (mkdtemp (dir));
  snprintf (path, sizeof path, "%s/disk", dir);
  make_image ();
  srv_image_params_default (&p);
  p.path = path;
  p.log = &sink;
  return srv_image_open (&p, &image, &f);
}

static int
tear_down (void **state)
{
  assert_int_equal (srv_image_close (image), 0);
  unlink (path);
  return rmdir (dir);
}

static void
make_disks (void)
{
  struct fault f = { 0 };
  char name[16], snapshot[24];

  for (unsigned i = 0; i < NR_DISKS; i++) {
    snprintf (name, sizeof name, "disk%02u", i);
    assert_int_equal (srv_disk_create (image, name, 1 << 20, &f), 0);
    snprintf (snapshot, sizeof snapshot, "%s@now", name);
    assert_int_equal (srv_disk_snapshot (image, name, snapshot, &f), 0);
  }
}

static int
count_cb (void *opaque, const struct srv_disk_info *info)
{
  unsigned *nr = opaque;

  (*nr)++;
  return 0;
}

/* --- Tests ----------------------------------------------------------------- */

static void
figures_take_the_lock_once_for_all_disks (void **state)
{
  struct srv_stats s;
  unsigned without;

  begin_counting ();
  srv_image_stats (image, &s);
  without = nr_image;
  end_counting ();
  make_disks ();
  begin_counting ();
  srv_image_stats (image, &s);
  end_counting ();
  assert_true (without > 0);
  assert_int_equal (nr_image, without);
}

/* Each look at a disk is a hold of the image's lock of its own. */
static void
a_list_holds_locks_for_few_disks (void **state)
{
  unsigned nr = 0;

  begin_counting ();
  assert_int_equal (srv_image_list_disks (image, count_cb, &nr), 0);
  end_counting ();
  assert_int_equal (nr, 2 * NR_DISKS);
  assert_true (nr_image >= nr);
  assert_true (nr_exports >= nr / MOST);
  assert_in_range (most_looks, 1, MOST);
}

static void
a_page_holds_locks_for_few_disks (void **state)
{
  unsigned nr = 0;

  begin_counting ();
  assert_int_equal (srv_image_list_disks_after (image, "disk09", count_cb, &nr), 0);
  end_counting ();
  assert_int_equal (nr, 2 * (NR_DISKS - 10) + 1);
  assert_true (nr_image >= nr);
  assert_in_range (most_looks, 1, MOST);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (figures_take_the_lock_once_for_all_disks),
    cmocka_unit_test (a_list_holds_locks_for_few_disks),
    cmocka_unit_test (a_page_holds_locks_for_few_disks),
  };

  return cmocka_run_group_tests (tests, set_up, tear_down);
}
