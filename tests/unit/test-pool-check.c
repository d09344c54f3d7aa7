/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests qcow2_check on images with disks: it counts every root and every debt,
 * decodes a table once however many disks share it, and says of which disk
 * what is wrong.
 *
 * What would break if it did not: a clone whose debt was forgotten or paid twice
 * would be called clean, and its data be lost when the other disk is deleted.
 */
#include "pool-image.h"
#include "qcow2-check.h"
#include "splitmix.h"

#include <errno.h>
#include <inttypes.h>
#include <unistd.h>

#define RECOVERY QCOW2_INCOMPAT_RECOVERY

/* --- Running the checker -------------------------------------------------- */

static char lines[8192];

static void
note (void *opaque, bool is_leak, const char *line)
{
  const size_t n = strlen (lines);

  snprintf (lines + n, sizeof lines - n, "%s%s\n", is_leak ? "leak: " : "",
            line);
}

static uint64_t nr_reads;

static int
count_reads (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  nr_reads += call == IO_PREAD;
  return 0;
}

/* Checks the image in IO, which stays open. */
static void
check (struct io_store *io, struct qcow2_check_result *r)
{
  const struct qcow2_open_params op = { .path = "pool", .cache_bytes = 1 << 20,
                                        .allow_recovery = true };
  const struct qcow2_check_params cp = { .problem = note };
  struct qcow2_image *img;
  struct fault f = { 0 };

  lines[0] = '\0';
  if (qcow2_open (io, &op, &img, &f) < 0)
    fail_msg ("open: %s", f.msg);
  nr_reads = 0;
  if (qcow2_check (img, &cp, r, &f) < 0)
    fail_msg ("check: %s", f.msg);
  qcow2_close (img);
}

/* --- The pool that most tests damage --------------------------------------- */

/* Two disks with a clone each, of one of which a clone was made before it was
 * written to; a snapshot by QEMU; compressed data; data that occurs twice in a
 * table, in two tables, and in tables of two disks. */
struct pool {
  struct pi p;
  struct io_store *io;
  unsigned one, two, clone, copy, doomed;
  unsigned data, shared, alone;          /* clusters */
  unsigned lent, paid;                   /* tables */
};

static uint64_t
at (unsigned c)
{
  return (uint64_t) c * PI_CS;
}

static void
make_roots (struct pool *q)
{
  struct pi *p = &q->p;

  q->one = pi_disk (p, "vm1", QCOW2_DISK_WRITABLE);
  q->two = pi_disk (p, "vm2", QCOW2_DISK_WRITABLE);
  q->clone = pi_disk (p, "vm1@monday", 0);
  q->copy = pi_disk (p, "vm3", QCOW2_DISK_WRITABLE);
  q->doomed = pi_disk (p, "old", QCOW2_DISK_WRITABLE | QCOW2_DISK_DOOMED);
}

static void
make_data (struct pool *q)
{
  struct pi *p = &q->p;
  unsigned i;

  q->data = pi_new (p);
  q->shared = pi_new (p);
  q->alone = pi_new (p);
  p->anchored[q->data] = p->anchored[q->shared] = true;
  for (i = 0; i < 3; i++)
    pi_set (p, q->one, i * 5, at (q->data));
  pi_set (p, q->one, 40, at (q->shared));
  pi_set (p, q->one, PI_L2 + 3, at (q->shared));
  pi_set (p, q->two, 9, at (q->shared));
  pi_set (p, q->two, 10, at (q->alone));
  pi_set (p, q->two, 11, QCOW2_L2_COMPRESSED | UINT64_C (1) << 61 |
          (at (pi_new (p)) + 100));
  pi_new (p);
  pi_set (p, 0, 0, at (pi_new (p)));
}

static void
make (struct pool *q, uint64_t incompatible)
{
  struct pi *p = &q->p;
  const bool debts = incompatible & RECOVERY;

  pi_begin (p);
  make_roots (q);
  make_data (q);
  pi_lend (p, q->one, q->clone);
  pi_lend (p, q->clone, q->copy);        /* n = 3, d = 2 */
  pi_lend (p, q->two, q->doomed);        /* n = 2, d = 1 */
  q->lent = p->r[q->one].l1[0];
  q->paid = p->r[q->two].l1[0];
  pi_set (p, q->copy, PI_L2 + 3, 0);     /* copies the second table */
  if (!debts) {
    p->t[q->lent]->d = p->t[q->paid]->d = 0;
    p->t[p->r[q->one].l1[1]]->d = 0;
    p->r[q->doomed].flags = QCOW2_DISK_WRITABLE;
  }
  assert_int_equal (io_memory_new (0, &q->io), 0);
  pi_write (p, q->io, incompatible);
}

static void
finish (struct pool *q)
{
  io_close (q->io);
  pi_end (&q->p);
}

/* --- Damage ---------------------------------------------------------------- */

static void
add_to_refcount (struct pool *q, unsigned c, int64_t more)
{
  pi_put (q->io, pi_refcount_at (c), 4, q->p.ref[c] + (uint64_t) more);
}

static void
n_too_low (struct pool *q)
{
  add_to_refcount (q, q->lent, -1);
}

static void
n_too_high (struct pool *q)
{
  add_to_refcount (q, q->lent, 1);
}

static void
debt_too_low (struct pool *q)
{
  add_to_refcount (q, q->lent, -65536);
}

static void
debt_too_high (struct pool *q)
{
  add_to_refcount (q, q->lent, 65536);
}

static void
debt_forgotten (struct pool *q)
{
  add_to_refcount (q, q->paid, -65536);
}

static void
data_too_low (struct pool *q)
{
  add_to_refcount (q, q->data, -1);
}

static void
data_too_high (struct pool *q)
{
  add_to_refcount (q, q->data, 1);
}

static void
alone_too_high (struct pool *q)
{
  add_to_refcount (q, q->alone, 1);
}

static void
bit_48_clear (struct pool *q)
{
  pi_put (q->io, 72, 8, 0);
}

static void
copied_on_counted_twice (struct pool *q)
{
  pi_put (q->io, at (q->p.r[q->copy].l1[1]), 8, at (q->shared));
  add_to_refcount (q, q->shared, 1);
  pi_put (q->io, at (q->p.r[q->two].l1[0]) + 10 * 8, 8,
          at (q->alone) | QCOW2_L2_COPIED);
  add_to_refcount (q, q->alone, 1);
  pi_put (q->io, at (q->p.r[q->copy].l1[1]) + 8, 8, at (q->alone));
}

static void
l1_shared (struct pool *q)
{
  /* The second disk's entry in the snapshot table is the second. */
  const uint64_t table = pi_get (q->io, 64, 8);

  pi_put (q->io, (table + 40 + 88 + 1 + 3 + 7) / 8 * 8, 8,
          at (q->p.r[q->one].l1_at));
}

static void
l1_past_the_end (struct pool *q)
{
  pi_put (q->io, at (q->p.r[q->copy].l1_at) + 8, 8, at (PI_MAX * 2));
}

static void
entry_past_the_end (struct pool *q)
{
  pi_put (q->io, at (q->lent) + 40 * 8, 8, at (PI_MAX * 2));
}

static const struct {
  const char *name;
  void (*damage) (struct pool *q);
  bool is_leak;                /* nothing but leaks is found */
  const char *line;            /* is among what is said */
} cases[] = {
#define C(fn, is_leak, line) { #fn, fn, is_leak, line }
  C (n_too_low, false, "L2 table of disk \"vm1\", guest offset 0x0: the "
     "refcount of the cluster at"),
  C (n_too_high, true, "stands for 4 L1 entries, 3 name it"),
  C (debt_too_low, false, "refcount 4, but 7 references"),
  C (debt_too_high, false, ", 3, is not below the number of L1 entries"),
  C (debt_forgotten, false, "but 2 references"),
  C (data_too_low, false, "refcount 3, but 4 references"),
  C (data_too_high, true, "refcount 5, 4 references"),
  C (alone_too_high, true, "refcount 2, 1 references"),
  C (bit_48_clear, false, "L2 table of disk \"vm2\", guest offset 0x0: the debt "
     "of the table at"),
  C (bit_48_clear, false, "disk \"old\" is being deleted, but bit 48 is not "
     "set"),
  C (copied_on_counted_twice, false, "data cluster of disk \"vm2\", guest "
     "offset 0x1400: COPIED is set, but the refcount"),
  C (l1_shared, false, "referenced 2 times"),
  C (l1_past_the_end, false, "L2 table of disk \"vm3\", guest offset 0x8000: "
     "its offset, 0x200000, is past the end"),
  C (entry_past_the_end, false, "data cluster of disk \"vm1\", guest offset "
     "0x5000: its offset"),
#undef C
};

/* --- Tests ----------------------------------------------------------------- */

static void
test_debts_are_counted (void **state)
{
  struct qcow2_check_result r;
  struct pool q;

  make (&q, RECOVERY);
  assert_int_equal (q.p.ref[q.lent], 2 << 16 | 3);
  assert_int_equal (q.p.ref[q.paid], 1 << 16 | 2);
  check (q.io, &r);
  assert_string_equal (lines, "");
  assert_int_equal (r.errors + r.corruptions + r.leaks + r.garbage, 0);
  assert_int_equal (r.anchored_clusters, 2);
  assert_int_equal (r.data_clusters, 6);
  assert_int_equal (r.mapped_clusters, 1);      /* of the active disk */
  finish (&q);
}

static void
test_pool_without_debts_is_clean (void **state)
{
  struct qcow2_check_result r;
  struct pool q;

  make (&q, 0);
  check (q.io, &r);
  assert_string_equal (lines, "");
  assert_int_equal (r.errors + r.corruptions + r.leaks, 0);
  finish (&q);
}

static void
test_damage_is_found (void **state)
{
  struct qcow2_check_result r;
  struct pool q;
  size_t i;

  for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    make (&q, RECOVERY);
    cases[i].damage (&q);
    check (q.io, &r);
    if (strstr (lines, cases[i].line) == NULL || r.errors ||
        (r.corruptions == 0) != cases[i].is_leak ||
        (cases[i].is_leak && r.leaks != 1))
      fail_msg ("%s: %s", cases[i].name, lines);
    finish (&q);
  }
}

/* What QEMU says of the same image with its debts paid is the oracle. */
static void
test_qemu_agrees_on_a_pool_without_debts (void **state)
{
  char path[] = "/tmp/test-pool-check-XXXXXX", cmd[200];
  static uint8_t buf[PI_MAX * PI_CS];
  struct pool q;
  int fd, r;

  make (&q, 0);
  fd = mkstemp (path);
  assert_true (fd >= 0);
  assert_int_equal (io_pread (q.io, buf, at (q.p.next), 0), 0);
  assert_true (write (fd, buf, at (q.p.next)) == (ssize_t) at (q.p.next));
  snprintf (cmd, sizeof cmd, "qemu-img check -f qcow2 %s >&2", path);
  r = system (cmd);
  close (fd);
  unlink (path);
  finish (&q);
  assert_int_equal (r, 0);
}

/* Twice as many clones must not take twice as many reads of L2 tables. */
static void
test_a_shared_table_is_read_once (void **state)
{
  struct qcow2_check_result r;
  struct io_store *io, *file;
  uint64_t reads[2];
  struct pi p;
  unsigned i, k, disk, clones[] = { 2, 12 };

  for (k = 0; k < 2; k++) {
    pi_begin (&p);
    disk = pi_disk (&p, "vm", QCOW2_DISK_WRITABLE);
    for (i = 0; i < PI_L1; i++)
      pi_set (&p, disk, i * PI_L2 + 1, at (pi_new (&p)));
    for (i = 0; i < clones[k]; i++)
      pi_lend (&p, disk, pi_disk (&p, "clone", QCOW2_DISK_WRITABLE));
    assert_int_equal (io_memory_new (0, &file), 0);
    pi_write (&p, file, RECOVERY);
    assert_int_equal (io_faulty_new (file, count_reads, NULL, &io), 0);
    check (io, &r);
    assert_string_equal (lines, "");
    reads[k] = nr_reads;
    io_close (io);
    pi_end (&p);
  }
  /* Two reads of its L1 table for each clone, and nothing else. */
  assert_int_equal (reads[1] - reads[0], 2 * (clones[1] - clones[0]));
}

/* Each read in turn fails: it is said, and nothing is called corrupt for it. */
static int64_t nth;

static int
fail_nth (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  return call == IO_PREAD && nth-- == 0 ? -EIO : 0;
}

static void
test_each_read_failing (void **state)
{
  const struct qcow2_open_params op = { .path = "pool", .cache_bytes = 1 << 20,
                                        .allow_recovery = true };
  const struct qcow2_check_params cp = { .problem = note };
  struct qcow2_check_result r;
  struct qcow2_image *img;
  struct io_store *io;
  struct fault f = { 0 };
  struct pool q;
  int64_t i;

  make (&q, RECOVERY);
  nth = INT64_MAX;
  assert_int_equal (io_faulty_new (q.io, fail_nth, NULL, &io), 0);
  assert_int_equal (qcow2_open (io, &op, &img, &f), 0);
  for (i = 0; ; i++) {
    lines[0] = '\0';
    nth = i;
    assert_int_equal (qcow2_check (img, &cp, &r, &f), 0);
    if (nth >= 0)
      break;
    assert_int_equal (r.errors, 1);
  }
  assert_true (i > 20);
  assert_string_equal (lines, "");
  qcow2_close (img);
  io_close (io);
  pi_end (&q.p);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_debts_are_counted),
    cmocka_unit_test (test_pool_without_debts_is_clean),
    cmocka_unit_test (test_damage_is_found),
    cmocka_unit_test (test_qemu_agrees_on_a_pool_without_debts),
    cmocka_unit_test (test_a_shared_table_is_read_once),
    cmocka_unit_test (test_each_read_failing),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
