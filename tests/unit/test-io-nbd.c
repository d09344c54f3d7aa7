/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the NBD store against servers of nbdkit: memory, a file, and filters
 * and plugins that limit blocks and requests, fail, or lack a command.  Random
 * work is compared with a plain buffer; the seed is printed, and taken from
 * NBD_SEED.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "checked.h"
#include "io.h"
#include "nbd.h"
#include "nbd-server.h"

#define SIZE (UINT64_C (3) << 20)

static struct nbd_server server;
static unsigned seed;

static int
set_up (void **state)
{
  nbd_server_init (&server);
  return 0;
}

static int
tear_down (void **state)
{
  nbd_server_end (&server);
  return 0;
}

static int
try_open (bool writable, unsigned connections, struct io_store **s,
          struct fault *f)
{
  const struct io_nbd_params p = {
    .uri = server.uri, .writable = writable, .connections = connections,
  };

  *f = (struct fault) { 0 };
  return io_nbd_open (&p, s, f);
}

/* Starts nbdkit with LINE and opens the export. */
static struct io_store *
serve (const char *line)
{
  struct io_store *s;
  struct fault f;
  int r;

  nbd_server_start (&server, line);
  r = try_open (true, 0, &s, &f);
  if (r < 0)
    fail_msg ("%s: %s", line, f.msg);
  return s;
}

static void
done (struct io_store *s)
{
  io_close (s);
  nbd_server_kill (&server);
}

static void
assert_refused (bool writable, int err, const char *msg)
{
  struct io_store *s;
  struct fault f;

  assert_int_equal (try_open (writable, 0, &s, &f), -err);
  if (strstr (f.msg, msg) == NULL)
    fail_msg ("\"%s\" instead of \"%s\"", f.msg, msg);
  nbd_server_kill (&server);
}

static uint64_t
below (uint64_t n)
{
  return ((uint64_t) rand_r (&seed) << 16 ^ (uint64_t) rand_r (&seed)) % n;
}

static void
fill (uint8_t *buf, size_t len)
{
  size_t i;

  for (i = 0; i < len; i++)
    buf[i] = (uint8_t) (rand_r (&seed) >> 7);
}

static void
assert_zeroes (const uint8_t *buf, size_t len)
{
  size_t i;

  for (i = 0; i < len; i++)
    assert_int_equal (buf[i], 0);
}

/* --- URIs --------------------------------------------------------------- */

static void
a_uri_is_no_path (void **state)
{
  static const char *const uris[] = {
    "nbd://host", "nbds://host:10809/a", "nbd+unix:///?socket=x",
    "nbds+unix:///?socket=x", "NBD://host",
  };
  static const char *const paths[] = {
    "", "nbd", "nbd:", "nbd:/x", "disk.qcow2", "./nbd://x", "http://x",
    "/dev/nbd0", "nbdx://y",
  };
  size_t i;

  for (i = 0; i < sizeof uris / sizeof uris[0]; i++)
    assert_true (io_is_uri (uris[i]));
  for (i = 0; i < sizeof paths / sizeof paths[0]; i++)
    assert_false (io_is_uri (paths[i]));
}

/* --- random work -------------------------------------------------------- */

#define MAX_IOV 6
#define MAX_LEN (UINT64_C (300) << 10)

/* Cuts BUF into up to MAX_IOV buffers, some of them empty or large. */
static int
cut (uint8_t *buf, uint64_t len, struct iovec *iov)
{
  uint64_t at = 0, n;
  int i;

  for (i = 0; i < MAX_IOV - 1 && at < len; i++) {
    n = below (3) == 0 ? below (10) : MIN_OF (len - at, below (3) << 16);
    n = MIN_OF (n, len - at);
    iov[i] = (struct iovec) { n ? buf + at : NULL, n };
    at += n;
  }
  iov[i] = (struct iovec) { buf + at, len - at };
  return i + 1;
}

/* Small or large, on a block or not. */
static void
range (uint64_t size, uint64_t *off, uint64_t *len)
{
  const uint64_t step = below (2) ? 4096 : 1;

  *off = round_down_pow2 (below (size), step);
  *len = below (3) == 0 ? below (MAX_LEN) : below (9000);
  *len = MAX_OF (step, round_down_pow2 (*len, step));
}

static void
write_some (struct io_store *s, uint8_t *model)
{
  static uint8_t buf[MAX_LEN];
  struct iovec iov[MAX_IOV];
  uint64_t off, len;

  range (SIZE, &off, &len);
  fill (buf, len);
  if (off + len > SIZE) {
    assert_int_equal (io_pwritev (s, iov, cut (buf, len, iov), off), -ENOSPC);
    return;
  }
  assert_int_equal (io_pwritev (s, iov, cut (buf, len, iov), off), 0);
  memcpy (model + off, buf, len);
}

static void
assert_model (const uint8_t *buf, const uint8_t *model, uint64_t off,
              uint64_t len)
{
  const uint64_t inside = off < SIZE ? MIN_OF (len, SIZE - off) : 0;

  assert_memory_equal (buf, model + off, inside);
  assert_zeroes (buf + inside, len - inside);
}

static void
read_some (struct io_store *s, const uint8_t *model)
{
  static uint8_t buf[MAX_LEN];
  struct iovec iov[MAX_IOV];
  uint64_t off, len;

  range (SIZE + 10000, &off, &len);
  memset (buf, 0xee, len);
  assert_int_equal (io_preadv (s, iov, cut (buf, len, iov), off), 0);
  assert_model (buf, model, off, len);
}

#define PARTS 40

static void
read_parts (struct io_store *s, const uint8_t *model)
{
  static uint8_t buf[PARTS][20000];
  struct io_part v[PARTS];
  const bool small = below (2);
  size_t i;

  for (i = 0; i < PARTS; i++) {
    range (SIZE + 10000, &v[i].host_off, &v[i].len);
    v[i].len = small ? 4096 : MIN_OF (v[i].len, sizeof buf[i]);
    v[i].host_off = small ? round_down_pow2 (v[i].host_off, 4096)
      : v[i].host_off;
    v[i].buf = buf[i];
    v[i].result = 1;
    memset (buf[i], 0xee, sizeof buf[i]);
  }
  assert_int_equal (io_read_many (s, v, PARTS), 0);
  for (i = 0; i < PARTS; i++) {
    assert_int_equal (v[i].result, 0);
    assert_model (buf[i], model, v[i].host_off, v[i].len);
    assert_int_equal (buf[i][sizeof buf[i] - 1],
                      v[i].len < sizeof buf[i] ? 0xee : buf[i][v[i].len - 1]);
  }
}

static void
assert_all (struct io_store *s, const uint8_t *model)
{
  static uint8_t buf[SIZE];

  assert_int_equal (io_pread (s, buf, SIZE, 0), 0);
  assert_memory_equal (buf, model, SIZE);
}

static void
work (struct io_store *s, unsigned rounds)
{
  static uint8_t model[SIZE];
  unsigned i;

  memset (model, 0, SIZE);
  for (i = 0; i < rounds; i++) {
    write_some (s, model);
    read_some (s, model);
    if (i % 8 == 0)
      read_parts (s, model);
    if (i % 16 == 0)
      assert_int_equal (io_sync (s), 0);
  }
  assert_all (s, model);
}

static const char *const kinds[] = {
  "memory 3M",
  "--filter=multi-conn memory 3M multi-conn-mode=disable",
  "--filter=noextents --filter=nozero memory 3M zeromode=none",
  ("--filter=blocksize-policy memory 3M blocksize-minimum=512 "
   "blocksize-preferred=4096 blocksize-maximum=65536 "
   "blocksize-error-policy=error"),
  ("--filter=blocksize-policy memory 3M blocksize-minimum=4096 "
   "blocksize-preferred=4096 blocksize-maximum=4096 "
   "blocksize-error-policy=error"),
  ("--filter=noparallel --filter=delay memory 3M delay-read=1ms "
   "serialize=connections"),
};

static void
random_work_gives_what_a_buffer_gives (void **state)
{
  size_t i;

  for (i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
    struct io_store *s = serve (kinds[i]);

    work (s, i == 5 ? 20 : 150);
    done (s);
  }
}

/* A file on the host shows what arrived there. */
static void
synced_bytes_are_in_the_servers_file (void **state)
{
  char line[PATH_MAX + 64];
  uint8_t data[70000], buf[70000];
  struct io_store *s, *file;

  snprintf (line, sizeof line, "%s/disk", server.dir);
  assert_int_equal (io_file_open (line, IO_FILE_WRITE | IO_FILE_CREATE,
                                  IO_LOCK_NONE, &file, NULL), 0);
  assert_int_equal (io_truncate (file, SIZE), 0);
  snprintf (line, sizeof line, "file %s/disk", server.dir);
  s = serve (line);
  fill (data, sizeof data);
  assert_int_equal (io_pwrite (s, data, sizeof data, 12345), 0);
  assert_int_equal (io_sync (s), 0);
  assert_int_equal (io_pread (file, buf, sizeof buf, 12345), 0);
  assert_memory_equal (data, buf, sizeof data);
  done (s);
  io_close (file);
}

/* --- threads ------------------------------------------------------------ */

#define THREADS 8
#define OWN (SIZE / THREADS)

struct worker {
  struct io_store *s;
  uint64_t from;
  unsigned seed;
  bool failed;
};

static void *
write_and_read_back (void *opaque)
{
  struct worker *w = opaque;
  uint8_t data[8192], buf[8192];
  uint64_t off;
  unsigned i;

  for (i = 0; i < 200 && !w->failed; i++) {
    off = w->from + (uint64_t) rand_r (&w->seed) % (OWN - sizeof data);
    memset (data, rand_r (&w->seed) >> 5, sizeof data);
    w->failed = io_pwrite (w->s, data, sizeof data, off) < 0 ||
      io_pread (w->s, buf, sizeof buf, off) < 0 ||
      memcmp (data, buf, sizeof data) != 0 ||
      (i % 50 == 0 && io_sync (w->s) < 0);
  }
  return NULL;
}

static void
run_threads (struct io_store *s)
{
  struct worker w[THREADS];
  pthread_t t[THREADS];
  size_t i;

  for (i = 0; i < THREADS; i++) {
    w[i] = (struct worker) { .s = s, .from = i * OWN, .seed = seed + i };
    assert_int_equal (pthread_create (&t[i], NULL, write_and_read_back,
                                      &w[i]), 0);
  }
  for (i = 0; i < THREADS; i++) {
    pthread_join (t[i], NULL);
    assert_false (w[i].failed);
  }
}

/* With blocks of 4 KiB the threads' ranges share blocks at their ends. */
static void
threads_do_not_disturb_each_other (void **state)
{
  struct io_store *s = serve (kinds[0]);

  run_threads (s);
  done (s);
  s = serve (kinds[4]);
  run_threads (s);
  done (s);
}

/* Two threads write the two halves of each block in turns of their own. */
struct half {
  struct io_store *s;
  uint64_t off;
  bool failed;
};

static void *
write_halves (void *opaque)
{
  struct half *h = opaque;
  uint8_t data[2048], buf[2048];
  unsigned i;

  for (i = 1; i < 300 && !h->failed; i++) {
    memset (data, (int) i, sizeof data);
    h->failed = io_pwrite (h->s, data, sizeof data, h->off) < 0 ||
      io_pread (h->s, buf, sizeof buf, h->off) < 0 ||
      memcmp (data, buf, sizeof data) != 0;
  }
  return NULL;
}

static void
two_writers_of_one_block_keep_both_halves (void **state)
{
  struct io_store *s = serve (kinds[4]);
  struct half h[2] = { { .s = s, .off = 8192 },
                       { .s = s, .off = 8192 + 2048 } };
  pthread_t t;

  assert_int_equal (pthread_create (&t, NULL, write_halves, &h[1]), 0);
  write_halves (&h[0]);
  pthread_join (t, NULL);
  assert_false (h[0].failed);
  assert_false (h[1].failed);
  done (s);
}

/* --- forks ---------------------------------------------------------------- */

static int
work_in_child (struct io_store *s)
{
  uint8_t buf[4096], data[4096];

  memset (data, 5, sizeof data);
  return io_after_fork (s) == 0 &&
    io_pread (s, buf, sizeof buf, 0) == 0 && buf[0] == 4 &&
    io_pwrite (s, data, sizeof data, 8192) == 0 && io_sync (s) == 0 &&
    io_pread (s, buf, sizeof buf, 8192) == 0 &&
    memcmp (buf, data, sizeof buf) == 0 ? 0 : 1;
}

static void
a_store_goes_on_in_the_child (void **state)
{
  struct io_store *s = serve (kinds[0]);
  uint8_t data[4096];
  int status;
  pid_t pid;

  memset (data, 4, sizeof data);
  assert_int_equal (io_pwrite (s, data, sizeof data, 0), 0);
  io_before_fork (s);
  pid = fork ();
  assert_int_not_equal (pid, -1);
  if (pid == 0)
    _exit (work_in_child (s));
  assert_int_equal (waitpid (pid, &status, 0), pid);
  assert_int_equal (status, 0);
  assert_int_equal (io_after_fork (s), 0);
  assert_int_equal (io_pread (s, data, sizeof data, 8192), 0);
  assert_int_equal (data[0], 5);
  io_before_fork (s);
  done (s);
}

/* --- connections -------------------------------------------------------- */

static unsigned
connections_opened (const char *multi_conn, unsigned asked)
{
  char line[1024], path[100];
  struct io_store *s;
  struct fault f;
  unsigned got = 0;
  FILE *file;
  int c;

  snprintf (path, sizeof path, "%s/opened", server.dir);
  unlink (path);
  snprintf (line, sizeof line, "eval open='echo >>%s' get_size='echo 1M' "
            "pread='head -c $3 /dev/zero' can_multi_conn='exit %s'", path,
            multi_conn);
  nbd_server_start (&server, line);
  if (try_open (false, asked, &s, &f) < 0)
    fail_msg ("%s", f.msg);
  file = fopen (path, "r");
  assert_non_null (file);
  while ((c = getc (file)) != EOF)
    got += c == '\n';
  fclose (file);
  done (s);
  return got;
}

/* A connection that cannot be opened in time is not missed: a busy machine may have fewer at
 * first, but never more. */
static void
count_connections (const char *multi_conn, unsigned asked, unsigned expected)
{
  unsigned i, got = 0;

  for (i = 0; i < 5 && got < expected; i++) {
    got = connections_opened (multi_conn, asked);
    assert_in_range (got, 1, expected);
  }
  assert_int_equal (got, expected);
}

static void
only_multi_conn_gets_several_connections (void **state)
{
  count_connections ("0", 3, 3);
  count_connections ("0", 1, 1);
  count_connections ("0", 1000, NBD_MAX_CONNECTIONS);
  count_connections ("3", 4, 1);
}

/* --- the size ----------------------------------------------------------- */

static void
the_size_is_that_of_the_export (void **state)
{
  struct io_store *s = serve ("memory 1000100");
  uint8_t buf[5000];

  assert_int_equal (io_size (s), 1000100);
  assert_int_equal (io_max_size (s), 1000100);
  assert_int_equal (io_block_size (s), IO_SECTOR);
  assert_int_equal (io_truncate (s, 1000100), 0);
  assert_int_equal (io_truncate (s, 5), 0);
  assert_int_equal (io_truncate (s, 1000101), -ENOSPC);
  assert_int_equal (io_size (s), 1000100);
  assert_int_equal (io_allocate (s, 0, 4096), 0);
  assert_int_equal (io_allocate (s, (uint64_t) io_size (s), 1), -ENOSPC);
  memset (buf, 0xee, sizeof buf);
  assert_int_equal (io_pwrite (s, buf, 100, 1000000), 0);
  assert_int_equal (io_pwrite (s, buf, 101, 1000000), -ENOSPC);
  assert_int_equal (io_pwrite (s, buf, 1, 1000100), -ENOSPC);
  assert_int_equal (io_pread (s, buf, sizeof buf, 1000000), 0);
  assert_int_equal (buf[99], 0xee);
  assert_zeroes (buf + 100, sizeof buf - 100);
  done (s);
}

static void
a_size_that_is_no_whole_block_is_rounded_down (void **state)
{
  struct io_store *s = serve ("--filter=blocksize-policy memory 1000100 "
                              "blocksize-minimum=4096 "
                              "blocksize-preferred=4096 "
                              "blocksize-maximum=65536 "
                              "blocksize-error-policy=error");
  uint8_t buf[5000];

  assert_int_equal (io_size (s), 999424);
  assert_int_equal (io_block_size (s), 4096);
  memset (buf, 0xee, sizeof buf);
  assert_int_equal (io_pread (s, buf, sizeof buf, 999424 - 1), 0);
  assert_zeroes (buf, sizeof buf);
  assert_int_equal (io_pwrite (s, buf, 2, 999424 - 1), -ENOSPC);
  done (s);
}

/* --- trim and holes ----------------------------------------------------- */

static void
holes_and_data_are_found (void **state)
{
  struct io_store *s = serve ("memory 64M");
  uint8_t buf[65536];
  uint64_t at;

  memset (buf, 1, sizeof buf);
  assert_int_equal (io_next_hole (s, 0), 0);
  assert_int_equal (io_next_data (s, 5, &at), 0);
  assert_int_equal (at, UINT64_MAX);
  assert_int_equal (io_pwrite (s, buf, sizeof buf, 1 << 20), 0);
  assert_int_equal (io_pwrite (s, buf, sizeof buf, 2 << 20), 0);
  assert_int_equal (io_next_data (s, 5, &at), 0);
  assert_int_equal (at, 1 << 20);
  assert_int_equal (io_next_data (s, (1 << 20) + 7, &at), 0);
  assert_int_equal (at, (1 << 20) + 7);
  assert_int_equal (io_next_hole (s, 1 << 20), (1 << 20) + 65536);
  assert_int_equal (io_next_hole (s, (1 << 20) + 7), (1 << 20) + 65536);
  assert_int_equal (io_next_hole (s, 100), 100);
  assert_int_equal (io_next_data (s, (1 << 20) + 65536, &at), 0);
  assert_int_equal (at, 2 << 20);
  assert_int_equal (io_next_data (s, (2 << 20) + 65536, &at), 0);
  assert_int_equal (at, UINT64_MAX);
  assert_int_equal (io_next_hole (s, 64 << 20), 64 << 20);
  assert_int_equal (io_next_data (s, 64 << 20, &at), 0);
  assert_int_equal (at, UINT64_MAX);
  /* What was known before the trim is forgotten. */
  assert_int_equal (io_next_hole (s, 1 << 20), (1 << 20) + 65536);
  assert_int_equal (io_discard (s, 1 << 20, 32768), 0);
  assert_int_equal (io_next_hole (s, 1 << 20), 1 << 20);
  assert_int_equal (io_next_data (s, 1 << 20, &at), 0);
  assert_int_equal (at, (1 << 20) + 32768);
  done (s);
}

static void
without_block_status_holes_are_unknown (void **state)
{
  struct io_store *s = serve ("--no-sr memory 1M");
  uint64_t at;

  assert_int_equal (io_next_hole (s, 0), UINT64_MAX);
  assert_int_equal (io_next_data (s, 0, &at), -EOPNOTSUPP);
  work (s, 0);
  done (s);
}

static void
discard_needs_trim_and_keeps_to_its_range (void **state)
{
  static uint8_t buf[1 << 20];
  struct io_store *s = serve ("memory 3M");

  memset (buf, 7, sizeof buf);
  assert_int_equal (io_pwrite (s, buf, sizeof buf, 0), 0);
  assert_int_equal (io_discard (s, 65536, 65536), 0);
  assert_int_equal (io_discard (s, 2 << 20, 1 << 30), 0);
  assert_int_equal (io_discard (s, 1 << 30, 4096), 0);
  assert_int_equal (io_pread (s, buf, sizeof buf, 0), 0);
  assert_int_equal (buf[65535], 7);
  assert_zeroes (buf + 65536, 65536);
  assert_int_equal (buf[131072], 7);
  done (s);

  s = serve (kinds[4]);
  memset (buf, 7, sizeof buf);
  assert_int_equal (io_pwrite (s, buf, sizeof buf, 0), 0);
  assert_int_equal (io_discard (s, 65536 - 100, 65536 + 200), 0);
  assert_int_equal (io_discard (s, 10, 100), 0);
  assert_int_equal (io_pread (s, buf, sizeof buf, 0), 0);
  assert_int_equal (buf[65535], 7);
  assert_zeroes (buf + 65536, 65536);
  assert_int_equal (buf[131072], 7);
  done (s);

  s = serve ("eval get_size='echo 1M' pread='head -c $3 /dev/zero' "
             "pwrite='cat >/dev/null' flush=true");
  assert_int_equal (io_discard (s, 0, 4096), -EOPNOTSUPP);
  done (s);
}

/* --- refusals and errors ------------------------------------------------ */

static void
exports_that_cannot_serve_are_refused (void **state)
{
  struct io_store *s;
  struct fault f;

  assert_refused (true, EIO, "cannot connect: ");
  nbd_server_start (&server, "-r memory 1M");
  assert_refused (true, EROFS, "the export is read-only");
  nbd_server_start (&server, "eval get_size='echo 1M' pwrite='cat >/dev/null' "
                    "pread='head -c $3 /dev/zero'");
  assert_refused (true, ENOTSUP, "the server has no flush");
  nbd_server_start (&server, "--filter=blocksize-policy memory 1M "
                    "blocksize-minimum=8192 blocksize-preferred=8192 "
                    "blocksize-maximum=65536");
  assert_refused (true, ENOTSUP, "minimum block is 8192 bytes");
  nbd_server_start (&server, "-e there --filter=exportname memory 1M "
                    "exportname=there exportname-strict=true");
  assert_refused (true, EIO, "cannot connect: ");

  nbd_server_start (&server, "-r memory 1M");
  assert_int_equal (try_open (false, 0, &s, &f), 0);
  assert_int_equal (io_pwrite (s, "x", 1, 0), -EROFS);
  assert_int_equal (io_discard (s, 0, 4096), -EROFS);
  assert_int_equal (io_truncate (s, 0), -EROFS);
  assert_int_equal (io_sync (s), 0);
  done (s);
}

static void
a_server_that_never_answers_is_given_up (void **state)
{
  struct timespec a, b;

  unlink (server.socket);
  server.pid = fork ();
  if (server.pid == 0) {
    nbd_server_listen (&server);
    for (;;)
      pause ();
  }
  nbd_server_wait (&server);
  clock_gettime (CLOCK_MONOTONIC, &a);
  assert_refused (true, ETIMEDOUT, "the server does not answer");
  clock_gettime (CLOCK_MONOTONIC, &b);
  assert_in_range (b.tv_sec - a.tv_sec, 3, 8);
}

static void
errors_of_the_server_are_those_of_the_call (void **state)
{
  uint8_t buf[4][4096] = { 0 };
  struct io_part v[4];
  struct io_store *s;
  size_t i;

  s = serve ("--filter=error memory 3M error-pwrite=ENOSPC "
             "error-pwrite-rate=100%");
  assert_int_equal (io_pwrite (s, buf, sizeof buf, 0), -ENOSPC);
  assert_int_equal (io_pread (s, buf, sizeof buf, 0), 0);
  assert_int_equal (io_sync (s), 0);
  done (s);

  s = serve ("--filter=error memory 3M error-pread=EIO "
             "error-pread-rate=100%");
  assert_int_equal (io_pwrite (s, buf, sizeof buf, 0), 0);
  assert_int_equal (io_pread (s, buf, sizeof buf, 0), -EIO);
  for (i = 0; i < 4; i++)
    v[i] = (struct io_part) { .buf = buf[i], .len = 4096,
                              .host_off = i * 8192, .result = 1 };
  v[2].host_off = 4 << 20;
  assert_int_equal (io_read_many (s, v, 4), -EIO);
  assert_int_equal (v[1].result, -EIO);
  assert_int_equal (v[2].result, 0);
  assert_int_equal (v[3].result, -EIO);
  done (s);
}

static void
a_killed_server_fails_calls_and_close_ends (void **state)
{
  struct io_store *s = serve ("memory 3M");
  uint8_t buf[4096] = { 0 };

  assert_int_equal (io_pwrite (s, buf, sizeof buf, 0), 0);
  nbd_server_kill (&server);
  assert_int_equal (io_pwrite (s, buf, sizeof buf, 0), -EIO);
  assert_int_equal (io_pread (s, buf, sizeof buf, 0), -EIO);
  assert_int_equal (io_sync (s), -EIO);
  io_close (s);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (a_uri_is_no_path),
    cmocka_unit_test (random_work_gives_what_a_buffer_gives),
    cmocka_unit_test (synced_bytes_are_in_the_servers_file),
    cmocka_unit_test (threads_do_not_disturb_each_other),
    cmocka_unit_test (two_writers_of_one_block_keep_both_halves),
    cmocka_unit_test (a_store_goes_on_in_the_child),
    cmocka_unit_test (only_multi_conn_gets_several_connections),
    cmocka_unit_test (the_size_is_that_of_the_export),
    cmocka_unit_test (a_size_that_is_no_whole_block_is_rounded_down),
    cmocka_unit_test (holes_and_data_are_found),
    cmocka_unit_test (without_block_status_holes_are_unknown),
    cmocka_unit_test (discard_needs_trim_and_keeps_to_its_range),
    cmocka_unit_test (exports_that_cannot_serve_are_refused),
    cmocka_unit_test (a_server_that_never_answers_is_given_up),
    cmocka_unit_test (errors_of_the_server_are_those_of_the_call),
    cmocka_unit_test (a_killed_server_fails_calls_and_close_ends),
  };
  const char *given = getenv ("NBD_SEED");

  seed = given ? (unsigned) strtoul (given, NULL, 0) : (unsigned) time (NULL);
  printf ("NBD_SEED=%u\n", seed);
  return cmocka_run_group_tests (tests, set_up, tear_down);
}
