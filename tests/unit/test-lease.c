/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests leases: the bytes of a record, what is refused and taken over, what a
 * holder may do when, and the thread that renews.
 * (tests/unit/test-lease-model.c tests the protocol.)  But for the thread,
 * time is the test's: it passes when a server sleeps. */
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
#include <sys/wait.h>

#include <cmocka.h>

#include "io-promises.h"
#include "lease-record.h"
#include "zero.h"

#define SIZE (UINT64_C (1) << 20)
#define AREA (SIZE - IO_LEASE_BYTES)
#define MS UINT64_C (1000000)
#define S (1000 * MS)
#define TERM_S 30

/* --- A world -------------------------------------------------------------- */

static uint64_t now_ns;
static unsigned pids, ended_pid;
static void (*meanwhile) (void);        /* called whenever a server sleeps */
static unsigned nr_errors;              /* lines in the log */
static char last_error[512];

static uint64_t
world_now (void *opaque)
{
  return now_ns;
}

static void
world_sleep (void *opaque, uint64_t ns)
{
  now_ns += ns;
  if (meanwhile)
    meanwhile ();
}

static void
world_describe (void *opaque, struct io_lease_holder *h)
{
  strcpy (h->host, "alpha");
  h->pid = ++pids;
  h->since = 1000000000;
}

static bool
world_has_ended (void *opaque, const struct io_lease_holder *h)
{
  return h->pid != 0 && h->pid == ended_pid;
}

static int
world_random (void *opaque, void *buf, size_t len)
{
  static uint8_t n;

  memset (buf, ++n, len);
  return 0;
}

static const struct io_lease_world world = {
  world_now, world_sleep, world_describe, world_has_ended, world_random, NULL
};

static void
log_cb (void *opaque, enum log_level level, const char *line)
{
  if (level == LOG_ERROR) {
    nr_errors++;
    snprintf (last_error, sizeof last_error, "%s", line);
  }
}

static const struct log_sink sink = { log_cb, NULL };

/* --- A disk that several servers reach ------------------------------------ */

static struct io_store *disk;           /* the memory */
static bool is_tainted[LEASE_SLOTS];
static unsigned nr_data_writes;         /* outside the lease area */
static int countdown;                   /* > 0: that many calls, then -EIO */
static int calls;

static int
count (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  __atomic_add_fetch (&calls, 1, __ATOMIC_RELAXED);
  if (call == IO_PWRITE && host_off < AREA)
    __atomic_add_fetch (&nr_data_writes, 1, __ATOMIC_RELAXED);
  return countdown > 0 && --countdown == 0 ? -EIO : 0;
}

struct path {
  struct io_store store;
  struct io_store *faulty;
};

static struct io_store *
below (struct io_store *s)
{
  return ((struct path *) s)->faulty;
}

static int
path_preadv (struct io_store *s, const struct iovec *iov, int n, uint64_t off)
{
  return io_preadv (below (s), iov, n, off);
}

static int
path_pwritev (struct io_store *s, const struct iovec *iov, int n, uint64_t off)
{
  return io_pwritev (below (s), iov, n, off);
}

static int
path_sync (struct io_store *s)
{
  return io_sync (below (s));
}

static int
path_discard (struct io_store *s, uint64_t off, uint64_t len)
{
  return io_discard (below (s), off, len);
}

static int
path_allocate (struct io_store *s, uint64_t off, uint64_t len)
{
  return io_allocate (below (s), off, len);
}

static int
path_truncate (struct io_store *s, uint64_t size)
{
  return io_truncate (below (s), size);
}

static int64_t
path_size (struct io_store *s)
{
  return io_size (below (s));
}

static uint64_t
path_max_size (struct io_store *s)
{
  return io_max_size (below (s));
}

static bool
path_tainted (struct io_store *s, uint64_t off, uint64_t len)
{
  return off >= AREA && is_tainted[(off - AREA) / LEASE_SLOT];
}

/* The memory stays; only the way to it is closed. */
static void
path_close (struct io_store *s)
{
  free (s);
}

static const struct io_ops path_ops = {
  .preadv = path_preadv, .pwritev = path_pwritev, .sync = path_sync,
  .discard = path_discard, .allocate = path_allocate,
  .truncate = path_truncate, .size = path_size, .max_size = path_max_size,
  .tainted = path_tainted, .close = path_close,
};

static struct io_store *faulty_disk;

static struct io_store *
new_path (void)
{
  struct path *p = calloc (1, sizeof *p);

  assert_non_null (p);
  p->store.ops = &path_ops;
  p->faulty = faulty_disk;
  return &p->store;
}

static int
set_up (void **state)
{
  assert_int_equal (io_memory_new_device (SIZE, 0, &disk), 0);
  assert_int_equal (io_faulty_new (disk, count, NULL, &faulty_disk), 0);
  now_ns = 5 * S;
  ended_pid = 0;
  meanwhile = NULL;
  nr_errors = nr_data_writes = 0;
  countdown = calls = 0;
  memset (is_tainted, 0, sizeof is_tainted);
  return 0;
}

static int
tear_down (void **state)
{
  io_close (faulty_disk);
  return 0;
}

static struct io_lease_params
params (void)
{
  return (struct io_lease_params) {
    .name = "pool", .path = "image", .log = &sink, .world = &world,
    .term_s = TERM_S,
  };
}

static struct io_store *
take (void)
{
  const struct io_lease_params p = params ();
  struct io_store *s;

  assert_int_equal (io_lease_take (new_path (), &p, &s, NULL), 0);
  return s;
}

static int
try_take (struct fault *f)
{
  const struct io_lease_params p = params ();
  struct io_store *s;
  int r = io_lease_take (new_path (), &p, &s, f);

  if (r == 0)
    io_close (s);
  return r;
}

static void
read_area (uint8_t *buf)
{
  assert_int_equal (io_pread (disk, buf, IO_LEASE_BYTES, AREA), 0);
}

static struct io_lease_holder
holder (void)
{
  struct io_lease_holder h;

  assert_int_equal (io_lease_read (disk, NULL, &h), 1);
  return h;
}

static unsigned
slot_of_newest (void)
{
  const struct io_lease_holder newest = holder ();
  struct io_lease_holder h;
  uint8_t area[IO_LEASE_BYTES];
  unsigned i;

  read_area (area);
  for (i = 0; i < LEASE_SLOTS; i++)
    if (lease_record_decode (area + i * LEASE_SLOT, &h) == 1 &&
        h.generation == newest.generation && h.counter == newest.counter)
      return i;
  return LEASE_SLOTS;
}

static int
write_byte (struct io_store *s)
{
  return io_pwrite (s, "x", 1, 4096);
}

/* --- Records -------------------------------------------------------------- */

static struct io_lease_holder
some_holder (void)
{
  struct io_lease_holder h = {
    .state = IO_LEASE_HELD, .generation = 7, .counter = UINT64_MAX,
    .term_ms = 30000, .pid = 4711, .start_time = 12345, .since = -1,
    .pid_ns = 99, .host = "alpha.example", .name = "pool/image",
  };

  memset (h.server, 0xab, sizeof h.server);
  memset (h.boot_id, 0xcd, sizeof h.boot_id);
  return h;
}

static void
a_record_reads_as_it_was_written (void **state)
{
  struct io_lease_holder h = some_holder (), back;
  uint8_t slot[LEASE_SLOT], again[LEASE_SLOT];

  memset (h.host, 'h', sizeof h.host - 1);
  memset (h.name, 'n', sizeof h.name - 1);
  lease_record_encode (&h, slot);
  assert_int_equal (lease_record_decode (slot, &back), 1);
  assert_memory_equal (&back, &h, offsetof (struct io_lease_holder, host));
  assert_string_equal (back.host, h.host);
  assert_string_equal (back.name, h.name);
  lease_record_encode (&back, again);
  assert_memory_equal (again, slot, sizeof slot);
}

static void
no_changed_byte_passes_for_a_record (void **state)
{
  const struct io_lease_holder h = some_holder ();
  struct io_lease_holder back;
  uint8_t slot[LEASE_SLOT];
  unsigned i, bit;

  lease_record_encode (&h, slot);
  for (i = 0; i < LEASE_SLOT; i++)
    for (bit = 0; bit < 8; bit++) {
      slot[i] ^= (uint8_t) (1u << bit);
      assert_int_equal (lease_record_decode (slot, &back), -EINVAL);
      slot[i] ^= (uint8_t) (1u << bit);
    }
  assert_int_equal (lease_record_decode (slot, &back), 1);
}

static void
records_with_impossible_numbers_are_none (void **state)
{
  struct io_lease_holder v[5], back;
  uint8_t slot[LEASE_SLOT];
  unsigned i;

  for (i = 0; i < 5; i++)
    v[i] = some_holder ();
  v[0].generation = 0;
  v[1].generation = LEASE_GENERATION_MAX + 1;
  v[2].state = 3;
  v[3].term_ms = 0;
  v[4].term_ms = IO_LEASE_TERM_MAX_S * 1000 + 1;
  for (i = 0; i < 5; i++) {
    lease_record_encode (&v[i], slot);
    assert_int_equal (lease_record_decode (slot, &back), -EINVAL);
  }
  memset (slot, 0, sizeof slot);
  assert_int_equal (lease_record_decode (slot, &back), 0);
}

/* --- The place ------------------------------------------------------------ */

static struct io_store *
leased_growing (void)
{
  struct io_lease_params p = params ();
  struct io_store *s, *image;

  assert_int_equal (io_memory_new (0, &image), 0);
  assert_int_equal (io_memory_new (0, &p.area), 0);
  assert_int_equal (io_lease_take (image, &p, &s, NULL), 0);
  return s;
}

static void
a_store_with_a_lease_keeps_each_promise (void **state)
{
  size_t i;

  for (i = 0; i < NR_PROMISES; i++)
    keeps (leased_growing (), promises[i]);
}

static void
the_image_ends_before_the_lease (void **state)
{
  struct io_store *s = take ();
  uint8_t buf[200], area[IO_LEASE_BYTES], again[IO_LEASE_BYTES];
  struct io_part v[2] = { { buf, 100, AREA - 50, 0 },
                          { buf + 100, 100, AREA, 0 } };
  uint64_t data;

  assert_int_equal (io_size (s), AREA);
  assert_int_equal (io_max_size (s), AREA);
  read_area (area);
  memset (buf, 'b', sizeof buf);
  assert_int_equal (io_pwrite (s, buf, 100, AREA - 100), 0);
  assert_int_equal (io_pwrite (s, buf, 100, AREA - 99), -ENOSPC);
  assert_int_equal (io_pwrite (s, buf, 1, AREA), -ENOSPC);
  assert_int_equal (io_truncate (s, AREA + 1), -ENOSPC);
  assert_int_equal (io_truncate (s, AREA), 0);
  assert_int_equal (io_allocate (s, AREA, 1), -ENOSPC);
  assert_int_equal (io_discard (s, AREA, 4096), 0);
  assert_int_equal (io_pread (s, buf, 200, AREA - 100), 0);
  assert_true (buf[99] == 'b' && all_zero (buf + 100, 100));
  memset (buf, 'c', sizeof buf);
  assert_int_equal (io_pread_medium (s, buf, 200, AREA - 100), 0);
  assert_true (buf[99] == 'b' && all_zero (buf + 100, 100));
  memset (buf, 'c', sizeof buf);
  assert_int_equal (io_read_many (s, v, 2), 0);
  assert_true (buf[49] == 'b' && all_zero (buf + 50, 150));
  assert_int_equal (io_next_data (s, 0, &data), -EOPNOTSUPP);
  read_area (again);
  assert_memory_equal (area, again, sizeof area);
  io_close (s);
}

static void
odd_sizes_end_at_a_block (void **state)
{
  const struct io_lease_params p = params ();
  struct io_store *s, *odd;

  assert_int_equal (io_memory_new_device (SIZE + 1000, 0, &odd), 0);
  assert_int_equal (io_lease_take (odd, &p, &s, NULL), 0);
  assert_int_equal (io_size (s), AREA);
  io_close (s);
}

static void
a_place_without_room_for_a_lease_is_refused (void **state)
{
  const struct io_lease_params p = params ();
  struct fault f = { 0 };
  struct io_store *s, *small;

  assert_int_equal (io_memory_new_device (2 * IO_LEASE_BYTES - 1, 0, &small),
                    0);
  assert_int_equal (io_lease_take (small, &p, &s, &f), -EINVAL);
  assert_non_null (strstr (f.msg, "too small"));
}

static void
a_used_end_is_left_alone (void **state)
{
  const struct io_lease_params p = params ();
  uint8_t area[IO_LEASE_BYTES];
  struct io_lease_holder h;
  struct fault f = { 0 };

  assert_int_equal (io_pwrite (disk, "u", 1, SIZE - 1), 0);
  assert_int_equal (try_take (&f), -EINVAL);
  assert_non_null (strstr (f.msg, "must be 64 KiB larger"));
  assert_int_equal (io_lease_read (disk, NULL, &h), -EINVAL);
  assert_int_equal (io_lease_break (disk, &p, NULL), -EINVAL);
  read_area (area);
  assert_true (all_zero (area, sizeof area - 1));
  assert_int_equal (area[sizeof area - 1], 'u');
}

/* --- Taking --------------------------------------------------------------- */

static void
a_lease_that_was_given_back_is_taken_at_once (void **state)
{
  uint64_t before;
  unsigned i;

  for (i = 1; i <= 40; i++) {
    struct io_store *s;

    before = now_ns;
    s = take ();
    assert_true (now_ns - before < 1 * S);
    assert_int_equal (holder ().state, IO_LEASE_HELD);
    assert_int_equal (holder ().generation, i);
    assert_string_equal (holder ().name, "pool");
    io_close (s);
    assert_int_equal (holder ().state, IO_LEASE_FREE);
  }
}

static struct io_store *first;

static void
first_works (void)
{
  assert_int_equal (write_byte (first), 0);
}

static void
a_holder_that_works_is_named (void **state)
{
  struct fault f = { 0 };
  uint64_t before;

  first = take ();
  before = now_ns;
  meanwhile = first_works;
  assert_int_equal (try_take (&f), -EBUSY);
  assert_int_equal (f.kind, FAULT_BUSY);
  assert_string_equal (f.msg, "is in use by the server on alpha, since "
                       "2001-09-09 01:46:40 UTC");
  assert_true (now_ns - before < TERM_S * S / 4);
  assert_int_equal (write_byte (first), 0);
  io_close (first);
}

static void
a_silent_holder_keeps_it_for_a_term (void **state)
{
  uint64_t before;
  struct io_store *second;

  first = take ();
  before = now_ns;
  second = take ();
  assert_true (now_ns - before >= TERM_S * S);
  assert_true (now_ns - before < TERM_S * S * 5 / 4);
  nr_data_writes = 0;
  assert_int_equal (write_byte (first), -ESTALE);
  assert_int_equal (io_sync (first), -ESTALE);
  assert_int_equal (io_truncate (first, 0), -ESTALE);
  assert_int_equal (io_discard (first, 0, 4096), -ESTALE);
  assert_int_equal (io_allocate (first, 0, 4096), -ESTALE);
  assert_int_equal (io_pread (first, &(char) { 0 }, 1, 0), -ESTALE);
  assert_int_equal (nr_data_writes, 0);
  assert_int_equal (nr_errors, 1);
  assert_non_null (strstr (last_error, "image: the lease was lost to the "
                           "server on alpha"));
  assert_int_equal (write_byte (second), 0);
  io_close (first);
  assert_int_equal (holder ().state, IO_LEASE_HELD);
  assert_int_equal (write_byte (second), 0);
  io_close (second);
}

/* A read that returns after the term may be of another server's bytes, and what
 * a sync made durable may be of no use. */
static int end_term;

static int
pass_time (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  struct io_store *other;

  if (end_term == (int) call && host_off < AREA) {
    end_term = -1;
    now_ns += TERM_S * S;
    other = take ();
    io_close (other);
  }
  return 0;
}

static void
check_call_that_outlasts_the_term (int call)
{
  const struct io_lease_params p = params ();
  struct io_store *s, *slow;
  char c;

  assert_int_equal (io_faulty_new (new_path (), pass_time, NULL, &slow), 0);
  end_term = -1;
  assert_int_equal (io_lease_take (slow, &p, &s, NULL), 0);
  end_term = call;
  assert_int_equal (call == IO_PREAD ? io_pread (s, &c, 1, 0) : io_sync (s),
                    -ESTALE);
  io_close (s);
}

static void
calls_that_outlast_the_term_fail (void **state)
{
  check_call_that_outlasts_the_term (IO_PREAD);
  check_call_that_outlasts_the_term (IO_SYNC);
}

static void
a_term_that_nobody_used_goes_on (void **state)
{
  first = take ();
  now_ns += 100 * S;
  assert_int_equal (write_byte (first), 0);
  assert_int_equal (holder ().generation, 2);
  assert_int_equal (nr_errors, 0);
  io_close (first);
}

static void
the_lease_of_a_process_that_ended_is_taken_at_once (void **state)
{
  struct io_lease_holder h;
  uint8_t slot[LEASE_SLOT];
  uint64_t before = now_ns;

  h = some_holder ();
  h.pid = ended_pid = 77;
  lease_record_encode (&h, slot);
  assert_int_equal (io_pwrite (disk, slot, sizeof slot, AREA), 0);
  assert_int_equal (try_take (NULL), 0);
  assert_true (now_ns - before < 1 * S);
  /* A claim of such a process says nothing of earlier holders. */
  h.state = IO_LEASE_CLAIMED;
  h.generation = 100;
  lease_record_encode (&h, slot);
  assert_int_equal (io_pwrite (disk, slot, sizeof slot, AREA), 0);
  before = now_ns;
  assert_int_equal (try_take (NULL), 0);
  assert_true (now_ns - before >= TERM_S * S);
}

/* A server of Ceph may take a second for its first write. */
static int
first_write_is_slow (void *opaque, enum io_call call, uint64_t host_off,
                     uint64_t len)
{
  bool *slow = opaque;

  if (call == IO_PWRITE && *slow)
    now_ns += 1 * S;
  *slow = *slow && call != IO_PWRITE;
  return 0;
}

static void
a_claim_that_was_too_slow_delays_nobody_later (void **state)
{
  const struct io_lease_params p = params ();
  struct io_store *s, *path;
  uint64_t before = now_ns;
  bool slow = true;

  assert_int_equal (io_faulty_new (new_path (), first_write_is_slow, &slow, &path), 0);
  assert_int_equal (io_lease_take (path, &p, &s, NULL), 0);
  assert_false (slow);
  assert_true (now_ns - before >= TERM_S * S);
  io_close (s);
  before = now_ns;
  assert_int_equal (try_take (NULL), 0);
  assert_true (now_ns - before < 1 * S);
}

/* A link with a delay: each call takes so long. */
static int
each_call_is_slow (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  now_ns += *(uint64_t *) opaque;
  return 0;
}

static int
take_over_slow_link (uint64_t delay_ns, struct fault *f)
{
  const struct io_lease_params p = params ();
  struct io_store *s, *path;
  int r;

  assert_int_equal (io_faulty_new (new_path (), each_call_is_slow, &delay_ns, &path), 0);
  r = io_lease_take (path, &p, &s, f);
  if (r == 0) {
    assert_int_equal (write_byte (s), 0);
    now_ns += 60 * S;           /* its time is over: it takes the lease again */
    assert_int_equal (write_byte (s), 0);
    assert_int_equal (nr_errors, 0);
    assert_int_equal (holder ().state, IO_LEASE_HELD);
    io_close (s);
  }
  return r;
}

/* A claim is a read, a write and a sync.  One that takes up to a twelfth of the term is
 * used when an earlier one of the server has been there for a term. */
static void
a_slow_link_delays_a_server_but_does_not_stop_it (void **state)
{
  const uint64_t most = TERM_S * S / 12 / 3;
  struct fault f = { 0 };
  uint64_t before = now_ns;

  assert_int_equal (take_over_slow_link (100 * MS, NULL), 0);
  assert_true (now_ns - before < TERM_S * S + 60 * S);
  before = now_ns;
  assert_int_equal (take_over_slow_link (300 * MS, NULL), 0);
  assert_true (now_ns - before >= TERM_S * S + 60 * S);
  assert_int_equal (take_over_slow_link (most, NULL), 0);
  assert_int_equal (take_over_slow_link (most + MS, &f), -EBUSY);
  assert_non_null (strstr (f.msg, "answers too slowly"));
}

/* Two that wait for the end of one term claim at the same time.  The slower one would
 * write over the claim that the other one has confirmed. */
static void
slow_claims_settle_for_longer_than_they_may_take (void **state)
{
  struct io_lease_holder h = some_holder ();
  uint8_t slot[LEASE_SLOT];
  uint64_t before = now_ns;

  h.state = IO_LEASE_CLAIMED;
  lease_record_encode (&h, slot);
  assert_int_equal (io_pwrite (disk, slot, sizeof slot, AREA), 0);
  assert_int_equal (try_take (NULL), 0);
  assert_true (now_ns - before >= TERM_S * S + TERM_S * S / 12 * 11 / 10);
  h.state = IO_LEASE_HELD;      /* nobody claims slowly then */
  h.generation = 1000;
  lease_record_encode (&h, slot);
  assert_int_equal (io_pwrite (disk, slot, sizeof slot, AREA), 0);
  before = now_ns;
  assert_int_equal (try_take (NULL), 0);
  assert_true (now_ns - before < TERM_S * S + 3 * S);
}

static void
bytes_that_are_no_record_are_watched_for_a_term (void **state)
{
  uint8_t area[IO_LEASE_BYTES];
  uint64_t before = now_ns;
  struct io_lease_holder h;
  unsigned i;

  assert_int_equal (try_take (NULL), 0);
  before = now_ns;
  memset (area, 0x5a, sizeof area);
  assert_int_equal (io_pwrite (disk, area, sizeof area - LEASE_SLOT,
                               AREA + LEASE_SLOT), 0);
  assert_int_equal (try_take (NULL), 0);
  assert_true (now_ns - before >= TERM_S * S);
  read_area (area);
  for (i = 0; i < LEASE_SLOTS; i++)
    assert_int_equal (lease_record_decode (area + i * LEASE_SLOT, &h),
                      i == slot_of_newest ());
  before = now_ns;
  assert_int_equal (try_take (NULL), 0);
  assert_true (now_ns - before < 1 * S);
}

static void
scribble (void)
{
  uint8_t byte = (uint8_t) (now_ns / MS);

  assert_int_equal (io_pwrite (disk, &byte, 1, AREA + 5000), 0);
}

static void
bytes_that_always_change_are_no_place_for_a_lease (void **state)
{
  struct fault f = { 0 };

  assert_int_equal (try_take (NULL), 0);
  scribble ();
  meanwhile = scribble;
  assert_int_equal (try_take (&f), -EBUSY);
  assert_non_null (strstr (f.msg, "change all the time"));
}

static void
a_longer_term_of_the_holder_is_respected (void **state)
{
  struct io_lease_params p = params ();
  uint64_t before;

  p.term_s = 300;
  assert_int_equal (io_lease_take (new_path (), &p, &first, NULL), 0);
  before = now_ns;
  assert_int_equal (try_take (NULL), 0);
  assert_true (now_ns - before >= 300 * S);
  io_close (first);
}

static void
terms_that_are_too_short_or_long_are_refused (void **state)
{
  struct io_lease_params p = params ();
  struct io_store *s;

  p.term_s = 1;
  assert_int_equal (io_lease_take (new_path (), &p, &s, NULL), -EINVAL);
  p.term_s = IO_LEASE_TERM_MAX_S + 1;
  assert_int_equal (io_lease_take (new_path (), &p, &s, NULL), -EINVAL);
}

/* A rival's record appears while the claim settles. */
static void
rival_claims (void)
{
  struct io_lease_holder h = some_holder ();
  uint8_t slot[LEASE_SLOT];

  h.generation = 1;
  h.counter = now_ns;
  lease_record_encode (&h, slot);
  assert_int_equal (io_pwrite (disk, slot, sizeof slot, AREA), 0);
}

static void
of_two_that_claim_at_once_one_is_refused (void **state)
{
  struct fault f = { 0 };

  meanwhile = rival_claims;
  assert_int_equal (try_take (&f), -EBUSY);
  assert_non_null (strstr (f.msg, "alpha.example, process 4711"));
}

static void
the_last_generation_is_refused (void **state)
{
  const struct io_lease_params p = params ();
  struct io_lease_holder h = some_holder ();
  uint8_t slot[LEASE_SLOT];
  struct fault f = { 0 };

  h.generation = LEASE_GENERATION_MAX;
  lease_record_encode (&h, slot);
  assert_int_equal (io_pwrite (disk, slot, sizeof slot, AREA), 0);
  assert_int_equal (try_take (&f), -EBUSY);
  assert_int_equal (io_lease_break (disk, &p, &f), 0);
  assert_int_equal (try_take (NULL), 0);
}

/* --- Failing I/O ---------------------------------------------------------- */

static void
each_failed_io_of_a_take_is_reported (void **state)
{
  struct fault f;
  int nr, i;

  assert_int_equal (try_take (NULL), 0);
  nr = calls;
  assert_true (nr > 6);
  for (i = 1; i <= nr; i++) {
    f = (struct fault) { 0 };
    countdown = i;
    if (try_take (&f) < 0)
      assert_true (f.msg[0] != '\0' && f.err == EIO);
    else
      assert_true (i > nr - 3);         /* those of the close */
    countdown = 0;
    assert_int_equal (try_take (NULL), 0);
  }
}

static void
a_renewal_that_fails_is_tried_again (void **state)
{
  first = take ();
  now_ns += 6 * S;
  countdown = 1;
  assert_int_equal (write_byte (first), 0);
  assert_int_equal (holder ().counter, 1);
  now_ns += 6 * S;
  assert_int_equal (write_byte (first), 0);
  assert_int_equal (holder ().counter, 2);
  now_ns += 40 * S;
  countdown = 1;
  assert_int_equal (write_byte (first), -EIO);
  assert_int_equal (write_byte (first), 0);
  assert_int_equal (holder ().generation, 2);
  io_close (first);
}

/* --- Late writes ---------------------------------------------------------- */

static void
the_record_leaves_a_place_of_late_writes (void **state)
{
  unsigned i;

  first = take ();
  for (i = 0; i < LEASE_SLOTS; i += 2) {
    assert_int_equal (slot_of_newest (), i);
    is_tainted[i] = true;
    now_ns += 6 * S;
    if (i + 2 < LEASE_SLOTS)
      assert_int_equal (write_byte (first), 0);
  }
  assert_int_equal (write_byte (first), -ESTALE);
  assert_non_null (strstr (last_error, "late writes"));
  io_close (first);
}

static void
a_connection_that_is_back_renews_first (void **state)
{
  struct io_store *none = NULL, *second;

  assert_int_equal (io_lease_may_resume (&none), 0);
  first = take ();
  now_ns += 10 * S;
  assert_int_equal (io_lease_may_resume (&first), 0);
  assert_int_equal (holder ().counter, 2);
  now_ns += 60 * S;
  assert_int_equal (io_lease_may_resume (&first), 0);
  assert_int_equal (holder ().generation, 2);
  second = take ();
  assert_int_equal (io_lease_may_resume (&first), -ESTALE);
  io_close (second);
  assert_int_equal (io_lease_may_resume (&first), -ESTALE);
  io_close (first);
}

/* --- Without taking it ---------------------------------------------------- */

static void
a_probe_tells_who_writes (void **state)
{
  const struct io_lease_params p = params ();
  struct io_lease_holder h;
  struct fault f = { 0 };
  uint64_t before = now_ns;

  assert_int_equal (io_lease_read (disk, NULL, &h), 0);
  assert_int_equal (io_lease_probe (disk, &p, &f), 0);
  assert_true (now_ns == before);
  first = take ();
  before = now_ns;
  assert_int_equal (io_lease_probe (disk, &p, &f), 0);
  assert_true (now_ns - before >= TERM_S * S / 3);
  assert_true (now_ns - before < TERM_S * S / 2);
  meanwhile = first_works;
  assert_int_equal (io_lease_probe (disk, &p, &f), 1);
  assert_non_null (strstr (f.msg, "is in use by the server on alpha"));
  io_close (first);
  meanwhile = NULL;
  assert_int_equal (io_lease_probe (disk, &p, NULL), 0);
  scribble ();
  assert_int_equal (io_pwrite (disk, "z", 1, AREA), 0);
  assert_int_equal (io_pwrite (disk, "z", 1, AREA + 4096), 0);
  assert_int_equal (io_lease_read (disk, NULL, &h), -EINVAL);
}

static void
breaking_it_stops_the_holder (void **state)
{
  const struct io_lease_params p = params ();
  uint64_t before;

  first = take ();
  assert_int_equal (io_lease_break (disk, &p, NULL), 0);
  assert_int_equal (holder ().state, IO_LEASE_FREE);
  before = now_ns;
  assert_int_equal (try_take (NULL), 0);
  assert_true (now_ns - before < 1 * S);
  now_ns += TERM_S * S / 6;
  assert_int_equal (write_byte (first), -ESTALE);
  io_close (first);
}

static void
force_takes_it_from_a_holder (void **state)
{
  struct io_lease_params p = params ();
  struct io_store *second;
  uint64_t before;

  first = take ();
  before = now_ns;
  p.force = true;
  assert_int_equal (io_lease_take (new_path (), &p, &second, NULL), 0);
  assert_true (now_ns - before < 1 * S);
  now_ns += TERM_S * S / 6;
  assert_int_equal (write_byte (first), -ESTALE);
  assert_int_equal (write_byte (second), 0);
  io_close (first);
  io_close (second);
}

/* --- This host ------------------------------------------------------------ */

static void
this_host_tells_its_processes_apart (void **state)
{
  const struct io_lease_world *w = &io_lease_this_host;
  struct io_lease_holder h = { 0 }, other;
  int status;
  pid_t pid;

  w->describe (NULL, &h);
  assert_true (h.host[0] != '\0' && h.since > 1600000000);
  if (h.pid == 0 || h.pid_ns == 0 || all_zero (h.boot_id, 16))
    skip ();                    /* no /proc */
  assert_int_equal (h.pid, getpid ());
  assert_false (w->has_ended (NULL, &h));
  other = h;
  other.start_time++;           /* a later process of the same number */
  assert_true (w->has_ended (NULL, &other));
  other.boot_id[3] ^= 1;
  assert_false (w->has_ended (NULL, &other));
  other = h;
  other.start_time++;
  other.pid_ns++;
  assert_false (w->has_ended (NULL, &other));
  pid = fork ();
  if (pid == 0)
    _exit (0);
  assert_true (pid > 0);
  other = h;
  other.pid = (uint32_t) pid;
  other.start_time = h.start_time;
  usleep (100000);              /* it waits for its parent now */
  assert_int_equal (waitpid (pid, &status, 0), pid);
  assert_true (w->has_ended (NULL, &other));
}

static void
a_thread_renews_the_lease_until_close (void **state)
{
  struct io_lease_params p = { .term_s = 2, .path = "image", .log = &sink };
  struct fault f = { 0 };
  struct io_store *s, *second;
  uint64_t counter;

  assert_int_equal (io_lease_take (new_path (), &p, &s, NULL), 0);
  assert_int_equal (holder ().pid, 0);
  assert_int_equal (io_lease_start (s), 0);
  assert_int_equal (io_lease_start (s), 0);
  usleep (700000);
  counter = holder ().counter;
  assert_int_equal (holder ().pid, getpid ());
  assert_int_equal (io_lease_take (new_path (), &p, &second, &f), -EBUSY);
  usleep (2200000);
  assert_int_equal (write_byte (s), 0);
  assert_int_equal (holder ().generation, 1);
  assert_in_range (holder ().counter, counter + 4, counter + 12);
  io_close (s);
  assert_int_equal (holder ().state, IO_LEASE_FREE);
  assert_int_equal (nr_errors, 0);
  assert_int_equal (io_lease_start (disk), 0);  /* a store without a lease */
}

#define T(f) cmocka_unit_test_setup_teardown (f, set_up, tear_down)

int
main (void)
{
  const struct CMUnitTest tests[] = {
    T (a_record_reads_as_it_was_written),
    T (no_changed_byte_passes_for_a_record),
    T (records_with_impossible_numbers_are_none),
    T (a_store_with_a_lease_keeps_each_promise),
    T (the_image_ends_before_the_lease),
    T (odd_sizes_end_at_a_block),
    T (a_place_without_room_for_a_lease_is_refused),
    T (a_used_end_is_left_alone),
    T (a_lease_that_was_given_back_is_taken_at_once),
    T (a_holder_that_works_is_named),
    T (a_silent_holder_keeps_it_for_a_term),
    T (calls_that_outlast_the_term_fail),
    T (a_term_that_nobody_used_goes_on),
    T (the_lease_of_a_process_that_ended_is_taken_at_once),
    T (a_claim_that_was_too_slow_delays_nobody_later),
    T (a_slow_link_delays_a_server_but_does_not_stop_it),
    T (slow_claims_settle_for_longer_than_they_may_take),
    T (bytes_that_are_no_record_are_watched_for_a_term),
    T (bytes_that_always_change_are_no_place_for_a_lease),
    T (a_longer_term_of_the_holder_is_respected),
    T (terms_that_are_too_short_or_long_are_refused),
    T (of_two_that_claim_at_once_one_is_refused),
    T (the_last_generation_is_refused),
    T (each_failed_io_of_a_take_is_reported),
    T (a_renewal_that_fails_is_tried_again),
    T (the_record_leaves_a_place_of_late_writes),
    T (a_connection_that_is_back_renews_first),
    T (a_probe_tells_who_writes),
    T (breaking_it_stops_the_holder),
    T (force_takes_it_from_a_holder),
    T (this_host_tells_its_processes_apart),
    T (a_thread_renews_the_lease_until_close),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
