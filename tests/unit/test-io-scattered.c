/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests scattered reads and advice of files.  preadv2 and posix_fadvise, which
 * this program defines itself, play the page cache: a read with RWF_NOWAIT
 * answers as the test says, and calls are noted in order.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "around.h"
#include "checked.h"
#include "free-memory.h"
#include "io-promises.h"
#include "io.h"

#define SIZE (1u << 20)
#define NR 64

enum nowait { CACHED, NOT_CACHED, NOT_SUPPORTED, HALF };

static struct {
  enum nowait nowait;
  bool advice_fails;
  unsigned advised, looked, read;     /* calls */
  unsigned read_before_advice;        /* blocking reads before the last advice */
  uint64_t advised_bytes;
} host;

ssize_t
preadv2 (int fd, const struct iovec *iov, int iovcnt, off_t off, int flags)
{
  assert_int_equal (flags, RWF_NOWAIT);
  assert_int_equal (iovcnt, 1);
  host.looked++;
  switch (host.nowait) {
  case CACHED: return syscall (SYS_pread64, fd, iov->iov_base, iov->iov_len,
                               off);
  case NOT_CACHED: errno = EAGAIN; return -1;
  case NOT_SUPPORTED: errno = EOPNOTSUPP; return -1;
  case HALF: return syscall (SYS_pread64, fd, iov->iov_base,
                             iov->iov_len / 2, off);
  }
  abort ();
}

ssize_t
pread (int fd, void *buf, size_t len, off_t off)
{
  host.read++;
  return syscall (SYS_pread64, fd, buf, len, off);
}

int
posix_fadvise (int fd, off_t off, off_t len, int advice)
{
  assert_int_equal (advice, POSIX_FADV_WILLNEED);
  host.advised++;
  host.advised_bytes += (uint64_t) len;
  host.read_before_advice = host.read;
  return host.advice_fails ? EINVAL : 0;
}

/* --- a file ----------------------------------------------------------------- */

static char path[PATH_MAX];
static unsigned char data[SIZE];
static struct io_store *s;

static int
set_up (void **state)
{
  const char *tmp = getenv ("TMPDIR");
  struct fault f = { 0 };

  snprintf (path, sizeof path, "%s/test-scattered-%d", tmp ? tmp : "/tmp",
            (int) getpid ());
  unlink (path);
  if (io_file_open (path, IO_FILE_WRITE | IO_FILE_CREATE, IO_LOCK_NONE, &s,
                    &f) < 0)
    return -1;
  fill (data, sizeof data, 7);
  assert_int_equal (io_pwrite (s, data, sizeof data, 0), 0);
  memset (&host, 0, sizeof host);
  return 0;
}

static int
tear_down (void **state)
{
  io_close (s);
  return unlink (path);
}

/* --- reads ------------------------------------------------------------------- */

/* Parts of odd sizes at odd places, into memory at odd places; some reach past
 * the end of the file. */
static void
make_parts (struct io_part *v, unsigned char *buf, unsigned seed)
{
  size_t i;

  for (i = 0; i < NR; i++) {
    v[i] = (struct io_part) {
      .buf = buf, .len = 1 + (size_t) rand_r (&seed) % 9000,
      .host_off = (uint64_t) rand_r (&seed) % SIZE, .result = 1,
    };
    buf += v[i].len + (size_t) rand_r (&seed) % 3;
  }
}

static void
assert_part (const struct io_part *p)
{
  const size_t inside = MIN_OF (p->len, SIZE - p->host_off);

  assert_int_equal (p->result, 0);
  assert_memory_equal (p->buf, data + p->host_off, inside);
  assert_zeroes ((unsigned char *) p->buf + inside, p->len - inside);
}

static void
every_part_is_read_whatever_is_cached (void **state)
{
  static unsigned char buf[NR * 9003];
  struct io_part v[NR];
  unsigned seed;
  size_t i;

  for (seed = 0; seed < 40; seed++) {
    host.nowait = seed % 4;
    host.advice_fails = seed % 8 < 4;
    make_parts (v, buf, seed);
    memset (buf, 0xee, sizeof buf);
    assert_int_equal (io_read_many (s, v, NR), 0);
    for (i = 0; i < NR; i++)
      assert_part (&v[i]);
  }
}

static struct io_part *
blocks (size_t nr, uint64_t stride)
{
  static unsigned char buf[NR * 4096];
  static struct io_part v[NR];
  size_t i;

  for (i = 0; i < nr; i++)
    v[i] = (struct io_part) { .buf = buf + i * 4096, .len = 4096,
                              .host_off = i * stride };
  return v;
}

static void
what_is_cached_needs_no_advice (void **state)
{
  assert_int_equal (io_read_many (s, blocks (NR, 8192), NR), 0);
  assert_int_equal (host.looked, NR);
  assert_int_equal (host.advised, 0);
  assert_int_equal (host.read, 0);
}

static void
all_that_is_missing_is_announced_before_one_is_waited_for (void **state)
{
  host.nowait = NOT_CACHED;
  assert_int_equal (io_read_many (s, blocks (NR, 8192), NR), 0);
  assert_int_equal (host.advised, NR);
  assert_int_equal (host.read_before_advice, 0);
  assert_int_equal (host.read, NR);
}

static void
one_part_is_a_plain_read (void **state)
{
  host.nowait = NOT_CACHED;
  assert_int_equal (io_read_many (s, blocks (1, 0), 1), 0);
  assert_int_equal (host.looked + host.advised, 0);
  assert_int_equal (host.read, 1);
  assert_int_equal (io_read_many (s, NULL, 0), 0);
}

static int
second_fails (void *opaque, enum io_call call, uint64_t host_off,
              uint64_t len)
{
  return host_off == 8192 ? -EIO : 0;
}

static void
a_part_that_fails_leaves_the_others_read (void **state)
{
  struct io_store *below, *faulty;
  struct io_part *v = blocks (3, 8192);

  assert_int_equal (io_memory_new (0, &below), 0);
  assert_int_equal (io_pwrite (below, data, 65536, 0), 0);
  assert_int_equal (io_faulty_new (below, second_fails, NULL, &faulty), 0);
  assert_int_equal (io_read_many (faulty, v, 3), -EIO);
  assert_int_equal (v[1].result, -EIO);
  assert_part (&v[0]);
  assert_part (&v[2]);
  assert_false (io_will_need (faulty, v, 3, true));     /* memory: ignored */
  io_close (faulty);
}

/* --- advice ------------------------------------------------------------------- */

static void
advice_costs_little_where_all_is_cached (void **state)
{
  assert_false (io_will_need (s, blocks (NR, 8192), NR, false));
  assert_int_equal (host.advised, 0);
  assert_true (host.looked <= NR / 8);
}

static void
advice_is_given_for_each_part_that_may_be_missing (void **state)
{
  host.nowait = NOT_CACHED;
  host.advice_fails = true;
  assert_true (io_will_need (s, blocks (NR, 8192), NR, false));
  assert_int_equal (host.advised, NR);
  assert_int_equal (host.advised_bytes, NR * 4096);
  assert_int_equal (host.read, 0);
}

static void
ranges_that_cannot_be_are_ignored (void **state)
{
  const struct io_part bad[] = {
    { .len = 0, .host_off = 0 },
    { .len = 4096, .host_off = INT64_MAX },
    { .len = SIZE_MAX, .host_off = 4096 },
  };
  size_t i;

  for (i = 0; i < 3; i++)
    assert_false (io_will_need (s, &bad[i], 1, true));
  assert_false (io_will_need (s, NULL, 0, true));
  assert_int_equal (host.advised + host.looked, 0);
}

/* 64 parts of 4 KiB, 16 KiB apart, lie in 8 blocks. */
static void
a_block_around_small_parts_is_read_once (void **state)
{
  host.nowait = NOT_CACHED;
  assert_true (io_will_need (s, blocks (NR, 16384), NR, true));
  assert_int_equal (host.advised, SIZE / AROUND_BYTES);
  assert_int_equal (host.advised_bytes, SIZE);
  assert_false (io_will_need (s, blocks (NR, 16384), NR, true));
  assert_int_equal (host.advised, SIZE / AROUND_BYTES);
}

static void
nothing_is_read_around_few_or_large_parts (void **state)
{
  struct io_part *v = blocks (NR, 16384);

  host.nowait = NOT_CACHED;
  assert_true (io_will_need (s, v, 4, true));
  assert_int_equal (host.advised_bytes, 4 * 4096);
  v = blocks (16, 65536);
  for (size_t i = 0; i < 16; i++)
    v[i].len = 65536;
  assert_true (io_will_need (s, v, 16, true));
  assert_int_equal (host.advised_bytes, 4 * 4096 + SIZE);
}

static void
blocks_are_taken_only_inside_a_file_that_fits_in_memory (void **state)
{
  struct io_around a = { 0 };

  assert_true (io_around_begin (&a, SIZE + 1));
  assert_true (io_around_take (&a, 0));
  assert_false (io_around_take (&a, 0));
  assert_true (io_around_take (&a, SIZE));
  assert_false (io_around_take (&a, SIZE + AROUND_BYTES));
  assert_true (io_around_begin (&a, SIZE));     /* the same period */
  assert_false (io_around_take (&a, 0));
  io_around_free (&a);
  a = (struct io_around) { 0 };
  assert_false (io_around_begin (&a, UINT64_C (1) << 62));
  assert_false (io_around_take (&a, 0));
  assert_false (io_around_begin (&a, SIZE));
  io_around_free (&a);
  a = (struct io_around) { 0 };
  assert_false (io_around_begin (&a, 0));
  io_around_free (&a);
}

/* --- memory ------------------------------------------------------------------- */

static char root[PATH_MAX];

/* FILE below ROOT, with the directories that it needs. */
static void
write_below (const char *file, const char *text)
{
  char name[2 * PATH_MAX], *slash;
  FILE *f;

  snprintf (name, sizeof name, "%s%s", root, file);
  for (slash = name + strlen (root) + 1; (slash = strchr (slash, '/'));
       slash++) {
    *slash = '\0';
    (void) mkdir (name, 0700);
    *slash = '/';
  }
  f = fopen (name, "w");
  assert_non_null (f);
  assert_true (fputs (text, f) >= 0);
  assert_int_equal (fclose (f), 0);
}

static void
limits_of_control_groups_are_known (void **state)
{
  const char *tmp = getenv ("TMPDIR");
  char command[2 * PATH_MAX];

  snprintf (root, sizeof root, "%s/test-memory-XXXXXX", tmp ? tmp : "/tmp");
  assert_non_null (mkdtemp (root));
  assert_int_equal (io_free_memory (root), 0);
  /* As with ProcSubset=pid. */
  write_below ("/sys/devices/system/node/node0/meminfo",
               "Node 0 MemTotal: 9999 kB\nNode 0 MemFree:     100 kB\n"
               "Node 0 Active:     7000 kB\nNode 0 Inactive:   7000 kB\n"
               "Node 0 Active(file):    20 kB\nNode 0 Inactive(file): 3 kB\n"
               "Node 0 Unevictable:       18100 kB\n");
  assert_int_equal (io_free_memory (root), 123 << 10);
  write_below ("/sys/devices/system/node/node2/meminfo",
               "Node 2 MemFree:     1000 kB\n");
  assert_int_equal (io_free_memory (root), 1123 << 10);
  write_below ("/proc/meminfo", "MemTotal: 9000 kB\nMemFree: 5 kB\n"
               "MemAvailable:    4000 kB\n");
  assert_int_equal (io_free_memory (root), 4000 << 10);
  write_below ("/proc/self/cgroup", "0::/system.slice/disk.service\n");
  assert_int_equal (io_free_memory (root), 4000 << 10);
  write_below ("/sys/fs/cgroup/system.slice/disk.service/memory.max",
               "max\n");
  assert_int_equal (io_free_memory (root), 4000 << 10);
  write_below ("/sys/fs/cgroup/system.slice/memory.max", "3000000\n");
  assert_int_equal (io_free_memory (root), 3000000);
  write_below ("/sys/fs/cgroup/system.slice/disk.service/memory.high",
               "2000000\n");
  assert_int_equal (io_free_memory (root), 2000000);
  write_below ("/proc/self/cgroup", "3:cpu,cpuacct:/a\n2:memory:/a/b\n"
               "0::/\n");
  write_below ("/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes",
               "9223372036854771712\n");
  assert_int_equal (io_free_memory (root), 4000 << 10);
  write_below ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "1000000\n");
  assert_int_equal (io_free_memory (root), 1000000);
  write_below ("/proc/self/cgroup", "nonsense\n:\n::\n0::relative\n");
  assert_int_equal (io_free_memory (root), 4000 << 10);
  snprintf (command, sizeof command, "rm -rf '%s'", root);
  assert_int_equal (system (command), 0);
}

#define TEST(fn) cmocka_unit_test_setup_teardown (fn, set_up, tear_down)

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (every_part_is_read_whatever_is_cached),
    TEST (what_is_cached_needs_no_advice),
    TEST (all_that_is_missing_is_announced_before_one_is_waited_for),
    TEST (one_part_is_a_plain_read),
    TEST (a_part_that_fails_leaves_the_others_read),
    TEST (advice_costs_little_where_all_is_cached),
    TEST (advice_is_given_for_each_part_that_may_be_missing),
    TEST (ranges_that_cannot_be_are_ignored),
    TEST (a_block_around_small_parts_is_read_once),
    TEST (nothing_is_read_around_few_or_large_parts),
    TEST (blocks_are_taken_only_inside_a_file_that_fits_in_memory),
    TEST (limits_of_control_groups_are_known),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
