/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the disks of an image that is served: what clients see of each operation,
 * and operations beside clients that read and write.
 *
 * Breaks if: a clone has not what was written before or has it out of order, one
 * disk shows data of another, a request is let through to a disk that ended or
 * waits for ever, or clients of other disks notice anything.
 *
 * DEDUP_TEST_SEED=N repeats a run; the seed is printed.
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
#include "disk-internal.h"
#include "image-internal.h"
#include "io.h"
#include "qcow2.h"
#include "server.h"
#include "wire.h"

#define CLUSTER 4096u
#define MAX_SIZE (UINT64_C (64) << 20)
#define SIZE (UINT64_C (1) << 20)

static char dir[64], path[96];
static uint64_t seed;
static struct srv_image *image;

/* --- Helpers ------------------------------------------------------------- */

static int
make_dir (void **state)
{
  const char *given = getenv ("DEDUP_TEST_SEED");

  seed = given ? strtoull (given, NULL, 0) : (uint64_t) time (NULL) | 1;
  print_message ("seed %" PRIu64 "\n", seed);
  strcpy (dir, "/tmp/test-server-disks-XXXXXX");
  if (mkdtemp (dir) == NULL)
    return -1;
  snprintf (path, sizeof path, "%s/pool", dir);
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

/* What the listener of the image was told, one word an event. */
static char events[1024];
static pthread_mutex_t events_mutex = PTHREAD_MUTEX_INITIALIZER;

static void
event_cb (void *opaque, const struct srv_event *e)
{
  size_t len;

  assert_ptr_equal (opaque, &image);
  pthread_mutex_lock (&events_mutex);
  len = strlen (events);
  if (e->kind == SRV_EVENT_EXPORT_DELETED)
    snprintf (events + len, sizeof events - len, "deleted:%s ", e->name);
  else if (e->kind == SRV_EVENT_CLIENT_REFUSED)
    snprintf (events + len, sizeof events - len, "refused:%s:%d ", e->name,
              e->error);
  pthread_mutex_unlock (&events_mutex);
}

static void
open_image (bool read_only)
{
  struct srv_image_params p;
  struct fault f = { 0 };

  srv_image_params_default (&p);
  p.path = path;
  p.read_only = read_only;
  p.commit_interval_ms = 20;
  p.log = &sink;
  if (srv_image_open (&p, &image, &f) < 0)
    fail_msg ("srv_image_open: %s", f.msg);
  srv_image_set_listener (image, event_cb, &image);
  events[0] = '\0';
  assert_int_equal (srv_image_start (image), 0);
}

static void
close_image (void)
{
  assert_int_equal (srv_image_close (image), 0);
  image = NULL;
}

static void
restart (void)
{
  close_image ();
  open_image (false);
}

/* Each test begins with a new, empty pool that is served. */
static int
make_pool (void **state)
{
  struct qcow2_create_params p = {
    .virtual_size = MAX_SIZE, .cluster_bits = 12, .refcount_order = 5,
  };
  struct fault f = { 0 };
  struct io_store *io;

  unlink (path);
  assert_int_equal (io_file_open (path, IO_FILE_WRITE | IO_FILE_CREATE,
                                  IO_LOCK_WRITE, &io, &f), 0);
  assert_int_equal (qcow2_create (io, &p, &f), 0);
  io_close (io);
  open_image (false);
  return 0;
}

static int
remove_pool (void **state)
{
  if (image)
    close_image ();
  return unlink (path);
}

/* Fails the test with the fault's message, if there is one. */
static void
ok (int r, const struct fault *f)
{
  if (r < 0)
    fail_msg ("%s (%s)", f->msg, strerror (-r));
}

static void
create (const char *name, uint64_t size)
{
  struct fault f = { 0 };

  ok (srv_disk_create (image, name, size, &f), &f);
}

static void
clone_disk (const char *source, const char *name)
{
  struct fault f = { 0 };

  ok (srv_disk_clone (image, source, name, &f), &f);
}

static void
snapshot (const char *source, const char *name)
{
  struct fault f = { 0 };

  ok (srv_disk_snapshot (image, source, name, &f), &f);
}

static void
reset (const char *name, const char *source)
{
  struct fault f = { 0 };

  ok (srv_disk_reset (image, name, source, true, &f), &f);
}

static void
delete (const char *name)
{
  struct fault f = { 0 };

  ok (srv_disk_delete (image, name, true, &f), &f);
}

static struct srv_disk *
get (const char *name)
{
  struct fault f = { 0 };
  struct srv_disk *d = NULL;

  ok (srv_image_disk (image, name, &d, &f), &f);
  return d;
}

static void
put (struct srv_disk *d)
{
  srv_disk_put (image, d);
}

/* Asserts that an operation was refused with ERR, and a message that has TEXT. */
static void
refused (int r, int err, const struct fault *f, const char *text)
{
  assert_int_equal (r, -err);
  if (strstr (f->msg, text) == NULL)
    fail_msg ("\"%s\" does not say \"%s\"", f->msg, text);
}

static void
fill (struct srv_disk *d, uint64_t guest_off, uint32_t len, int c)
{
  CLEANUP_FREE unsigned char *buf = malloc (len);

  assert_non_null (buf);
  memset (buf, c, len);
  assert_int_equal (srv_pwrite (d, buf, guest_off, len, false), 0);
}

static void
assert_filled (struct srv_disk *d, uint64_t guest_off, uint32_t len, int c)
{
  CLEANUP_FREE unsigned char *buf = malloc (len);

  assert_non_null (buf);
  assert_int_equal (srv_pread (d, buf, guest_off, len), 0);
  for (uint32_t i = 0; i < len; i++)
    if (buf[i] != c)
      fail_msg ("byte %" PRIu64 " is %02x, should be %02x", guest_off + i,
                buf[i], c);
}

static void
fill_disk (const char *name, int c)
{
  struct srv_disk *d = get (name);

  fill (d, 0, (uint32_t) srv_disk_size (d), c);
  put (d);
}

static void
assert_disk (const char *name, uint64_t size, int c)
{
  struct srv_disk *d = get (name);

  assert_int_equal (srv_disk_size (d), size);
  assert_filled (d, 0, (uint32_t) size, c);
  put (d);
}

struct listed {
  char text[4096];
};

static int
list_cb (void *opaque, const struct srv_disk_info *i)
{
  struct listed *l = opaque;
  size_t len = strlen (l->text);

  snprintf (l->text + len, sizeof l->text - len, "%s:%" PRIu64 ":%s%s%s%s%s ",
            i->name, i->size, i->writable ? "rw" : "ro",
            i->is_disk ? "" : ":foreign", i->is_snapshot ? ":snapshot" : "",
            i->origin ? ":of " : "", i->origin ? i->origin : "");
  if (i->is_disk)
    assert_true (i->created > 1700000000);
  return 0;
}

static void
assert_list (const char *want)
{
  struct listed l = { "" };

  assert_int_equal (srv_image_list_disks (image, list_cb, &l), 0);
  assert_string_equal (l.text, want);
}

static void
sleep_ms (unsigned ms)
{
  struct timespec t = { ms / 1000, ms % 1000 * 1000000 };

  nanosleep (&t, NULL);
}

/* --- What clients see ----------------------------------------------------- */

static void
check_family (void)
{
  assert_list ("vm1:1048576:rw vm1@a:1048576:ro:snapshot:of vm1"
               " vm2:1048576:rw:of vm1 ");
  assert_disk ("vm1", SIZE, 2);
  assert_disk ("vm1@a", SIZE, 1);
  assert_disk ("vm2", SIZE, 2);
}

static void
test_each_disk_has_its_contents (void **state)
{
  struct srv_disk *d;

  create ("vm1", SIZE);
  assert_disk ("vm1", SIZE, 0);
  fill_disk ("vm1", 1);
  snapshot ("vm1", "vm1@a");
  fill_disk ("vm1", 2);
  clone_disk ("vm1", "vm2");
  check_family ();
  d = get ("vm1@a");
  assert_false (srv_disk_writable (d));
  assert_int_equal (srv_pwrite (d, "x", 0, 1, false), -EROFS);
  put (d);
  restart ();
  check_family ();

  fill_disk ("vm2", 3);
  assert_disk ("vm1", SIZE, 2);
  reset ("vm1", "vm1@a");
  assert_disk ("vm1", SIZE, 1);
  fill_disk ("vm1", 4);
  delete ("vm1@a");
  assert_list ("vm1:1048576:rw vm2:1048576:rw:of vm1 ");
  restart ();
  assert_disk ("vm1", SIZE, 4);
  assert_disk ("vm2", SIZE, 3);
}

static void
test_the_empty_active_disk_is_no_default (void **state)
{
  struct fault f = { 0 }, g = { 0 };
  struct srv_disk *d = get ("");

  put (d);
  create ("vm1", SIZE);
  create ("vm2", SIZE);
  refused (srv_image_disk (image, "", &d, &f), ENOENT, &f, "'vm1', 'vm2'");
  restart ();
  refused (srv_image_disk (image, "", &d, &g), ENOENT, &g, "'vm1', 'vm2'");
  assert_list ("vm1:1048576:rw vm2:1048576:rw ");
}

static void
test_an_active_disk_with_data_stays_the_default (void **state)
{
  struct srv_disk *d = get ("");

  fill (d, 12345, 6789, 7);
  put (d);
  create ("vm1", SIZE);
  clone_disk ("", "copy");
  restart ();
  d = get ("");
  fill (d, 12345, 6789, 8);
  put (d);
  d = get ("copy");
  assert_filled (d, 12345, 6789, 7);
  put (d);
  assert_list (":67108864:rw:foreign copy:67108864:rw vm1:1048576:rw ");
}

static void
test_names_are_checked (void **state)
{
  struct fault f[6] = { { 0 } };

  create ("vm1", SIZE);
  refused (srv_disk_create (image, "vm1", SIZE, &f[0]), EEXIST, &f[0], "vm1");
  refused (srv_disk_create (image, "a/b", SIZE, &f[1]), EINVAL, &f[1], "/");
  refused (srv_disk_clone (image, "no", "vm2", &f[2]), ENOENT, &f[2], "'no'");
  refused (srv_disk_delete (image, "", false, &f[3]), EINVAL, &f[3], "active");
  refused (srv_disk_reset (image, "vm1", "vm1", true, &f[4]), EINVAL, &f[4],
           "itself");
  refused (srv_disk_resize (image, "vm1", 1000, true, &f[5]), EINVAL, &f[5],
           "512");
  assert_list ("vm1:1048576:rw ");
}

static void
test_rename_keeps_clients (void **state)
{
  struct fault f = { 0 };
  struct srv_disk *d;

  create ("old", SIZE);
  d = get ("old");
  fill (d, 0, 10000, 1);
  ok (srv_disk_rename (image, "old", "new", &f), &f);
  fill (d, 10000, 10000, 2);
  assert_list ("new:1048576:rw ");
  create ("old", SIZE);
  put (d);
  assert_disk ("old", SIZE, 0);
  restart ();
  assert_list ("new:1048576:rw old:1048576:rw ");
  d = get ("new");
  assert_filled (d, 0, 10000, 1);
  assert_filled (d, 10000, 10000, 2);
  put (d);
}

static void
test_snapshots_are_renamed_with_their_disk (void **state)
{
  struct fault f[3] = { { 0 } };

  create ("vm1", SIZE);
  fill_disk ("vm1", 1);
  snapshot ("vm1", "vm1@a");
  snapshot ("vm1", "vm1@b");
  create ("vm10", SIZE);
  snapshot ("vm10", "vm10@a");
  ok (srv_disk_rename (image, "vm1", "web", &f[0]), &f[0]);
  assert_list ("vm10:1048576:rw vm10@a:1048576:ro:snapshot:of vm10"
               " web:1048576:rw web@a:1048576:ro:snapshot:of web"
               " web@b:1048576:ro:snapshot:of web ");
  restart ();
  assert_disk ("web@a", SIZE, 1);
  ok (srv_disk_rename (image, "web@b", "web@c", &f[1]), &f[1]);
  delete ("web");
  create ("vm1", SIZE);
  snapshot ("vm1", "vm1@a");
  refused (srv_disk_rename (image, "vm1", "web", &f[2]), EEXIST, &f[2], "web@a");
  assert_list ("vm1:1048576:rw vm10:1048576:rw"
               " vm10@a:1048576:ro:snapshot:of vm10"
               " vm1@a:1048576:ro:snapshot:of vm1"
               " web@a:1048576:ro:snapshot web@c:1048576:ro:snapshot ");
}

static void
test_the_listener_hears_of_refusals_and_deletions (void **state)
{
  struct fault f = { 0 }, g = { 0 };
  struct srv_disk *d;

  create ("vm1", SIZE);
  assert_string_equal (events, "");
  refused (srv_image_disk (image, "no", &d, &f), ENOENT, &f, "'no'");
  assert_string_equal (events, "refused:no:2 ");
  d = get ("vm1");
  refused (srv_disk_delete (image, "vm1", false, &g), EBUSY, &g, "1 client");
  put (d);
  assert_string_equal (events, "refused:no:2 ");
  delete ("vm1");
  assert_string_equal (events, "refused:no:2 deleted:vm1 ");
}

/* --- Clients of a disk that ends ------------------------------------------ */

static int
no_extent_cb (void *opaque, uint64_t guest_off, uint64_t len,
              enum srv_extent_type type)
{
  return 0;
}

static void
assert_ended (struct srv_disk *d)
{
  char buf[512];

  assert_int_equal (srv_pread (d, buf, 0, sizeof buf), -ESHUTDOWN);
  assert_int_equal (srv_cache (d, 0, sizeof buf), -ESHUTDOWN);
  assert_int_equal (srv_extents (d, 0, 512, false, no_extent_cb, NULL),
                    -ESHUTDOWN);
  assert_int_equal (srv_flush (d), -ESHUTDOWN);
  if (!srv_disk_writable (d))
    return;
  assert_int_equal (srv_pwrite (d, buf, 0, sizeof buf, true), -ESHUTDOWN);
  assert_int_equal (srv_trim (d, 0, CLUSTER, false), -ESHUTDOWN);
  assert_int_equal (srv_zero (d, 0, 100, true, false, false), -ESHUTDOWN);
}

static void
test_a_disk_with_clients_is_deleted_by_force_only (void **state)
{
  struct fault f = { 0 }, g = { 0 };
  struct srv_disk *a, *b, *snap;

  create ("vm1", SIZE);
  fill_disk ("vm1", 1);
  snapshot ("vm1", "vm1@s");
  a = get ("vm1");
  b = get ("vm1");
  snap = get ("vm1@s");
  assert_ptr_equal (a, b);
  refused (srv_disk_delete (image, "vm1", false, &f), EBUSY, &f, "2 clients");
  refused (srv_disk_delete (image, "vm1@s", false, &g), EBUSY, &g,
           "1 client");
  assert_filled (a, 0, 512, 1);
  delete ("vm1");
  assert_ended (a);
  assert_filled (snap, 0, SIZE, 1);
  delete ("vm1@s");
  assert_ended (snap);
  create ("vm1", SIZE);
  assert_ended (b);
  assert_disk ("vm1", SIZE, 0);
  put (a);
  put (b);
  put (snap);
  assert_list ("vm1:1048576:rw ");
}

static void
test_a_disk_with_clients_is_reset_by_force_only (void **state)
{
  struct fault f = { 0 };
  struct srv_disk *old, *new;

  create ("big", 2 * SIZE);
  create ("vm1", SIZE);
  fill_disk ("big", 5);
  fill_disk ("vm1", 6);
  old = get ("vm1");
  refused (srv_disk_reset (image, "vm1", "big", false, &f), EBUSY, &f,
           "1 client");
  assert_filled (old, 0, SIZE, 6);
  reset ("vm1", "big");
  new = get ("vm1");
  assert_ended (old);
  assert_int_equal (srv_disk_size (new), 2 * SIZE);
  assert_filled (new, 0, 2 * SIZE, 5);
  fill (new, 0, SIZE, 7);
  put (old);
  assert_disk ("big", 2 * SIZE, 5);
  put (new);
}

static void
test_sizes_change (void **state)
{
  const uint64_t odd = SIZE / 2 + 512;
  struct fault f[4] = { { 0 } };
  struct srv_disk *d, *e;

  create ("vm1", odd);
  fill_disk ("vm1", 1);
  snapshot ("vm1", "vm1@s");
  d = get ("vm1");
  ok (srv_disk_resize (image, "vm1", SIZE, false, &f[0]), &f[0]);
  e = get ("vm1");
  assert_int_equal (srv_disk_size (e), SIZE);
  assert_filled (e, odd, (uint32_t) (SIZE - odd), 0);
  fill (e, odd, 1024, 2);
  fill (d, odd - 512, 512, 3);          /* the same cluster */
  assert_filled (d, odd - 512, 512, 3);
  assert_filled (e, odd, 1024, 2);
  refused (srv_disk_resize (image, "vm1", 1024, false, &f[1]), EBUSY, &f[1],
           "2 clients");
  ok (srv_disk_resize (image, "vm1", 1024, true, &f[2]), &f[2]);
  assert_ended (d);
  assert_ended (e);
  put (d);
  put (e);
  assert_disk ("vm1", 1024, 1);
  assert_disk ("vm1@s", odd, 1);
  ok (srv_disk_resize (image, "vm1", SIZE, false, &f[3]), &f[3]);
  restart ();
  d = get ("vm1");
  assert_int_equal (srv_disk_size (d), SIZE);
  assert_filled (d, 0, 1024, 1);
  assert_filled (d, 1024, SIZE - 1024, 0);
  put (d);
}

struct call {
  pthread_t thread;
  struct srv_disk *disk;
  int result;
  bool done;                    /* atomic */
};

static void *
write_call (void *opaque)
{
  struct call *c = opaque;

  c->result = srv_pwrite (c->disk, "x", 0, 1, false);
  __atomic_store_n (&c->done, true, __ATOMIC_SEQ_CST);
  return NULL;
}

static void *
delete_call (void *opaque)
{
  struct call *c = opaque;

  c->result = srv_disk_delete (image, "vm1", true, NULL);
  __atomic_store_n (&c->done, true, __ATOMIC_SEQ_CST);
  return NULL;
}

static void
start (struct call *c, void *(*run) (void *), struct srv_disk *d)
{
  *c = (struct call) { .disk = d };
  assert_int_equal (pthread_create (&c->thread, NULL, run, c), 0);
}

static bool
is_done (struct call *c)
{
  return __atomic_load_n (&c->done, __ATOMIC_SEQ_CST);
}

/* Waits for the end of a call, which must come. */
static void
join (struct call *c)
{
  for (unsigned i = 0; i < 10000 && !is_done (c); i++)
    sleep_ms (1);
  assert_true (is_done (c));
  pthread_join (c->thread, NULL);
}

static void
test_a_request_that_waits_for_a_range_ends (void **state)
{
  struct srv_disk *d;
  struct srv_range range;
  struct call write, del;

  create ("vm1", SIZE);
  d = get ("vm1");
  assert_int_equal (srv_range_acquire (&d->ranges, &range, 0, 0, true), 0);
  start (&write, write_call, d);
  sleep_ms (50);
  assert_false (is_done (&write));
  start (&del, delete_call, d);
  join (&write);
  join (&del);
  assert_int_equal (write.result, -ESHUTDOWN);
  assert_int_equal (del.result, 0);
  srv_range_release (&d->ranges, &range);
  put (d);
}

static void
test_a_request_under_way_is_waited_for (void **state)
{
  struct fault f = { 0 };
  struct srv_disk *d, *other;
  struct call write, del;

  create ("vm1", SIZE);
  create ("vm2", SIZE);
  d = get ("vm1");
  assert_int_equal (srv_gate_enter (&d->gate), 0);
  start (&del, delete_call, d);
  sleep_ms (50);
  start (&write, write_call, d);
  join (&write);
  assert_int_equal (write.result, -ESHUTDOWN);
  other = get ("vm2");                  /* others do not wait */
  fill (other, 0, CLUSTER, 1);
  put (other);
  assert_false (is_done (&del));
  srv_gate_leave (&d->gate);
  join (&del);
  assert_int_equal (del.result, 0);
  refused (srv_image_disk (image, "vm1", &other, &f), ENOENT, &f, "'vm1'");
  put (d);
}

static void
test_a_paused_gate_lets_requests_wait (void **state)
{
  struct srv_disk *d;
  struct call write;

  create ("vm1", SIZE);
  d = get ("vm1");
  srv_gate_pause (&d->gate);
  srv_gate_drain (&d->gate);
  start (&write, write_call, d);
  sleep_ms (50);
  assert_false (is_done (&write));
  srv_gate_resume (&d->gate);
  join (&write);
  assert_int_equal (write.result, 0);
  put (d);
}

static void
test_a_disk_that_nobody_has_open_costs_its_name (void **state)
{
  enum { NR = 100 };
  struct srv_disk *d[NR];
  char name[16];

  for (unsigned i = 0; i < NR; i++) {
    snprintf (name, sizeof name, "vm%03u", i);
    create (name, SIZE);
    d[i] = get (name);
  }
  assert_true (NR * sizeof *d[0] <= NR * 64 << 10);
  for (unsigned i = 0; i < NR; i++)
    put (d[i]);
  assert_null (image->exports.open);
}

/* --- Under load ------------------------------------------------------------ */

/* A writer writes the numbers 1, 2, 3, ... one after the other, number N to
 * cluster N % NR_CELLS of its stripe.  So what a stripe holds at any moment is
 * known from the largest number in it. */
#define NR_CELLS 32
#define NR_WRITERS 3
#define NR_CLONES 24

struct writer {
  pthread_t thread;
  unsigned stripe;
  uint64_t written;             /* atomic */
  bool *stop;                   /* atomic */
};

static void
put_number (unsigned char *buf, unsigned stripe, uint64_t n)
{
  be64 wire = be64_make (n);

  memset (buf, (int) (1 + stripe), CLUSTER);
  memcpy (buf, wire.b, sizeof wire.b);
}

static uint64_t
cell_off (unsigned stripe, uint64_t n)
{
  return (stripe * NR_CELLS + n % NR_CELLS) * CLUSTER;
}

static void *
write_numbers (void *opaque)
{
  struct writer *w = opaque;
  struct srv_disk *d = get ("vm1");
  unsigned char buf[CLUSTER];
  uint64_t n;

  for (n = 1; !__atomic_load_n (w->stop, __ATOMIC_RELAXED); n++) {
    put_number (buf, w->stripe, n);
    assert_int_equal (srv_pwrite (d, buf, cell_off (w->stripe, n), CLUSTER,
                                  n % 64 == 0), 0);
    __atomic_store_n (&w->written, n, __ATOMIC_SEQ_CST);
  }
  put (d);
  return NULL;
}

static uint64_t
number_at (struct srv_disk *d, unsigned stripe, uint64_t cell)
{
  unsigned char buf[CLUSTER], want[CLUSTER];
  uint64_t n;
  be64 wire;

  assert_int_equal (srv_pread (d, buf, cell_off (stripe, cell), CLUSTER), 0);
  memcpy (wire.b, buf, sizeof wire.b);
  n = be64_load (wire);
  if (n == 0)
    memset (want, 0, sizeof want);
  else
    put_number (want, stripe, n);
  assert_memory_equal (buf, want, CLUSTER);
  return n;
}

/* Asserts that D holds what the stripe held after some write from LEAST on. */
static void
assert_prefix (struct srv_disk *d, unsigned stripe, uint64_t least)
{
  uint64_t v[NR_CELLS], max = 0, want;

  for (unsigned i = 0; i < NR_CELLS; i++) {
    v[i] = number_at (d, stripe, i);
    max = MAX_OF (max, v[i]);
  }
  assert_true (max >= least);
  for (unsigned i = 0; i < NR_CELLS; i++) {
    want = max - (max + NR_CELLS - i) % NR_CELLS;
    if (max < NR_CELLS && i > max)
      want = 0;
    if (v[i] != want)
      fail_msg ("stripe %u, cell %u: %" PRIu64 ", should be %" PRIu64
                " (least %" PRIu64 ", largest %" PRIu64 ")", stripe, i, v[i],
                want, least, max);
  }
}

static void
assert_prefixes (const char *name, const uint64_t least[NR_WRITERS])
{
  struct srv_disk *d = get (name);

  for (unsigned i = 0; i < NR_WRITERS; i++)
    assert_prefix (d, i, least[i]);
  put (d);
}

static void
note_written (struct writer *w, uint64_t least[NR_WRITERS])
{
  for (unsigned i = 0; i < NR_WRITERS; i++)
    least[i] = __atomic_load_n (&w[i].written, __ATOMIC_SEQ_CST);
}

static void
start_writers (struct writer *w, bool *stop)
{
  *stop = false;
  for (unsigned i = 0; i < NR_WRITERS; i++) {
    w[i] = (struct writer) { .stripe = i, .stop = stop };
    assert_int_equal (pthread_create (&w[i].thread, NULL, write_numbers,
                                      &w[i]), 0);
  }
}

static void
stop_writers (struct writer *w, bool *stop)
{
  __atomic_store_n (stop, true, __ATOMIC_RELAXED);
  for (unsigned i = 0; i < NR_WRITERS; i++)
    pthread_join (w[i].thread, NULL);
}

static void
test_a_clone_of_a_busy_disk_is_one_moment_of_it (void **state)
{
  uint64_t least[NR_CLONES][NR_WRITERS];
  struct writer w[NR_WRITERS];
  char name[16];
  bool stop;

  create ("vm1", SIZE);
  create ("again", SIZE);
  start_writers (w, &stop);
  for (unsigned i = 0; i < NR_CLONES; i++) {
    snprintf (name, sizeof name, "c%u", i);
    note_written (w, least[i]);
    if (i % 3 == 2)
      reset ("again", "vm1");
    else
      clone_disk ("vm1", name);
    assert_prefixes (i % 3 == 2 ? "again" : name, least[i]);
    if (i % 3 == 1)
      delete (name);
    sleep_ms (5);
  }
  stop_writers (w, &stop);
  for (unsigned round = 0; round < 2; round++) {
    for (unsigned i = 0; i < NR_CLONES; i += 3) {
      snprintf (name, sizeof name, "c%u", i);
      assert_prefixes (name, least[i]);
    }
    restart ();
  }
}

/* Clients of disks that are made, reset and deleted all the time: each begins with
 * zeroes, and shows what its clients write and nothing else. */
struct hammer {
  pthread_t thread;
  unsigned nr;
  bool *stop;                   /* atomic */
  uint64_t nr_written, nr_ended;
};

static int
hammer_once (struct hammer *h, struct srv_disk *d, unsigned i)
{
  unsigned char buf[CLUSTER], got[CLUSTER];
  const uint64_t guest_off = (h->nr * 16 + i % 16) * CLUSTER;
  int r;

  memset (buf, 100 + (int) h->nr, sizeof buf);
  be64 wire = be64_make (i);
  memcpy (buf, wire.b, sizeof wire.b);
  r = srv_pwrite (d, buf, guest_off, CLUSTER, false);
  if (r == 0)
    r = srv_pread (d, got, guest_off, CLUSTER);
  if (r == 0)
    assert_memory_equal (got, buf, CLUSTER);
  if (r == 0 && i % 8 == 7)
    r = srv_trim (d, guest_off, CLUSTER, false);
  return r;
}

static void *
hammer (void *opaque)
{
  struct hammer *h = opaque;
  struct srv_disk *d;
  unsigned i = 0;
  int r;

  while (!__atomic_load_n (h->stop, __ATOMIC_RELAXED)) {
    r = srv_image_disk (image, "victim", &d, NULL);
    if (r == -ENOENT)
      continue;
    assert_int_equal (r, 0);
    while (r == 0 && !__atomic_load_n (h->stop, __ATOMIC_RELAXED)) {
      r = hammer_once (h, d, i++);
      h->nr_written += r == 0;
    }
    assert_true (r == 0 || r == -ESHUTDOWN);
    h->nr_ended += r < 0;
    put (d);
  }
  return NULL;
}

/* Reads what a disk held that no client has written to: one moment of "victim".
 * Each cluster is zero or of the client whose place it is. */
static void
assert_of_clients (const char *name)
{
  struct srv_disk *d = get (name);
  unsigned char buf[CLUSTER];

  for (unsigned nr = 0; nr < NR_WRITERS; nr++)
    for (unsigned i = 0; i < 16; i++) {
      assert_int_equal (srv_pread (d, buf, (nr * 16 + i) * CLUSTER, CLUSTER),
                        0);
      assert_true (buf[8] == 0 || buf[8] == 100 + nr);
      assert_memory_equal (buf + 8, buf + 9, CLUSTER - 9);
    }
  assert_filled (d, NR_WRITERS * 16 * CLUSTER, 16 * CLUSTER, 0);
  put (d);
}

static void
change_victim (unsigned round)
{
  switch (round % 4) {
  case 0:
    delete ("victim");
    create ("victim", SIZE);
    break;
  case 1:
    reset ("victim", "zero");
    break;
  case 2:
    snapshot ("victim", "victim@s");
    assert_of_clients ("victim@s");
    delete ("victim@s");
    break;
  case 3:
    clone_disk ("victim", "other");
    assert_of_clients ("other");
    delete ("victim");
    clone_disk ("other", "victim");
    delete ("other");
    break;
  }
}

static void
test_disks_end_under_their_clients (void **state)
{
  struct hammer h[NR_WRITERS];
  struct srv_disk *d;
  bool stop = false;

  create ("zero", SIZE);
  create ("quiet", SIZE);
  fill_disk ("quiet", 9);
  create ("victim", SIZE);
  for (unsigned i = 0; i < NR_WRITERS; i++) {
    h[i] = (struct hammer) { .nr = i, .stop = &stop };
    assert_int_equal (pthread_create (&h[i].thread, NULL, hammer, &h[i]), 0);
  }
  d = get ("quiet");
  for (unsigned i = 0; i < 40; i++) {
    sleep_ms (5);
    change_victim (i);
    assert_filled (d, 0, SIZE, 9);
  }
  put (d);
  __atomic_store_n (&stop, true, __ATOMIC_RELAXED);
  for (unsigned i = 0; i < NR_WRITERS; i++) {
    pthread_join (h[i].thread, NULL);
    assert_true (h[i].nr_written > 0);
    assert_true (h[i].nr_ended > 0);
  }
  assert_disk ("zero", SIZE, 0);
  assert_null (image->exports.open);
}

/* --- A list of many disks, while names come and go --------------------------- */

#define NR_MANY 100             /* more than are copied under one hold */

static int
count_many_cb (void *opaque, const struct srv_disk_info *info)
{
  unsigned *times = opaque, nr;

  if (sscanf (info->name, "many%u", &nr) == 1 && nr < NR_MANY)
    times[nr]++;
  return 0;
}

static int
count_all_cb (void *opaque, const struct srv_disk_info *info)
{
  unsigned *nr = opaque;

  (void) info;
  ++*nr;
  return 0;
}

static int
first_cb (void *opaque, const struct srv_disk_info *info)
{
  snprintf (opaque, 16, "%s", info->name);
  return 1;
}

/* A list behind a name begins with the next one, also if no disk has the name. */
static void
assert_lists_begin_behind_names (unsigned nr_all)
{
  unsigned nr = 0;
  char name[16];

  assert_int_equal (srv_image_list_disks_after (image, NULL, count_all_cb, &nr), 0);
  assert_int_equal (nr, nr_all);
  assert_int_equal (srv_image_list_disks_after (image, NULL, first_cb, name), 1);
  assert_string_equal (name, "aaa");
  assert_int_equal (srv_image_list_disks_after (image, "", first_cb, name), 1);
  assert_string_equal (name, "aaa");
  assert_int_equal (srv_image_list_disks_after (image, "many5", first_cb, name), 1);
  assert_string_equal (name, "many50");
  assert_int_equal (srv_image_list_disks_after (image, "many500", first_cb, name),
                    1);
  assert_string_equal (name, "many51");
  assert_int_equal (srv_image_list_disks_after (image, "many99", first_cb, name), 0);
}

struct lister {
  pthread_t thread;
  bool *stop;                   /* atomic */
  uint64_t nr_lists, nr_wrong;
};

static void *
list_again_and_again (void *opaque)
{
  struct lister *l = opaque;

  while (!__atomic_load_n (l->stop, __ATOMIC_RELAXED)) {
    unsigned times[NR_MANY] = { 0 };

    assert_int_equal (srv_image_list_disks (image, count_many_cb, times), 0);
    for (unsigned i = 0; i < NR_MANY; i++)
      l->nr_wrong += times[i] != 1;
    assert_int_equal (srv_image_list_disks_after (image, NULL, count_many_cb, times),
                      0);
    for (unsigned i = 0; i < NR_MANY; i++)
      l->nr_wrong += times[i] != 2;
    l->nr_lists++;
  }
  return NULL;
}

/* Moves a name from the one end of the sorted list to the other. */
static void
move_a_name (unsigned i)
{
  char *copy = NULL;
  struct fault f = { 0 };
  unsigned root;

  ok (srv_exports_find (&image->exports, i % 2 ? "zzz" : "aaa", &root, &f), &f);
  ok (srv_exports_prepare_name (&image->exports, i % 2 ? "aaa" : "zzz", &copy,
                                &f), &f);
  srv_exports_rename (&image->exports, copy, root);
}

static void
test_a_list_has_each_disk_once_while_names_change (void **state)
{
  bool stop = false;
  struct lister l = { .stop = &stop };
  char name[16];

  create ("aaa", SIZE);
  for (unsigned i = 0; i < NR_MANY; i++) {
    snprintf (name, sizeof name, "many%u", i);
    create (name, SIZE);
  }
  assert_int_equal (pthread_create (&l.thread, NULL, list_again_and_again, &l),
                    0);
  for (unsigned i = 0; i < 20000; i++) {
    move_a_name (i);
    if (i % 8 == 0)             /* so that copies can end, too */
      usleep (20);
  }
  __atomic_store_n (&stop, true, __ATOMIC_RELAXED);
  pthread_join (l.thread, NULL);
  assert_true (l.nr_lists > 0);
  assert_int_equal (l.nr_wrong, 0);
  assert_lists_begin_behind_names (NR_MANY + 1);
}

#define TEST(name) cmocka_unit_test_setup_teardown (name, make_pool, remove_pool)

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (test_each_disk_has_its_contents),
    TEST (test_the_empty_active_disk_is_no_default),
    TEST (test_an_active_disk_with_data_stays_the_default),
    TEST (test_names_are_checked),
    TEST (test_rename_keeps_clients),
    TEST (test_snapshots_are_renamed_with_their_disk),
    TEST (test_the_listener_hears_of_refusals_and_deletions),
    TEST (test_a_disk_with_clients_is_deleted_by_force_only),
    TEST (test_a_disk_with_clients_is_reset_by_force_only),
    TEST (test_sizes_change),
    TEST (test_a_request_that_waits_for_a_range_ends),
    TEST (test_a_request_under_way_is_waited_for),
    TEST (test_a_paused_gate_lets_requests_wait),
    TEST (test_a_disk_that_nobody_has_open_costs_its_name),
    TEST (test_a_clone_of_a_busy_disk_is_one_moment_of_it),
    TEST (test_disks_end_under_their_clients),
    TEST (test_a_list_has_each_disk_once_while_names_change),
  };

  return cmocka_run_group_tests_name ("server-disks", tests, make_dir,
                                      remove_dir);
}
