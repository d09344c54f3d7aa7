/* SPDX-License-Identifier: BSD-3-Clause */
/* Takes a disk without a store, and the rebuilding of refcounts, through
 * crashes: whatever the host loses of what was not synced, no refcount is too
 * low and no entry wrong, and everything flushed is there.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "dedup.h"
#include "io.h"

#define CLUSTERS 200
#define MAX_FILE (4u << 20)

static uint64_t seed = 1;

static uint32_t
rnd (uint32_t below)
{
  seed = seed * UINT64_C (6364136223846793005) + 1442695040888963407;
  return (uint32_t) (seed >> 33) % below;
}

/* What may be in a guest cluster: the value of the last flush, or any later
 * one.  A value is the byte that it is full of. */
struct model {
  uint8_t now[CLUSTERS];
  bool maybe[CLUSTERS][256];   /* since the last flush */
};

static void
forget_old (struct model *m)
{
  memset (m->maybe, 0, sizeof m->maybe);
  for (unsigned i = 0; i < CLUSTERS; i++)
    m->maybe[i][m->now[i]] = true;
}

static void
set (struct model *m, unsigned i, uint8_t value)
{
  m->now[i] = value;
  m->maybe[i][value] = true;
}

static struct dedup_pool *
must_open (struct io_store *io, bool writable)
{
  const struct dedup_open_params p = {
    .path = "x", .writable = writable, .dedup = false, .verify = true,
    .max_incarnations = -1, .cache_bytes = 1 << 16,
  };
  struct dedup_pool *d = NULL;
  struct fault f = { 0 };
  int r = dedup_open (io, &p, &d, &f);

  if (r < 0)
    fail_msg ("open: %s", f.msg);
  return d;
}

/* No refcount too low, no bad entry or flag. */
static void
assert_harmless (struct dedup_pool *d)
{
  const struct qcow2_check_params p = { 0 };
  struct dedup_check_result r;
  struct fault f = { 0 };

  assert_int_equal (dedup_check (d, &p, &r, &f), 0);
  assert_int_equal (r.image.corruptions, 0);
  assert_int_equal (r.image.errors, 0);
}

static void
assert_no_leaks (struct dedup_pool *d)
{
  const struct qcow2_check_params p = { 0 };
  struct dedup_check_result r;
  struct fault f = { 0 };

  assert_int_equal (dedup_check (d, &p, &r, &f), 0);
  assert_int_equal (r.image.leaks, 0);
}

static void
assert_explained (struct dedup_pool *d, const struct model *m, size_t size)
{
  uint8_t *buf = malloc (size);

  for (unsigned i = 0; i < CLUSTERS; i++) {
    assert_int_equal (dedup_read (d, 0, buf, i * size, size), 0);
    for (size_t k = 1; k < size; k++)
      assert_int_equal (buf[k], buf[0]);
    if (!m->maybe[i][buf[0]])
      fail_msg ("cluster %u holds %u", i, buf[0]);
  }
  free (buf);
}

static struct io_store *
image_of (const uint8_t *bytes, size_t len)
{
  struct io_store *io;

  assert_int_equal (io_memory_new (0, &io), 0);
  assert_int_equal (io_pwrite (io, bytes, len, 0), 0);
  return io;
}

static void
apply (struct io_store *io, const struct io_record *rec)
{
  int r = 0;

  if (rec->call == IO_PWRITE)
    r = io_pwrite (io, rec->data, rec->len, rec->host_off);
  else if (rec->call == IO_DISCARD)
    r = io_discard (io, rec->host_off, rec->len);
  else if (rec->call == IO_TRUNCATE)
    r = io_truncate (io, rec->host_off);
  assert_true (r == 0 || r == -EOPNOTSUPP);
}

/* The image as a power cut before record AT may leave it: BASE, all that was
 * synced, and any part of the rest. */
static struct io_store *
crash_state (const uint8_t *base, size_t len, struct io_store *rec, size_t at)
{
  struct io_store *io = image_of (base, len);
  const struct io_record *log;
  size_t nr = io_recording_log (rec, &log), synced = 0;

  assert_true (at <= nr);
  for (size_t i = 0; i < at; i++)
    if (log[i].call == IO_SYNC)
      synced = i;
  for (size_t i = 0; i < at; i++)
    if (i < synced || rnd (2))
      apply (io, &log[i]);
  return io;
}

static void
one_operation (struct dedup_pool *d, struct model *m, size_t size)
{
  unsigned first = rnd (CLUSTERS), nr = 1 + rnd (12);
  uint8_t *buf = malloc (16 * size);

  nr = nr < CLUSTERS - first ? nr : CLUSTERS - first;
  if (rnd (4) == 0) {
    assert_int_equal (dedup_unmap (d, 0, first, nr, rnd (2) ? DEDUP_TRIM :
                                   DEDUP_ZERO), 0);
    for (unsigned i = 0; i < nr; i++)
      set (m, first + i, 0);
  }
  else {
    for (unsigned i = 0; i < nr; i++) {
      set (m, first + i, 1 + rnd (255));
      memset (buf + i * size, m->now[first + i], size);
    }
    assert_int_equal (dedup_write (d, 0, buf, first, nr), 0);
  }
  free (buf);
}


static void
load_base (const char *name, uint8_t *base, size_t *len)
{
  FILE *f = fopen (name, "rb");

  assert_non_null (f);
  *len = fread (base, 1, MAX_FILE, f);
  fclose (f);
}

static void
judge (const uint8_t *base, size_t len, struct io_store *rec,
       const struct model *m, size_t at, size_t size)
{
  struct io_store *io = crash_state (base, len, rec, at);
  struct dedup_pool *d = must_open (io, false);

  assert_harmless (d);
  assert_explained (d, m, size);
  dedup_free (d);
  io_close (io);
}

/* Operations on the image NAME; crashes after each, in all of its records. */
static void
crash_everywhere (const char *name, size_t size, unsigned rounds)
{
  uint8_t *base = malloc (MAX_FILE);
  struct model *m = calloc (1, sizeof *m);
  const struct io_record *log;
  struct io_store *rec;
  struct dedup_pool *d;
  size_t len, judged = 0, nr, at;

  load_base (name, base, &len);
  assert_int_equal (io_recording_new (image_of (base, len), &rec), 0);
  d = must_open (rec, true);
  forget_old (m);
  for (unsigned i = 0; i < rounds; i++) {
    bool flush = rnd (3) == 0;

    if (flush)
      assert_int_equal (dedup_flush (d), 0);
    else
      one_operation (d, m, size);
    nr = io_recording_log (rec, &log);
    for (at = judged; at <= nr; at += 1 + rnd (2))
      judge (base, len, rec, m, at, size);
    judged = nr;
    if (flush)
      forget_old (m);
  }
  assert_int_equal (dedup_finish (d), 0);
  forget_old (m);
  judge (base, len, rec, m, io_recording_log (rec, &log), size);
  assert_no_leaks (d);
  dedup_free (d);
  io_close (rec);
  free (base);
  free (m);
}

static void
must_run (const char *cmd)
{
  assert_int_equal (system (cmd), 0);
}

static void
test_v2_with_a_snapshot (void **state)
{
  must_run ("qemu-img create -q -f qcow2 -o compat=0.10,cluster_size=4k a 800k"
            " && qemu-img snapshot -c s a");
  crash_everywhere ("a", 4096, 120);
}

static void
test_v2_in_small_clusters_grows (void **state)
{
  must_run ("qemu-img create -q -f qcow2 -o compat=0.10,cluster_size=512 b "
            "102400");
  crash_everywhere ("b", 512, 120);
}

static void
test_refcounts_of_one_bit (void **state)
{
  must_run ("qemu-img create -q -f qcow2 -o refcount_bits=1,cluster_size=1k c "
            "200k");
  crash_everywhere ("c", 1024, 120);
}

static size_t
l1_off_of (const uint8_t *base)
{
  size_t off = 0;

  for (unsigned i = 40; i < 48; i++)
    off = off << 8 | base[i];
  return off;
}

/* Refcounts are made anew at open: crash in all of it, and once more. */
static void
test_dirty_image_survives_a_crash_while_it_is_mended (void **state)
{
  uint8_t *base = malloc (MAX_FILE);
  struct model *m = calloc (1, sizeof *m);
  const struct io_record *log;
  struct io_store *rec, *io;
  struct dedup_pool *d;
  size_t len, nr;

  must_run ("qemu-img create -q -f qcow2 -o lazy_refcounts=on,"
            "cluster_size=4k d 800k && (qemu-io -c 'write -P 7 0 800k' "
            "-c flush -c 'sigraise 9' d >/dev/null 2>&1; true)");
  load_base ("d", base, &len);
  assert_int_equal (base[79] & 1, 1);
  base[l1_off_of (base)] ^= 0x80;       /* COPIED: it is put right, too */
  memset (m->now, 7, sizeof m->now);
  forget_old (m);
  assert_int_equal (io_recording_new (image_of (base, len), &rec), 0);
  d = must_open (rec, true);
  assert_harmless (d);
  nr = io_recording_log (rec, &log);
  assert_true (nr > 4);
  for (size_t at = 0; at <= nr; at++) {
    io = crash_state (base, len, rec, at);
    dedup_free (must_open (io, true));
    {
      struct dedup_pool *again = must_open (io, false);

      assert_harmless (again);
      assert_explained (again, m, 4096);
      dedup_free (again);
    }
    io_close (io);
  }
  dedup_free (d);
  io_close (rec);
  free (base);
  free (m);
}

/* Guest cluster 0 of an external data file is at 0 there: it once got a
 * cluster of the image, and its bytes went over those of another. */
static void
test_first_cluster_of_a_data_file_has_its_place (void **state)
{
  const struct dedup_open_params p = {
    .path = "e", .writable = true, .max_incarnations = -1,
    .host_files = QCOW2_FILES_ANY, .cache_bytes = 1 << 16,
  };
  uint8_t *buf = malloc (CLUSTERS * 4096), *got = malloc (CLUSTERS * 4096);
  struct fault f = { 0 };
  struct dedup_pool *d;
  struct io_store *io;

  must_run ("qemu-img create -q -f qcow2 -o data_file=e.data,cluster_size=4k "
            "e 800k");
  assert_int_equal (io_file_open ("e", IO_FILE_WRITE, IO_LOCK_WRITE, &io, &f),
                    0);
  if (dedup_open (io, &p, &d, &f) < 0)
    fail_msg ("open: %s", f.msg);
  for (unsigned i = 0; i < CLUSTERS; i++)
    memset (buf + i * 4096, 1 + i, 4096);
  assert_int_equal (dedup_write (d, 0, buf + 4096, 1, CLUSTERS - 1), 0);
  assert_int_equal (dedup_write (d, 0, buf, 0, 3), 0);
  assert_int_equal (dedup_read (d, 0, got, 0, CLUSTERS * 4096), 0);
  assert_memory_equal (got, buf, CLUSTERS * 4096);
  assert_int_equal (dedup_finish (d), 0);
  assert_harmless (d);
  dedup_free (d);
  io_close (io);
  must_run ("qemu-img check -q e");
  free (buf);
  free (got);
}

/* Where the data file was not to be opened, nothing is written in its place:
 * guest cluster 0 would be the image's header. */
static void
test_without_its_data_file_nothing_is_written (void **state)
{
  const struct dedup_open_params p = {
    .path = "e", .writable = true, .max_incarnations = -1,
    .host_files = QCOW2_FILES_IGNORE, .cache_bytes = 1 << 16,
  };
  uint8_t before[4096], after[4096], buf[2 * 4096];
  struct fault f = { 0 };
  struct dedup_pool *d;
  struct io_store *io;

  must_run ("qemu-img create -q -f qcow2 -o data_file=e.data,cluster_size=4k "
            "e 800k; qemu-io -c 'write 0 8k' e");
  assert_int_equal (io_file_open ("e", IO_FILE_WRITE, IO_LOCK_WRITE, &io, &f),
                    0);
  if (dedup_open (io, &p, &d, &f) < 0)
    fail_msg ("open: %s", f.msg);
  assert_int_equal (io_pread (io, before, sizeof before, 0), 0);
  memset (buf, 7, sizeof buf);
  assert_int_equal (dedup_write (d, 0, buf, 0, 2), -EIO);
  assert_int_equal (dedup_unmap (d, 0, 0, 2, DEDUP_TRIM), -EIO);
  assert_int_equal (io_pread (io, after, sizeof after, 0), 0);
  assert_memory_equal (before, after, sizeof after);
  dedup_free (d);
  io_close (io);
}

static int
enter_directory (void **state)
{
  static char dir[] = "/tmp/dedup-direct-XXXXXX";

  *state = dir;
  return mkdtemp (dir) && chdir (dir) == 0 ? 0 : -1;
}

static int
leave_directory (void **state)
{
  char cmd[64];

  snprintf (cmd, sizeof cmd, "rm -rf %s", (char *) *state);
  return chdir ("/") == 0 && system (cmd) == 0 ? 0 : -1;
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_v2_with_a_snapshot),
    cmocka_unit_test (test_v2_in_small_clusters_grows),
    cmocka_unit_test (test_refcounts_of_one_bit),
    cmocka_unit_test (test_dirty_image_survives_a_crash_while_it_is_mended),
    cmocka_unit_test (test_first_cluster_of_a_data_file_has_its_place),
    cmocka_unit_test (test_without_its_data_file_nothing_is_written),
  };

  return cmocka_run_group_tests_name ("direct", tests, enter_directory,
                                      leave_directory);
}
