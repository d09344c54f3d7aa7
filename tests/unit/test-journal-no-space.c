/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the journal on a host without space: a commit that finds none fails
 * with ENOSPC and keeps all blocks that it was to write, and the next commit
 * writes them.
 *
 * Breaks if: ENOSPC is permanent; a block is lost, is written twice, or gets
 * other bytes at its second try; the durable number advances meanwhile; a
 * thread that waits hangs or gets success; or memory runs out where nothing is
 * ever written.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "checked.h"
#include "config.h"
#include "journal.h"

#define BLOCKS 4096u
#define THREADS 8

static struct {
  struct io_store *mem, *io;
  struct lock lock;
  struct dedup_config c;
  struct dedup_journal *j;
  /* Atomic: */
  bool full;
  unsigned part;                /* bytes of a refused write that are taken */
  unsigned refused, arrived;
  bool wait;                    /* hold the first write up for the others */
} e;

static int
host_cb (void *opaque, enum io_call call, uint64_t off, uint64_t len)
{
  if (call != IO_PWRITE)
    return 0;
  while (e.wait && __atomic_load_n (&e.arrived, __ATOMIC_SEQ_CST) < THREADS)
    usleep (100);
  if (!e.full)
    return 0;
  __atomic_add_fetch (&e.refused, 1, __ATOMIC_SEQ_CST);
  return e.part > 0 && e.part < len ? (int) e.part : -ENOSPC;
}

static int
start (void **state)
{
  struct dedup_journal_params p = {
    .lock = &e.lock, .store_id = 77, .epoch = 3, .next_seq = 1,
    .areas = e.c.areas, .nr_areas = 1 };

  memset (&e, 0, sizeof e);
  lock_init (&e.lock);
  assert_int_equal (io_memory_new (0, &e.mem), 0);
  assert_int_equal (io_faulty_new (e.mem, host_cb, NULL, &e.io), 0);
  e.c.store_id = 77;
  e.c.epoch = 3;
  e.c.epoch_start = 1;
  e.c.nr_areas = 1;
  e.c.areas[0] = (struct dedup_journal_area) { 65536, 1, BLOCKS };
  p.io = e.io;
  assert_int_equal (dedup_journal_new (&p, &e.j), 0);
  return 0;
}

static int
stop (void **state)
{
  dedup_journal_free (e.j);
  io_close (e.io);
  lock_destroy (&e.lock);
  return 0;
}

static bool
append (uint64_t first, unsigned nr)
{
  LOCK_FOR_SCOPE (&e.lock);

  if (!dedup_journal_room_locked (e.j, nr, 0))
    return false;
  for (unsigned i = 0; i < nr; i++) {
    struct dedup_record r = { .type = DEDUP_REC_INDEX, .host_idx = first + i };

    dedup_journal_append_locked (e.j, &r);
  }
  dedup_journal_end_locked (e.j);
  return true;
}

static uint64_t
durable (void)
{
  LOCK_FOR_SCOPE (&e.lock);
  assert_int_equal (dedup_journal_error_locked (e.j), 0);
  return dedup_journal_durable_locked (e.j);
}

/* Where the journal of C lies, for one call. */
static const struct dedup_journal_place *
place_of (const struct dedup_config *c)
{
  static struct dedup_journal_place place;

  place = dedup_config_place (c);
  return &place;
}

struct found { uint64_t nr; bool in_order; };

static int
found_cb (void *opaque, const struct dedup_journal_block *b)
{
  struct found *f = opaque;
  struct dedup_record r;
  size_t at = 0;
  int n;

  for (; at < b->len; at += (size_t) n) {
    n = dedup_record_decode (b->records + at, b->len - at, &r);
    assert_true (n > 0);
    if (r.type == DEDUP_REC_INDEX)
      f->in_order = f->in_order && r.host_idx == f->nr++;
  }
  return 0;
}

static void
assert_journal_has (uint64_t nr)
{
  struct found f = { 0, true };
  uint64_t next;

  assert_int_equal (dedup_journal_read (e.mem, place_of (&e.c), 1, UINT64_MAX, found_cb,
                                        &f, &next), 0);
  assert_true (f.in_order);
  assert_int_equal (f.nr, nr);
  assert_int_equal (next, durable () + 1);
}

/* Whatever part of the batch was written, its bytes are those of the second
 * try, though more was appended in between. */
static void
blocks_that_found_no_space_are_written_again (void **state)
{
  uint8_t before[20000], after[20000];

  assert_true (append (0, 10));
  assert_int_equal (dedup_journal_commit (e.j), 0);
  assert_true (append (10, 300));         /* several blocks */
  e.full = true;
  for (e.part = 0; e.part < sizeof before; e.part += 700) {
    assert_int_equal (dedup_journal_commit (e.j), -ENOSPC);
    assert_int_equal (durable (), 1);
  }
  e.part -= 700;
  assert_true (append (310, 5));
  assert_int_equal (dedup_journal_commit (e.j), -ENOSPC);
  assert_int_equal (io_pread (e.mem, before, e.part, 65536 + 4096), 0);
  e.full = false;
  assert_int_equal (dedup_journal_commit (e.j), 0);
  assert_int_equal (io_pread (e.mem, after, e.part, 65536 + 4096), 0);
  assert_memory_equal (before, after, MIN_OF (e.part, 12288));
  assert_journal_has (315);
}

/* Records, empty blocks, seals, and no commit that ever succeeds. */
static void
memory_is_bounded_while_there_is_no_space (void **state)
{
  uint64_t nr = 0, pending, k;

  e.full = true;
  while (append (nr, 50)) {
    nr += 50;
    if (nr % 500 == 0)
      assert_int_equal (dedup_journal_commit (e.j), -ENOSPC);
    lock_acquire (&e.lock);
    if (nr % 1000 == 0)
      dedup_journal_force_locked (e.j);
    pending = dedup_journal_pending_locked (e.j);
    lock_release (&e.lock);
    assert_true (pending <= 8 << 20);
  }
  assert_true (nr > 10000);
  for (k = 0; k < 500; k++) {
    lock_acquire (&e.lock);
    dedup_journal_force_locked (e.j);
    dedup_journal_seal_locked (e.j);
    lock_release (&e.lock);
    assert_int_equal (dedup_journal_commit (e.j), -ENOSPC);
    assert_false (append (nr, 50));
  }
  assert_int_equal (durable (), 0);
  e.full = false;
  assert_int_equal (dedup_journal_commit (e.j), 0);
  assert_true (append (nr, 50));
  assert_int_equal (dedup_journal_commit (e.j), 0);
  assert_journal_has (nr + 50);
}

static void *
append_and_commit (void *opaque)
{
  lock_acquire (&e.lock);
  struct dedup_record r = {
    .type = DEDUP_REC_INDEX,
    .host_idx = __atomic_fetch_add (&e.arrived, 1, __ATOMIC_SEQ_CST) };
  dedup_journal_append_locked (e.j, &r);
  dedup_journal_end_locked (e.j);
  lock_release (&e.lock);
  return (void *) (intptr_t) dedup_journal_commit (e.j);
}

/* A leader writes while the others come: they wait for it, and then for one of
 * themselves who tries once more. */
static void
all_who_wait_are_told (void **state)
{
  pthread_t t[THREADS];
  void *r;

  e.full = e.wait = true;
  for (unsigned i = 0; i < THREADS; i++)
    pthread_create (&t[i], NULL, append_and_commit, NULL);
  for (unsigned i = 0; i < THREADS; i++) {
    pthread_join (t[i], &r);
    assert_int_equal ((intptr_t) r, -ENOSPC);
  }
  assert_in_range (e.refused, 1, 3);
  assert_int_equal (durable (), 0);
  e.full = false;
  assert_int_equal (dedup_journal_commit (e.j), 0);
  assert_journal_has (THREADS);
}

#define TEST(t) cmocka_unit_test_setup_teardown (t, start, stop)

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (blocks_that_found_no_space_are_written_again),
    TEST (memory_is_bounded_while_there_is_no_space),
    TEST (all_who_wait_are_told),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
