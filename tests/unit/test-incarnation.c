/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests incarnations.
 *
 * Breaks if: a lookup loses an entry, or gives a value that was not stored for
 * this very hash, whatever bytes are on disk; or the filter gives many more
 * false positives than its 15 bits promise.
 */
#include "incarnation.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "config.h"    /* brings the limits of this room */

#define STORE_ID UINT64_C (0x1122334455667788)
#define HOST_OFF 65536u

static struct dedup_hash
hash_of (uint64_t key)
{
  const struct dedup_hasher sha256 = { .alg = DEDUP_HASH_SHA256 };
  struct dedup_hash h;

  if (dedup_hash_compute (&sha256, &key, sizeof key, &h) < 0)
    fail_msg ("sha256");
  return h;
}

/* Every seventh entry is a tombstone. */
static uint64_t
value_of (uint64_t key)
{
  return key % 7 == 0 ? DEDUP_DELETED : 1000 + key;
}

/* What the store's calls are made to do. */
struct meddle {
  unsigned reads, writes;
  uint64_t longest;         /* write */
  unsigned fail_write;      /* the Nth fails, from 1; 0: none */
  int read_error;
  bool *stop;               /* set after the first write */
};

static int
meddle_cb (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  struct meddle *m = opaque;

  if (call == IO_PREAD) {
    __atomic_add_fetch (&m->reads, 1, __ATOMIC_RELAXED);
    return m->read_error;
  }
  if (call != IO_PWRITE)
    return 0;
  m->writes++;
  if (len > m->longest)
    m->longest = len;
  if (m->stop)
    *m->stop = true;
  return m->writes == m->fail_write ? -ENOSPC : 0;
}

struct fixture {
  struct io_store *io;
  struct meddle meddle;
  struct dedup_log_store *ls;
  struct dedup_incarnation_desc desc;
  uint64_t nr;              /* keys 1 to nr are there */
};

static void
fixture_open (struct fixture *x, unsigned order)
{
  struct io_store *mem;
  uint64_t key;

  memset (x, 0, sizeof *x);
  x->desc.id = 5;
  x->desc.host_off = HOST_OFF;
  x->desc.size_bytes = dedup_incarnation_size (order);
  assert_int_equal (io_memory_new (HOST_OFF + x->desc.size_bytes, &mem), 0);
  assert_int_equal (io_faulty_new (mem, meddle_cb, &x->meddle, &x->io), 0);
  assert_int_equal (dedup_log_store_new (order, &x->ls), 0);
  for (key = 1;; ++key) {
    const struct dedup_hash h = hash_of (key);

    if (dedup_log_store_insert (x->ls, &h, value_of (key)) < 0)
      break;
    x->nr = key;
  }
  assert_true (x->nr > 40);
}

static void
fixture_close (struct fixture *x)
{
  dedup_log_store_free (x->ls);
  io_close (x->io);
}

static void
write_it (struct fixture *x)
{
  assert_int_equal (dedup_incarnation_write (x->io, STORE_ID, x->ls, &x->desc,
                                             NULL), 0);
  assert_int_equal (x->desc.nr_entries, x->nr);
  assert_int_equal (x->desc.nr_deleted, x->nr / 7);
}

static struct dedup_incarnation *
open_it (struct fixture *x)
{
  struct dedup_incarnation *inc;

  assert_int_equal (dedup_incarnation_open (x->io, STORE_ID, &x->desc, &inc),
                    0);
  return inc;
}

/* Look FIRST to LAST up: what is found must be right, and everything must be
 * found if ALL.  Keys above nr are absent. */
static void
look_up (struct fixture *x, struct dedup_incarnation *inc, uint64_t first,
         uint64_t last, bool all)
{
  uint64_t key, v;
  int r;

  for (key = first; key <= last; ++key) {
    const struct dedup_hash h = hash_of (key);

    r = dedup_incarnation_lookup (inc, &h, &v, NULL);
    assert_in_range (r, 0, 1);
    if (r == 1) {
      assert_true (key <= x->nr);
      assert_true (v == value_of (key));
    }
    else if (all)
      assert_true (key > x->nr);
  }
}

/* Page counts by hand from docs/on-disk.md 3.3: order 4 has 128 bytes of tags
 * and one table page; order 10, 8 KiB of tags and 41 table pages. */
static void
test_size (void **state)
{
  assert_int_equal (dedup_incarnation_size (4), 3 * 4096);
  assert_int_equal (dedup_incarnation_size (10), (1 + 2 + 41) * 4096);
  assert_int_equal (dedup_incarnation_size (20),
                    (1 + 2048 + 41944) * UINT64_C (4096));
}

/* Written, it holds what the log store held, with the filter and without;
 * order 14 takes several batches. */
static void
test_round_trip (void **state)
{
  static const unsigned orders[] = { 4, 5, 9, 14 };
  struct fault f = { 0 };
  struct fixture x;
  unsigned i;

  for (i = 0; i < sizeof orders / sizeof orders[0]; ++i) {
    struct dedup_incarnation *inc;

    fixture_open (&x, orders[i]);
    write_it (&x);
    assert_int_equal (x.desc.order, orders[i]);
    assert_true (x.meddle.longest <= 1 << 20);
    inc = open_it (&x);
    assert_false (dedup_incarnation_loaded (inc));
    look_up (&x, inc, 1, x.nr + 50, true);
    assert_int_equal (dedup_incarnation_load (inc), 0);
    assert_true (dedup_incarnation_loaded (inc));
    assert_int_equal (dedup_incarnation_load (inc), 0);
    look_up (&x, inc, 1, x.nr + 50, true);
    if (dedup_incarnation_check (inc, &f) < 0)
      fail_msg ("%s", f.msg);
    assert_false (dedup_incarnation_damaged (inc));
    assert_true (dedup_incarnation_memory (inc) >= x.nr * 2);
    dedup_incarnation_put (inc);
    fixture_close (&x);
  }
}

/* The bytes of the first page and the first slots, as the document says. */
static void
test_layout (void **state)
{
  uint8_t p[3 * 4096], *slot;
  struct dedup_hash h;
  struct fixture x;
  uint64_t v;
  unsigned i;

  fixture_open (&x, 4);
  write_it (&x);
  assert_int_equal (io_pread (x.io, p, sizeof p, HOST_OFF), 0);
  assert_memory_equal (p, "DDUPINCA\x11\x22\x33\x44\x55\x66\x77\x88"
                       "\0\0\0\0\0\0\0\5\0\0\0\4\0\0\0", 31);
  assert_int_equal (p[31], x.nr);
  assert_int_equal (p[35], x.nr / 7);
  assert_memory_equal (p + 36, "\0\0\0\1\0\0\0\0\0\0\0\1", 12);
  assert_memory_equal (p + 8192, "DDUPTABL\0\0\0\0\0\0\0\5\0\0\0\0\0\0\0\0",
                       24);
  for (i = 0; i < 64; ++i) {
    slot = p + 8192 + 32 + i * 40;
    if (dedup_log_store_slot (x.ls, i, &h, &v)) {
      assert_memory_equal (slot, h.b, 32);
      assert_int_equal (slot[39], (uint8_t) v);
      assert_int_equal (p[4096 + i * 2], h.b[16] | 0x80);
      assert_int_equal (p[4096 + i * 2 + 1], h.b[17]);
    }
    else {
      assert_int_equal (slot[0] | slot[32] | slot[39], 0);
      assert_int_equal (p[4096 + i * 2] | p[4096 + i * 2 + 1], 0);
    }
  }
  fixture_close (&x);
}

static void
flip (struct io_store *io, uint64_t host_off, uint8_t mask)
{
  uint8_t b;

  assert_int_equal (io_pread (io, &b, 1, host_off), 0);
  b ^= mask;
  assert_int_equal (io_pwrite (io, &b, 1, host_off), 0);
}

/* Whichever byte is flipped, lookups give right values or miss, and the check
 * finds it. */
static void
test_any_byte_flipped (void **state)
{
  struct dedup_incarnation *inc;
  struct fixture x;
  uint64_t i, start;
  int r;

  fixture_open (&x, 4);
  write_it (&x);
  for (i = 0; i < x.desc.size_bytes; ++i) {
    struct fault f = { 0 };

    flip (x.io, HOST_OFF + i, (uint8_t) (1 << i % 8));
    start = 1 + i % (x.nr - 8);
    inc = open_it (&x);
    look_up (&x, inc, start, start + 8, i < 8192);
    r = dedup_incarnation_load (inc);
    assert_int_equal (r, i < 8192 ? -EBADMSG : 0);
    look_up (&x, inc, start, start + 8, false);
    assert_true (dedup_incarnation_damaged (inc));
    assert_int_equal (dedup_incarnation_check (inc, &f), -EINVAL);
    assert_int_equal (f.kind, FAULT_CORRUPT);
    dedup_incarnation_put (inc);
    flip (x.io, HOST_OFF + i, (uint8_t) (1 << i % 8));
  }
  fixture_close (&x);
}

/* Overwrite a byte of the one table page and make the checksum right. */
static void
patch_table (struct fixture *x, size_t at, uint8_t value)
{
  const uint64_t off = HOST_OFF + 8192;
  uint8_t page[4096];
  uint64_t sum;
  unsigned i;

  assert_int_equal (io_pread (x->io, page, sizeof page, off), 0);
  page[at] = value;
  memset (page + 24, 0, 8);
  sum = dedup_checksum (page, sizeof page);
  for (i = 0; i < 8; ++i)
    page[24 + i] = (uint8_t) (sum >> (56 - 8 * i));
  assert_int_equal (io_pwrite (x->io, page, sizeof page, off), 0);
}

/* Pages that are whole, but contradict the filter, the buckets or the
 * counts. */
static void
test_check_finds_contradictions (void **state)
{
  static const struct {
    unsigned at;                  /* in the slot of key 1, not a tombstone */
    const char *names;
  } bad[] = { { 17, "tag" }, { 7, "bucket" }, { 39, "empty" } };
  const struct dedup_hash h = hash_of (1);
  struct dedup_hash got;
  struct fixture x;
  uint64_t v;
  unsigned i, slot;

  fixture_open (&x, 4);
  for (slot = 0; slot < 64; ++slot)
    if (dedup_log_store_slot (x.ls, slot, &got, &v) &&
        dedup_hash_equal (&got, &h))
      break;
  assert_in_range (slot, 0, 63);
  for (i = 0; i < 4; ++i) {
    struct dedup_incarnation *inc;
    struct fault f = { 0 };

    write_it (&x);
    if (i == 1) {                 /* two buckets, not this one */
      patch_table (&x, 32 + slot * 40 + 7, (uint8_t) (slot / 4 + 1));
      patch_table (&x, 32 + slot * 40 + 15, (uint8_t) (slot / 4 + 2));
    }
    else if (i < 3) {
      patch_table (&x, 32 + slot * 40 + 38, 0);
      patch_table (&x, 32 + slot * 40 + bad[i].at, 0);
    }
    else
      x.desc.nr_deleted--;
    inc = open_it (&x);
    assert_int_equal (dedup_incarnation_check (inc, &f), -EINVAL);
    if (strstr (f.msg, i < 3 ? bad[i].names : "number of entries") == NULL)
      fail_msg ("%u: %s", i, f.msg);
    dedup_incarnation_put (inc);
  }
  fixture_close (&x);
}

/* A useless filter means no lookups at all. */
static void
test_useless_does_no_io (void **state)
{
  struct dedup_incarnation *inc;
  struct fixture x;

  fixture_open (&x, 4);
  write_it (&x);
  flip (x.io, HOST_OFF + 4096, 1);
  inc = open_it (&x);
  assert_int_equal (dedup_incarnation_load (inc), -EBADMSG);
  assert_false (dedup_incarnation_loaded (inc));
  x.meddle.reads = 0;
  look_up (&x, inc, 1, x.nr, false);
  assert_int_equal (x.meddle.reads, 0);
  dedup_incarnation_put (inc);
  fixture_close (&x);
}

/* Pages of another incarnation or store in the same place are not taken, be
 * they ever so whole. */
static void
test_stale_pages_are_not_ours (void **state)
{
  struct dedup_incarnation *inc;
  struct dedup_incarnation_desc d;
  struct fixture x;
  uint64_t v;
  const struct dedup_hash h = hash_of (1);

  fixture_open (&x, 4);
  write_it (&x);
  d = x.desc;
  x.desc.id++;
  inc = open_it (&x);
  assert_int_equal (dedup_incarnation_lookup (inc, &h, &v, NULL), 0);
  assert_int_equal (dedup_incarnation_load (inc), -EBADMSG);
  dedup_incarnation_put (inc);

  assert_int_equal (dedup_incarnation_open (x.io, STORE_ID + 1, &d, &inc), 0);
  assert_int_equal (dedup_incarnation_load (inc), -EBADMSG);
  dedup_incarnation_put (inc);

  d.nr_entries--;
  assert_int_equal (dedup_incarnation_open (x.io, STORE_ID, &d, &inc), 0);
  assert_int_equal (dedup_incarnation_load (inc), -EBADMSG);
  dedup_incarnation_put (inc);
  fixture_close (&x);
}

/* A page copied to another page's place has a right checksum, but a wrong
 * number. */
static void
test_misplaced_page (void **state)
{
  struct dedup_incarnation *inc;
  const uint64_t table = HOST_OFF + 2 * 4096;
  struct fault f = { 0 };
  uint8_t page[4096];
  struct fixture x;

  fixture_open (&x, 6);
  write_it (&x);
  assert_int_equal (io_pread (x.io, page, sizeof page, table + 4096), 0);
  assert_int_equal (io_pwrite (x.io, page, sizeof page, table), 0);
  inc = open_it (&x);
  look_up (&x, inc, 1, x.nr, false);
  assert_true (dedup_incarnation_damaged (inc));
  assert_int_equal (dedup_incarnation_check (inc, &f), -EINVAL);
  assert_non_null (strstr (f.msg, "page number"));
  dedup_incarnation_put (inc);
  fixture_close (&x);
}

static void
test_area_limits (void **state)
{
  struct dedup_incarnation *inc;
  struct dedup_incarnation_desc d;
  struct fixture x;

  fixture_open (&x, 4);
  x.desc.size_bytes--;
  assert_int_equal (dedup_incarnation_write (x.io, STORE_ID, x.ls, &x.desc,
                                             NULL), -EINVAL);
  assert_int_equal (x.meddle.writes, 0);
  x.desc.size_bytes++;
  write_it (&x);
  d = x.desc;
  d.size_bytes--;
  assert_int_equal (dedup_incarnation_open (x.io, 1, &d, &inc), -EINVAL);
  d = x.desc;
  d.order = 200;
  assert_int_equal (dedup_incarnation_open (x.io, 1, &d, &inc), -EINVAL);
  d = x.desc;
  d.host_off = UINT64_MAX - 4096;
  assert_int_equal (dedup_incarnation_open (x.io, 1, &d, &inc), -EINVAL);
  fixture_close (&x);
}

static void
test_stop_and_failures (void **state)
{
  struct dedup_incarnation *inc;
  struct fixture x;
  bool stop = true;
  unsigned writes;
  uint64_t v;
  const struct dedup_hash h = hash_of (1);

  fixture_open (&x, 13);
  assert_int_equal (dedup_incarnation_write (x.io, STORE_ID, x.ls, &x.desc,
                                             &stop), -EINTR);
  assert_int_equal (x.meddle.writes, 0);
  stop = false;
  x.meddle.stop = &stop;
  assert_int_equal (dedup_incarnation_write (x.io, STORE_ID, x.ls, &x.desc,
                                             &stop), -EINTR);
  assert_int_equal (x.meddle.writes, 1);
  x.meddle.stop = NULL;
  x.meddle.writes = 0;
  write_it (&x);
  writes = x.meddle.writes;
  assert_true (writes >= 3);
  for (x.meddle.fail_write = 1; x.meddle.fail_write <= writes;
       ++x.meddle.fail_write) {
    x.meddle.writes = 0;
    assert_int_equal (dedup_incarnation_write (x.io, STORE_ID, x.ls, &x.desc,
                                               NULL), -ENOSPC);
    assert_int_equal (x.meddle.writes, x.meddle.fail_write);
  }
  /* An error of the disk is no verdict on the filter: it may go away. */
  x.meddle.read_error = -EIO;
  inc = open_it (&x);
  assert_int_equal (dedup_incarnation_load (inc), -EIO);
  assert_int_equal (dedup_incarnation_lookup (inc, &h, &v, NULL), -EIO);
  assert_true (dedup_incarnation_damaged (inc));
  x.meddle.read_error = 0;
  assert_int_equal (dedup_incarnation_load (inc), 0);
  look_up (&x, inc, 1, 20, true);
  dedup_incarnation_put (inc);
  fixture_close (&x);
}

/* About 8 * load / 2^15 of the lookups that miss read a page: 2.3e-4 here,
 * 227 of a million with a standard deviation of 15. */
static void
test_false_positive_rate (void **state)
{
  const uint64_t nr = 1000000;
  struct dedup_incarnation *inc;
  uint64_t key, v, reads, vain;
  struct fixture x;
  unsigned i;

  fixture_open (&x, 10);
  write_it (&x);
  inc = open_it (&x);
  assert_int_equal (dedup_incarnation_load (inc), 0);
  for (key = 0; key < nr; ++key) {
    struct dedup_hash h;
    uint64_t w[4];

    for (i = 0; i < 4; ++i) {
      w[i] = key << 2 | i;
      w[i] = dedup_checksum (&w[i], sizeof w[i]);
    }
    memcpy (h.b, w, sizeof h.b);
    assert_int_equal (dedup_incarnation_lookup (inc, &h, &v, NULL), 0);
  }
  dedup_incarnation_reads (inc, &reads, &vain);
  print_message ("%u of %u misses read a page\n", (unsigned) vain,
                 (unsigned) nr);
  assert_int_equal (reads, vain);
  assert_in_range (vain, 150, 310);

  /* What is there costs one page, seldom two. */
  x.meddle.reads = 0;
  look_up (&x, inc, 1, x.nr, true);
  assert_in_range (x.meddle.reads, x.nr, x.nr + 10);
  dedup_incarnation_put (inc);
  fixture_close (&x);
}

struct reader {
  struct fixture *x;
  struct dedup_incarnation *inc;
  bool failed;
};

static void *
reader_thread (void *opaque)
{
  struct reader *rd = opaque;
  uint64_t key, v;

  for (key = 1; key <= rd->x->nr; ++key) {
    const struct dedup_hash h = hash_of (key);

    if (dedup_incarnation_lookup (rd->inc, &h, &v, NULL) != 1 ||
        v != value_of (key))
      rd->failed = true;
  }
  dedup_incarnation_put (rd->inc);
  return NULL;
}

/* The filter may appear in the middle of lookups, and two may load it. */
static void
test_load_beside_lookups (void **state)
{
  struct dedup_incarnation *inc;
  struct reader rd[2];
  pthread_t threads[2];
  struct fixture x;
  unsigned i;

  fixture_open (&x, 8);
  write_it (&x);
  inc = open_it (&x);
  for (i = 0; i < 2; ++i) {
    rd[i] = (struct reader) { &x, dedup_incarnation_get (inc), false };
    assert_int_equal (pthread_create (&threads[i], NULL, reader_thread,
                                      &rd[i]), 0);
  }
  assert_int_equal (dedup_incarnation_load (inc), 0);
  dedup_incarnation_put (inc);
  for (i = 0; i < 2; ++i) {
    pthread_join (threads[i], NULL);
    assert_false (rd[i].failed);
  }
  fixture_close (&x);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_size),
    cmocka_unit_test (test_round_trip),
    cmocka_unit_test (test_layout),
    cmocka_unit_test (test_any_byte_flipped),
    cmocka_unit_test (test_check_finds_contradictions),
    cmocka_unit_test (test_useless_does_no_io),
    cmocka_unit_test (test_stale_pages_are_not_ours),
    cmocka_unit_test (test_misplaced_page),
    cmocka_unit_test (test_area_limits),
    cmocka_unit_test (test_stop_and_failures),
    cmocka_unit_test (test_false_positive_rate),
    cmocka_unit_test (test_load_beside_lookups),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
