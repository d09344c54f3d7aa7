/* SPDX-License-Identifier: BSD-3-Clause */
/* Flips every byte of an index in turn: of the journal's blocks that the log
 * store is loaded from, of all sorted runs, and of both configuration slots,
 * in a closed image, and of the journal in one that was not closed.
 *
 * A closed image opens, whatever byte it is; contents are right, before and
 * after duplicates of all of it were written (verify=on), and it closes
 * clean.  A crashed one is refused as corrupt, or holds everything.
 *
 * FAULT_SCALE: a factor for the sample; "all" takes every byte.
 */
#include "regress.h"

#include <errno.h>
#include <stdlib.h>

#define USED 120                /* clusters with data */

static const struct shape shape = { .name = "index", .order = 4,
                                    .journal_areas = 2 };

struct part {
  const char *name;
  uint64_t off, len;
};

/* Contents in sorted runs, a log store, and, if not CLOSED, in
 * blocks past the checkpoint, of which others say that they are durable. */
static struct world *
make_index (bool closed)
{
  struct world *w = world_open (&shape);
  uint64_t i;

  for (i = 0; i < 3 * USED; i++) {
    assert_int_equal (write_id (w->d, i % USED, 1000 + i), 0);
    if (i % 10 == 0)
      assert_int_equal (dedup_flush (w->d), 0);
    if (w->d->store.index->frozen)
      assert_int_equal (dedup_run (w->d, DEDUP_JOB_FREEZE), 0);
  }
  assert_true (w->d->store.index->manifest->nr_segments > 0);
  if (closed)
    assert_int_equal (dedup_finish (w->d), 0);
  else {
    assert_int_equal (dedup_checkpoint (&w->d->store), 0);
    for (i = 0; i < 40; i++) {
      assert_int_equal (write_id (w->d, i, 5000 + i), 0);
      if (i % 4 == 3)
        assert_int_equal (dedup_flush (w->d), 0);
    }
    /* The last to be durable says so of the others. */
    assert_int_equal (write_id (w->d, NR - 1, 7000), 0);
    assert_int_equal (dedup_flush (w->d), 0);
  }
  return w;
}

static uint64_t
block_off (const struct dedup_config *c, uint64_t seq)
{
  uint32_t i = 0;

  while (i + 1 < c->nr_areas && seq >= c->areas[i + 1].first_seq)
    i++;
  return c->areas[i].host_off +
    (seq - c->areas[i].first_seq) * DEDUP_BLOCK_SIZE;
}

/* The blocks [FROM, TO), each a part: areas need not be neighbours. */
static size_t
add_blocks (const struct dedup_config *c, uint64_t from, uint64_t to,
            struct part *parts, size_t n)
{
  for (; from < to; from++)
    parts[n++] = (struct part) { "journal", block_off (c, from),
                                 DEDUP_BLOCK_SIZE };
  return n;
}

static size_t
list_parts (struct dedup_pool *d, bool closed, struct part *parts)
{
  const struct dedup_config *c = d->store.config;
  uint64_t end;
  size_t n = 0, i;

  lock_acquire (d->base.lock);
  end = dedup_journal_seq_locked (d->store.journal);
  lock_release (d->base.lock);
  if (!closed)
    return add_blocks (c, c->checkpoint, end, parts, 0);
  for (i = 0; i < 2; i++)
    parts[n++] = (struct part) { "configuration", d->store.ext.config_off +
                                 i * d->store.ext.config_size / 2, 1024 };
  for (i = 0; i < c->index.nr_segments; i++)
    parts[n++] = (struct part) { "segment", c->index.segments[i].host_off,
                                 c->index.segments[i].size_bytes };
  return add_blocks (c, c->index_start, c->checkpoint, parts, n);
}

static void
copy_store (struct io_store *from, struct io_store *to)
{
  uint64_t size = (uint64_t) io_size (from);
  CLEANUP_FREE uint8_t *buf = malloc (size);

  assert_int_equal (io_pread (from, buf, size, 0), 0);
  assert_int_equal (io_truncate (to, 0), 0);
  assert_int_equal (io_pwrite (to, buf, size, 0), 0);
}

static void
assert_contents (struct dedup_pool *d, const uint64_t *ids)
{
  uint64_t i;

  for (i = 0; i < USED; i++)
    if (read_id (d, i) != ids[i])
      fail_msg ("cluster %d is wrong", (int) i);
}

/* 1: served right; 0: refused. */
static int
serve_damaged (struct io_store *io, const uint64_t *ids, bool closed)
{
  struct dedup_open_params p;
  struct dedup_pool *d;
  struct fault f = { 0 };
  uint64_t i;
  int r;

  open_params (&shape, &p);
  r = dedup_open (io, &p, &d, &f);
  if (r < 0 && !closed && f.kind == FAULT_CORRUPT)
    return 0;
  if (r < 0)
    fail_msg ("open: %s", f.msg);
  assert_contents (d, ids);
  for (i = 0; i < USED; i++)
    assert_int_equal (write_id (d, USED + i % (NR - USED - 2), ids[i]), 0);
  assert_contents (d, ids);
  for (i = USED - (NR - USED - 2); i < USED; i++)
    assert_int_equal (read_id (d, USED + i % (NR - USED - 2)), ids[i]);
  assert_int_equal (dedup_finish (d), 0);
  dedup_free (d);
  return 1;
}

/* Data and tables; a damaged part of the index may still be there. */
static void
assert_image_clean (struct io_store *io)
{
  struct dedup_pool *d = must_open (&shape, io, false);
  struct qcow2_check_params p = { 0 };
  struct dedup_check_result r;
  struct fault f = { 0 };

  assert_int_equal (dedup_check (d, &p, &r, &f), 0);
  assert_int_equal (r.image.corruptions + r.image.leaks + r.image.errors, 0);
  dedup_free (d);
}

static bool
every_byte (void)
{
  const char *s = getenv ("FAULT_SCALE");

  return s && strcmp (s, "all") == 0;
}

static void
flip_all (bool closed)
{
  struct world *w = make_index (closed);
  struct part parts[600];
  size_t nr = list_parts (w->d, closed, parts), i;
  unsigned long bytes = 0, cases = 0, refused = 0, step;
  uint64_t ids[USED], at, chance = 99;
  struct io_store *io;
  uint8_t b;

  for (i = 0; i < USED; i++)
    ids[i] = read_id (w->d, i);
  dedup_free (w->d);
  w->d = NULL;
  w->armed = false;
  assert_int_equal (io_memory_new (0, &io), 0);
  for (i = 0; i < nr; i++)
    bytes += parts[i].len;
  step = every_byte () ? 1 : MAX_OF (bytes / scaled (150), 1);
  at = rnd (&chance, step);
  for (i = 0; i < nr; i++) {
    for (; at < parts[i].len; at += 1 + (step > 1 ? rnd (&chance, 2 * step - 1)
                                         : 0)) {
      copy_store (w->image.mem, io);
      assert_int_equal (io_pread (io, &b, 1, parts[i].off + at), 0);
      b ^= 0xff;
      assert_int_equal (io_pwrite (io, &b, 1, parts[i].off + at), 0);
      refused += !serve_damaged (io, ids, closed);
      if (cases++ % 50 == 0 && closed)
        assert_image_clean (io);
    }
    at -= parts[i].len;
  }
  print_message ("%s: %lu of %lu bytes flipped, %lu refused\n",
                 closed ? "closed" : "crashed", cases, bytes, refused);
  assert_true (cases > 50 && (closed ? refused == 0 : refused > 10));
  io_close (io);
  world_free (w);
}

static void
test_any_byte_of_the_index_may_flip (void **state)
{
  flip_all (true);
}

static void
test_any_byte_of_a_crashed_journal_may_flip (void **state)
{
  flip_all (false);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_any_byte_of_the_index_may_flip),
    cmocka_unit_test (test_any_byte_of_a_crashed_journal_may_flip),
  };

  scale_init ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
