/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the byte stores in memory: plain, faulty and recording. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "io-promises.h"
#include "io.h"

static int
always (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  return 0;
}

static struct io_store *
new_memory (uint64_t size)
{
  struct io_store *s;

  assert_int_equal (io_memory_new (size, &s), 0);
  return s;
}

static struct io_store *
new_faulty (void)
{
  struct io_store *s;

  assert_int_equal (io_faulty_new (new_memory (0), always, NULL, &s), 0);
  return s;
}

static struct io_store *
new_recording (void)
{
  struct io_store *s;

  assert_int_equal (io_recording_new (new_memory (0), &s), 0);
  return s;
}

static void
every_store_in_memory_keeps_each_promise (void **state)
{
  size_t i;

  for (i = 0; i < NR_PROMISES; i++) {
    keeps (new_memory (0), promises[i]);
    keeps (new_faulty (), promises[i]);
    keeps (new_recording (), promises[i]);
  }
}

static void
closing_nothing_is_fine (void **state)
{
  io_close (NULL);
}

/* --- memory -------------------------------------------------------------- */

static void
memory_refuses_what_would_eat_the_machine (void **state)
{
  struct io_store *s;
  char c = 'x';

  assert_int_equal (io_memory_new (UINT64_C (1) << 40, &s), -ENOSPC);
  s = new_memory (100);
  assert_int_equal (io_pwrite (s, &c, 1, UINT64_C (1) << 40), -ENOSPC);
  assert_int_equal (io_truncate (s, UINT64_C (1) << 40), -ENOSPC);
  assert_int_equal (io_allocate (s, 0, UINT64_C (1) << 40), -ENOSPC);
  assert_int_equal (io_size (s), 100);
  io_close (s);
}

static void
memory_grows_with_its_bytes (void **state)
{
  static unsigned char data[1 << 20], buf[1 << 20];
  struct io_store *s = new_memory (10);
  uint64_t off;

  fill (data, sizeof data, 7);
  for (off = 0; off < sizeof data; off += 4096)
    assert_int_equal (io_pwrite (s, data + off, 4096, off), 0);
  assert_int_equal (io_pread (s, buf, sizeof buf, 0), 0);
  assert_memory_equal (buf, data, sizeof data);
  io_close (s);
}

/* --- faulty -------------------------------------------------------------- */

struct asked {
  int nr;
  enum io_call call;
  uint64_t host_off, len;
  int answer;
};

static int
ask_me (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  struct asked *a = opaque;

  a->nr++;
  a->call = call;
  a->host_off = host_off;
  a->len = len;
  return a->answer;
}

static void
assert_asked (const struct asked *a, int nr, enum io_call call,
              uint64_t host_off, uint64_t len)
{
  assert_int_equal (a->nr, nr);
  assert_int_equal (a->call, call);
  assert_int_equal (a->host_off, host_off);
  assert_int_equal (a->len, len);
}

static void
do_each_call (struct io_store *s, struct asked *a)
{
  char data[4] = "abcd";
  const struct iovec iov[] = { { data, 1 }, { data + 1, 3 } };
  int nr = a->nr;

  assert_int_equal (io_pwritev (s, iov, 2, 10), a->answer);
  assert_asked (a, nr + 1, IO_PWRITE, 10, 4);
  assert_int_equal (io_preadv (s, iov, 2, 10), a->answer);
  assert_asked (a, nr + 2, IO_PREAD, 10, 4);
  assert_int_equal (io_sync (s), a->answer);
  assert_asked (a, nr + 3, IO_SYNC, 0, 0);
  assert_int_equal (io_truncate (s, 20), a->answer);
  assert_asked (a, nr + 4, IO_TRUNCATE, 20, 0);
  assert_int_equal (io_allocate (s, 5, 30), a->answer);
  assert_asked (a, nr + 5, IO_ALLOCATE, 5, 30);
  assert_int_equal (io_discard (s, 2, 10), a->answer);
  assert_asked (a, nr + 6, IO_DISCARD, 2, 10);
  assert_int_equal (nr + 6, a->nr);
}

static void
faulty_asks_before_each_call_and_obeys (void **state)
{
  struct io_store *below = new_memory (0), *s;
  struct asked a = { .answer = -EIO };
  unsigned char buf[14];

  assert_int_equal (io_faulty_new (below, ask_me, &a, &s), 0);
  do_each_call (s, &a);
  assert_int_equal (io_size (below), 0);
  a.answer = 0;
  do_each_call (s, &a);
  assert_int_equal (io_size (s), 35);
  assert_int_equal (io_pread (below, buf, sizeof buf, 0), 0);
  assert_zeroes (buf, 12);
  assert_memory_equal (buf + 12, "cd", 2);
  io_close (s);
}

/* --- recording ----------------------------------------------------------- */

#define PLAY_SIZE (1 << 16)

static void
random_change (struct io_store *s, unsigned *seed)
{
  unsigned char data[5000];
  const uint64_t off = rand_r (seed) % PLAY_SIZE;
  const uint64_t len = rand_r (seed) % sizeof data;
  const struct iovec iov[] = { { data, len / 3 },
                               { data + len / 3, len - len / 3 } };

  switch (rand_r (seed) % 8) {
  case 0: assert_int_equal (io_sync (s), 0); break;
  case 1: assert_int_equal (io_discard (s, off, len), 0); break;
  case 2: assert_int_equal (io_truncate (s, off), 0); break;
  case 3: assert_int_equal (io_allocate (s, off, len), 0); break;
  default:
    fill (data, len, rand_r (seed));
    assert_int_equal (io_pwritev (s, iov, 2, off), 0);
  }
}

static void
replay (struct io_store *s, const struct io_record *log, size_t nr)
{
  size_t i;

  for (i = 0; i < nr; i++)
    switch (log[i].call) {
    case IO_PWRITE:
      assert_int_equal (io_pwrite (s, log[i].data, log[i].len,
                                   log[i].host_off), 0);
      break;
    case IO_DISCARD:
      assert_int_equal (io_discard (s, log[i].host_off, log[i].len), 0);
      break;
    case IO_TRUNCATE:
      assert_int_equal (io_truncate (s, log[i].host_off), 0);
      break;
    case IO_SYNC:
      break;
    default:
      fail_msg ("record %zu has call %d", i, log[i].call);
    }
}

static void
assert_same (struct io_store *a, struct io_store *b)
{
  static unsigned char x[PLAY_SIZE * 2], y[PLAY_SIZE * 2];

  assert_int_equal (io_size (a), io_size (b));
  assert_int_equal (io_pread (a, x, sizeof x, 0), 0);
  assert_int_equal (io_pread (b, y, sizeof y, 0), 0);
  assert_memory_equal (x, y, sizeof x);
}

static void
assert_replays (struct io_store *recording)
{
  const struct io_record *log;
  size_t nr = io_recording_log (recording, &log);
  struct io_store *copy = new_memory (0);

  replay (copy, log, nr);
  assert_same (recording, copy);
  io_close (copy);
}

static void
recording_replays_to_the_same_bytes (void **state)
{
  unsigned seed;
  struct io_store *s;
  int i;

  for (seed = 1; seed <= 5; seed++) {
    unsigned rnd = seed;

    s = new_recording ();
    for (i = 0; i < 400; i++)
      random_change (s, &rnd);
    assert_replays (s);
    io_close (s);
  }
}

/* RAM that returns late: between the effect of a write and its return,
 * others have every chance to overtake it on the way into the log. */
struct late {
  struct io_store store;
  struct io_store *below;
};

static int
late_pwritev (struct io_store *s, const struct iovec *iov, int iovcnt,
              uint64_t host_off)
{
  const struct timespec us = { .tv_nsec = 1000 * (iov->iov_len % 16) };
  int r = io_pwritev (((struct late *) s)->below, iov, iovcnt, host_off);

  nanosleep (&us, NULL);
  return r;
}

static int64_t
late_size (struct io_store *s)
{
  return io_size (((struct late *) s)->below);
}

static int
late_preadv (struct io_store *s, const struct iovec *iov, int iovcnt,
             uint64_t host_off)
{
  return io_preadv (((struct late *) s)->below, iov, iovcnt, host_off);
}

static void
late_close (struct io_store *s)
{
  io_close (((struct late *) s)->below);
}

static void *
write_a_lot (void *opaque)
{
  struct io_store *s = opaque;
  unsigned seed = (unsigned) (uintptr_t) &seed;
  unsigned char data[64];
  int i;

  for (i = 0; i < 200; i++) {
    fill (data, sizeof data, rand_r (&seed));
    assert_int_equal (io_pwrite (s, data, 1 + rand_r (&seed) % 64,
                                 rand_r (&seed) % 256), 0);
  }
  return NULL;
}

static void
recording_keeps_the_order_of_threads (void **state)
{
  const struct io_ops ops = { .preadv = late_preadv, .pwritev = late_pwritev,
                              .size = late_size, .close = late_close };
  struct late late = { .store.ops = &ops, .below = new_memory (0) };
  struct io_store *s;
  pthread_t threads[4];
  int i;

  assert_int_equal (io_recording_new (&late.store, &s), 0);
  for (i = 0; i < 4; i++)
    assert_int_equal (pthread_create (&threads[i], NULL, write_a_lot, s), 0);
  for (i = 0; i < 4; i++)
    assert_int_equal (pthread_join (threads[i], NULL), 0);
  assert_replays (s);
  io_close (s);
}

static void
assert_record (const struct io_record *r, enum io_call call,
               uint64_t host_off, uint64_t len)
{
  assert_int_equal (r->call, call);
  assert_int_equal (r->host_off, host_off);
  assert_int_equal (r->len, len);
}

static void
recording_has_one_record_per_change_in_order (void **state)
{
  struct io_store *s = new_recording ();
  const struct io_record *log;
  char data[4] = "abcd";

  assert_int_equal (io_pwrite (s, data, 4, 100), 0);
  data[0] = 'z';
  assert_int_equal (io_sync (s), 0);
  assert_int_equal (io_pread (s, data, 4, 100), 0);
  assert_int_equal (io_discard (s, 50, 60), 0);
  assert_int_equal (io_allocate (s, 0, 104), 0);
  assert_int_equal (io_allocate (s, 100, 100), 0);
  assert_int_equal (io_truncate (s, 10), 0);
  assert_int_equal (io_recording_log (s, &log), 5);
  assert_record (&log[0], IO_PWRITE, 100, 4);
  assert_memory_equal (log[0].data, "abcd", 4);
  assert_record (&log[1], IO_SYNC, 0, 0);
  assert_record (&log[2], IO_DISCARD, 50, 60);
  assert_record (&log[3], IO_TRUNCATE, 200, 0);
  assert_record (&log[4], IO_TRUNCATE, 10, 0);
  io_close (s);
}

static void
recording_leaves_failed_calls_out (void **state)
{
  struct asked a = { .answer = -EIO };
  const struct io_record *log;
  struct io_store *faulty, *s;

  assert_int_equal (io_faulty_new (new_memory (0), ask_me, &a, &faulty), 0);
  assert_int_equal (io_recording_new (faulty, &s), 0);
  assert_int_equal (io_pwrite (s, "x", 1, 0), -EIO);
  assert_int_equal (io_sync (s), -EIO);
  assert_int_equal (io_discard (s, 0, 1), -EIO);
  assert_int_equal (io_allocate (s, 0, 1), -EIO);
  assert_int_equal (io_truncate (s, 1), -EIO);
  assert_int_equal (io_recording_log (s, &log), 0);
  io_close (s);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (every_store_in_memory_keeps_each_promise),
    cmocka_unit_test (closing_nothing_is_fine),
    cmocka_unit_test (memory_refuses_what_would_eat_the_machine),
    cmocka_unit_test (memory_grows_with_its_bytes),
    cmocka_unit_test (faulty_asks_before_each_call_and_obeys),
    cmocka_unit_test (recording_replays_to_the_same_bytes),
    cmocka_unit_test (recording_keeps_the_order_of_threads),
    cmocka_unit_test (recording_has_one_record_per_change_in_order),
    cmocka_unit_test (recording_leaves_failed_calls_out),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
