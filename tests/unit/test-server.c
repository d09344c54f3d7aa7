/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests an image as a whole: requests of any alignment against a plain array,
 * writers of the same clusters, extents, opening and creating, the loop.
 *
 * DEDUP_TEST_SEED=N repeats a run; the seed is printed.
 */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "checked.h"
#include "server.h"
#include "wire.h"

#define MAX_REQUEST (3u << 20)

static char dir[64];
static uint64_t seed;
static struct srv_image *image;         /* the one that is open */

/* --- Helpers ------------------------------------------------------------- */

static uint64_t
next_random (uint64_t *state)
{
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return *state;
}

static uint64_t
random_below (uint64_t *state, uint64_t limit)
{
  return next_random (state) % limit;
}

static int
make_dir (void **state)
{
  const char *given = getenv ("DEDUP_TEST_SEED");

  seed = given ? strtoull (given, NULL, 0) : (uint64_t) time (NULL) | 1;
  print_message ("seed %" PRIu64 "\n", seed);
  strcpy (dir, "/tmp/test-server-XXXXXX");
  return mkdtemp (dir) ? 0 : -1;
}

static const char *
path_of (const char *name)
{
  static char path[128];

  snprintf (path, sizeof path, "%s/%s", dir, name);
  return path;
}

static int
remove_files (void **state)
{
  static const char *const names[] = { "disk", "copy" };
  size_t i;

  for (i = 0; i < 2; ++i)
    unlink (path_of (names[i]));
  return 0;
}

static int
remove_dir (void **state)
{
  remove_files (state);
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
params_for (const char *name, int64_t size, uint64_t cluster_size)
{
  struct srv_image_params p;

  srv_image_params_default (&p);
  p.path = path_of (name);
  p.create_size = size;
  p.cluster_size = cluster_size;
  p.commit_interval_ms = 20;
  p.log = &sink;
  return p;
}

static struct srv_disk *
active_disk (void)
{
  struct srv_disk *d;

  assert_int_equal (srv_image_disk (image, "", &d, NULL), 0);
  return d;
}

static struct srv_disk *
open_with (const struct srv_image_params *p)
{
  struct fault f = { 0 };
  int r = srv_image_open (p, &image, &f);

  if (r < 0)
    fail_msg ("srv_image_open: %s: %s", strerror (-r), f.msg);
  assert_int_equal (srv_image_start (image), 0);
  return active_disk ();
}

/* Images are created with whole sectors, but the format knows disks of any
 * size in bytes: put SIZE into the header. */
static void
make_disk_of_odd_size (int64_t size, uint64_t cluster_size)
{
  struct srv_image_params p = params_for ("disk", size, cluster_size);
  be64 wire = be64_make ((uint64_t) size);
  int fd;

  open_with (&p);
  assert_int_equal (srv_image_close (image), 0);
  fd = open (p.path, O_WRONLY);
  assert_int_equal (pwrite (fd, wire.b, sizeof wire.b, 24), 8);
  close (fd);
}

static struct srv_disk *
open_disk (int64_t size, uint64_t cluster_size)
{
  struct srv_image_params p = params_for ("disk", size, cluster_size);

  if (size > 0 && size % 512 != 0 && access (p.path, F_OK) < 0)
    make_disk_of_odd_size (size, cluster_size);
  return open_with (&p);
}

static struct srv_disk *
open_copy_readonly (const char *name)
{
  struct srv_image_params p = params_for (name, -1, 4096);

  p.read_only = true;
  return open_with (&p);
}

static unsigned char *
read_file (const char *name, size_t *size)
{
  int fd = open (path_of (name), O_RDONLY);
  struct stat st;
  unsigned char *data;

  assert_true (fd >= 0);
  assert_int_equal (fstat (fd, &st), 0);
  data = malloc ((size_t) st.st_size + 1);
  assert_non_null (data);
  assert_int_equal (read (fd, data, (size_t) st.st_size), st.st_size);
  close (fd);
  *size = (size_t) st.st_size;
  return data;
}

static void
copy_file (const char *from, const char *to)
{
  size_t size;
  CLEANUP_FREE unsigned char *data = read_file (from, &size);
  int fd = open (path_of (to), O_WRONLY | O_CREAT | O_TRUNC, 0600);

  assert_true (fd >= 0);
  assert_int_equal (write (fd, data, size), (ssize_t) size);
  close (fd);
}

/* Feature bit 48: bit 0 of header byte 73. */
static bool
needs_recovery (void)
{
  size_t size;
  CLEANUP_FREE unsigned char *data = read_file ("disk", &size);

  assert_true (size > 80);
  return data[73] & 1;
}

static void
assert_reads (struct srv_disk *d, const unsigned char *want,
              uint64_t guest_off, size_t len)
{
  CLEANUP_FREE unsigned char *got = malloc (len + 1);
  size_t i;

  assert_non_null (got);
  assert_int_equal (srv_pread (d, got, guest_off, (uint32_t) len), 0);
  if (memcmp (got, want, len) == 0)
    return;
  for (i = 0; i < len && got[i] == want[i]; ++i)
    ;
  if (i < len)
    fail_msg ("byte %" PRIu64 " is %02x, should be %02x", guest_off + i,
              got[i], want[i]);
}

/* --- A plain array ------------------------------------------------------- */

struct model {
  uint64_t size, cluster_size, rng;
  unsigned char *bytes;
};

struct request {
  uint64_t guest_off;
  uint32_t len;
};

static struct request
random_request (struct model *m)
{
  uint64_t limit = random_below (&m->rng, 2) ? MAX_REQUEST :
    3 * m->cluster_size;
  struct request r;

  r.guest_off = random_below (&m->rng, m->size);
  r.len = (uint32_t) (1 + random_below (&m->rng, limit));
  if (random_below (&m->rng, 3) == 0) {       /* whole clusters */
    r.guest_off -= r.guest_off % m->cluster_size;
    r.len = (uint32_t) round_up_pow2 (r.len, m->cluster_size);
  }
  r.len = (uint32_t) MIN_OF (r.len, m->size - r.guest_off);
  if (random_below (&m->rng, 8) == 0)         /* up to the very end */
    r.guest_off = m->size - r.len;
  return r;
}

/* Few different blocks, so that many are equal; some are zero. */
static void
random_bytes (struct model *m, unsigned char *buf, size_t len)
{
  size_t i;
  uint64_t block = 0;

  for (i = 0; i < len; ++i) {
    if (i % 512 == 0)
      block = random_below (&m->rng, 6);
    buf[i] = block == 0 ? 0 : (unsigned char) (block * 31 + i % 509);
  }
}

static void
do_write (struct srv_disk *d, struct model *m, struct request q)
{
  bool fua = random_below (&m->rng, 8) == 0;

  random_bytes (m, m->bytes + q.guest_off, q.len);
  assert_int_equal (srv_pwrite (d, m->bytes + q.guest_off, q.guest_off, q.len,
                                fua), 0);
}

static void
do_zero (struct srv_disk *d, struct model *m, struct request q)
{
  memset (m->bytes + q.guest_off, 0, q.len);
  assert_int_equal (srv_zero (d, q.guest_off, q.len,
                              random_below (&m->rng, 2),
                              random_below (&m->rng, 2), false), 0);
}

/* Whole clusters are gone, the rest stays. */
static void
do_trim (struct srv_disk *d, struct model *m, struct request q)
{
  uint64_t first = round_up_pow2 (q.guest_off, m->cluster_size);
  uint64_t end = q.guest_off + q.len;

  if (end != m->size)
    end = round_down_pow2 (end, m->cluster_size);
  if (first < end)
    memset (m->bytes + first, 0, end - first);
  assert_int_equal (srv_trim (d, q.guest_off, q.len, false), 0);
}

struct seen {
  const struct model *m;
  uint64_t next;
  enum srv_extent_type last;
  bool any;
};

static int
check_extent_cb (void *opaque, uint64_t guest_off, uint64_t len,
                 enum srv_extent_type type)
{
  struct seen *s = opaque;
  const unsigned char *bytes = s->m->bytes + guest_off;

  assert_int_equal (guest_off, s->next);
  assert_true (len > 0);
  if (s->any)
    assert_int_not_equal (type, s->last);       /* merged */
  if (type != SRV_DATA)                         /* all zero */
    assert_true (bytes[0] == 0 && memcmp (bytes, bytes + 1, len - 1) == 0);
  s->next += len;
  s->last = type;
  s->any = true;
  return 0;
}

static void
do_extents (struct srv_disk *d, struct model *m, struct request q)
{
  struct seen s = { .m = m, .next = q.guest_off };

  assert_int_equal (srv_extents (d, q.guest_off, q.len, false,
                                 check_extent_cb, &s), 0);
  assert_int_equal (s.next, q.guest_off + q.len);
}

static void
do_random (struct srv_disk *d, struct model *m)
{
  struct request q = random_request (m);

  switch (random_below (&m->rng, 8)) {
  case 0: case 1: case 2: do_write (d, m, q); break;
  case 3: do_zero (d, m, q); break;
  case 4: do_trim (d, m, q); break;
  case 5: do_extents (d, m, q); break;
  case 6: assert_int_equal (srv_cache (d, q.guest_off, q.len), 0); break;
  default: assert_reads (d, m->bytes + q.guest_off, q.guest_off, q.len);
  }
}

static void
run_against_model (uint64_t cluster_size, uint64_t size, unsigned steps)
{
  struct model m = { .size = size, .cluster_size = cluster_size, .rng = seed };
  struct srv_disk *d = open_disk ((int64_t) size, cluster_size);
  unsigned round, i;

  m.bytes = calloc (1, size);
  assert_non_null (m.bytes);
  for (round = 0; round < 3; ++round) {
    assert_int_equal (srv_disk_size (d), size);
    assert_int_equal (srv_disk_preferred_block (d), cluster_size);
    for (i = 0; i < steps; ++i)
      do_random (d, &m);
    assert_int_equal (srv_flush (d), 0);
    assert_reads (d, m.bytes, 0, size);
    assert_int_equal (srv_image_close (image), 0);
    d = open_disk (-1, cluster_size);
    assert_reads (d, m.bytes, 0, size);
  }
  assert_int_equal (srv_image_close (image), 0);
  free (m.bytes);
}

static void
test_model_512 (void **state)
{
  run_against_model (512, (1 << 20) + 77, 60);
}

static void
test_model_4k (void **state)
{
  run_against_model (4096, (9 << 20) + 4095, 80);
}

static void
test_model_64k (void **state)
{
  run_against_model (65536, (12 << 20) + 1, 60);
}

static void
test_model_2m (void **state)
{
  run_against_model (2 << 20, (9 << 20) + 513, 30);
}

/* Smaller than one cluster. */
static void
test_model_tiny (void **state)
{
  run_against_model (65536, 1000, 60);
}

/* --- Edges --------------------------------------------------------------- */

static void
test_trim_keeps_partial_clusters_but_not_at_the_end (void **state)
{
  unsigned char want[10000];
  struct srv_disk *d = open_disk (sizeof want, 4096);

  memset (want, 0x55, sizeof want);
  assert_int_equal (srv_pwrite (d, want, 0, sizeof want, false), 0);
  assert_int_equal (srv_trim (d, 1, 8190, false), 0);    /* no whole one */
  assert_reads (d, want, 0, sizeof want);
  assert_int_equal (srv_trim (d, 8191, 10000 - 8191, true), 0);
  memset (want + 8192, 0, 10000 - 8192);
  assert_reads (d, want, 0, sizeof want);
  assert_int_equal (srv_image_close (image), 0);
}

static void
test_zero_inside_a_cluster (void **state)
{
  unsigned char want[8192];
  struct srv_disk *d = open_disk (sizeof want, 4096);

  memset (want, 0x55, sizeof want);
  assert_int_equal (srv_pwrite (d, want, 0, sizeof want, false), 0);
  assert_int_equal (srv_zero (d, 100, 200, true, true, true), 0);
  memset (want + 100, 0, 200);
  assert_reads (d, want, 0, sizeof want);
  assert_int_equal (srv_zero (d, 4000, 200, false, false, false), 0);
  memset (want + 4000, 0, 200);
  assert_reads (d, want, 0, sizeof want);
  assert_int_equal (srv_image_close (image), 0);
}

static void
test_requests_outside_the_disk_are_refused (void **state)
{
  char buf[16] = { 0 };
  struct srv_disk *d = open_disk (10000, 4096);

  assert_int_equal (srv_pread (d, buf, 9990, 11), -EINVAL);
  assert_int_equal (srv_pread (d, buf, UINT64_MAX, 2), -EINVAL);
  assert_int_equal (srv_pwrite (d, buf, 9990, 11, false), -EINVAL);
  assert_int_equal (srv_trim (d, 10001, 0, false), -EINVAL);
  assert_int_equal (srv_zero (d, 0, 10001, true, true, false), -EINVAL);
  assert_int_equal (srv_cache (d, 10000, 1), -EINVAL);
  assert_int_equal (srv_extents (d, 10000, 1, false, check_extent_cb, NULL),
                    -EINVAL);
  assert_int_equal (srv_pread (d, buf, 10000, 0), 0);
  assert_int_equal (srv_pwrite (d, buf, 10000, 0, true), 0);
  assert_int_equal (srv_trim (d, 10000, 0, true), 0);
  assert_int_equal (srv_image_close (image), 0);
}

struct extent_list {
  unsigned nr;
  uint64_t len[8];
  enum srv_extent_type type[8];
};

static int
list_extent_cb (void *opaque, uint64_t guest_off, uint64_t len,
                enum srv_extent_type type)
{
  struct extent_list *l = opaque;

  assert_true (l->nr < 8);
  l->len[l->nr] = len;
  l->type[l->nr++] = type;
  return 0;
}

static void
test_extents_are_merged_and_typed (void **state)
{
  unsigned char buf[8192];
  struct srv_disk *d = open_disk (5 * 4096, 4096);
  struct extent_list l = { 0 };

  memset (buf, 1, sizeof buf);
  memset (buf + 4096, 2, 4096);
  assert_int_equal (srv_pwrite (d, buf, 4096, sizeof buf, false), 0);
  assert_int_equal (srv_pwrite (d, buf, 3 * 4096, 4096, false), 0);
  assert_int_equal (srv_zero (d, 3 * 4096, 4096, false, false, false), 0);

  assert_int_equal (srv_extents (d, 0, 5 * 4096, false, list_extent_cb, &l),
                    0);
  assert_int_equal (l.nr, 4);
  assert_int_equal (l.type[0], SRV_HOLE_ZERO);
  assert_int_equal (l.len[0], 4096);
  assert_int_equal (l.type[1], SRV_DATA);
  assert_int_equal (l.len[1], 8192);
  assert_int_equal (l.type[2], SRV_ZERO);
  assert_int_equal (l.len[2], 4096);
  assert_int_equal (l.type[3], SRV_HOLE_ZERO);

  memset (&l, 0, sizeof l);
  assert_int_equal (srv_extents (d, 5000, 9000, true, list_extent_cb, &l), 0);
  assert_int_equal (l.nr, 1);
  assert_int_equal (l.len[0], 3 * 4096 - 5000);
  assert_int_equal (srv_image_close (image), 0);
}

static int
stop_cb (void *opaque, uint64_t guest_off, uint64_t len,
         enum srv_extent_type type)
{
  return 7;
}

static void
test_extents_pass_on_what_the_callback_says (void **state)
{
  struct srv_disk *d = open_disk (5 * 4096, 4096);

  assert_int_equal (srv_extents (d, 0, 4096, false, stop_cb, NULL), 7);
  assert_int_equal (srv_image_close (image), 0);
}

/* --- Open and create ----------------------------------------------------- */

static void
assert_refused (const struct srv_image_params *p, int err, const char *part)
{
  struct srv_image *none;
  struct fault f = { 0 };

  assert_int_equal (srv_image_open (p, &none, &f), -err);
  if (!strstr (f.msg, part))
    fail_msg ("\"%s\" does not say \"%s\"", f.msg, part);
}

static void
test_bad_parameters_leave_nothing_behind (void **state)
{
  struct srv_image_params p = params_for ("disk", 1 << 20, 3000);

  assert_refused (&p, EINVAL, "power of two");
  assert_int_equal (access (p.path, F_OK), -1);

  p = params_for ("disk", 1 << 20, 4096);
  p.hash = "md5";
  assert_refused (&p, EINVAL, "md5");
  assert_int_equal (access (p.path, F_OK), -1);

  p = params_for ("disk", INT64_MAX, 512);      /* no L1 is that large */
  assert_refused (&p, EINVAL, "");
  assert_int_equal (access (p.path, F_OK), -1);

  p = params_for ("disk", -1, 4096);
  assert_refused (&p, ENOENT, "size=SIZE creates an image");
  p = params_for ("disk", 1 << 20, 4096);
  p.read_only = true;                           /* does not create */
  assert_refused (&p, ENOENT, "size= creates none");
  assert_int_equal (access (p.path, F_OK), -1);
}

static void
test_what_is_no_image_stays_as_it_was (void **state)
{
  struct srv_image_params p = params_for ("disk", 1 << 20, 4096);
  static const char text[] = "this is no disk image at all\n";
  int fd = open (p.path, O_CREAT | O_WRONLY, 0600);
  CLEANUP_FREE unsigned char *after = NULL;
  size_t size;

  assert_int_equal (write (fd, text, sizeof text), sizeof text);
  close (fd);
  assert_refused (&p, EINVAL, "");
  after = read_file ("disk", &size);
  assert_int_equal (size, sizeof text);
  assert_memory_equal (after, text, size);
}

static void
test_size_is_for_creation_only (void **state)
{
  struct srv_disk *d = open_disk (10000, 4096);

  assert_int_equal (srv_image_close (image), 0);
  d = open_disk (50000, 65536);
  assert_int_equal (srv_disk_size (d), 10000);
  assert_int_equal (srv_disk_preferred_block (d), 4096);
  assert_int_equal (srv_image_close (image), 0);
}

static void
test_two_images_of_one_file_are_refused (void **state)
{
  struct srv_image_params p;

  (void) open_disk (10000, 4096);
  p = params_for ("disk", -1, 4096);
  assert_refused (&p, EBUSY, "");
  p.read_only = true;
  assert_refused (&p, EBUSY, "");
  assert_int_equal (srv_image_close (image), 0);
}

static void
test_readonly_changes_nothing_also_after_a_crash (void **state)
{
  struct srv_disk *d = open_disk (1 << 20, 4096);
  CLEANUP_FREE unsigned char *before = NULL, *after = NULL;
  size_t size_before, size_after;
  unsigned char buf[5000];

  memset (buf, 3, sizeof buf);
  assert_int_equal (srv_pwrite (d, buf, 100, sizeof buf, true), 0);
  copy_file ("disk", "copy");           /* as a crash would leave it */
  assert_int_equal (srv_image_close (image), 0);

  before = read_file ("copy", &size_before);
  assert_true (before[73] & 1);
  d = open_copy_readonly ("copy");
  assert_false (srv_disk_writable (d));
  assert_reads (d, buf, 100, sizeof buf);
  assert_int_equal (srv_pwrite (d, buf, 0, 1, false), -EROFS);
  assert_int_equal (srv_zero (d, 0, 1, true, false, false), -EROFS);
  assert_int_equal (srv_trim (d, 0, 4096, false), -EROFS);
  assert_int_equal (srv_flush (d), 0);
  assert_int_equal (srv_image_close (image), 0);

  after = read_file ("copy", &size_after);
  assert_int_equal (size_after, size_before);
  assert_memory_equal (before, after, size_before);
}

/* --- Threads ------------------------------------------------------------- */

#define NR_WRITERS 4
#define STRIPE 64
#define STRIPED_BYTES (24 * 4096 + 1000)
#define WRITER_STEPS 400

struct writer {
  struct srv_disk *d;
  unsigned nr;
  pthread_t thread;
  unsigned char bytes[STRIPED_BYTES];   /* of its own stripes */
};

/* Writer N owns each Nth stripe of 64 bytes: every cluster has bytes of all
 * of them. */
static void *
writer_main (void *opaque)
{
  struct writer *w = opaque;
  uint64_t rng = seed + w->nr * 7919 + 1;
  unsigned i;

  for (i = 0; i < WRITER_STEPS; ++i) {
    uint64_t stripe = random_below (&rng, STRIPED_BYTES / STRIPE / NR_WRITERS);
    uint64_t off = (stripe * NR_WRITERS + w->nr) * STRIPE;
    unsigned char value = (unsigned char) random_below (&rng, 3);

    memset (w->bytes + off, value, STRIPE);
    if (value == 0)
      assert_int_equal (srv_zero (w->d, off, STRIPE, true, false, false), 0);
    else
      assert_int_equal (srv_pwrite (w->d, w->bytes + off, off, STRIPE,
                                    i % 64 == 0), 0);
    assert_reads (w->d, w->bytes + off, off, STRIPE);
  }
  return NULL;
}

static void
merge_stripes (const struct writer *w, unsigned char *want)
{
  size_t off;

  for (off = 0; off < STRIPED_BYTES; ++off)
    want[off] = w[off / STRIPE % NR_WRITERS].bytes[off];
}

static void
test_writers_of_the_same_clusters_lose_nothing (void **state)
{
  struct srv_disk *d = open_disk (STRIPED_BYTES, 4096);
  struct writer *w = calloc (NR_WRITERS, sizeof *w);
  unsigned char want[STRIPED_BYTES];
  unsigned i;

  for (i = 0; i < NR_WRITERS; ++i) {
    w[i].d = d;
    w[i].nr = i;
    assert_int_equal (pthread_create (&w[i].thread, NULL, writer_main, &w[i]),
                      0);
  }
  for (i = 0; i < NR_WRITERS; ++i)
    pthread_join (w[i].thread, NULL);
  merge_stripes (w, want);
  assert_reads (d, want, 0, sizeof want);
  assert_int_equal (srv_image_close (image), 0);
  d = open_copy_readonly ("disk");
  assert_reads (d, want, 0, sizeof want);
  assert_int_equal (srv_image_close (image), 0);
  free (w);
}

/* --- The loop ------------------------------------------------------------ */

static void
sleep_ms (unsigned ms)
{
  struct timespec t = { ms / 1000, ms % 1000 * 1000000 };

  nanosleep (&t, NULL);
}

/* Nobody flushes, but after a few intervals a crash keeps what was written. */
static void
test_commit_timer_makes_writes_durable (void **state)
{
  struct srv_disk *d = open_disk (1 << 20, 4096);
  unsigned char buf[5000];

  memset (buf, 9, sizeof buf);
  assert_int_equal (srv_pwrite (d, buf, 100, sizeof buf, false), 0);
  sleep_ms (500);
  copy_file ("disk", "copy");
  assert_int_equal (srv_image_close (image), 0);
  d = open_copy_readonly ("copy");
  assert_reads (d, buf, 100, sizeof buf);
  assert_int_equal (srv_image_close (image), 0);
}

static void
test_idle_image_becomes_clean (void **state)
{
  struct srv_disk *d = open_disk (1 << 20, 4096);
  struct timespec start, end;
  unsigned i;

  assert_int_equal (srv_pwrite (d, "x", 0, 1, true), 0);
  clock_gettime (CLOCK_MONOTONIC, &start);
  assert_true (needs_recovery ());
  for (i = 0; i < 200 && needs_recovery (); ++i)
    sleep_ms (100);
  clock_gettime (CLOCK_MONOTONIC, &end);
  assert_true (end.tv_sec - start.tv_sec >= 2);     /* not before it was idle */
  assert_false (needs_recovery ());
  assert_int_equal (srv_pwrite (d, "y", 0, 1, true), 0);
  assert_true (needs_recovery ());
  assert_int_equal (srv_image_close (image), 0);
  assert_false (needs_recovery ());
}

static void
test_disks_are_found_by_name (void **state)
{
  struct srv_disk *d = open_disk (10000, 4096), *other;

  assert_int_equal (srv_image_disk (image, "", &other, NULL), 0);
  assert_ptr_equal (d, other);
  assert_int_equal (srv_image_disk (image, "none", &other, NULL),
                    -ENOENT);
  assert_int_equal (srv_image_close (image), 0);
}

static void
test_close_without_start (void **state)
{
  struct srv_image_params p = params_for ("disk", 10000, 4096);
  struct fault f = { 0 };

  assert_int_equal (srv_image_open (&p, &image, &f), 0);
  assert_int_equal (srv_pwrite (active_disk (), "x", 0, 1, false), 0);
  assert_int_equal (srv_image_close (image), 0);
  assert_false (needs_recovery ());
  assert_int_equal (srv_image_close (NULL), 0);
}

#define TEST(name) cmocka_unit_test_teardown (name, remove_files)

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (test_model_512),
    TEST (test_model_4k),
    TEST (test_model_64k),
    TEST (test_model_2m),
    TEST (test_model_tiny),
    TEST (test_trim_keeps_partial_clusters_but_not_at_the_end),
    TEST (test_zero_inside_a_cluster),
    TEST (test_requests_outside_the_disk_are_refused),
    TEST (test_extents_are_merged_and_typed),
    TEST (test_extents_pass_on_what_the_callback_says),
    TEST (test_bad_parameters_leave_nothing_behind),
    TEST (test_what_is_no_image_stays_as_it_was),
    TEST (test_size_is_for_creation_only),
    TEST (test_two_images_of_one_file_are_refused),
    TEST (test_readonly_changes_nothing_also_after_a_crash),
    TEST (test_writers_of_the_same_clusters_lose_nothing),
    TEST (test_commit_timer_makes_writes_durable),
    TEST (test_idle_image_becomes_clean),
    TEST (test_disks_are_found_by_name),
    TEST (test_close_without_start),
  };

  return cmocka_run_group_tests_name ("server", tests, make_dir, remove_dir);
}
