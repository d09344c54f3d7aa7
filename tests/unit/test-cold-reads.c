/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests cold reads beside writers: a sequential reader, for which data is read
 * ahead, and a writer that rewrites, shares and trims clusters of the same
 * disk, while the page cache is dropped again and again.  Each cluster contains
 * its own number, so that bytes of another place, and a cluster of two halves,
 * are seen.
 *
 * DEDUP_TEST_SEED=N repeats a run; the seed is printed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "server.h"

#define CLUSTER 4096
#define NR 2048                 /* clusters of the disk */
#define PIECE (64 << 10)
#define WRITES 6000
#define SHARED 7                /* this cluster's contents are everywhere */

static char path[128];
static struct srv_image *image;
static struct srv_disk *disk;
static uint64_t last_gen[NR];   /* the writer's own */
static bool stop;               /* atomic */
static unsigned seed;

static void
log_write (void *opaque, enum log_level level, const char *line)
{
  if (level == LOG_ERROR)
    print_message ("log: %s\n", line);
}

static const struct log_sink sink = { .write = log_write };

static void
open_image (int64_t create_size)
{
  struct srv_image_params p;
  struct fault f = { 0 };

  srv_image_params_default (&p);
  p.path = path;
  p.create_size = create_size;
  p.cluster_size = CLUSTER;
  p.commit_interval_ms = 20;
  p.log = &sink;
  if (srv_image_open (&p, &image, &f) < 0)
    fail_msg ("%s", f.msg);
  assert_int_equal (srv_image_start (image), 0);
  assert_int_equal (srv_image_disk (image, "", &disk, NULL), 0);
}

/* NAME: the cluster that the contents belong to; GEN 0: zeroes. */
static void
fill_cluster (uint64_t *words, uint64_t name, uint64_t gen)
{
  size_t i;

  for (i = 0; i < CLUSTER / 8; i++)
    words[i] = gen == 0 ? 0 : name << 32 | gen;
}

/* May cluster IDX hold this? */
static bool
is_right (const uint64_t *words, uint64_t idx)
{
  return memcmp (words, words + 1, CLUSTER - 8) == 0 &&
    (words[0] == 0 || words[0] >> 32 == SHARED || words[0] >> 32 == idx);
}

static void
drop_cache (void)
{
  int fd = open (path, O_RDONLY | O_CLOEXEC);

  assert_true (fd >= 0);
  assert_int_equal (fdatasync (fd), 0);
  assert_int_equal (posix_fadvise (fd, 0, 0, POSIX_FADV_DONTNEED), 0);
  close (fd);
}

static bool
read_piece (uint64_t off)
{
  uint64_t buf[PIECE / 8], i;

  if (srv_pread (disk, buf, off, PIECE) < 0)
    return false;
  for (i = 0; i < PIECE / CLUSTER; i++)
    if (!is_right (buf + i * CLUSTER / 8, off / CLUSTER + i))
      return false;
  return true;
}

/* Returns NULL, or what is not NULL if it read something wrong. */
static void *
reader (void *opaque)
{
  uint64_t off;

  for (off = 0; !__atomic_load_n (&stop, __ATOMIC_RELAXED);
       off = (off + PIECE) % ((uint64_t) NR * CLUSTER))
    if (!read_piece (off))
      return path;
  return NULL;
}

static void
change_one (uint64_t n)
{
  static uint64_t words[CLUSTER / 8];
  const uint64_t idx = (uint64_t) rand_r (&seed) % NR;
  const int what = rand_r (&seed) % 8;

  if (what == 0) {
    last_gen[idx] = 0;
    assert_int_equal (srv_trim (disk, idx * CLUSTER, CLUSTER, false), 0);
    return;
  }
  last_gen[idx] = what == 1 ? (uint64_t) SHARED << 32 | 1 : idx << 32 | n;
  fill_cluster (words, last_gen[idx] >> 32, last_gen[idx] & UINT32_MAX);
  assert_int_equal (srv_pwrite (disk, words, idx * CLUSTER, CLUSTER, false),
                    0);
}

static void
assert_all (void)
{
  static uint64_t words[CLUSTER / 8], want[CLUSTER / 8];
  uint64_t i;

  for (i = 0; i < NR; i++) {
    fill_cluster (want, last_gen[i] >> 32, last_gen[i] & UINT32_MAX);
    assert_int_equal (srv_pread (disk, words, i * CLUSTER, CLUSTER), 0);
    assert_memory_equal (words, want, CLUSTER);
  }
}

static void
readers_see_only_what_was_written_there (void **state)
{
  pthread_t threads[2];
  void *wrong;
  uint64_t n;
  size_t i;

  open_image ((int64_t) NR * CLUSTER);
  for (i = 0; i < 2; i++)
    assert_int_equal (pthread_create (&threads[i], NULL, reader, NULL), 0);
  for (n = 1; n <= WRITES; n++) {
    change_one (n);
    if (n % 500 == 0)
      drop_cache ();
  }
  __atomic_store_n (&stop, true, __ATOMIC_RELAXED);
  for (i = 0; i < 2; i++) {
    pthread_join (threads[i], &wrong);
    assert_null (wrong);
  }
  assert_all ();
  assert_int_equal (srv_image_close (image), 0);
  drop_cache ();
  open_image (-1);
  assert_all ();
  assert_int_equal (srv_image_close (image), 0);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (readers_see_only_what_was_written_there),
  };
  const char *given = getenv ("DEDUP_TEST_SEED");
  const char *tmp = getenv ("TMPDIR");
  int r;

  seed = given ? (unsigned) strtoul (given, NULL, 0) : (unsigned) time (NULL);
  printf ("seed %u\n", seed);
  snprintf (path, sizeof path, "%s/test-cold-reads-%d", tmp ? tmp : "/tmp",
            (int) getpid ());
  r = cmocka_run_group_tests (tests, NULL, NULL);
  unlink (path);
  return r;
}
