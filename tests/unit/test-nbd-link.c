/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests lost connections of the NBD store, against a server whose every reply
 * is chosen (fake-nbd.h): cut off, crashed with a lost cache, silent, late, or
 * an error, at each request of a fixed workload and at random.
 *
 * NBD_SEED gives the seed of the random work again, which is printed; NBD_TEST
 * names the tests to run, as a pattern.
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
#include <unistd.h>

#include <cmocka.h>

#include "checked.h"
#include "fake-nbd.h"
#include "io.h"
#include "lease.h"
#include "nbd-private.h"
#include "nbd.h"
#include "nbd-server.h"
#include "ranges.h"

#define SIZE (UINT64_C (1) << 20)

/* --- The world ---------------------------------------------------------- */

static struct fake_nbd server;
static char dir[64];
static unsigned seed;

/* What the test wants to happen: FATE to the request number AT, or to all from
 * AT on if NR is large; only to those of TYPE, if it is not negative.  Reads
 * and writes of these are protected by the server's lock. */
static struct plan {
  unsigned at, nr;
  int fate, type;
  uint64_t off;               /* only to those at OFF; UINT64_MAX: any */
  unsigned seen[5];           /* requests of each type */
  unsigned durable;           /* writes with FUA */
  unsigned matches;
  unsigned random_every;      /* one in so many requests, and no fewer */
  unsigned since;             /* requests since the last such one */
  unsigned seed;
} plan;

/* Lines of the log. */
static struct {
  pthread_mutex_t lock;
  unsigned lost, back, given_up;
} lines = { .lock = PTHREAD_MUTEX_INITIALIZER };

static void
note_line (void *opaque, enum log_level level, const char *line)
{
  pthread_mutex_lock (&lines.lock);
  if (level == LOG_ERROR && strstr (line, "requests wait"))
    lines.lost++;
  if (level == LOG_INFO && strstr (line, "connected again"))
    lines.back++;
  if (level == LOG_ERROR && strstr (line, "given up"))
    lines.given_up++;
  pthread_mutex_unlock (&lines.lock);
}

static unsigned
count_lines (const unsigned *which)
{
  unsigned n;

  pthread_mutex_lock (&lines.lock);
  n = *which;
  pthread_mutex_unlock (&lines.lock);
  return n;
}

/* The first request after RANDOM_EVERY others breaks the connection, so that any number
 * of requests above that has a loss. */
static int
random_fate (void)
{
  static const int fates[] = {
    FAKE_CUT, FAKE_DO_AND_CUT, FAKE_CRASH, FAKE_DO_AND_CRASH, FAKE_LATE,
  };
  const bool due = plan.since++ == plan.random_every;

  if ((unsigned) rand_r (&plan.seed) % plan.random_every != 0 && !due)
    return FAKE_DO;
  plan.since = 0;
  return fates[(unsigned) rand_r (&plan.seed) % (due ? 4 : 5)];
}

static int
fate (void *opaque, const struct fake_request *r)
{
  plan.seen[r->type]++;
  plan.durable += r->fua;
  if (plan.random_every)
    return random_fate ();
  if ((plan.type >= 0 && (int) r->type != plan.type) ||
      (plan.off != UINT64_MAX && r->off != plan.off))
    return FAKE_DO;
  return plan.matches++ - plan.at < plan.nr ? plan.fate : FAKE_DO;
}

static void
set_plan (struct plan p)
{
  pthread_mutex_lock (&server.lock);
  plan = p;
  pthread_mutex_unlock (&server.lock);
}

static unsigned
seen (enum fake_type type)
{
  unsigned n;

  pthread_mutex_lock (&server.lock);
  n = plan.seen[type];
  pthread_mutex_unlock (&server.lock);
  return n;
}

/* The line comes a moment after what it tells of. */
static void
assert_lines (const unsigned *which, unsigned nr)
{
  unsigned i;

  for (i = 0; i < 3000 && count_lines (which) < nr; i++)
    usleep (1000);
  assert_int_equal (count_lines (which), nr);
}

static void
forget_lines (void)
{
  pthread_mutex_lock (&lines.lock);
  lines.lost = lines.back = lines.given_up = 0;
  pthread_mutex_unlock (&lines.lock);
}

#define NOTHING ((struct plan) { .type = -1, .off = UINT64_MAX })
/* FATE comes to the next request of TYPE. */
#define ONCE(ftype, ffate)                                              \
  ((struct plan) { .nr = 1, .type = (ftype), .fate = (ffate),           \
                   .off = UINT64_MAX })

static struct io_store *
open_with (struct io_nbd_params p)
{
  static const struct log_sink sink = { .write = note_line };
  char uri[200];
  struct io_store *s;
  struct fault f = { 0 };

  forget_lines ();
  snprintf (uri, sizeof uri, "nbd+unix:///?socket=%s", server.socket);
  p.uri = uri;
  p.writable = true;
  p.log = &sink;
  if (io_nbd_open (&p, &s, &f) < 0)
    fail_msg ("%s", f.msg);
  return s;
}

static struct io_store *
open_store (unsigned delay)
{
  return open_with ((struct io_nbd_params) { .reconnect_delay = delay,
                                             .connections = 2 });
}

/* What was written may be written again without a flush between. */
static struct io_store *
open_fenced (void)
{
  return open_with ((struct io_nbd_params) { .reconnect_delay = 20,
                                             .connections = 2, .fenced = true });
}

static int
begin (void **state)
{
  server = (struct fake_nbd) { .size = SIZE, .fate = fate };
  snprintf (server.socket, sizeof server.socket, "%s/socket", dir);
  plan = NOTHING;
  fake_init (&server);
  fake_start (&server);
  return 0;
}

static int
end (void **state)
{
  fake_stop (&server);
  fake_destroy (&server);
  return 0;
}

static void
write_at (struct io_store *s, uint64_t off, uint8_t byte)
{
  uint8_t buf[4096];

  memset (buf, byte, sizeof buf);
  assert_int_equal (io_pwrite (s, buf, sizeof buf, off), 0);
}

static int
try_write (struct io_store *s, uint64_t off, uint8_t byte)
{
  uint8_t buf[4096];

  memset (buf, byte, sizeof buf);
  return io_pwrite (s, buf, sizeof buf, off);
}

static void
assert_bytes (struct io_store *s, uint64_t off, uint8_t byte)
{
  uint8_t buf[4096];
  size_t i;

  assert_int_equal (io_pread (s, buf, sizeof buf, off), 0);
  for (i = 0; i < sizeof buf; i++)
    assert_int_equal (buf[i], byte);
}

static int64_t
now_ms (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return (int64_t) t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* --- Ranges ------------------------------------------------------------- */

#define BITS 200

static void
check_ranges (const struct io_ranges *r, const bool *in)
{
  uint64_t from, to, i;
  struct io_range gap;
  bool any;

  for (i = 0; i + 1 < r->nr; i++)
    assert_true (r->v[i].to < r->v[i + 1].from);
  for (from = 0; from < BITS; from += 3)
    for (to = from + 1; to <= BITS; to += 7) {
      any = false;
      for (i = from; i < to; i++)
        any |= in[i];
      assert_int_equal (io_ranges_overlap (r, from, to), any);
      for (i = from; i < to && in[i]; i++)
        ;
      assert_int_equal (io_ranges_gap (r, from, to, &gap), i < to);
      if (i == to)
        continue;
      assert_int_equal (gap.from, i);
      for (; i < to && !in[i]; i++)
        ;
      assert_int_equal (gap.to, i);
    }
}

static void
ranges_are_a_set_of_bytes (void **state)
{
  unsigned round, i, n;
  uint64_t from, to;

  for (round = 0; round < 30; round++) {
    struct io_ranges r = { 0 };
    bool in[BITS] = { 0 };

    for (n = 0; n < 30; n++) {
      from = (unsigned) rand_r (&seed) % BITS;
      to = from + 1 + (unsigned) rand_r (&seed) % 12;
      to = MIN_OF (BITS, to);
      const bool add = rand_r (&seed) % 3 > 0;

      assert_int_equal (add ? io_ranges_add (&r, from, to)
                        : io_ranges_remove (&r, from, to), 0);
      for (i = from; i < to; i++)
        in[i] = add;
      check_ranges (&r, in);
    }
    io_ranges_free (&r);
  }
}

/* --- What was written comes back ---------------------------------------- */

static void
unflushed_writes_are_written_again (void **state)
{
  struct io_store *s = open_store (20);

  write_at (s, 0, 1);
  assert_int_equal (io_sync (s), 0);
  write_at (s, 4096, 2);
  write_at (s, 65536, 3);
  fake_stop (&server);
  fake_lose (&server);
  fake_start (&server);
  assert_bytes (s, 0, 1);
  assert_bytes (s, 4096, 2);
  assert_bytes (s, 65536, 3);
  assert_int_equal (io_sync (s), 0);
  assert_int_equal (server.flushed[4096], 2);
  io_close (s);
  assert_lines (&lines.lost, 1);
  assert_lines (&lines.back, 1);
  assert_lines (&lines.given_up, 0);
}

/* One that receives all the while, and one that is lent: another one may have lost what
 * was written, too. */
static void
the_end_of_one_idle_connection_is_a_loss (void **state)
{
  struct io_store *s;
  unsigned i, before;

  for (i = 1; i <= 2; i++) {
    before = server.nr_connections;
    s = open_store (20);
    write_at (s, 0, (uint8_t) i);
    set_plan (NOTHING);
    fake_cut_one (&server, before + i);
    assert_lines (&lines.lost, 1);
    assert_lines (&lines.back, 1);
    assert_int_equal (seen (FAKE_WRITE), 1);
    assert_bytes (s, 0, (uint8_t) i);
    io_close (s);
  }
}

static void
flushed_writes_are_not (void **state)
{
  struct io_store *s = open_store (20);

  write_at (s, 0, 1);
  write_at (s, 8192, 2);
  assert_int_equal (io_sync (s), 0);
  write_at (s, 16384, 3);
  set_plan (NOTHING);
  fake_cut (&server);
  assert_bytes (s, 0, 1);
  assert_int_equal (seen (FAKE_WRITE), 1);
  io_close (s);
}

/* Where writes overlap, the youngest bytes stand; a trim counts as a write. */
static void
the_youngest_write_wins (void **state)
{
  struct io_store *s = open_fenced ();
  uint8_t buf[3 * 4096];
  unsigned i;

  memset (buf, 1, sizeof buf);
  assert_int_equal (io_pwrite (s, buf, sizeof buf, 4096), 0);
  write_at (s, 8192, 2);
  write_at (s, 0, 3);
  write_at (s, 40960, 4);
  assert_int_equal (io_discard (s, 40960, 4096), 0);
  write_at (s, 6144, 5);
  for (i = 0; i < 3; i++) {
    fake_stop (&server);
    fake_lose (&server);
    fake_start (&server);
    assert_bytes (s, 0, 3);
    assert_bytes (s, 6144, 5);
    assert_bytes (s, 12288, 1);
    assert_bytes (s, 40960, 0);
    assert_int_equal (io_pread (s, buf, 4096, 8192), 0);
    assert_int_equal (buf[2047], 5);
    assert_int_equal (buf[2048], 2);
  }
  io_close (s);
}

/* --- Each request, each fate -------------------------------------------- */

/* Makes some calls and checks what they read.  A write of the previous round
 * that is tainted is not touched again: each round has its own place. */
static void
work_at (struct io_store *s, uint64_t at, uint8_t byte)
{
  uint8_t buf[4][4096];
  struct io_part v[4];
  size_t i;

  write_at (s, at, byte);
  write_at (s, at + 4096, (uint8_t) (byte + 1));
  assert_bytes (s, at, byte);
  assert_int_equal (io_sync (s), 0);
  write_at (s, at + 8192, (uint8_t) (byte + 2));
  write_at (s, at + 12288, (uint8_t) (byte + 3));
  assert_int_equal (io_discard (s, at + 20480, 4096), 0);
  for (i = 0; i < 4; i++)
    v[i] = (struct io_part) { .buf = buf[i], .len = 4096,
                              .host_off = at + i * 4096 };
  assert_int_equal (io_read_many (s, v, 4), 0);
  for (i = 0; i < 4; i++)
    assert_int_equal (buf[i][4095], byte + i);
  assert_int_equal (io_sync (s), 0);
}

static void
assert_work_flushed (uint64_t at, uint8_t byte)
{
  unsigned i;

  for (i = 0; i < 4 * 4096; i++)
    assert_int_equal (server.flushed[at + i], byte + i / 4096);
}

#define REQUESTS 12

static void
no_call_notices_a_lost_connection (void **state)
{
  static const int fates[] = {
    FAKE_CUT, FAKE_DO_AND_CUT, FAKE_CRASH, FAKE_DO_AND_CRASH, FAKE_STRAY,
    FAKE_LATE, 108 /* NBD_ESHUTDOWN */,
  };
  uint64_t at = 0;
  unsigned i, k;

  for (i = 0; i < sizeof fates / sizeof fates[0]; i++)
    for (k = 0; k < REQUESTS; k++, at += 32768) {
      struct io_store *s;

      at %= SIZE;
      set_plan ((struct plan) { .at = k, .nr = 1, .fate = fates[i],
                                .type = -1, .off = UINT64_MAX });
      s = open_store (20);
      work_at (s, at, (uint8_t) (k + 1));
      io_close (s);
      assert_work_flushed (at, (uint8_t) (k + 1));
      assert_lines (&lines.lost, fates[i] != FAKE_LATE);
      assert_lines (&lines.given_up, 0);
    }
}

/* The connection breaks at one request, and again at the next ones of any
 * kind, which are those that write again. */
static void
a_connection_may_break_while_writes_are_repeated (void **state)
{
  unsigned k;

  for (k = 0; k < 4; k++) {
    struct io_store *s = open_fenced ();

    write_at (s, k * 65536, 1);
    write_at (s, k * 65536 + 4096, 2);
    write_at (s, k * 65536 + 4096, 3);
    write_at (s, k * 65536 + 8192, 4);
    set_plan ((struct plan) { .at = k, .nr = 1, .fate = FAKE_CRASH,
                              .type = FAKE_WRITE, .off = UINT64_MAX });
    fake_stop (&server);
    fake_lose (&server);
    fake_start (&server);
    assert_bytes (s, k * 65536, 1);
    assert_bytes (s, k * 65536 + 4096, 3);
    assert_bytes (s, k * 65536 + 8192, 4);
    assert_lines (&lines.back, 1);
    assert_lines (&lines.lost, 1);
    io_close (s);
  }
}

static void
errors_come_through_and_nothing_is_repeated (void **state)
{
  static const struct { int nbd, here; } errors[] = {
    { 1, -EPERM }, { 5, -EIO }, { 12, -ENOMEM }, { 22, -EIO }, { 28, -ENOSPC },
    { 95, -EOPNOTSUPP }, { 4711, -EIO },
  };
  struct io_store *s = open_store (20);
  uint8_t buf[4096];
  unsigned i;

  for (i = 0; i < sizeof errors / sizeof errors[0]; i++) {
    set_plan (ONCE (FAKE_WRITE, errors[i].nbd));
    assert_int_equal (try_write (s, 0, 1), errors[i].here);
    set_plan (ONCE (FAKE_READ, errors[i].nbd));
    assert_int_equal (io_pread (s, buf, sizeof buf, 0), errors[i].here);
    set_plan (ONCE (FAKE_TRIM, errors[i].nbd));
    assert_int_equal (io_discard (s, 0, 4096), errors[i].here);
  }
  set_plan (ONCE (FAKE_FLUSH, 28));
  assert_int_equal (io_sync (s), -EIO);
  set_plan (NOTHING);
  fake_cut (&server);
  assert_bytes (s, 0, 0);
  assert_int_equal (seen (FAKE_WRITE), 0);
  io_close (s);
}

/* A flush that failed made nothing durable: the log keeps all. */
static void
a_failed_flush_drops_nothing (void **state)
{
  struct io_store *s = open_store (20);

  write_at (s, 0, 1);
  set_plan (ONCE (FAKE_FLUSH, 5));
  assert_int_equal (io_sync (s), -EIO);
  fake_stop (&server);
  fake_lose (&server);
  fake_start (&server);
  assert_bytes (s, 0, 1);
  io_close (s);
}

static void *
sync_once (void *opaque)
{
  return (void *) (intptr_t) io_sync (opaque);
}

/* What is written while a flush is under way needs the next one. */
static void
a_flush_covers_only_what_was_answered_before_it (void **state)
{
  struct io_store *s = open_store (20);
  pthread_t t;
  void *r;

  write_at (s, 0, 1);
  set_plan (ONCE (FAKE_FLUSH, FAKE_LATE));
  assert_int_equal (pthread_create (&t, NULL, sync_once, s), 0);
  while (seen (FAKE_FLUSH) == 0)
    ;
  write_at (s, 8192, 2);
  pthread_join (t, &r);
  assert_int_equal ((intptr_t) r, 0);
  fake_stop (&server);
  fake_lose (&server);
  fake_start (&server);
  assert_bytes (s, 0, 1);
  assert_bytes (s, 8192, 2);
  io_close (s);
}

/* The write and the flush reach the server in any order, and are lost and asked
 * again on their own; in the end both are durable. */
static void
a_write_with_a_sync_makes_all_durable (void **state)
{
  static const int fates[] = {
    FAKE_DO, FAKE_CUT, FAKE_DO_AND_CUT, FAKE_CRASH, FAKE_DO_AND_CRASH,
  };
  uint8_t one[4096], two[4096];
  const struct iovec iov[] = { { one, sizeof one }, { two, sizeof two } };
  struct io_store *s;
  uint64_t at = 0;
  unsigned i, k;

  memset (one, 1, sizeof one);
  memset (two, 2, sizeof two);
  for (i = 0; i < 20; i++, at += 16384) {
    server.flags = i < 10 ? FAKE_ALL : FAKE_ALL & ~FAKE_FUA;
    s = open_store (20);
    write_at (s, at, 3);
    set_plan (ONCE (i % 2 ? FAKE_WRITE : FAKE_FLUSH, fates[i / 2 % 5]));
    assert_int_equal (io_pwritev_sync (s, iov, 2, at + 4096), 0);
    for (k = 0; k < 3; k++)
      assert_int_equal (server.flushed[at + k * 4096 + 4095],
                        k == 0 ? 3 : k);
    io_close (s);
    assert_int_equal (plan.durable > 0, i < 10);
  }
}

/* Its own entry stays, as the flush need not cover it.  But it has landed. */
static void
a_write_with_a_sync_ends_what_is_to_be_repeated (void **state)
{
  struct io_store *s = open_store (20);
  uint8_t buf[4096] = { 0 };
  const struct iovec iov = { buf, sizeof buf };

  write_at (s, 0, 1);
  write_at (s, 8192, 2);
  assert_int_equal (io_pwritev_sync (s, &iov, 1, 16384), 0);
  set_plan (NOTHING);
  fake_cut (&server);
  assert_bytes (s, 0, 1);
  assert_int_equal (seen (FAKE_WRITE), 1);
  io_close (s);
}

/* What is durable cannot land later, nor can it when it was sent again and answered. */
static void
a_durable_write_is_not_tainted_by_a_loss (void **state)
{
  struct io_store *s = open_store (20);
  uint8_t buf[4096] = { 0 };
  const struct iovec iov = { buf, sizeof buf };
  unsigned i;

  assert_int_equal (io_pwritev_sync (s, &iov, 1, 16384), 0);
  for (i = 0; i < 3; i++) {
    set_plan (NOTHING);
    fake_cut (&server);
    assert_bytes (s, 0, 0);
    assert_int_equal (seen (FAKE_WRITE), 1);
    assert_int_equal (plan.durable, 1);
    assert_false (io_tainted (s, 0, SIZE));
  }
  set_plan (NOTHING);
  write_at (s, 16384, 3);
  assert_int_equal (seen (FAKE_FLUSH), 0);
  set_plan (NOTHING);
  fake_cut (&server);
  assert_bytes (s, 16384, 3);
  assert_int_equal (seen (FAKE_WRITE), 1);      /* of two versions the younger one */
  assert_true (io_tainted (s, 16384, 4096));
  io_close (s);
}

/* The durable write gets no answer when it is sent again. */
static void
a_durable_write_that_is_lost_again_is_tainted (void **state)
{
  struct io_store *s = open_store (20);
  uint8_t buf[4096] = { 0 };
  const struct iovec iov = { buf, sizeof buf };

  assert_int_equal (io_pwritev_sync (s, &iov, 1, 16384), 0);
  set_plan (ONCE (FAKE_WRITE, FAKE_STRAY));
  fake_cut (&server);
  assert_bytes (s, 0, 0);
  assert_true (io_tainted (s, 16384, 4096));
  io_close (s);
}

static void
a_write_with_a_sync_fails_like_either (void **state)
{
  struct io_store *s = open_store (20);
  uint8_t buf[4096] = { 0 };
  const struct iovec iov = { buf, sizeof buf };

  set_plan (ONCE (FAKE_WRITE, 28));
  assert_int_equal (io_pwritev_sync (s, &iov, 1, 0), -ENOSPC);
  set_plan (ONCE (FAKE_FLUSH, 5));
  assert_int_equal (io_pwritev_sync (s, &iov, 1, 0), -EIO);
  assert_int_equal (io_pwritev_sync (s, &iov, 1, SIZE - 100), -ENOSPC);
  io_close (s);
}

/* --- Random ------------------------------------------------------------- */

#define THREADS 4
#define OWN (SIZE / THREADS)
#define SLOTS (OWN / 4096)

struct worker {
  struct io_store *s;
  uint64_t from;
  unsigned seed;
  int r;
  uint8_t model[SLOTS];
};

/* Writes to a tainted place are refused, and leave what is there. */
static int
random_call (struct worker *w)
{
  const uint64_t slot = (unsigned) rand_r (&w->seed) % SLOTS;
  const uint64_t off = w->from + slot * 4096;
  const uint8_t byte = (uint8_t) (rand_r (&w->seed) >> 8);
  const bool tainted = io_tainted (w->s, off, 4096);
  uint8_t buf[4096];
  int r;

  if (rand_r (&w->seed) % 16 == 0)
    return io_sync (w->s);
  if (rand_r (&w->seed) % 2) {
    memset (buf, byte, sizeof buf);
    r = io_pwrite (w->s, buf, sizeof buf, off);
    /* A place may become tainted while the call waits. */
    if (tainted || r == -ESTALE)
      return r == -ESTALE && io_tainted (w->s, off, 4096) ? 0 : -EINVAL;
    if (r == 0)
      w->model[slot] = byte;
    return r;
  }
  r = io_pread (w->s, buf, sizeof buf, off);
  return r < 0 || (buf[0] == w->model[slot] && buf[4095] == buf[0])
    ? r : -ERANGE;
}

static void *
work_at_random (void *opaque)
{
  struct worker *w = opaque;
  unsigned i;

  for (i = 0; i < 300 && w->r == 0; i++)
    w->r = random_call (w);
  return NULL;
}

static void
random_work_survives_random_losses (void **state)
{
  static struct worker w[THREADS];
  struct io_store *s = open_store (60);
  pthread_t t[THREADS];
  unsigned i, k;

  /* Connections are made at most each second. */
  set_plan ((struct plan) { .random_every = 250, .seed = seed });
  memset (w, 0, sizeof w);
  for (i = 0; i < THREADS; i++) {
    w[i].s = s;
    w[i].from = i * OWN;
    w[i].seed = seed + i;
    assert_int_equal (pthread_create (&t[i], NULL, work_at_random, &w[i]), 0);
  }
  for (i = 0; i < THREADS; i++) {
    pthread_join (t[i], NULL);
    assert_int_equal (w[i].r, 0);
  }
  set_plan (NOTHING);
  assert_int_equal (io_sync (s), 0);
  for (i = 0; i < THREADS; i++)
    for (k = 0; k < SLOTS; k++)
      assert_int_equal (server.flushed[w[i].from + k * 4096], w[i].model[k]);
  assert_true (count_lines (&lines.lost) > 0);
  io_close (s);
}

/* --- Silence ------------------------------------------------------------ */

static void
a_silent_server_is_left (void **state)
{
  struct io_store *s = open_store (4);
  int64_t began;

  write_at (s, 0, 1);
  set_plan (ONCE (FAKE_READ, FAKE_SILENCE));
  began = now_ms ();
  assert_bytes (s, 0, 1);
  assert_in_range (now_ms () - began, 2900, 3990);
  assert_lines (&lines.lost, 1);
  io_close (s);
}

static void
a_server_that_stays_silent_is_given_up (void **state)
{
  struct io_store *s = open_store (2);
  int64_t began = now_ms ();

  set_plan ((struct plan) { .nr = 1000, .fate = FAKE_SILENCE, .type = -1,
                            .off = UINT64_MAX });
  assert_int_equal (try_write (s, 0, 1), -EIO);
  assert_in_range (now_ms () - began, 1400, 4000);
  assert_lines (&lines.given_up, 1);
  io_close (s);
  assert_in_range (now_ms () - began, 1400, 6000);
}

/* --- Giving up ---------------------------------------------------------- */

static void *
read_once (void *opaque)
{
  static uint8_t buf[4096];

  return (void *) (intptr_t) io_pread (opaque, buf, sizeof buf, 0);
}

static void
after_the_delay_all_calls_fail_and_one_line_says_so (void **state)
{
  struct io_store *s = open_store (1);
  int64_t began = now_ms ();
  pthread_t t;
  void *r;

  write_at (s, 0, 1);
  fake_stop (&server);
  assert_int_equal (pthread_create (&t, NULL, read_once, s), 0);
  assert_int_equal (try_write (s, 0, 2), -EIO);
  pthread_join (t, &r);
  assert_int_equal ((intptr_t) r, -EIO);
  assert_in_range (now_ms () - began, 900, 3000);
  fake_start (&server);
  assert_int_equal (try_write (s, 0, 2), -EIO);
  assert_int_equal (io_sync (s), -EIO);
  assert_int_equal (io_discard (s, 0, 4096), -EIO);
  io_close (s);
  assert_lines (&lines.given_up, 1);
  assert_lines (&lines.lost, 1);
}

/* A request that kills each server that gets it does not do so for ever. */
static void
a_request_that_ends_each_connection_is_given_up (void **state)
{
  static const enum fake_type types[] = { FAKE_READ, FAKE_WRITE };
  uint8_t buf[4096] = { 0 };
  struct io_store *s;
  int64_t began;
  unsigned i;
  int r;

  for (i = 0; i < 2; i++) {
    s = open_store (3);
    began = now_ms ();
    set_plan ((struct plan) { .nr = 1000, .fate = FAKE_CUT,
                              .type = types[i], .off = 8192 });
    write_at (s, 0, 1);
    r = types[i] == FAKE_READ ? io_pread (s, buf, sizeof buf, 8192)
      : io_pwrite (s, buf, sizeof buf, 8192);
    assert_int_equal (r, -EIO);
    assert_in_range (now_ms () - began, 2000, 8000);
    assert_lines (&lines.given_up, 1);
    io_close (s);
  }
}

/* Whatever the reason is, and though the connections are good. */
static void
giving_up_ends_requests_under_way (void **state)
{
  struct io_store *s = open_store (1000);
  const struct timespec until = { .tv_sec = time (NULL) + 20 };
  pthread_t t;
  void *r;

  set_plan ((struct plan) { .nr = 1000, .fate = FAKE_SILENCE, .type = FAKE_READ,
                            .off = UINT64_MAX });
  assert_int_equal (pthread_create (&t, NULL, read_once, s), 0);
  while (seen (FAKE_READ) == 0)
    usleep (1000);
  io_nbd_link_give_up ((struct io_nbd *) s, "so says the test");
  assert_int_equal (pthread_timedjoin_np (t, &r, &until), 0);
  assert_int_equal ((intptr_t) r, -EIO);
  io_close (s);
}

static void
close_ends_without_a_server (void **state)
{
  struct io_store *s = open_store (1000);
  int64_t began;

  write_at (s, 0, 1);
  fake_stop (&server);
  usleep (100000);
  began = now_ms ();
  io_close (s);
  assert_true (now_ms () - began < 3000);
  fake_start (&server);
}

/* Somebody listens, but never says a word. */
static void
close_ends_while_connecting (void **state)
{
  struct io_store *s = open_store (1000);
  int64_t began;

  fake_stop (&server);
  fake_listen (&server);
  usleep (1500000);
  began = now_ms ();
  io_close (s);
  assert_true (now_ms () - began < 2000);
  close (server.listener);
  fake_start (&server);
}

static void
a_fork_may_come_while_the_link_is_down (void **state)
{
  struct io_store *s = open_store (20);

  write_at (s, 0, 1);
  fake_stop (&server);
  fake_lose (&server);
  while (count_lines (&lines.lost) == 0)
    usleep (1000);
  io_before_fork (s);
  fake_start (&server);
  usleep (100000);
  assert_int_equal (server.nr_connections, 2);  /* nobody connects */
  assert_int_equal (io_after_fork (s), 0);
  assert_bytes (s, 0, 1);
  write_at (s, 8192, 2);
  io_before_fork (s);
  assert_int_equal (io_after_fork (s), 0);
  assert_bytes (s, 8192, 2);
  io_close (s);
}

/* The replay waits for a reply that does not come. */
static void
close_ends_while_the_server_is_silent (void **state)
{
  struct io_store *s = open_store (1000);
  int64_t began;

  write_at (s, 0, 1);
  set_plan ((struct plan) { .nr = 1000, .fate = FAKE_SILENCE, .type = -1,
                            .off = UINT64_MAX });
  fake_cut (&server);
  while (seen (FAKE_WRITE) == 0)
    usleep (1000);
  began = now_ms ();
  io_close (s);
  assert_true (now_ms () - began < 4000);
}

/* A thread that reads ahead waits for the reply itself. */
static void
close_ends_while_something_is_read_ahead (void **state)
{
  struct io_store *s = open_store (1000);
  const struct io_part part = { .host_off = 8192, .len = 4096 };
  int64_t began;

  set_plan ((struct plan) { .nr = 1000, .fate = FAKE_SILENCE, .type = FAKE_READ,
                            .off = UINT64_MAX });
  assert_true (io_will_need (s, &part, 1, false));
  while (seen (FAKE_READ) == 0)
    usleep (1000);
  began = now_ms ();
  io_close (s);
  assert_true (now_ms () - began < 4000);
}

static void
a_smaller_export_is_another_one (void **state)
{
  struct io_store *s = open_store (1);

  write_at (s, 0, 1);
  fake_stop (&server);
  server.size = SIZE / 2;
  fake_start (&server);
  assert_int_equal (try_write (s, 0, 2), -EIO);
  io_close (s);
  assert_lines (&lines.given_up, 1);

  fake_stop (&server);
  server.size = SIZE;
  fake_start (&server);
  s = open_store (1);
  fake_stop (&server);
  server.flags = FAKE_ALL | FAKE_READ_ONLY;
  fake_start (&server);
  assert_int_equal (try_write (s, 0, 2), -EIO);
  io_close (s);
}

static void
writes_that_cannot_be_repeated_end_the_store (void **state)
{
  struct io_store *s = open_store (3);

  write_at (s, 0, 1);
  set_plan ((struct plan) { .nr = 1000, .fate = 28, .type = FAKE_WRITE,
                            .off = UINT64_MAX });
  fake_cut (&server);
  while (count_lines (&lines.given_up) == 0)
    usleep (1000);
  assert_int_equal (try_write (s, 4096, 1), -EIO);
  assert_int_equal (io_sync (s), -EIO);
  io_close (s);
}

/* --- Taint -------------------------------------------------------------- */

static void
a_lost_write_taints_its_range (void **state)
{
  struct io_store *s = open_store (20);

  write_at (s, 0, 1);
  assert_int_equal (io_sync (s), 0);
  assert_false (io_tainted (s, 0, SIZE));
  set_plan (ONCE (FAKE_WRITE, FAKE_STRAY));
  write_at (s, 8192, 2);
  assert_lines (&lines.back, 1);
  assert_true (io_tainted (s, 0, SIZE));
  assert_true (io_tainted (s, 12287, 1));
  assert_false (io_tainted (s, 12288, 100));
  assert_false (io_tainted (s, 0, 8192));
  assert_false (io_tainted (s, 8192, 0));
  assert_int_equal (try_write (s, 8192, 3), -ESTALE);
  assert_int_equal (try_write (s, 8192 - 1, 3), -ESTALE);
  assert_int_equal (io_discard (s, 4096, 8192), -ESTALE);
  write_at (s, 4096, 4);
  write_at (s, 12288, 5);
  assert_int_equal (io_sync (s), 0);
  fake_land (&server);
  assert_bytes (s, 0, 1);
  assert_bytes (s, 4096, 4);
  assert_bytes (s, 8192, 2);
  assert_bytes (s, 12288, 5);
  io_close (s);

  s = open_store (20);
  assert_false (io_tainted (s, 0, SIZE));
  write_at (s, 8192, 6);
  io_close (s);
}

/* Of two versions the older one might land over the younger one, which is written
 * again. */
static void
of_each_byte_one_version_is_not_flushed (void **state)
{
  struct io_store *s = open_store (20);
  uint8_t buf[8192] = { 0 };
  const struct iovec iov = { buf, sizeof buf };

  set_plan (NOTHING);
  assert_int_equal (io_discard (s, 8192, 16384), 0);
  write_at (s, 0, 1);
  write_at (s, 4096, 1);
  assert_int_equal (seen (FAKE_FLUSH), 0);
  write_at (s, 12288, 2);
  assert_int_equal (seen (FAKE_FLUSH), 1);
  write_at (s, 8192, 2);
  assert_int_equal (seen (FAKE_FLUSH), 1);
  assert_int_equal (io_discard (s, 12288, 4096), 0);
  assert_int_equal (seen (FAKE_FLUSH), 2);
  assert_int_equal (io_pwritev_sync (s, &iov, 1, 8192), 0);
  assert_int_equal (seen (FAKE_FLUSH), 4);
  io_close (s);

  s = open_fenced ();
  assert_int_equal (io_discard (s, 8192, 4096), 0);
  write_at (s, 8192, 2);
  assert_int_equal (seen (FAKE_FLUSH), 4);
  io_close (s);
}

static void
a_lost_trim_taints_its_range (void **state)
{
  struct io_store *s = open_store (20);

  write_at (s, 8192, 1);
  set_plan (ONCE (FAKE_TRIM, FAKE_STRAY));
  assert_int_equal (io_discard (s, 8192, 4096), 0);
  assert_int_equal (try_write (s, 8192, 2), -ESTALE);
  io_close (s);
}

/* A server with a cache answers before it has passed a write on. */
static void
what_was_not_flushed_is_tainted_by_a_loss (void **state)
{
  struct io_store *s = open_store (20);

  write_at (s, 0, 1);
  assert_int_equal (io_sync (s), 0);
  write_at (s, 8192, 2);
  set_plan (NOTHING);
  fake_cut (&server);
  assert_bytes (s, 8192, 2);
  assert_true (io_tainted (s, 8192, 4096));
  assert_false (io_tainted (s, 0, 8192));
  assert_int_equal (try_write (s, 8192, 3), -ESTALE);
  write_at (s, 0, 4);
  io_close (s);
}

static void
taint_can_be_forgotten (void **state)
{
  struct io_store *s = open_store (20);

  write_at (s, 8192, 2);
  write_at (s, 12288, 2);
  set_plan (NOTHING);
  fake_cut (&server);
  assert_bytes (s, 8192, 2);
  assert_int_equal (io_forget_taint (s, 8192, 4096), 0);
  assert_int_equal (try_write (s, 12288, 3), -ESTALE);
  write_at (s, 8192, 3);
  io_close (s);
}

static void
fenced_storage_taints_nothing (void **state)
{
  struct io_store *s = open_with ((struct io_nbd_params) {
      .reconnect_delay = 20, .fenced = true });

  write_at (s, 8192, 2);
  set_plan (ONCE (FAKE_WRITE, FAKE_CUT));
  write_at (s, 12288, 2);
  assert_lines (&lines.back, 1);
  assert_false (io_tainted (s, 0, SIZE));
  write_at (s, 8192, 3);
  write_at (s, 12288, 3);
  assert_bytes (s, 8192, 3);
  assert_bytes (s, 12288, 3);
  io_close (s);
}

static void
reads_and_flushes_taint_nothing (void **state)
{
  struct io_store *s = open_store (20);
  unsigned i;

  write_at (s, 8192, 1);
  assert_int_equal (io_sync (s), 0);
  for (i = 0; i < 2; i++) {
    set_plan (ONCE (i == 0 ? FAKE_READ : FAKE_FLUSH, FAKE_CUT));
    assert_bytes (s, 8192, 1);
    assert_int_equal (io_sync (s), 0);
    assert_false (io_tainted (s, 0, SIZE));
  }
  io_close (s);
}

/* A repeated write that got no answer is one that may land later, too: after
 * it, the place does not change any more. */
static void
a_lost_repetition_taints_its_range (void **state)
{
  struct io_store *s = open_store (20);

  write_at (s, 8192, 1);
  write_at (s, 8192, 2);
  set_plan (ONCE (FAKE_WRITE, FAKE_STRAY));
  fake_cut (&server);
  while (count_lines (&lines.back) == 0)
    usleep (1000);
  assert_int_equal (try_write (s, 8192, 3), -ESTALE);
  fake_land (&server);
  assert_bytes (s, 8192, 2);
  io_close (s);
}

/* --- may_resume --------------------------------------------------------- */

static struct resume {
  struct io_store *s;
  int answer;
  unsigned calls, cut_first;
  unsigned writes_before;
  int r;
} resume;

static int
ask_resume (void *opaque)
{
  uint8_t buf[4096];

  if (resume.calls == 0)
    resume.writes_before = seen (FAKE_WRITE);
  if (resume.calls++ < resume.cut_first) {
    fake_cut (&server);
    resume.r = io_pread (resume.s, buf, sizeof buf, 0);
    return resume.r;
  }
  if (resume.answer < 0)
    return resume.answer;
  if (io_pread (resume.s, buf, sizeof buf, SIZE - 4096) < 0)
    return -EIO;
  memset (buf, 9, sizeof buf);
  if (io_pwrite (resume.s, buf, sizeof buf, SIZE - 4096) < 0)
    return -EIO;
  return io_sync (resume.s);
}

/* Fenced, as may_resume writes to a place of unflushed writes. */
static struct io_store *
open_asking (struct resume with)
{
  resume = with;
  resume.s = open_with ((struct io_nbd_params) {
      .reconnect_delay = 20, .may_resume = ask_resume, .fenced = true });
  return resume.s;
}

static void
resuming_is_asked_before_anything_is_written (void **state)
{
  struct io_store *s = open_asking ((struct resume) { 0 });

  write_at (s, 0, 1);
  write_at (s, SIZE - 4096, 1);
  assert_int_equal (resume.calls, 0);
  set_plan (NOTHING);
  fake_cut (&server);
  assert_bytes (s, 0, 1);
  assert_int_equal (resume.calls, 1);
  assert_int_equal (resume.writes_before, 0);
  /* What was written there is younger than the log. */
  assert_bytes (s, SIZE - 4096, 9);
  io_close (s);
}

/* A flush that is answered before the log was written again covers nothing of it. */
static void
a_flush_of_resuming_keeps_what_must_be_written_again (void **state)
{
  struct io_store *s = open_asking ((struct resume) { 0 });

  write_at (s, 0, 1);
  write_at (s, SIZE - 4096, 1);
  fake_lose (&server);
  fake_cut (&server);
  assert_bytes (s, 0, 1);
  assert_int_equal (resume.calls, 1);
  assert_bytes (s, SIZE - 4096, 9);
  io_close (s);
}

static void
a_refusal_to_resume_is_final (void **state)
{
  struct io_store *s = open_asking ((struct resume) { .answer = -ESTALE });

  write_at (s, 0, 1);
  set_plan (NOTHING);
  fake_cut (&server);
  while (count_lines (&lines.given_up) == 0)
    usleep (1000);
  assert_int_equal (try_write (s, 0, 2), -EIO);
  assert_int_equal (resume.calls, 1);
  assert_int_equal (seen (FAKE_WRITE), 0);
  io_close (s);
}

static void
resuming_is_asked_again_after_another_loss (void **state)
{
  struct io_store *s = open_asking ((struct resume) { .cut_first = 1 });

  write_at (s, 0, 1);
  fake_cut (&server);
  assert_bytes (s, 0, 1);
  assert_int_equal (resume.r, -EIO);
  assert_int_equal (resume.calls, 2);
  assert_lines (&lines.given_up, 0);
  io_close (s);
}

/* may_resume looks for a place where nothing lands later (io_tainted); what it writes
 * there is on a connection that is good. */
static int
ask_for_a_clean_place (void *opaque)
{
  uint64_t *place = opaque;
  uint8_t buf[4096] = { 7 };

  while (io_tainted (resume.s, *place, sizeof buf))
    *place += 4096;
  if (io_pwrite (resume.s, buf, sizeof buf, *place) < 0)
    return -EIO;
  return io_sync (resume.s);
}

static void
what_may_land_is_tainted_before_resuming_is_asked (void **state)
{
  uint64_t place = 0;
  struct io_store *s = resume.s = open_with ((struct io_nbd_params) {
      .reconnect_delay = 20, .may_resume = ask_for_a_clean_place, .opaque = &place });
  unsigned i;

  write_at (s, 0, 1);
  write_at (s, 4096, 1);
  fake_cut (&server);
  assert_bytes (s, 0, 1);
  assert_int_equal (place, 8192);
  for (i = 0; i < 5; i++) {     /* a place that nobody writes to serves for ever */
    assert_false (io_tainted (s, place, 4096));
    assert_int_equal (io_sync (s), 0);
    fake_cut (&server);
    assert_bytes (s, 0, 1);
    assert_int_equal (place, 8192);
  }
  io_close (s);
}

/* There are 16 slots for its record; each loss that taints one takes two of them. */
static void
a_lease_survives_any_number_of_losses (void **state)
{
  struct io_store **self = calloc (1, sizeof *self);
  struct io_lease_params p = { .self = self };
  struct io_store *s, *nbd;
  unsigned i;

  assert_non_null (self);
  nbd = open_with ((struct io_nbd_params) {
      .reconnect_delay = 20, .may_resume = io_lease_may_resume, .opaque = self });
  assert_int_equal (io_lease_take (nbd, &p, &s, NULL), 0);
  for (i = 0; i < 20; i++) {
    write_at (s, i * 4096, 1);
    if (i % 2)
      assert_int_equal (io_sync (s), 0);
    fake_cut (&server);
    assert_bytes (s, i * 4096, 1);
  }
  io_close (s);
}

/* A server that was just started may refuse writes for a while, as one of Ceph does
 * that waits for the lock of its predecessor. */
static void
repeated_writes_may_be_refused_for_a_while (void **state)
{
  struct io_store *s = open_store (20);

  write_at (s, 0, 1);
  forget_lines ();
  set_plan (ONCE (FAKE_WRITE, EIO));
  fake_lose (&server);
  fake_cut (&server);
  assert_bytes (s, 0, 1);
  assert_true (seen (FAKE_WRITE) >= 2);
  assert_lines (&lines.given_up, 0);
  io_close (s);
}

/* --- The log is bounded ------------------------------------------------- */

static void
the_store_flushes_before_the_log_grows (void **state)
{
  static uint8_t buf[SIZE];
  struct io_store *s = open_fenced ();
  unsigned i;

  for (i = 0; i < 100; i++) {
    memset (buf, (int) i, sizeof buf);
    assert_int_equal (io_pwrite (s, buf, sizeof buf, 0), 0);
    assert_int_equal (seen (FAKE_FLUSH), i < 64 ? 0 : 1);
  }
  set_plan (ONCE (FAKE_FLUSH, 5));
  for (i = 0; i < 40 && io_pwrite (s, buf, sizeof buf, 0) == 0; i++)
    ;
  assert_int_equal (i, 28);
  assert_int_equal (io_sync (s), -EIO);
  assert_int_equal (io_sync (s), 0);
  io_close (s);
}

/* --- Memory of the log --------------------------------------------------- */

static struct io_nbd logged;
static uint8_t logged_bytes[256 << 10];

/* Notes a write of LEN bytes that are all BYTE, at offset 1 MiB * BYTE, and its answer. */
static void
log_write (uint8_t byte, uint64_t len)
{
  struct nbd_cmd cmd = { .type = NBD_WRITE, .buf = logged_bytes, .len = len,
                         .off = (uint64_t) byte << 20 };

  memset (logged_bytes, byte, sizeof logged_bytes);
  assert_int_equal (io_nbd_log_begin (&logged, &cmd), 0);
  io_nbd_log_fill (&cmd);
  memset (logged_bytes, 0, sizeof logged_bytes);
  io_nbd_log_end (&logged, &cmd);
}

/* Only the write of BYTE would be written again. */
static void
assert_logged (uint8_t byte, uint64_t len)
{
  struct nbd_replay p = { 0 };
  uint64_t k;

  assert_int_equal (io_nbd_log_begin_replay (&logged, &p), 0);
  assert_int_equal (p.nr, 1);
  assert_int_equal (p.cmds->off, (uint64_t) byte << 20);
  assert_int_equal (p.cmds->len, len);
  for (k = 0; k < len; k++)
    assert_int_equal (((uint8_t *) p.cmds->buf)[k], byte);
  assert_int_equal (io_nbd_log_end_replay (&logged, &p), 0);
}

static void
memory_of_dropped_copies_is_used_again (void **state)
{
  const uint64_t kib = 1024;
  struct nbd_log *log = &logged.written;
  uint64_t flush;

  logged = (struct io_nbd) { .delay_ms = 1000, .fenced = true };
  io_nbd_log_init (log);
  log_write (1, 128 * kib);
  flush = io_nbd_log_begin_flush (&logged);
  log_write (2, 128 * kib);
  io_nbd_log_flushed (&logged, flush);
  assert_int_equal (log->spare_bytes, 128 * kib);
  assert_logged (2, 128 * kib);

  log_write (3, 200 * kib);                     /* too large for it */
  log_write (4, 40 * kib);                      /* too small */
  assert_int_equal (log->spare_bytes, 128 * kib);
  flush = io_nbd_log_begin_flush (&logged);
  log_write (5, 100 * kib);
  assert_int_equal (log->spare_bytes, 0);
  io_nbd_log_flushed (&logged, flush);
  assert_int_equal (log->spare_bytes, (128 + 200) * kib);
  assert_logged (5, 100 * kib);

  flush = io_nbd_log_begin_flush (&logged);     /* nothing is left */
  io_nbd_log_flushed (&logged, flush);
  assert_int_equal (log->bytes + log->spare_bytes, 0);
  assert_null (log->spare);
  io_nbd_log_destroy (log);
}

/* Memory of another size than what comes is freed when the log needs the space. */
static void
spare_memory_is_within_the_bound_of_the_log (void **state)
{
  const uint64_t bound = UINT64_C (64) << 20;
  struct nbd_log *log = &logged.written;
  uint64_t flush;
  unsigned i;

  logged = (struct io_nbd) { .delay_ms = 1000, .fenced = true };
  io_nbd_log_init (log);
  for (i = 0; i < 256; i++)
    log_write (1, 256 << 10);
  flush = io_nbd_log_begin_flush (&logged);
  log_write (2, 64 << 10);
  io_nbd_log_flushed (&logged, flush);
  assert_true (log->spare_bytes > bound / 2);
  for (i = 0; i < 1000; i++) {
    log_write (2, 64 << 10);
    assert_true (log->bytes + log->spare_bytes <= bound);
  }
  io_nbd_log_destroy (log);
  assert_null (log->spare);
}

/* Without a time to reconnect there is no log. */
static void
without_a_delay_nothing_is_kept (void **state)
{
  static uint8_t buf[SIZE];
  struct io_store *s = open_store (0);
  unsigned i;

  for (i = 0; i < 80; i++)
    assert_int_equal (io_pwrite (s, buf, sizeof buf, 0), 0);
  assert_int_equal (seen (FAKE_FLUSH), 0);
  fake_cut (&server);
  while (count_lines (&lines.given_up) == 0)
    usleep (1000);
  assert_int_equal (try_write (s, 0, 1), -EIO);
  io_close (s);
}

/* --- A real server ------------------------------------------------------ */

static void
a_killed_nbdkit_is_waited_for (void **state)
{
  static const struct log_sink sink = { .write = note_line };
  struct nbd_server real;
  struct io_nbd_params p = { .writable = true, .reconnect_delay = 20,
                             .log = &sink };
  struct io_store *s;
  char line[300];
  unsigned i;

  nbd_server_init (&real);
  snprintf (line, sizeof line, "file %s/disk", real.dir);
  nbd_server_start (&real, line);       /* there is no file yet */
  nbd_server_kill (&real);
  snprintf (line, sizeof line, "truncate -s 1M %s/disk", real.dir);
  assert_int_equal (system (line), 0);
  snprintf (line, sizeof line, "file %s/disk", real.dir);
  nbd_server_start (&real, line);
  p.uri = real.uri;
  assert_int_equal (io_nbd_open (&p, &s, NULL), 0);
  for (i = 0; i < 5; i++) {
    write_at (s, i * 8192, (uint8_t) (i + 1));
    nbd_server_kill (&real);
    nbd_server_start (&real, line);
    assert_bytes (s, i * 8192, (uint8_t) (i + 1));
  }
  assert_int_equal (io_sync (s), 0);
  io_close (s);
  nbd_server_end (&real);
}

#define TEST(fn) cmocka_unit_test_setup_teardown (fn, begin, end)

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (ranges_are_a_set_of_bytes),
    TEST (unflushed_writes_are_written_again),
    TEST (the_end_of_one_idle_connection_is_a_loss),
    TEST (flushed_writes_are_not),
    TEST (the_youngest_write_wins),
    TEST (no_call_notices_a_lost_connection),
    TEST (a_connection_may_break_while_writes_are_repeated),
    TEST (errors_come_through_and_nothing_is_repeated),
    TEST (a_failed_flush_drops_nothing),
    TEST (a_flush_covers_only_what_was_answered_before_it),
    TEST (a_write_with_a_sync_makes_all_durable),
    TEST (a_write_with_a_sync_ends_what_is_to_be_repeated),
    TEST (a_durable_write_is_not_tainted_by_a_loss),
    TEST (a_durable_write_that_is_lost_again_is_tainted),
    TEST (a_write_with_a_sync_fails_like_either),
    TEST (random_work_survives_random_losses),
    TEST (a_silent_server_is_left),
    TEST (a_server_that_stays_silent_is_given_up),
    TEST (after_the_delay_all_calls_fail_and_one_line_says_so),
    TEST (a_request_that_ends_each_connection_is_given_up),
    TEST (giving_up_ends_requests_under_way),
    TEST (close_ends_without_a_server),
    TEST (close_ends_while_connecting),
    TEST (a_fork_may_come_while_the_link_is_down),
    TEST (close_ends_while_the_server_is_silent),
    TEST (close_ends_while_something_is_read_ahead),
    TEST (a_smaller_export_is_another_one),
    TEST (writes_that_cannot_be_repeated_end_the_store),
    TEST (a_lost_write_taints_its_range),
    TEST (of_each_byte_one_version_is_not_flushed),
    TEST (a_lost_trim_taints_its_range),
    TEST (what_was_not_flushed_is_tainted_by_a_loss),
    TEST (taint_can_be_forgotten),
    TEST (fenced_storage_taints_nothing),
    TEST (reads_and_flushes_taint_nothing),
    TEST (a_lost_repetition_taints_its_range),
    TEST (resuming_is_asked_before_anything_is_written),
    TEST (a_flush_of_resuming_keeps_what_must_be_written_again),
    TEST (what_may_land_is_tainted_before_resuming_is_asked),
    TEST (a_lease_survives_any_number_of_losses),
    TEST (a_refusal_to_resume_is_final),
    TEST (repeated_writes_may_be_refused_for_a_while),
    TEST (resuming_is_asked_again_after_another_loss),
    TEST (the_store_flushes_before_the_log_grows),
    TEST (memory_of_dropped_copies_is_used_again),
    TEST (spare_memory_is_within_the_bound_of_the_log),
    TEST (without_a_delay_nothing_is_kept),
    TEST (a_killed_nbdkit_is_waited_for),
  };
  const char *given = getenv ("NBD_SEED"), *tmp = getenv ("TMPDIR");
  int r;

  seed = given ? (unsigned) strtoul (given, NULL, 0) : (unsigned) time (NULL);
  printf ("NBD_SEED=%u\n", seed);
  snprintf (dir, sizeof dir, "%.40s/test-link-XXXXXX", tmp ? tmp : "/tmp");
  if (mkdtemp (dir) == NULL)
    return 1;
  if (getenv ("NBD_TEST"))
    cmocka_set_test_filter (getenv ("NBD_TEST"));
  r = cmocka_run_group_tests (tests, NULL, NULL);
  rmdir (dir);
  return r;
}
