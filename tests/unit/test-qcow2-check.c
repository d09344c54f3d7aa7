/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests qcow2_check: it gives the same verdict as `qemu-img check` on images
 * that QEMU made and on images that were damaged on purpose, and knows the
 * rules of the anchor, which QEMU does not.
 *
 * QEMU's tools are the oracle: without qemu-img and qemu-io the test fails.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "image.h"
#include "qcow2-check.h"

#define KIB UINT64_C (1024)
#define COPIED QCOW2_L2_COPIED

static char dir[] = "/tmp/qcow2-check-XXXXXX";
static char base[64], copy[64];

/* --- Running QEMU ----------------------------------------------------- */

static int __attribute__ ((__format__ (__printf__, 1, 2)))
run (const char *fmt, ...)
{
  char cmd[2048];
  va_list ap;
  int r;

  va_start (ap, fmt);
  vsnprintf (cmd, sizeof cmd, fmt, ap);
  va_end (ap);
  r = system (cmd);
  assert_true (r != -1 && WIFEXITED (r));
  return WEXITSTATUS (r);
}

#define must(...) assert_int_equal (run (__VA_ARGS__), 0)

static int
setup (void **state)
{
  if (!mkdtemp (dir))
    return -1;
  snprintf (base, sizeof base, "%s/base.qcow2", dir);
  snprintf (copy, sizeof copy, "%s/copy.qcow2", dir);
  return 0;
}

static int
teardown (void **state)
{
  return run ("rm -rf %s", dir);
}

/* --- Reading and damaging tables ----------------------------------------- */

struct raw {                /* the header's fields, as the file has them */
  int fd;
  uint64_t cs, l1_off, reftable_off, snapshots_off;
  unsigned l1_entries, bits, nr_snapshots;
  unsigned entry;           /* bytes of an L2 entry */
};

static uint64_t
get (int fd, uint64_t off, unsigned len)
{
  uint8_t b[8];
  uint64_t v = 0;
  unsigned i;

  assert_int_equal (pread (fd, b, len, (off_t) off), len);
  for (i = 0; i < len; i++)
    v = v << 8 | b[i];
  return v;
}

static void
put (int fd, uint64_t off, unsigned len, uint64_t v)
{
  uint8_t b[8];
  unsigned i;

  for (i = len; i-- > 0; v >>= 8)
    b[i] = (uint8_t) v;
  assert_int_equal (pwrite (fd, b, len, (off_t) off), len);
}

static struct raw
raw_open (const char *path)
{
  struct raw w = { .fd = open (path, O_RDWR | O_CLOEXEC) };

  assert_true (w.fd >= 0);
  w.cs = UINT64_C (1) << get (w.fd, 20, 4);
  w.l1_entries = get (w.fd, 36, 4);
  w.l1_off = get (w.fd, 40, 8);
  w.reftable_off = get (w.fd, 48, 8);
  w.nr_snapshots = get (w.fd, 60, 4);
  w.snapshots_off = get (w.fd, 64, 8);
  w.bits = get (w.fd, 4, 4) < 3 ? 16 : 1 << get (w.fd, 96, 4);
  w.entry = get (w.fd, 4, 4) >= 3 &&
    (get (w.fd, 72, 8) & QCOW2_INCOMPAT_EXTENDED_L2) ? 16 : 8;
  return w;
}

/* Where the L2 entry of a guest cluster is in the file. */
static uint64_t
l2_at (const struct raw *w, uint64_t guest_idx)
{
  uint64_t per = w->cs / w->entry;
  uint64_t l1 = get (w->fd, w->l1_off + guest_idx / per * 8, 8);

  assert_true (l1 & QCOW2_OFFSET_MASK);
  return (l1 & QCOW2_OFFSET_MASK) + guest_idx % per * w->entry;
}

static uint64_t
l2_get (const struct raw *w, uint64_t guest_idx)
{
  return get (w->fd, l2_at (w, guest_idx), 8);
}

static void
l2_put (const struct raw *w, uint64_t guest_idx, uint64_t entry)
{
  put (w->fd, l2_at (w, guest_idx), 8, entry);
}

static uint64_t
block_of (const struct raw *w, uint64_t host_off)
{
  uint64_t per = w->cs * 8 / w->bits;
  uint64_t block = get (w->fd, w->reftable_off + host_off / w->cs / per * 8, 8);

  assert_true (block);
  return block;
}

static void
refcount_put (const struct raw *w, uint64_t host_off, uint64_t v)
{
  uint64_t i = host_off / w->cs % (w->cs * 8 / w->bits);
  uint64_t block = block_of (w, host_off), at, byte;
  unsigned mask, shift;

  if (w->bits >= 8) {
    put (w->fd, block + i * w->bits / 8, w->bits / 8, v);
    return;
  }
  at = block + i * w->bits / 8;
  shift = i * w->bits % 8;
  mask = ((1u << w->bits) - 1) << shift;
  byte = get (w->fd, at, 1);
  put (w->fd, at, 1, (byte & ~mask) | (v << shift & mask));
}

/* --- Running the checker -------------------------------------------------- */

static char lines[4096];

static void
note (void *opaque, bool is_leak, const char *line)
{
  size_t n = strlen (lines);

  snprintf (lines + n, sizeof lines - n, "%s%s\n", is_leak ? "leak: " : "",
            line);
}

static uint64_t progress_last, progress_total;

static void
progress (void *opaque, uint64_t done, uint64_t total)
{
  progress_last = done;
  progress_total = total;
}

static int
check (const char *path, const struct qcow2_area *areas, size_t nr_areas,
       struct qcow2_check_result *r)
{
  const struct qcow2_open_params op = { .path = path, .cache_bytes = 1 << 20 };
  const struct qcow2_check_params cp = {
    .areas = areas, .nr_areas = nr_areas, .problem = note,
    .progress = progress,
  };
  struct qcow2_image *img = NULL;
  struct io_store *io;
  struct fault f = { 0 };
  int ret;

  lines[0] = '\0';
  assert_int_equal (io_file_open (path, 0, IO_LOCK_NONE, &io, &f), 0);
  ret = qcow2_open (io, &op, &img, &f);
  if (ret < 0)
    print_message ("%s: %s\n", path, f.msg);
  else
    ret = qcow2_check (img, &cp, r, &f);
  qcow2_close (img);
  io_close (io);
  return ret;
}

/* The exit code that qemu-img would give this result. */
static int
verdict (const char *path)
{
  struct qcow2_check_result r;

  if (check (path, NULL, 0, &r) < 0 || r.errors)
    return 1;
  return r.corruptions ? 2 : r.leaks ? 3 : 0;
}

static void
assert_agree (const char *path, const char *what, int expected)
{
  int qemu = run ("qemu-img check %s >/dev/null 2>&1", path);
  int ours = verdict (path);

  if (ours != qemu || (expected >= 0 && ours != expected))
    fail_msg ("%s: qemu-img check: %d, qcow2_check: %d, expected %d\n%s",
              what, qemu, ours, expected, lines);
}

/* --- Images --------------------------------------------------------------- */

#define DISK (65536 * KIB + 512)

static void
write_guest (const char *how, unsigned pattern, uint64_t cs,
             uint64_t guest_idx, uint64_t nr)
{
  must ("qemu-io -c 'write -q %s -P %u %" PRIu64 " %" PRIu64 "' %s", how,
        pattern, guest_idx * cs, nr * cs, base);
}

/* Data in guest clusters 0-7, compressed 16 (and 17); then, with a snapshot if
 * refcounts can count it, 4-11 are written again and 14 is zeroed in place.
 * Narrow refcounts
 * cannot count two compressed clusters in one host cluster, twice. */
static void
make_base (uint64_t cs, unsigned bits)
{
  must ("rm -f %s", base);
  must ("qemu-img create -q -f qcow2 -o cluster_size=%" PRIu64
        ",refcount_bits=%u %s %" PRIu64, cs, bits, base, DISK);
  write_guest ("", 1, cs, 0, 8);
  if (bits > 2)
    must ("qemu-io -c 'write -q -c -P 2 %" PRIu64 " %" PRIu64 "' "
          "-c 'write -q -c -P 3 %" PRIu64 " %" PRIu64 "' %s", cs * 16, cs,
          cs * 17, cs, base);
  else
    write_guest ("-c", 2, cs, 16, 1);
  if (bits > 1)
    must ("qemu-img snapshot -c one %s", base);
  write_guest ("", 7, cs, 4, 8);
  write_guest ("", 8, cs, 14, 1);
  must ("qemu-io -c 'write -q -z %" PRIu64 " %" PRIu64 "' %s", cs * 14, cs,
        base);
}

/* --- Faults: each takes an image from 0 to the expected code -------------- */

#define OWN 9     /* a guest cluster that only the active disk has */

static uint64_t
own (const struct raw *w)
{
  return l2_get (w, OWN) & QCOW2_OFFSET_MASK;
}

static void
leak_by_forgotten_entry (const struct raw *w)
{
  l2_put (w, OWN, 0);
}

static void
refcount_too_high (const struct raw *w)
{
  refcount_put (w, own (w), 2);
}

static void
refcount_of_table_too_high (const struct raw *w)
{
  refcount_put (w, w->reftable_off, 2);
}

static void
refcount_too_low (const struct raw *w)
{
  refcount_put (w, own (w), 0);
}

static void
refcount_of_l1_too_low (const struct raw *w)
{
  refcount_put (w, w->l1_off, 0);
}

static void
copied_missing (const struct raw *w)
{
  l2_put (w, OWN, l2_get (w, OWN) & ~COPIED);
}

static void
copied_missing_in_l1 (const struct raw *w)
{
  put (w->fd, w->l1_off, 8, get (w->fd, w->l1_off, 8) & ~COPIED);
}

static void
copied_on_shared (const struct raw *w)
{
  l2_put (w, 1, l2_get (w, 1) | COPIED);
}

static void
copied_on_compressed (const struct raw *w)
{
  l2_put (w, 16, l2_get (w, 16) | COPIED);
}

static void
shared_within_the_disk (const struct raw *w)
{
  l2_put (w, OWN, l2_get (w, OWN) & ~COPIED);
  l2_put (w, OWN + 20, l2_get (w, OWN));
  refcount_put (w, own (w), 2);
}

static void
shared_with_refcount_one (const struct raw *w)
{
  l2_put (w, OWN + 20, l2_get (w, OWN));
}

static void
entry_past_the_end (const struct raw *w)
{
  l2_put (w, OWN, COPIED | UINT64_C (1) << 40);
}

static void
entry_not_aligned (const struct raw *w)
{
  if (w->cs > 512)
    l2_put (w, OWN, l2_get (w, OWN) + 512);
  else
    entry_past_the_end (w);
}

static void
entry_with_reserved_bit (const struct raw *w)
{
  l2_put (w, OWN, l2_get (w, OWN) | 4);
}

static void
compressed_past_the_end (const struct raw *w)
{
  l2_put (w, 16, l2_get (w, 16) | UINT64_C (1) << 40);
}

static void
l1_entry_past_the_end (const struct raw *w)
{
  put (w->fd, w->l1_off, 8, COPIED | UINT64_C (1) << 40);
}

static void
l1_entry_with_reserved_bit (const struct raw *w)
{
  put (w->fd, w->l1_off, 8, get (w->fd, w->l1_off, 8) | UINT64_C (1) << 56);
}

static void
block_past_the_end (const struct raw *w)
{
  put (w->fd, w->reftable_off + 8, 8, UINT64_C (1) << 40);
}

static void
block_with_reserved_bit (const struct raw *w)
{
  put (w->fd, w->reftable_off + 8, 8, 1);
}

static void
block_used_twice (const struct raw *w)
{
  put (w->fd, w->reftable_off + 8, 8, get (w->fd, w->reftable_off, 8));
}

static void
data_in_refcount_table (const struct raw *w)
{
  l2_put (w, OWN, COPIED | w->reftable_off);
}

static void
data_in_l2_table (const struct raw *w)
{
  l2_put (w, OWN, COPIED | (l2_at (w, OWN) & ~(w->cs - 1)));
}

static void
snapshot_l1_past_the_end (const struct raw *w)
{
  put (w->fd, w->snapshots_off, 8, UINT64_C (1) << 40);
}

static void
snapshot_entry_incomplete (const struct raw *w)
{
  put (w->fd, w->snapshots_off + 36, 4, 8);
}

enum { NEEDS_SHARING = 1, NEEDS_SNAPSHOT = 2 };

static const struct {
  const char *name;
  void (*damage) (const struct raw *w);
  int expected;           /* -1: whatever qemu-img says */
  unsigned needs;
} faults[] = {
#define F(fn, expected, needs) { #fn, fn, expected, needs }
  F (leak_by_forgotten_entry, 3, 0),
  F (refcount_too_high, 2, NEEDS_SHARING),   /* and COPIED is wrong */
  F (refcount_of_table_too_high, 3, NEEDS_SHARING),
  F (refcount_too_low, 2, 0),
  F (refcount_of_l1_too_low, 2, 0),
  F (copied_missing, 2, 0),
  F (copied_missing_in_l1, 2, 0),
  F (copied_on_shared, 2, NEEDS_SHARING),
  F (copied_on_compressed, 2, 0),
  F (shared_within_the_disk, 0, NEEDS_SHARING),
  F (shared_with_refcount_one, 2, 0),
  F (entry_past_the_end, 2, 0),
  F (entry_not_aligned, 2, 0),
  F (entry_with_reserved_bit, 2, 0),
  F (compressed_past_the_end, 2, 0),
  F (l1_entry_past_the_end, 2, 0),
  F (l1_entry_with_reserved_bit, 2, 0),
  F (block_past_the_end, 2, 0),
  F (block_with_reserved_bit, 2, 0),
  F (block_used_twice, 2, 0),
  F (data_in_refcount_table, 2, 0),
  F (data_in_l2_table, 2, 0),
  F (snapshot_l1_past_the_end, 2, NEEDS_SNAPSHOT),
  F (snapshot_entry_incomplete, 2, NEEDS_SNAPSHOT),
#undef F
};

static void
try_faults (uint64_t cs, unsigned bits)
{
  char what[128];
  struct raw w;
  size_t i;

  make_base (cs, bits);
  for (i = 0; i < sizeof faults / sizeof faults[0]; i++) {
    if (bits == 1 && faults[i].needs)
      continue;
    must ("cp %s %s", base, copy);
    w = raw_open (copy);
    faults[i].damage (&w);
    close (w.fd);
    snprintf (what, sizeof what, "cluster size %" PRIu64
              ", refcount bits %u: %s", cs, bits, faults[i].name);
    assert_agree (copy, what, faults[i].expected);
  }
}

/* --- Tests ---------------------------------------------------------------- */

static void
test_faults (void **state)
{
  unsigned bits;

  for (bits = 1; bits <= 64; bits *= 4)
    try_faults (4096, bits);
  try_faults (512, 16);
  try_faults (65536, 2);
}

static void
test_every_cluster_size (void **state)
{
  uint64_t cs;

  for (cs = 512; cs <= 2048 * KIB; cs *= 2) {
    make_base (cs, 16);
    assert_agree (base, "sound image", 0);
  }
}

static void
test_every_refcount_width (void **state)
{
  unsigned bits;

  for (bits = 1; bits <= 64; bits *= 2) {
    make_base (4096, bits);
    assert_agree (base, "sound image", 0);
  }
}

static void
test_empty_and_version_2 (void **state)
{
  must ("qemu-img create -q -f qcow2 %s 0", base);
  assert_agree (base, "size 0", 0);
  must ("qemu-img create -q -f qcow2 -o compat=0.10 %s 1M", base);
  must ("qemu-io -c 'write -q 0 256k' %s", base);
  must ("qemu-img snapshot -c one %s", base);
  must ("qemu-io -c 'write -q 0 64k' %s", base);
  assert_agree (base, "version 2", 0);
}

static void
test_preallocation (void **state)
{
  static const char *const how[] = { "metadata", "falloc" };
  size_t i;

  for (i = 0; i < 2; i++) {
    must ("qemu-img create -q -f qcow2 -o cluster_size=512,preallocation=%s "
          "%s 3M", how[i], base);
    assert_agree (base, how[i], 0);
  }
}

/* A bitmap's table takes two clusters. */
static void
test_long_bitmap_table (void **state)
{
  must ("rm -f %s; qemu-img create -q -f qcow2 -o cluster_size=512 %s 200M && "
        "qemu-img bitmap --add -g 512 %s one", base, base, base);
  assert_agree (base, "bitmap table", 0);
}

static void
test_bitmaps (void **state)
{
  must ("rm -f %s; qemu-img create -q -f qcow2 -o cluster_size=4k %s 16M",
        base, base);
  must ("qemu-img bitmap --add -g 4k %s one && "
        "qemu-img bitmap --add -g 512 %s two-with-a-longer-name && "
        "qemu-io -c 'write -q 0 5M' %s", base, base, base);
  assert_agree (base, "bitmaps", 0);
}

#define BITMAPS_EXTENSION 0x23852875

/* Where the payload of the header extension is. */
static uint64_t
bitmaps_at (int fd)
{
  uint64_t at = get (fd, 100, 4);

  while (get (fd, at, 4) != BITMAPS_EXTENSION) {
    assert_true (get (fd, at, 4) != 0);
    at += 8 + (get (fd, at + 4, 4) + 7) / 8 * 8;
  }
  return at + 8;
}

/* One lie each in an image whose two bitmaps are right. */
static void
test_bitmaps_that_lie (void **state)
{
  enum { NUMBER, TABLE, ENTRY };
  static const struct {
    int where;
    uint64_t flip;
    const char *what;
  } cases[] = {
    { NUMBER, 2 ^ 0x3, "ends before its last entry" },
    { NUMBER, 2 ^ 65536, "claims 65536 bitmaps" },
    { TABLE, 1, "bitmap table" },          /* misaligned */
    { TABLE, 1 << 20, "bitmap table" },    /* another cluster's place */
    { ENTRY, 1, "reserved bits" },         /* all ones, and an offset */
    { ENTRY, 2, "reserved bits" },
    { ENTRY, UINT64_C (1) << 63, "reserved bits" },
    { ENTRY, 512, "bitmap cluster" },
    { ENTRY, 1 << 20, "referenced 2 times" },   /* data is there */
  };
  struct raw w;
  uint64_t ext, directory, entry, at;
  unsigned len;
  size_t i;

  test_bitmaps (state);
  for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    must ("cp %s %s", base, copy);
    w = raw_open (copy);
    ext = bitmaps_at (w.fd);
    directory = get (w.fd, ext + 16, 8);
    entry = get (w.fd, directory, 8);
    assert_true (get (w.fd, entry, 8) & QCOW2_OFFSET_MASK);
    at = cases[i].where == NUMBER ? ext : cases[i].where == TABLE ? directory
      : entry;
    len = cases[i].where == NUMBER ? 4 : 8;
    put (w.fd, at, len, get (w.fd, at, len) ^ cases[i].flip);
    close (w.fd);
    assert_int_equal (verdict (copy), 2);
    if (strstr (lines, cases[i].what) == NULL)
      fail_msg ("case %zu: %s", i, lines);
  }
}

/* The journal of a hostile image may name any place as a bitmap table's entry:
 * only what is one is written to. */
static void
test_bitmap_records_name_table_entries (void **state)
{
  const struct qcow2_open_params p = { .path = base, .writable = true,
                                       .cache_bytes = 1 << 20 };
  struct raw w;
  uint64_t table, entries, places[8];
  struct qcow2_image *img;
  struct io_store *io;
  struct qcow2_txn txn;
  struct fault f = { 0 };
  size_t i;
  int r;

  test_bitmaps (state);
  w = raw_open (base);
  table = get (w.fd, get (w.fd, bitmaps_at (w.fd) + 16, 8), 8);
  entries = get (w.fd, get (w.fd, bitmaps_at (w.fd) + 16, 8) + 8, 4);
  places[0] = table;                    /* right */
  places[1] = table + 4;
  places[2] = table + 8 * entries;
  places[3] = table - 8;
  places[4] = w.l1_off;
  places[5] = w.reftable_off;
  places[6] = 40;                       /* the header's L1 offset */
  places[7] = get (w.fd, bitmaps_at (w.fd) + 16, 8);
  close (w.fd);
  assert_int_equal (io_file_open (base, IO_FILE_WRITE, IO_LOCK_NONE, &io, &f),
                    0);
  assert_int_equal (qcow2_open (io, &p, &img, &f), 0);
  qcow2_txn_begin (img, &txn);
  for (i = 0; i < 8; i++) {
    const struct qcow2_change c = { .type = QCOW2_CHANGE_BITMAP,
      .table_idx = places[i], .host_off = w.l1_off };

    do {
      lock_acquire (qcow2_lock (img));
      r = qcow2_apply_locked (&txn, &c);
      lock_release (qcow2_lock (img));
    } while (r == -EAGAIN && qcow2_txn_load (&txn) == 0);
    assert_int_equal (r, i == 0 ? 0 : -EINVAL);
  }
  qcow2_txn_end (&txn);
  qcow2_close (img);
  io_close (io);
}

/* qemu-img does not look past the end of the file. */
static void
test_refcount_past_the_end_is_a_leak (void **state)
{
  struct raw w;

  make_base (4096, 16);
  w = raw_open (base);
  refcount_put (&w, 1000 * w.cs, 1);
  close (w.fd);
  assert_int_equal (verdict (base), 3);
}

/* qemu-img is content where the refcount is right. */
static void
test_data_in_snapshot_table_with_right_refcount (void **state)
{
  struct raw w;

  make_base (4096, 16);
  w = raw_open (base);
  refcount_put (&w, own (&w), 0);
  l2_put (&w, OWN, w.snapshots_off);
  refcount_put (&w, w.snapshots_off, 2);
  close (w.fd);
  assert_int_equal (run ("qemu-img check -q %s", base), 0);
  assert_int_equal (verdict (base), 2);
  assert_non_null (strstr (lines, "referenced 2 times"));
}

static void
test_data_in_l2_table_with_right_refcount (void **state)
{
  struct raw w;
  uint64_t l2;

  make_base (4096, 16);
  w = raw_open (base);
  l2 = l2_at (&w, OWN) & ~(w.cs - 1);
  refcount_put (&w, own (&w), 0);
  l2_put (&w, OWN, l2);
  refcount_put (&w, l2, 2);
  put (w.fd, w.l1_off, 8, l2);
  close (w.fd);
  assert_int_equal (run ("qemu-img check -q %s", base), 0);
  assert_int_equal (verdict (base), 2);
  assert_non_null (strstr (lines, "used for data, too"));
}

/* The counters stop where the image's refcounts do. */
static void
test_more_references_than_a_refcount_can_count (void **state)
{
  struct raw w;

  make_base (4096, 1);
  w = raw_open (base);
  l2_put (&w, OWN + 20, l2_get (&w, OWN));
  close (w.fd);
  assert_agree (base, "two references, one bit", 2);
  assert_non_null (strstr (lines, "can count"));
}

static void
test_counts (void **state)
{
  struct qcow2_check_result r;

  make_base (4096, 16);
  assert_int_equal (check (base, NULL, 0, &r), 0);
  assert_int_equal (r.guest_clusters, DISK / 4096 + 1);
  assert_int_equal (r.mapped_clusters, 12 + 2);
  assert_int_equal (r.compressed_clusters, 2);
  assert_int_equal (r.zero_clusters, 1);
  /* 0-11, 4-7 of the snapshot, 14 kept under its zero entry, and one that
   * both compressed clusters share. */
  assert_int_equal (r.data_clusters, 12 + 4 + 1 + 1);
  assert_int_equal (r.anchored_clusters + r.store_clusters + r.garbage, 0);
  assert_true (r.meta_clusters >= 7);
  assert_true (progress_total > 0);
  assert_int_equal (progress_last, progress_total);
}

/* --- The anchor ----------------------------------------------------------- */

#define GUEST 8      /* guest clusters of the anchored image: 8 from first */

/* An image whose snapshot is an anchor in every respect: host clusters
 * FIRST to FIRST + GUEST - 1 are anchored, and the active disk maps them at
 * the same offsets.  The trick: QEMU allocates in order, so a write at the
 * guest offset that is the next host offset maps to itself. */
static uint64_t
make_anchored_with (const char *options)
{
  static const char name[] = "dedupdedup";
  struct raw w;
  uint64_t first, i;
  off_t end;

  must ("rm -f %s; qemu-img create -q -f qcow2 -o %s %s 1M", base, options,
        base);
  must ("qemu-io -c 'write -q -z 0 4k' %s", base);
  w = raw_open (base);
  end = lseek (w.fd, 0, SEEK_END);
  first = (uint64_t) end / w.cs;
  must ("qemu-io -c 'write -q -P 9 %" PRIu64 " %" PRIu64 "' %s", first * w.cs,
        GUEST * w.cs, base);
  for (i = first; i < first + GUEST; i++)
    assert_int_equal (l2_get (&w, i), COPIED | i * w.cs);
  l2_put (&w, 0, 0);
  if (w.entry == 16)
    put (w.fd, l2_at (&w, 0) + 8, 8, 0);
  must ("qemu-img snapshot -c dedup %s", base);
  close (w.fd);

  /* The id that QEMU chose is "1": five bytes, and the name behind it. */
  w = raw_open (base);
  assert_int_equal (get (w.fd, w.snapshots_off + 12, 2), 1);
  i = 40 + get (w.fd, w.snapshots_off + 36, 4);
  put (w.fd, w.snapshots_off + 12, 2, 5);
  assert_int_equal (pwrite (w.fd, name, 10, (off_t) (w.snapshots_off + i)), 10);
  close (w.fd);
  return first;
}

static uint64_t
make_anchored (void)
{
  return make_anchored_with ("cluster_size=4k");
}

static uint64_t
anchored_problems (const struct qcow2_area *areas, size_t nr)
{
  struct qcow2_check_result r;

  assert_int_equal (check (base, areas, nr, &r), 0);
  assert_int_equal (r.errors, 0);
  return r.corruptions + r.leaks;
}

static void
discard (uint64_t guest_idx, uint64_t nr)
{
  must ("qemu-io -c 'discard -q %" PRIu64 " %" PRIu64 "' %s",
        guest_idx * 4096, nr * 4096, base);
}

static void
test_anchor_is_clean (void **state)
{
  struct qcow2_check_result r;
  uint64_t first = make_anchored ();
  const struct qcow2_area area = { (first + 3) * 4096, 2 * 4096 };

  discard (first + 3, 4);
  assert_agree (base, "anchored image", 0);
  assert_int_equal (check (base, &area, 1, &r), 0);
  assert_int_equal (r.corruptions + r.leaks + r.errors, 0);
  assert_int_equal (r.store_clusters, 2);
  assert_int_equal (r.garbage, 2);
  assert_int_equal (r.anchored_clusters, GUEST - 4);
  assert_int_equal (r.mapped_clusters, GUEST - 4);
}

static void
test_area_must_be_anchored_alone (void **state)
{
  uint64_t first = make_anchored ();
  const struct qcow2_area areas[] = {
    { (first + 3) * 4096, 4096 }, { (first + 3) * 4096, 4096 },
  };
  const struct qcow2_area in_use = { first * 4096, 4096 };
  const struct qcow2_area table = { 4096, 4096 };
  const struct qcow2_area outside = { UINT64_C (1) << 40, 4096 };
  const struct qcow2_area wrapping = { 4096, UINT64_MAX - 4095 };
  const struct qcow2_area odd = { first * 4096 + 512, 4096 };

  discard (first + 3, 1);
  assert_int_equal (anchored_problems (areas, 1), 0);
  assert_int_equal (anchored_problems (areas, 2), 1);
  assert_int_equal (anchored_problems (&in_use, 1), 1);
  assert_non_null (strstr (lines, "something else refers"));
  assert_int_equal (anchored_problems (&table, 1), 1);
  assert_non_null (strstr (lines, "not anchored"));
  assert_int_equal (anchored_problems (&outside, 1), 1);
  assert_int_equal (anchored_problems (&wrapping, 1), 1);
  assert_int_equal (anchored_problems (&odd, 1), 1);
}

static void
test_copied_on_anchored (void **state)
{
  uint64_t first = make_anchored ();
  struct raw w;

  discard (first + 3, 1);     /* gives the active disk its own L2 table */
  w = raw_open (base);
  l2_put (&w, first, l2_get (&w, first) | COPIED);
  close (w.fd);
  assert_int_equal (anchored_problems (NULL, 0), 1);
  assert_non_null (strstr (lines, "is anchored"));
}

/* The entries of two anchored clusters change places: all refcounts are
 * right, and only the anchor's own rule is broken. */
static void
test_anchor_entry_must_be_identity (void **state)
{
  uint64_t first = make_anchored ();
  struct raw w;

  w = raw_open (base);         /* active disk and anchor share the L2 table */
  l2_put (&w, first, (first + 1) * 4096);
  l2_put (&w, first + 1, first * 4096);
  close (w.fd);
  assert_int_equal (run ("qemu-img check -q %s", base), 0);
  assert_int_equal (anchored_problems (NULL, 0), 2);
}

/* --- The world ------------------------------------------------------------ */

struct broken {
  enum io_call call;
  int nth;
};

static int
fail_nth (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  struct broken *b = opaque;

  return call == b->call && b->nth-- == 0 ? -EIO : 0;
}

/* Whatever read fails, it is told as "could not check". */
/* Nobody writes parts of a cluster that is anchored. */
static void
test_anchor_has_no_subclusters (void **state)
{
  uint64_t first = make_anchored_with ("cluster_size=16k,extended_l2=on");
  uint64_t l1, l2;
  struct raw w;

  assert_int_equal (anchored_problems (NULL, 0), 0);
  w = raw_open (base);
  l1 = get (w.fd, w.snapshots_off, 8);
  l2 = get (w.fd, l1, 8) & QCOW2_OFFSET_MASK;
  put (w.fd, l2 + first * 16 + 8, 8, 0xffff);
  close (w.fd);
  assert_int_equal (anchored_problems (NULL, 0), 1);
  assert_non_null (strstr (lines, "in the anchor, which has whole clusters"));
}

/* Extended L2 entries: each in turn, of an image that is right. */
static void
test_subclusters (void **state)
{
  static const struct {
    uint64_t guest_idx, flags, bitmap;    /* FLAGS: changed in the entry */
    const char *what;                     /* NULL: it is right */
  } cases[] = {
    { 0, 0, 0xffffffff, NULL },
    { 0, 0, UINT64_C (0xffff00000000ffff), NULL },
    { 0, 0, UINT64_C (0x1ffffffff), "both allocated and zero" },
    { 0, QCOW2_L2_ZERO, 0xffffffff, "reserved" },
    { 1, 0, UINT64_C (0xf00000000), NULL },
    { 1, 0, 1, "without a host cluster" },
    { 2, 0, 1, "in a compressed cluster" },
    { 2, 0, UINT64_C (1) << 63, "in a compressed cluster" },
  };
  struct raw w;
  size_t i;

  must ("rm -f %s; qemu-img create -q -f qcow2 -o cluster_size=16k,"
        "extended_l2=on %s 1M", base, base);
  must ("qemu-io -c 'write -q 0 16k' -c 'write -q -z 16k 2k' "
        "-c 'write -q -c 32k 16k' %s", base);
  assert_agree (base, "subclusters", 0);
  for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    must ("cp %s %s", base, copy);
    w = raw_open (copy);
    l2_put (&w, cases[i].guest_idx,
            l2_get (&w, cases[i].guest_idx) ^ cases[i].flags);
    put (w.fd, l2_at (&w, cases[i].guest_idx) + 8, 8, cases[i].bitmap);
    close (w.fd);
    assert_int_equal (verdict (copy), cases[i].what ? 2 : 0);
    if (cases[i].what && strstr (lines, cases[i].what) == NULL)
      fail_msg ("case %zu: %s", i, lines);
  }
}

static void
test_each_read_failing (void **state)
{
  const struct qcow2_open_params op = { .path = base, .cache_bytes = 1 << 20 };
  const struct qcow2_check_params cp = { .problem = note };
  struct broken broken = { .call = IO_PREAD, .nth = 1 << 20 };
  struct qcow2_check_result r;
  struct qcow2_image *img;
  struct io_store *file, *io;
  struct fault f = { 0 };
  int nth;

  make_base (4096, 16);
  assert_int_equal (io_file_open (base, 0, IO_LOCK_NONE, &file, &f), 0);
  assert_int_equal (io_faulty_new (file, fail_nth, &broken, &io), 0);
  assert_int_equal (qcow2_open (io, &op, &img, &f), 0);
  for (nth = 0; ; nth++) {
    lines[0] = '\0';
    broken.nth = nth;
    assert_int_equal (qcow2_check (img, &cp, &r, &f), 0);
    if (broken.nth >= 0)
      break;
    assert_int_equal (r.errors, 1);
  }
  assert_true (nth > 5);
  assert_int_equal (r.errors + r.corruptions + r.leaks, 0);
  qcow2_close (img);
  io_close (io);
}

/* As a device is: what counts is what refcounts count. */
static void
test_file_much_longer_than_the_image (void **state)
{
  struct qcow2_check_result r;

  make_base (512, 16);
  if (truncate (base, (off_t) 1 << 42) < 0)
    skip ();
  assert_int_equal (check (base, NULL, 0, &r), 0);
  assert_int_equal (r.corruptions + r.leaks + r.errors, 0);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_every_cluster_size),
    cmocka_unit_test (test_every_refcount_width),
    cmocka_unit_test (test_empty_and_version_2),
    cmocka_unit_test (test_preallocation),
    cmocka_unit_test (test_long_bitmap_table),
    cmocka_unit_test (test_bitmaps),
    cmocka_unit_test (test_bitmaps_that_lie),
    cmocka_unit_test (test_bitmap_records_name_table_entries),
    cmocka_unit_test (test_faults),
    cmocka_unit_test (test_refcount_past_the_end_is_a_leak),
    cmocka_unit_test (test_data_in_snapshot_table_with_right_refcount),
    cmocka_unit_test (test_data_in_l2_table_with_right_refcount),
    cmocka_unit_test (test_more_references_than_a_refcount_can_count),
    cmocka_unit_test (test_counts),
    cmocka_unit_test (test_anchor_is_clean),
    cmocka_unit_test (test_area_must_be_anchored_alone),
    cmocka_unit_test (test_copied_on_anchored),
    cmocka_unit_test (test_anchor_entry_must_be_identity),
    cmocka_unit_test (test_anchor_has_no_subclusters),
    cmocka_unit_test (test_subclusters),
    cmocka_unit_test (test_each_read_failing),
    cmocka_unit_test (test_file_much_longer_than_the_image),
  };

  return cmocka_run_group_tests (tests, setup, teardown);
}
