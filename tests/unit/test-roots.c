/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the disks of an image: how they are read from the snapshot table and
 * written to it, and how the set of roots changes.
 *
 * If this broke, disks would lose fields that other programs or later versions
 * wrote, a damaged entry would make a disk writable that must not be, or a
 * clone would have other contents than its source.
 */
#include "qcow2-env.h"

#include "header-format.h"

#define CB 12
#define CS (1u << CB)
#define MIB_ (UINT64_C (1) << 20)

/* --- The snapshot table --------------------------------------------------- */

/* Returns a disk with distinct values in all fields. */
static struct qcow2_snapshot
some_disk (const char *id, const char *name, uint64_t l1_off)
{
  struct qcow2_snapshot s = {
    .id = id, .name = name, .l1_off = l1_off, .l1_entries = 3,
    .disk_size = 5 * MIB_ / 2, .date_sec = 11, .date_nsec = 22,
    .is_disk = true, .disk_flags = QCOW2_DISK_WRITABLE,
    .created = UINT64_C (0x123456789a), .compress = QCOW2_COMPRESS_ON,
  };

  for (int i = 0; i < 16; ++i) {
    s.uuid[i] = 0x10 + i;
    s.origin[i] = 0x50 + i;
  }
  return s;
}

static void
assert_same_disk (const struct qcow2_snapshot *a,
                  const struct qcow2_snapshot *b)
{
  assert_string_equal (a->id, b->id);
  assert_string_equal (a->name, b->name);
  assert_int_equal (a->l1_off, b->l1_off);
  assert_int_equal (a->l1_entries, b->l1_entries);
  assert_int_equal (a->disk_size, b->disk_size);
  assert_int_equal (a->vm_state_size, b->vm_state_size);
  assert_int_equal (a->date_sec, b->date_sec);
  assert_int_equal (a->date_nsec, b->date_nsec);
  assert_int_equal (a->is_disk, b->is_disk);
  assert_int_equal (a->disk_flags, b->disk_flags);
  assert_memory_equal (a->uuid, b->uuid, 16);
  assert_memory_equal (a->origin, b->origin, 16);
  assert_int_equal (a->created, b->created);
  assert_int_equal (a->compress, b->compress);
  assert_false (a->dead || b->dead);
}

/* Writes a table of NR entries of LEN bytes to a free place of the image in IO
 * and makes the header name it. */
static void
put_table (struct io_store *io, const void *table, size_t len, uint32_t nr)
{
  const uint64_t at = 0x100000;
  be32 wire_nr = be32_make (nr);
  be64 wire_at = be64_make (at);

  ok (io_pwrite (io, table, len, at));
  ok (io_pwrite (io, &wire_nr, 4, 60));
  ok (io_pwrite (io, &wire_at, 8, 64));
}

static struct io_store *
empty_image (void)
{
  struct qcow2_create_params p = {
    .virtual_size = 16 * MIB_, .cluster_bits = CB, .refcount_order = 5,
  };
  struct fault f = { 0 };
  struct io_store *io;

  ok (io_memory_new (0, &io));
  ok (qcow2_create (io, &p, &f));
  return io;
}

/* Makes an image whose snapshot table has the NR entries of RAW, which it
 * frees. */
static struct io_store *
image_with (struct qcow2_snapshot_raw *raw, size_t nr)
{
  struct io_store *io = empty_image ();
  uint32_t nr_entries;
  uint8_t *buf;
  size_t len;

  ok (qcow2_snapshot_join (raw, nr, &buf, &len, &nr_entries));
  put_table (io, buf, len, nr_entries);
  free (buf);
  for (size_t i = 0; i < nr; ++i)
    free (raw[i].bytes);
  return io;
}

static void
test_disk_is_read_as_written (void **state)
{
  struct qcow2_snapshot a = some_disk ("1", "vm1", 0x10000);
  struct qcow2_snapshot b = some_disk ("23", "vm1@monday", 0x20000);
  struct qcow2_snapshot_raw raw[3] = { 0 };
  const struct qcow2_snapshot *s;
  struct qcow2_image *img;
  struct io_store *io;

  b.disk_flags = QCOW2_DISK_DOOMED;
  ok (qcow2_snapshot_encode_disk (&a, NULL, &raw[0]));
  ok (qcow2_snapshot_encode_disk (&b, NULL, &raw[2]));   /* [1] is dead */
  io = image_with (raw, 3);
  for (int writable = 0; writable < 2; ++writable) {
    img = open_image (io, writable);
    assert_int_equal (qcow2_snapshots (img, &s), 2);
    assert_same_disk (&s[0], &a);
    assert_same_disk (&s[1], &b);
    qcow2_close (img);
  }
  io_close (io);
}

/* What stands behind our extra data, and what QEMU's fields hold, is kept. */
static void
test_unknown_parts_of_an_entry_stay (void **state)
{
  struct qcow2_snapshot a = some_disk ("1", "vm1", 0x10000), b;
  struct qcow2_snapshot_raw raw, longer, again;
  const size_t extra_at = 40, ours = 88, more = 24, strings = 4;
  be32 extra_len = be32_make (ours + more);

  ok (qcow2_snapshot_encode_disk (&a, NULL, &raw));
  longer.len = raw.len + more;
  longer.bytes = calloc (1, longer.len);
  memcpy (longer.bytes, raw.bytes, extra_at + ours);
  memset (longer.bytes + extra_at + ours, 0xd5, more);
  memcpy (longer.bytes + extra_at + ours + more,
          raw.bytes + extra_at + ours, strings);
  memcpy (longer.bytes + 36, &extra_len, 4);
  memset (longer.bytes + 24, 0x77, 8);                 /* VM clock */
  memset (longer.bytes + extra_at + 16, 0x66, 8);      /* icount */
  memset (longer.bytes + extra_at + 81, 0x55, 7);      /* reserved */

  ok (qcow2_snapshot_encode_disk (&a, &longer, &again));
  assert_int_equal (again.len, longer.len);
  assert_memory_equal (again.bytes, longer.bytes, longer.len);
  free (again.bytes);

  b = a;
  b.name = "a longer name";
  b.disk_size = 77 * 512;
  ok (qcow2_snapshot_encode_disk (&b, &longer, &again));
  assert_memory_equal (again.bytes + 24, longer.bytes + 24, 8);
  assert_memory_equal (again.bytes + extra_at + 16,
                       longer.bytes + extra_at + 16, 8);
  assert_memory_equal (again.bytes + extra_at + 80,
                       longer.bytes + extra_at + 80, 8 + more);
  assert_memory_equal (again.bytes + extra_at + ours + more,
                       "1a longer name", 14);
  free (again.bytes);
  free (raw.bytes);
  free (longer.bytes);
}

/* Patches 32 bits of the extra data of a disk. */
static void
patch_extra (struct qcow2_snapshot_raw *raw, size_t at, uint32_t value)
{
  be32 wire = be32_make (value);

  memcpy (raw->bytes + 40 + at, &wire, sizeof wire);
}

static void
test_doubtful_disks_are_read_only (void **state)
{
  struct qcow2_snapshot plain = some_disk ("1", "vm1", 0x10000);
  struct qcow2_snapshot same_name = some_disk ("2", "vm1", 0x11000);
  struct qcow2_snapshot same_id = some_disk ("1", "vm2", 0x12000);
  struct qcow2_snapshot large = some_disk ("4", "vm4", 0x13000);
  struct qcow2_snapshot fits = some_disk ("5", "vm5", 0x14000);
  struct qcow2_snapshot flags = some_disk ("6", "vm6", 0x15000);
  struct qcow2_snapshot newer = some_disk ("7", "vm7", 0x16000);
  struct qcow2_snapshot_raw raw[7], again;
  const struct qcow2_snapshot *s;
  struct qcow2_image *img;
  struct io_store *io;
  be32 wire;

  fits.disk_size = UINT64_C (3) * 512 * CS;
  large.disk_size = fits.disk_size + 1;
  ok (qcow2_snapshot_encode_disk (&plain, NULL, &raw[0]));
  ok (qcow2_snapshot_encode_disk (&same_name, NULL, &raw[1]));
  ok (qcow2_snapshot_encode_disk (&same_id, NULL, &raw[2]));
  ok (qcow2_snapshot_encode_disk (&large, NULL, &raw[3]));
  ok (qcow2_snapshot_encode_disk (&fits, NULL, &raw[4]));
  ok (qcow2_snapshot_encode_disk (&flags, NULL, &raw[5]));
  ok (qcow2_snapshot_encode_disk (&newer, NULL, &raw[6]));
  patch_extra (&raw[5], 36, QCOW2_DISK_WRITABLE | 0x80);
  patch_extra (&raw[6], 32, 2);          /* version */
  raw[4].bytes[40 + 80] = 77;            /* not known, and kept */
  io = image_with (raw, 7);
  img = open_image (io, true);
  assert_int_equal (qcow2_snapshots (img, &s), 7);
  assert_int_equal (s[0].disk_flags, QCOW2_DISK_WRITABLE);
  assert_int_equal (s[1].disk_flags, 0);
  assert_int_equal (s[2].disk_flags, 0);
  assert_int_equal (s[3].disk_flags, 0);
  assert_int_equal (s[4].disk_flags, QCOW2_DISK_WRITABLE);
  assert_int_equal (s[5].disk_flags, 0x80);
  assert_false (s[6].is_disk);
  assert_int_equal (s[4].compress, 77);
  assert_int_equal (img->snapshots.nr_compress_on, 1);   /* read-only ones do not count */

  /* An edit does not take away what this version does not understand. */
  flags = s[5];
  flags.disk_flags |= QCOW2_DISK_DOOMED;
  ok (qcow2_snapshot_encode_disk (&flags, &img->snapshots.raw[5], &again));
  memcpy (&wire, again.bytes + 40 + 36, 4);
  assert_int_equal (be32_load (wire), 0x80 | 3);
  assert_int_equal (again.bytes[40 + 80], QCOW2_COMPRESS_ON);
  free (again.bytes);
  qcow2_close (img);
  io_close (io);
}

/* A strange table takes no more time than sorting it does. */
static void
test_most_entries_of_one_name (void **state)
{
  struct qcow2_snapshot a = some_disk ("1", "vm1", 0x10000);
  struct qcow2_snapshot_raw *raw = calloc (QCOW2_MAX_SNAPSHOTS, sizeof *raw);
  const struct qcow2_snapshot *s;
  struct qcow2_image *img;
  struct io_store *io;

  for (size_t i = 0; i < QCOW2_MAX_SNAPSHOTS; ++i)
    ok (qcow2_snapshot_encode_disk (&a, NULL, &raw[i]));
  io = image_with (raw, QCOW2_MAX_SNAPSHOTS);
  img = open_image (io, true);
  assert_int_equal (qcow2_snapshots (img, &s), QCOW2_MAX_SNAPSHOTS);
  assert_int_equal (s[0].disk_flags, QCOW2_DISK_WRITABLE);
  for (size_t i = 1; i < QCOW2_MAX_SNAPSHOTS; ++i)
    assert_int_equal (s[i].disk_flags, 0);
  qcow2_close (img);
  io_close (io);
  free (raw);
}

/* --- After a replay ------------------------------------------------------- */

/* A replay that switches the snapshot table reads the new one at its end, and
 * refuses one that is not what the record says. */
static void
test_replay_reads_the_last_table (void **state)
{
  struct qcow2_snapshot a = some_disk ("1", "vm1", 0x10000);
  struct qcow2_change c = { .type = QCOW2_CHANGE_HEADER };
  const struct qcow2_snapshot *s;
  struct qcow2_snapshot_raw raw;
  struct env e;

  env_new (&e, CB, 5, 1000);
  ok (qcow2_snapshot_encode_disk (&a, NULL, &raw));
  for (int wrong = 0; wrong < 2; ++wrong) {
    const struct qcow2_snapshot_table *t = &e.img->snapshots;
    uint64_t at = 0x2000000;
    size_t first = t->raw[0].len;
    uint8_t last = 0;

    assert_int_equal (qcow2_snapshots (e.img, &s), 1);   /* the anchor */
    assert_false (qcow2_has_disks (e.img));
    ok (io_pwrite (e.io, t->raw[0].bytes, first, at));
    ok (io_pwrite (e.io, raw.bytes, raw.len, at + first));
    if (wrong)
      ok (io_pwrite (e.io, &last, 1, at + 11));   /* entries of anchor's L1 */
    c.header = e.img->fields;
    c.header.snapshots_off = at;
    c.header.nr_snapshots = 2;
    qcow2_replay_begin (e.img);
    ok (apply_one (e.img, c));
    assert_int_equal (qcow2_snapshots (e.img, &s), 1);
    assert_int_equal (qcow2_replay_end (e.img), wrong ? -EINVAL : 0);
    if (!wrong) {
      assert_int_equal (qcow2_snapshots (e.img, &s), 2);
      assert_same_disk (&s[1], &a);
      assert_true (s[0].is_anchor);
      assert_true (qcow2_has_disks (e.img));
    }
    env_reopen (&e);           /* nothing was written back */
  }
  free (raw.bytes);
  env_free (&e);
}

static double
ms_between (const struct timespec *a, const struct timespec *b)
{
  return (b->tv_sec - a->tv_sec) * 1e3 + (b->tv_nsec - a->tv_nsec) / 1e6;
}

/* --- Changes of the set ---------------------------------------------------- */

#define L2_ENTRIES (CS / 8)

static struct qcow2_root_edit
new_root (const char *name, uint64_t clusters, enum qcow2_l1_from l1,
          unsigned source)
{
  return (struct qcow2_root_edit) {
    .name = name, .size = clusters << CB, .flags = QCOW2_DISK_WRITABLE,
    .uuid = { 1, 2, 3 }, .origin = { 4, 5 }, .created = 1000, .l1 = l1,
    .source = source,
  };
}

/* Builds and writes a switch. */
static struct qcow2_switch *
begin_switch (struct env *e, const struct qcow2_root_edit *edits, size_t nr)
{
  struct qcow2_switch *sw;
  struct fault f = { 0 };

  if (qcow2_switch_new (e->img, edits, nr, &sw, &f) < 0)
    fail_msg ("switch: %s", f.msg);
  ok (qcow2_switch_write (sw));
  return sw;
}

/* Prepares and makes a switch; returns the error of prepare, or 0.  Frees
 * it. */
static int
end_switch (struct env *e, struct qcow2_switch *sw, unsigned *root)
{
  struct qcow2_txn txn;
  uint64_t records;
  size_t before;
  int r;

  qcow2_txn_begin (e->img, &txn);
  lock_acquire (&e->img->lock);
  r = RETRY (&txn, qcow2_switch_prepare_locked (&txn, sw));
  if (r == 0) {
    qcow2_begin_disks_locked (e->img);
    records = qcow2_switch_records_locked (&txn, sw);
    before = e->nr_log;
    qcow2_switch_commit_locked (&txn, sw, root);
    assert_true (e->nr_log - before <= records);
  }
  qcow2_txn_end_locked (&txn);
  lock_release (&e->img->lock);
  qcow2_switch_free (sw);
  return r;
}

static unsigned
make_root (struct env *e, struct qcow2_root_edit edit)
{
  unsigned root = 0;

  ok (end_switch (e, begin_switch (e, &edit, 1), &root));
  assert_int_not_equal (root, 0);
  return root;
}

static uint64_t
l1_of (struct qcow2_image *img, unsigned root, uint64_t ti)
{
  struct qcow2_txn txn;
  uint64_t entry;

  qcow2_txn_begin (img, &txn);
  lock_acquire (&img->lock);
  ok (RETRY (&txn, qcow2_l1_entry_locked (&txn, root, ti, &entry)));
  qcow2_txn_end_locked (&txn);
  lock_release (&img->lock);
  return entry;
}

/* Checks that ROOT has the first TABLES tables of SOURCE, and no flags. */
static void
assert_same_tables (struct qcow2_image *img, unsigned root, unsigned source,
                    uint64_t tables)
{
  for (uint64_t i = 0; i < tables; ++i)
    assert_int_equal (l1_of (img, root, i),
                      l1_of (img, source, i) & QCOW2_OFFSET_MASK);
}

/* Checks that each table that ROOT names has this value. */
static void
assert_values (struct qcow2_image *img, unsigned root, uint64_t debt,
               uint64_t paths)
{
  const struct qcow2_snapshot *s;
  uint64_t nr, e;

  (void) qcow2_snapshots (img, &s);
  nr = root == 0 ? img->l1.nr : s[root - 1].l1_entries;
  for (uint64_t i = 0; i < nr; ++i)
    if ((e = l1_of (img, root, i) & QCOW2_OFFSET_MASK) != 0)
      assert_int_equal (refcount_of (img, e >> CB, NULL), debt << 16 | paths);
}

/* Opens a copy of the image as a crash now would leave it, and replays the
 * log from FIRST on. */
static struct qcow2_image *
crash (struct env *e, size_t first, struct io_store **io)
{
  struct qcow2_image *img;

  *io = clone_store (e->io);
  img = open_image (*io, true);
  qcow2_replay_begin (img);
  apply_all (img, e->log + first, e->nr_log - first);
  ok (qcow2_replay_end (img));
  return img;
}

/* Checks that the roots of A and B are the same. */
static void
assert_same_roots (struct qcow2_image *a, struct qcow2_image *b)
{
  const struct qcow2_snapshot *s, *t;
  size_t nr_a = qcow2_snapshots (a, &s), nr_b = qcow2_snapshots (b, &t);

  for (size_t i = 0, k = 0; i < nr_a || k < nr_b; ++i, ++k) {
    while (i < nr_a && s[i].dead)
      ++i;
    if (i == nr_a && k == nr_b)
      break;
    assert_true (i < nr_a && k < nr_b);
    assert_same_disk (&s[i], &t[k]);
    assert_int_equal (s[i].is_anchor, t[k].is_anchor);
    for (uint64_t ti = 0; !s[i].is_anchor && ti < s[i].l1_entries; ++ti)
      assert_int_equal (l1_of (a, i + 1, ti), l1_of (b, k + 1, ti));
  }
  for (uint64_t i = 1; i < qcow2_host_end (a); ++i)
    assert_int_equal (refcount_of (a, i, NULL), refcount_of (b, i, NULL));
}

/* Checks that a crash now leaves the same roots, with a log that is whole and
 * nothing written back since its entry FIRST. */
static void
assert_survives_crash (struct env *e, size_t first)
{
  struct qcow2_image *img;
  struct io_store *io;

  img = crash (e, first, &io);
  assert_same_roots (e->img, img);
  writeback (img);
  qcow2_close (img);
  img = open_image (io, true);
  assert_same_roots (e->img, img);
  qcow2_close (img);
  io_close (io);
}

/* An image with tables 0, 1 and 3 of 5, each with some data. */
static void
env_with_data (struct env *e)
{
  env_new (e, CB, 5, 5 * L2_ENTRIES);
  for (uint64_t i = 0; i < 20; ++i) {
    assert_int_not_equal (write_new (e->img, i), 0);
    assert_int_not_equal (write_new (e->img, L2_ENTRIES + 7 * i), 0);
    assert_int_not_equal (write_new (e->img, 4 * L2_ENTRIES - 1 - i), 0);
  }
}

static void
test_empty_disk_is_made (void **state)
{
  const struct qcow2_snapshot *s;
  unsigned root, second;
  struct env e;

  env_with_data (&e);
  root = make_root (&e, new_root ("vm1", 3 * L2_ENTRIES + 1, QCOW2_L1_EMPTY,
                                  0));
  second = make_root (&e, new_root ("vm2", 1, QCOW2_L1_EMPTY, 0));
  assert_int_not_equal (root, second);
  assert_int_equal (qcow2_snapshots (e.img, &s), 3);
  assert_string_equal (s[root - 1].name, "vm1");
  assert_string_equal (s[root - 1].id, "1");
  assert_string_equal (s[second - 1].id, "2");
  assert_int_equal (s[root - 1].l1_entries, 4);
  assert_int_equal (s[second - 1].l1_entries, 1);
  assert_int_equal (s[root - 1].disk_size, (3 * L2_ENTRIES + 1) * CS);
  assert_int_equal (s[root - 1].date_sec, 1000);
  for (uint64_t i = 0; i < 4; ++i)
    assert_int_equal (l1_of (e.img, root, i), 0);
  assert_values (e.img, 0, 0, 1);
  assert_survives_crash (&e, 0);
  writeback (e.img);
  assert_survives_crash (&e, e.nr_log);
  env_reopen (&e);
  assert_int_equal (qcow2_snapshots (e.img, &s), 3);
  check_with_qemu (e.io);
  env_free (&e);
}

static void
test_clone_lends_all_tables (void **state)
{
  unsigned a, b, c;
  struct env e;

  env_with_data (&e);
  assert_int_not_equal (l1_of (e.img, 0, 0) & QCOW2_L2_COPIED, 0);
  a = make_root (&e, new_root ("a", 5 * L2_ENTRIES, QCOW2_L1_LEND, 0));
  assert_same_tables (e.img, a, 0, 5);
  assert_values (e.img, a, 1, 2);
  for (uint64_t i = 0; i < 5; ++i)
    assert_int_equal (l1_of (e.img, 0, i) & QCOW2_L2_COPIED, 0);
  assert_int_equal (entry_of (e.img, a, 3), entry_of (e.img, 0, 3));
  assert_survives_crash (&e, 0);
  writeback (e.img);
  b = make_root (&e, new_root ("b", 5 * L2_ENTRIES, QCOW2_L1_LEND, a));
  assert_values (e.img, b, 2, 3);
  /* A smaller one shares the first table only. */
  c = make_root (&e, new_root ("c", L2_ENTRIES, QCOW2_L1_LEND, b));
  assert_same_tables (e.img, c, 0, 1);
  assert_values (e.img, c, 3, 4);
  assert_int_equal (refcount_of (e.img, l1_of (e.img, 0, 1) >> CB, NULL),
                    2 << 16 | 3);
  assert_survives_crash (&e, 0);
  env_free (&e);
}

/* What changes between the copy and the commit is in the clone. */
static void
test_clone_has_later_changes (void **state)
{
  struct qcow2_root_edit edit = new_root ("a", 5 * L2_ENTRIES, QCOW2_L1_LEND,
                                          0);
  struct qcow2_switch *sw;
  unsigned root;
  struct env e;

  env_with_data (&e);
  sw = begin_switch (&e, &edit, 1);
  assert_int_not_equal (write_new (e.img, 2 * L2_ENTRIES + 9), 0);
  assert_int_not_equal (write_new (e.img, 4 * L2_ENTRIES), 0);
  ok (end_switch (&e, sw, &root));
  assert_int_not_equal (l1_of (e.img, root, 2), 0);
  assert_int_not_equal (l1_of (e.img, root, 4), 0);
  assert_same_tables (e.img, root, 0, 5);
  assert_values (e.img, root, 1, 2);
  assert_survives_crash (&e, 0);
  env_free (&e);
}

/* The disk has the source's tables, and a doomed root has the disk's old
 * ones. */
static void
test_reset_is_one_switch (void **state)
{
  struct qcow2_root_edit edits[2];
  const struct qcow2_snapshot *s;
  unsigned disk, doomed;
  struct env e;

  env_with_data (&e);
  disk = make_root (&e, new_root ("a", 2 * L2_ENTRIES, QCOW2_L1_LEND, 0));
  (void) qcow2_snapshots (e.img, &s);
  edits[0] = new_root (NULL, 4 * L2_ENTRIES, QCOW2_L1_LEND, 0);
  edits[0].root = disk;
  edits[1] = new_root ("old", s[disk - 1].disk_size >> CB, QCOW2_L1_TAKE, disk);
  edits[1].flags = QCOW2_DISK_DOOMED;
  ok (end_switch (&e, begin_switch (&e, edits, 2), &doomed));
  assert_int_not_equal (doomed, disk);
  assert_string_equal (s[disk - 1].name, "a");
  assert_string_equal (s[doomed - 1].name, "old");
  assert_int_equal (s[doomed - 1].l1_entries, 2);
  assert_int_equal (s[disk - 1].l1_entries, 4);
  assert_same_tables (e.img, disk, 0, 4);
  assert_same_tables (e.img, doomed, 0, 2);
  assert_values (e.img, doomed, 2, 3);
  assert_int_equal (refcount_of (e.img, l1_of (e.img, disk, 3) >> CB, NULL),
                    1 << 16 | 2);
  assert_survives_crash (&e, 0);
  env_free (&e);
}

static void
test_growing_moves_the_l1_table (void **state)
{
  struct qcow2_root_edit edit;
  const struct qcow2_snapshot *s;
  uint64_t old_l1;
  unsigned disk;
  struct env e;

  env_with_data (&e);
  disk = make_root (&e, new_root ("a", 5 * L2_ENTRIES, QCOW2_L1_LEND, 0));
  (void) qcow2_snapshots (e.img, &s);
  old_l1 = s[disk - 1].l1_off;
  edit = new_root ("b", 3000 * L2_ENTRIES, QCOW2_L1_GROW, 0);
  edit.root = disk;
  ok (end_switch (&e, begin_switch (&e, &edit, 1), NULL));
  assert_string_equal (s[disk - 1].name, "b");
  assert_string_equal (s[disk - 1].id, "1");
  assert_int_equal (s[disk - 1].l1_entries, 3000);
  assert_int_not_equal (s[disk - 1].l1_off, old_l1);
  assert_same_tables (e.img, disk, 0, 5);
  assert_int_equal (l1_of (e.img, disk, 2999), 0);
  assert_values (e.img, disk, 1, 2);
  assert_int_equal (refcount_of (e.img, old_l1 >> CB, NULL), 0);
  assert_int_equal (refcount_of (e.img, s[disk - 1].l1_off >> CB, NULL), 1);
  assert_survives_crash (&e, 0);

  /* Renaming and shrinking keep it where it is. */
  old_l1 = s[disk - 1].l1_off;
  edit = new_root ("c", L2_ENTRIES, QCOW2_L1_KEEP, 0);
  edit.root = disk;
  ok (end_switch (&e, begin_switch (&e, &edit, 1), NULL));
  assert_string_equal (s[disk - 1].name, "c");
  assert_int_equal (s[disk - 1].l1_off, old_l1);
  assert_int_equal (s[disk - 1].disk_size, L2_ENTRIES * CS);
  assert_survives_crash (&e, 0);
  env_free (&e);
}

static void
test_root_that_ends_must_be_empty (void **state)
{
  const struct qcow2_root_edit end_of_a = { .root = 2, .remove = true };
  const struct qcow2_root_edit end_of_b = { .root = 3, .remove = true };
  const struct qcow2_snapshot *s;
  uint64_t l1_off, table_off;
  unsigned a, b, c;
  struct env e;

  env_with_data (&e);
  a = make_root (&e, new_root ("a", 5 * L2_ENTRIES, QCOW2_L1_LEND, 0));
  b = make_root (&e, new_root ("b", 600 * L2_ENTRIES, QCOW2_L1_EMPTY, 0));
  assert_int_equal (a, 2);
  assert_int_equal (b, 3);
  assert_int_equal (end_switch (&e, begin_switch (&e, &end_of_a, 1), NULL),
                    -EBUSY);
  (void) qcow2_snapshots (e.img, &s);
  l1_off = s[b - 1].l1_off;
  table_off = e.img->fields.snapshots_off;
  ok (end_switch (&e, begin_switch (&e, &end_of_b, 1), NULL));
  assert_true (s[b - 1].dead);
  assert_int_equal (refcount_of (e.img, l1_off >> CB, NULL), 0);
  assert_int_equal (refcount_of (e.img, (l1_off >> CB) + 1, NULL), 0);
  assert_int_equal (refcount_of (e.img, table_off >> CB, NULL), 0);
  assert_survives_crash (&e, 0);

  /* The slot is used again, the other disk stays. */
  c = make_root (&e, new_root ("c", 1, QCOW2_L1_EMPTY, 0));
  assert_int_equal (c, b);
  assert_false (s[c - 1].dead);
  assert_string_equal (s[c - 1].name, "c");
  assert_string_equal (s[c - 1].id, "2");
  assert_same_tables (e.img, a, 0, 5);
  assert_survives_crash (&e, 0);
  env_free (&e);
}

/* A freed table is not used again before a checkpoint that began later. */
static void
test_freed_tables_wait_for_a_checkpoint (void **state)
{
  const struct qcow2_root_edit end = { .root = 2, .remove = true };
  const struct qcow2_snapshot *s;
  uint64_t token, l1_idx, idx;
  struct env e;

  env_with_data (&e);
  (void) make_root (&e, new_root ("a", 1, QCOW2_L1_EMPTY, 0));
  (void) qcow2_snapshots (e.img, &s);
  l1_idx = s[1].l1_off >> CB;
  ok (end_switch (&e, begin_switch (&e, &end, 1), NULL));
  writeback (e.img);
  release_all (e.img);
  for (int i = 0; i < 1000; ++i)
    assert_int_not_equal (reserve_one (e.img), l1_idx);
  lock_acquire (&e.img->lock);
  token = qcow2_tables_mark_locked (e.img);
  qcow2_tables_settled_locked (e.img, token);
  lock_release (&e.img->lock);
  release_all (e.img);
  do
    idx = reserve_one (e.img);
  while (idx != l1_idx && idx < 30000);
  assert_int_equal (idx, l1_idx);
  env_free (&e);
}

/* A cluster that held a cached table is an L1 table now: it reads as that. */
static void
test_new_l1_hides_what_was_cached (void **state)
{
  struct qcow2_root_edit edit = new_root ("a", 5 * L2_ENTRIES, QCOW2_L1_LEND,
                                          0);
  struct qcow2_slice *t;
  struct qcow2_switch *sw;
  struct qcow2_txn txn;
  uint64_t off;
  unsigned root;
  struct env e;
  int r;

  env_with_data (&e);
  sw = begin_switch (&e, &edit, 1);
  lock_acquire (&e.img->lock);
  off = e.img->alloc.frontier;         /* the snapshot table is there, and the */
  lock_release (&e.img->lock);         /* L1 table before it */
  off = (off - 2) << CB;
  qcow2_txn_begin (e.img, &txn);
  lock_acquire (&e.img->lock);
  RETRY (&txn, (t = qcow2_cache_get_locked (&txn, off, 0, &r), r));
  assert_non_null (t);
  memset (t->data, 0x33, qcow2_slice_size (&e.img->header.geo));
  lock_release (&e.img->lock);
  ok (end_switch (&e, sw, &root));
  assert_int_equal (e.img->snapshots.v[root - 1].l1_off, off);
  assert_same_tables (e.img, root, 0, 5);
  qcow2_txn_end (&txn);
  env_free (&e);
}

/* Tables in any order, with any values. */
static void
test_scattered_tables_are_lent (void **state)
{
  enum { TABLES = 300 };
  const struct qcow2_root_edit edit = new_root ("a", TABLES * L2_ENTRIES,
                                                QCOW2_L1_LEND, 0);
  uint64_t v[TABLES], idx[TABLES];
  unsigned root;
  struct env e;

  env_new (&e, CB, 5, TABLES * L2_ENTRIES);
  for (uint64_t i = 0; i < TABLES; ++i)
    assert_int_not_equal (write_new (e.img, i * 7 % TABLES * L2_ENTRIES), 0);
  for (uint64_t i = 0; i < TABLES; ++i) {
    idx[i] = (l1_of (e.img, 0, i) & QCOW2_OFFSET_MASK) >> CB;
    v[i] = 1 + rnd (3);
    v[i] |= rnd (v[i]) << 16;
    set_refcount (e.img, idx[i], v[i], false);
  }
  ok (end_switch (&e, begin_switch (&e, &edit, 1), &root));
  for (uint64_t i = 0; i < TABLES; ++i)
    assert_int_equal (refcount_of (e.img, idx[i], NULL), v[i] + (1 << 16 | 1));
  assert_same_tables (e.img, root, 0, TABLES);
  assert_survives_crash (&e, 0);
  env_free (&e);
}

/* A table that two entries name gets two paths. */
static void
test_table_that_is_named_twice (void **state)
{
  const struct qcow2_root_edit edit = new_root ("a", 5 * L2_ENTRIES,
                                                QCOW2_L1_LEND, 0);
  uint64_t table;
  struct env e;

  env_with_data (&e);
  table = l1_of (e.img, 0, 0) & QCOW2_OFFSET_MASK;
  qcow2_flat_set (&e.img->l1, 4, table);
  set_refcount (e.img, table >> CB, 2, false);
  writeback (e.img);
  (void) make_root (&e, edit);
  assert_int_equal (refcount_of (e.img, table >> CB, NULL), 2 << 16 | 4);
  env_free (&e);
}

/* Prints how long the lock is held to clone a disk with ROOTS_BENCH tables; run
 * by hand. */
static void
test_speed (void **state)
{
  const char *n = getenv ("ROOTS_BENCH");
  const uint64_t tables = n ? strtoull (n, NULL, 0) : 0;
  struct qcow2_root_edit edit = new_root ("a", tables * L2_ENTRIES,
                                          QCOW2_L1_LEND, 0);
  struct timespec t[4];
  struct qcow2_switch *sw;
  struct qcow2_txn txn;
  struct env e;

  if (!n)
    return;
  env_cache_bytes = tables * CS * 2;
  env_new_for (&e, CB, 5, tables * L2_ENTRIES, 4 * tables + 65536);
  for (uint64_t i = 0; i < tables; ++i)
    assert_int_not_equal (write_new (e.img, i * L2_ENTRIES), 0);
  for (int round = 0; round < 4; ++round) {
    edit.source = round ? e.img->snapshots.nr : 0;
    clock_gettime (CLOCK_MONOTONIC, &t[0]);
    sw = begin_switch (&e, &edit, 1);
    qcow2_txn_begin (e.img, &txn);
    lock_acquire (&e.img->lock);
    e.nr_log = 0;
    clock_gettime (CLOCK_MONOTONIC, &t[1]);
    ok (RETRY (&txn, qcow2_switch_prepare_locked (&txn, sw)));
    clock_gettime (CLOCK_MONOTONIC, &t[2]);
    ok (qcow2_switch_prepare_locked (&txn, sw));
    qcow2_switch_commit_locked (&txn, sw, NULL);
    clock_gettime (CLOCK_MONOTONIC, &t[3]);
    qcow2_txn_end_locked (&txn);
    lock_release (&e.img->lock);
    qcow2_switch_free (sw);
    print_message ("clone of %s: %zu records; new and write %.2f ms, "
                   "first prepare %.2f ms, prepare and commit %.2f ms\n",
                   round ? "a disk" : "the active disk", e.nr_log,
                   ms_between (&t[0], &t[1]), ms_between (&t[1], &t[2]),
                   ms_between (&t[2], &t[3]));
  }
  env_cache_bytes = 0;
  env_free (&e);
}

/* --- Refusals ---------------------------------------------------------------- */

static void
assert_no_switch (struct env *e, const struct qcow2_root_edit *edits, size_t nr,
                  int err)
{
  struct qcow2_switch *sw;
  struct fault f = { 0 };

  assert_int_equal (qcow2_switch_new (e->img, edits, nr, &sw, &f), err);
  assert_int_equal (f.err, -err);
  assert_true (f.msg[0]);
}

static void
test_impossible_edits_are_refused (void **state)
{
  const struct qcow2_root_edit good = new_root ("a", 9, QCOW2_L1_EMPTY, 0);
  struct qcow2_root_edit edit, two[2];
  struct env e;

  env_with_data (&e);
  (void) make_root (&e, good);           /* root 2; root 1 is the anchor */
  for (int i = 0; i < 11; ++i) {
    edit = good;
    switch (i) {
    case 0: edit.root = 1; break;                          /* the anchor */
    case 1: edit.root = 7; break;                          /* none */
    case 2: edit.root = 2; break;                          /* its L1 is lost */
    case 3: edit.name = NULL; break;
    case 4: edit.size = 0; break;
    case 5: edit.l1 = QCOW2_L1_KEEP; break;
    case 6: edit.l1 = QCOW2_L1_GROW; break;
    case 7: edit.l1 = QCOW2_L1_LEND; edit.source = 1; break;
    case 8: edit.l1 = QCOW2_L1_TAKE; edit.source = 2; break;
    case 9: edit.l1 = QCOW2_L1_TAKE; edit.source = 0; break;
    case 10: edit.remove = true; break;                    /* the active disk */
    }
    assert_no_switch (&e, &edit, 1, -EINVAL);
  }
  edit = good;
  edit.size = (QCOW2_MAX_L1_BYTES / 8 * L2_ENTRIES + 1) << CB;
  assert_no_switch (&e, &edit, 1, -EINVAL);
  two[0] = two[1] = good;                /* a table that two take */
  two[0].l1 = two[1].l1 = QCOW2_L1_TAKE;
  two[0].source = two[1].source = 2;
  assert_no_switch (&e, two, 2, -EINVAL);
  env_free (&e);
}

/* A switch that fails or is given up changes nothing. */
static void
test_what_cannot_be_lent_is_refused (void **state)
{
  const struct qcow2_root_edit edit = new_root ("a", 5 * L2_ENTRIES,
                                                QCOW2_L1_LEND, 0);
  uint64_t table, frontier;
  size_t nr_log;
  struct env e;

  env_with_data (&e);
  frontier = reserve_one (e.img);
  table = l1_of (e.img, 0, 1) & QCOW2_OFFSET_MASK;
  set_refcount (e.img, table >> CB, UINT64_C (64999) << 16 | 65000, false);
  nr_log = e.nr_log;
  assert_int_equal (end_switch (&e, begin_switch (&e, &edit, 1), NULL),
                    -EMLINK);
  set_refcount (e.img, table >> CB, 1 << 16 | 1, false);    /* debt = paths */
  assert_int_equal (end_switch (&e, begin_switch (&e, &edit, 1), NULL), -EIO);
  set_refcount (e.img, table >> CB, 0, false);
  assert_int_equal (end_switch (&e, begin_switch (&e, &edit, 1), NULL), -EIO);
  assert_int_equal (e.nr_log, nr_log + 2);
  assert_int_equal (reserve_one (e.img), frontier + 1);
  assert_int_equal (l1_of (e.img, 0, 0) & QCOW2_L2_COPIED, QCOW2_L2_COPIED);
  env_free (&e);

  env_new (&e, CB, 4, 5 * L2_ENTRIES);
  ok (end_switch (&e, begin_switch (&e, &edit, 1), NULL));  /* nothing to lend */
  env_free (&e);
  env_new (&e, CB, 4, 5 * L2_ENTRIES);
  assert_int_not_equal (write_new (e.img, 1), 0);
  assert_int_equal (end_switch (&e, begin_switch (&e, &edit, 1), NULL),
                    -ENOTSUP);
  env_free (&e);
}

/* --- With payments and deletions --------------------------------------------- */

struct table_step {
  int (*step) (struct qcow2_txn *txn, unsigned root, uint64_t l1_idx);
  unsigned root;
  uint64_t l1_idx;
};

static int
step_locked (struct qcow2_txn *txn, void *opaque)
{
  const struct table_step *s = opaque;

  return s->step (txn, s->root, s->l1_idx);
}

/* Does the step for all entries of ROOT's L1 table. */
static void
for_all_tables (struct env *e, unsigned root,
                int (*step) (struct qcow2_txn *, unsigned, uint64_t))
{
  const struct qcow2_snapshot *s;
  struct table_step t = { step, root, 0 };
  uint64_t nr;

  (void) qcow2_snapshots (e->img, &s);
  nr = root ? s[root - 1].l1_entries : e->img->l1.nr;
  for (; t.l1_idx < nr; ++t.l1_idx)
    assert_true (qcow2_txn_run (e->img, step_locked, &t) >= 0);
}

/* A clone whose debts are paid is one for QEMU, too; a disk that was reset and
 * one that was deleted leave nothing behind. */
static void
test_qemu_finds_paid_clones_clean (void **state)
{
  struct qcow2_root_edit edits[2];
  const struct qcow2_snapshot *s;
  unsigned a, b, doomed;
  struct env e;

  env_with_data (&e);
  a = make_root (&e, new_root ("a", 5 * L2_ENTRIES, QCOW2_L1_LEND, 0));
  b = make_root (&e, new_root ("b", 2 * L2_ENTRIES, QCOW2_L1_LEND, a));
  for_all_tables (&e, a, qcow2_pay_table_locked);
  for_all_tables (&e, b, qcow2_pay_table_locked);
  assert_values (e.img, b, 0, 3);
  assert_survives_crash (&e, 0);
  writeback (e.img);
  check_with_qemu (e.io);

  edits[0] = new_root (NULL, 5 * L2_ENTRIES, QCOW2_L1_LEND, a);
  edits[0].root = b;
  edits[1] = new_root ("old", 2 * L2_ENTRIES, QCOW2_L1_TAKE, b);
  edits[1].flags = QCOW2_DISK_DOOMED;
  ok (end_switch (&e, begin_switch (&e, edits, 2), &doomed));
  for_all_tables (&e, doomed, qcow2_drop_path_locked);
  for_all_tables (&e, b, qcow2_pay_table_locked);
  edits[0] = (struct qcow2_root_edit) { .root = doomed, .remove = true };
  ok (end_switch (&e, begin_switch (&e, edits, 1), NULL));
  assert_values (e.img, b, 0, 3);
  assert_survives_crash (&e, 0);
  writeback (e.img);
  check_with_qemu (e.io);

  (void) qcow2_snapshots (e.img, &s);    /* now without the others */
  for (unsigned root = a; root <= b; ++root) {
    edits[0] = new_root (NULL, 1, QCOW2_L1_KEEP, 0);
    edits[0].root = root;
    edits[0].flags = QCOW2_DISK_DOOMED;
    ok (end_switch (&e, begin_switch (&e, edits, 1), NULL));
    for_all_tables (&e, root, qcow2_drop_path_locked);
    edits[0].remove = true;
    ok (end_switch (&e, begin_switch (&e, edits, 1), NULL));
  }
  assert_int_not_equal (l1_of (e.img, 0, 0) & QCOW2_L2_COPIED, 0);
  assert_int_equal (e.img->fields.nr_snapshots, 1);      /* the anchor */
  assert_survives_crash (&e, 0);
  writeback (e.img);
  check_with_qemu (e.io);
  env_free (&e);
}

/* --- The size in the header ---------------------------------------------------- */

static uint64_t
size_in_header (struct env *e)
{
  be64 size;

  writeback (e->img);
  ok (io_pread (e->io, &size, sizeof size, 24));
  return be64_load (size);
}

/* The size in the header is that of the longest disk, as far as the active L1
 * table has room; the disk that is open keeps its size until the next open. */
static void
test_header_has_the_longest_size (void **state)
{
  struct qcow2_create_params p = {
    .cluster_bits = CB, .refcount_order = 5,
    .max_disk_size = 40 * L2_ENTRIES * CS,
  };
  struct qcow2_root_edit edit;
  struct fault f = { 0 };
  struct env e = { 0 };
  unsigned root;

  ok (io_memory_new (0, &e.io));
  ok (qcow2_create (e.io, &p, &f));
  adopt (e.io, 32768);
  env_open (&e);
  assert_int_equal (qcow2_geometry (e.img)->virtual_size, 512);
  assert_int_equal (e.img->l1.nr, 40);
  (void) make_root (&e, new_root ("a", 3, QCOW2_L1_EMPTY, 0));
  edit = new_root ("b", 5, QCOW2_L1_EMPTY, 0);
  edit.size -= 700;
  root = make_root (&e, edit);
  assert_int_equal (size_in_header (&e), 5 * CS - 512);
  check_with_qemu (e.io);
  assert_int_equal (qcow2_geometry (e.img)->virtual_size, 512);

  edit = new_root (NULL, 41 * L2_ENTRIES, QCOW2_L1_GROW, 0);
  edit.root = root;
  ok (end_switch (&e, begin_switch (&e, &edit, 1), NULL));
  assert_int_equal (size_in_header (&e), 40 * L2_ENTRIES * CS);
  check_with_qemu (e.io);
  edit = new_root (NULL, 2, QCOW2_L1_KEEP, 0);
  edit.root = root;
  ok (end_switch (&e, begin_switch (&e, &edit, 1), NULL));
  assert_int_equal (size_in_header (&e), 3 * CS);
  env_reopen (&e);
  assert_int_equal (qcow2_geometry (e.img)->virtual_size, 3 * CS);

  /* Nor does it grow where that would change what the disk holds. */
  lock_acquire (&e.img->lock);
  e.img->snapshots.v[2].disk_size = 4 * CS;
  assert_int_equal (qcow2_size_for_header (e.img), 4 * CS);
  e.img->header.geo.has_backing = true;
  assert_int_equal (qcow2_size_for_header (e.img), 3 * CS);
  e.img->header.geo.has_backing = false;
  e.img->bitmaps.nr = 1;
  assert_int_equal (qcow2_size_for_header (e.img), 3 * CS);
  e.img->bitmaps.nr = 0;
  e.img->snapshots.v[2].disk_size = 2 * CS;
  lock_release (&e.img->lock);

  root = make_root (&e, new_root ("c", 6, QCOW2_L1_EMPTY, 0));
  assert_int_equal (size_in_header (&e), 6 * CS);
  edit = (struct qcow2_root_edit) { .root = root, .remove = true };
  ok (end_switch (&e, begin_switch (&e, &edit, 1), NULL));
  assert_int_equal (size_in_header (&e), 3 * CS);

  /* It does not become shorter than it was at open. */
  edit = (struct qcow2_root_edit) { .root = 2, .remove = true };
  ok (end_switch (&e, begin_switch (&e, &edit, 1), NULL));
  assert_int_equal (size_in_header (&e), 3 * CS);
  check_with_qemu (e.io);
  env_free (&e);
}

/* A plan writes the header, too. */
static void
test_plan_keeps_the_longest_size (void **state)
{
  const uint8_t ext[QCOW2_STORE_EXTENSION_SIZE] = { 0 };
  struct qcow2_plan *plan;
  struct fault f = { 0 };
  struct env e;
  be64 size;

  env_new (&e, CB, 5, L2_ENTRIES - 9);
  (void) make_root (&e, new_root ("a", L2_ENTRIES, QCOW2_L1_EMPTY, 0));
  ok (qcow2_plan_new (e.img, NULL, 0, 100000, &plan, &f));
  ok (qcow2_plan_write (e.img, plan));
  ok (qcow2_plan_commit_header (e.img, plan, ext, &f));
  ok (io_pread (e.io, &size, sizeof size, 24));
  assert_int_equal (be64_load (size), L2_ENTRIES * CS);
  qcow2_plan_free (plan);
  env_free (&e);
}

static void
test_pools_that_qemu_would_refuse (void **state)
{
  struct qcow2_create_params p = {
    .cluster_bits = CB, .refcount_order = 5,
    .max_disk_size = (QCOW2_MAX_L1_BYTES / 8 * L2_ENTRIES) << CB,
  };
  struct io_store *io;
  struct fault f = { 0 };

  ok (io_memory_new (0, &io));
  ok (qcow2_create (io, &p, &f));
  p.max_disk_size++;
  assert_int_equal (qcow2_create (io, &p, &f), -EINVAL);
  assert_int_equal (f.kind, FAULT_USAGE);
  io_close (io);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_disk_is_read_as_written),
    cmocka_unit_test (test_unknown_parts_of_an_entry_stay),
    cmocka_unit_test (test_doubtful_disks_are_read_only),
    cmocka_unit_test (test_most_entries_of_one_name),
    cmocka_unit_test (test_replay_reads_the_last_table),
    cmocka_unit_test (test_empty_disk_is_made),
    cmocka_unit_test (test_clone_lends_all_tables),
    cmocka_unit_test (test_clone_has_later_changes),
    cmocka_unit_test (test_reset_is_one_switch),
    cmocka_unit_test (test_growing_moves_the_l1_table),
    cmocka_unit_test (test_root_that_ends_must_be_empty),
    cmocka_unit_test (test_freed_tables_wait_for_a_checkpoint),
    cmocka_unit_test (test_new_l1_hides_what_was_cached),
    cmocka_unit_test (test_scattered_tables_are_lent),
    cmocka_unit_test (test_table_that_is_named_twice),
    cmocka_unit_test (test_speed),
    cmocka_unit_test (test_impossible_edits_are_refused),
    cmocka_unit_test (test_what_cannot_be_lent_is_refused),
    cmocka_unit_test (test_qemu_finds_paid_clones_clean),
    cmocka_unit_test (test_header_has_the_longest_size),
    cmocka_unit_test (test_plan_keeps_the_longest_size),
    cmocka_unit_test (test_pools_that_qemu_would_refuse),
  };

  seed_from_environment ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
