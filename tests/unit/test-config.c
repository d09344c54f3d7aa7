/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the configuration of the store.
 *
 * Breaks if: a damaged or impossible configuration is accepted, or a valid one
 * is lost because the writing of the next one was interrupted.
 */
#include "config.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "wire.h"

#define CLUSTER 65536u
#define CONFIG_OFF (2u * CLUSTER)
#define FILE_SIZE (64u << 20)

/* As the document gives it; three areas, two incarnations, one limbo area. */
static void
example (struct dedup_config *c)
{
  uint32_t i;

  memset (c, 0, sizeof *c);
  c->store_id = UINT64_C (0xfeedfacecafebeef);
  c->generation = 41;
  c->epoch = 3;
  c->epoch_start = 150;
  c->checkpoint = 200;
  c->index_start = 170;
  c->index.order = 8;
  c->index.max_incarnations = 0;
  c->flags = DEDUP_CONFIG_EXACT;
  c->index.next_id = 9;
  c->max_journal_areas = 4;
  c->journal_area_size = 1 << 20;
  c->nr_areas = 3;
  for (i = 0; i < 3; ++i) {
    c->areas[i].host_off = (10 - 2 * i) * UINT64_C (1048576);
    c->areas[i].first_seq = 129 + 256 * i;
    c->areas[i].nr_blocks = 256;
  }
  c->index.nr_incarnations = 2;
  for (i = 0; i < 2; ++i) {
    c->index.incarnations[i].id = 5 + i;
    c->index.incarnations[i].host_off = (20 + i) * UINT64_C (1048576);
    c->index.incarnations[i].size_bytes = 1 << 20;
    c->index.incarnations[i].order = 8;
    c->index.incarnations[i].nr_entries = 900;
    c->index.incarnations[i].nr_deleted = 17;
  }
  c->index.nr_limbo = 1;
  c->index.limbo[0].host_off = 30 << 20;
  c->index.limbo[0].size_bytes = CLUSTER;
  c->nr_cuts = 2;
  c->cuts[0] = (struct dedup_cut) { 131, 4096 };
  c->cuts[1] = (struct dedup_cut) { 149, 0x130 };
}

struct fixture {
  struct dedup_config c, d;
  struct dedup_ext ext;
  uint8_t buf[DEDUP_CONFIG_SLOT];
  struct io_store *io;
};

static int
setup (void **state)
{
  struct fixture *x = calloc (1, sizeof *x);

  if (x == NULL)
    return -1;
  example (&x->c);
  x->ext.config_off = CONFIG_OFF;
  x->ext.config_size = 2 * DEDUP_CONFIG_SLOT;
  *state = x;
  return io_memory_new (FILE_SIZE, &x->io);
}

static int
teardown (void **state)
{
  struct fixture *x = *state;

  io_close (x->io);
  free (x);
  return 0;
}

static void
test_ext (void **state)
{
  static const uint8_t expected[DEDUP_EXT_SIZE] = {
    0, 0, 0, 0, 0, 2, 0, 0,  0, 2, 0, 0,  0, 0, 1, 0,  0, 0, 0, 0,  16, 1
  };
  struct dedup_ext e = { 131072, 131072, 256, 0, 16 }, d = { 0 };
  uint8_t buf[DEDUP_EXT_SIZE];
  unsigned i;

  dedup_ext_encode (&e, buf);
  assert_memory_equal (buf, expected, sizeof buf);
  assert_int_equal (dedup_ext_decode (buf, &d), 0);
  assert_true (d.config_off == e.config_off);
  assert_int_equal (d.config_size, e.config_size);
  assert_int_equal (d.max_incarnations, 256);
  assert_int_equal (d.hash_alg, 16);
  for (i = 16; i < DEDUP_EXT_SIZE; ++i) {
    if (i == 20)
      continue;
    buf[i] ^= 4;
    assert_int_equal (dedup_ext_decode (buf, &d), -EINVAL);
    buf[i] ^= 4;
  }
}

static void
test_round_trip (void **state)
{
  struct fixture *x = *state;
  struct fault f = { 0 };
  size_t len;

  len = dedup_config_encode (&x->c, x->buf);
  assert_int_equal (len, 128 + 3 * 24 + 2 * 40 + 16 + 2 * 16);
  if (dedup_config_decode (x->buf, CLUSTER, &x->d, &f) < 0)
    fail_msg ("%s", f.msg);
  assert_memory_equal (&x->c, &x->d, sizeof x->c);

  /* Some bytes where the document has them. */
  assert_memory_equal (x->buf, "DDUPCONF\0\0\0\1", 12);
  assert_int_equal (x->buf[31], 41);
  assert_int_equal (x->buf[55], 200);
  assert_int_equal (x->buf[87], 1);
  assert_int_equal (x->buf[128 + 24 + 15], 129);     /* 385 = 0x181 */
  assert_int_equal (x->buf[128 + 72 + 40 + 7], 6);
  assert_int_equal (x->buf[len - 35], 1);            /* 0x10000 */
  assert_int_equal (x->buf[len - 9], 149);
  assert_int_equal (x->buf[len - 6], 1);             /* 0x130 */
}

/* As many areas of every kind as there may be. */
static void
test_full (void **state)
{
  struct fixture *x = *state;
  struct dedup_config *c = &x->c;
  struct fault f = { 0 };
  uint64_t off = 1 << 20;
  uint32_t i;

  c->nr_areas = DEDUP_MAX_JOURNAL_AREAS;
  c->index.nr_incarnations = DEDUP_MAX_INCARNATIONS;
  c->index.nr_limbo = DEDUP_MAX_LIMBO;
  c->lookups.hits = 1;
  c->nr_cuts = DEDUP_MAX_CUTS;
  for (i = 0; i < c->nr_cuts; ++i)
    c->cuts[i] = (struct dedup_cut) { 1 + i, 48 + i };
  c->index.next_id = 5000;
  for (i = 0; i < c->nr_areas; ++i, off += 1 << 20) {
    c->areas[i].host_off = off;
    c->areas[i].nr_blocks = 256;
    c->areas[i].first_seq = 129 + 256 * i;
  }
  for (i = 0; i < c->index.nr_incarnations; ++i, off += 1 << 20) {
    c->index.incarnations[i] = c->index.incarnations[0];
    c->index.incarnations[i].id = 100 + i;
    c->index.incarnations[i].host_off = off;
  }
  for (i = 0; i < c->index.nr_limbo; ++i, off += 1 << 20) {
    c->index.limbo[i].host_off = off;
    c->index.limbo[i].size_bytes = 1 << 20;
  }
  assert_in_range (dedup_config_encode (c, x->buf), 40000,
                   DEDUP_CONFIG_SLOT);
  if (dedup_config_decode (x->buf, CLUSTER, &x->d, &f) < 0)
    fail_msg ("%s", f.msg);
  assert_memory_equal (c, &x->d, sizeof *c);
}

/* Every bit of what the checksum covers counts; nothing behind it does. */
static void
test_any_byte_flipped (void **state)
{
  struct fixture *x = *state;
  size_t len, i;
  unsigned bit;

  len = dedup_config_encode (&x->c, x->buf);
  for (i = 0; i < len + 100; ++i) {
    for (bit = 0; bit < 8; ++bit) {
      struct fault f = { 0 };

      x->buf[i] ^= 1 << bit;
      if (i < len) {
        assert_int_equal (dedup_config_decode (x->buf, CLUSTER, &x->d, &f),
                          -EINVAL);
        assert_int_equal (f.kind, FAULT_CORRUPT);
      }
      else {
        assert_int_equal (dedup_config_decode (x->buf, CLUSTER, &x->d, &f),
                          0);
        assert_memory_equal (&x->c, &x->d, sizeof x->c);
      }
      x->buf[i] ^= 1 << bit;
    }
  }
}

/* --- Values that no checksum excuses ------------------------------------- */

#define WRONG(name, statement) \
  static void name (struct dedup_config *c) { statement; }

WRONG (store_id, c->store_id = 0)
WRONG (generation_0, c->generation = 0)
WRONG (generation_big, c->generation = UINT64_MAX)
WRONG (order_small, c->index.order = DEDUP_MIN_ORDER - 1)
WRONG (order_big, c->index.order = DEDUP_MAX_ORDER + 1)
WRONG (flags, c->flags = 2)
WRONG (max_areas_1, c->max_journal_areas = 1)
WRONG (max_areas_big, c->max_journal_areas = DEDUP_MAX_JOURNAL_AREAS + 1)
WRONG (area_size_0, c->journal_area_size = 0)
WRONG (area_size_unit, c->journal_area_size = 768 << 10)
WRONG (area_size_big, c->journal_area_size = DEDUP_MAX_AREA + DEDUP_AREA_UNIT)
WRONG (no_areas, c->nr_areas = 0)
WRONG (area_gap, c->areas[1].first_seq++)
WRONG (area_seq_0, c->areas[0].first_seq = 0)
WRONG (area_seq_big, c->areas[0].first_seq = UINT64_MAX - 3)
WRONG (area_blocks_0, c->areas[2].nr_blocks = 0)
WRONG (area_blocks_unit, c->areas[2].nr_blocks = 240)
WRONG (area_blocks_big, c->areas[2].host_off = 64 << 20;
       c->areas[2].nr_blocks = (DEDUP_MAX_AREA + DEDUP_AREA_UNIT) / 4096)
WRONG (area_blocks_huge, c->areas[2].host_off = 64 << 20;
       c->areas[2].nr_blocks = UINT32_MAX - 127)
WRONG (area_unaligned, c->areas[1].host_off += 4096)
WRONG (area_header, c->areas[1].host_off = 0)
WRONG (area_far, c->areas[1].host_off = UINT64_C (1) << 56)
WRONG (area_far_end,
       c->areas[1].host_off = (UINT64_C (1) << 56) - CLUSTER)
WRONG (area_overlap, c->areas[1].host_off = c->areas[0].host_off - CLUSTER)
WRONG (area_twice, c->areas[1].host_off = c->areas[0].host_off)
WRONG (checkpoint_0, c->checkpoint = 0)
WRONG (checkpoint_gone, c->checkpoint = 128)
WRONG (checkpoint_big, c->checkpoint = 129 + 768 + 1)
WRONG (index_gone, c->index_start = 128)
WRONG (index_big, c->index_start = UINT64_MAX)
WRONG (epoch_start_0, c->epoch_start = 0)
WRONG (epoch_start_big, c->epoch_start = 129 + 768 + 1)
WRONG (inc_id_twice, c->index.incarnations[1].id = 5)
WRONG (inc_id_order, c->index.incarnations[1].id = 4)
WRONG (inc_next_id, c->index.next_id = 6)
WRONG (inc_next_big, c->index.next_id = UINT64_MAX)
WRONG (inc_order_small, c->index.incarnations[1].order = 3)
WRONG (inc_order_big, c->index.incarnations[1].order = 21)
WRONG (inc_size, c->index.incarnations[1].size_bytes = CLUSTER - 65536)
WRONG (inc_size_small, c->index.incarnations[1].order = 16)
WRONG (inc_size_odd, c->index.incarnations[1].size_bytes += 4096)
WRONG (inc_size_wraps, c->index.incarnations[1].size_bytes = UINT64_MAX - 65535)
WRONG (inc_entries, c->index.incarnations[1].nr_entries = 1025)
WRONG (inc_deleted, c->index.incarnations[1].nr_deleted = 901)
WRONG (inc_overlap,
       c->index.incarnations[1].host_off = c->index.incarnations[0].host_off + CLUSTER)
WRONG (inc_journal, c->index.incarnations[1].host_off = c->areas[0].host_off)
WRONG (limbo_unaligned, c->index.limbo[0].host_off += 512)
WRONG (limbo_size, c->index.limbo[0].size_bytes = 0)
WRONG (limbo_overlap, c->index.limbo[0].host_off = c->areas[2].host_off + CLUSTER)
WRONG (cut_0, c->cuts[0].seq = 0)
WRONG (cut_order, c->cuts[1].seq = 131)
WRONG (cut_epoch, c->cuts[1].seq = 150)
WRONG (cut_short, c->cuts[0].len = 47)
WRONG (cut_long, c->cuts[0].len = 4097)

static const struct {
  void (*spoil) (struct dedup_config *c);
  const char *names;          /* must be in the message */
} wrongs[] = {
  { store_id, "store id" },
  { generation_0, "generation" },
  { generation_big, "generation" },
  { order_small, "order 3 of log stores" },
  { order_big, "order 21 of log stores" },
  { flags, "flags" },
  { max_areas_1, "maximum number of journal areas" },
  { max_areas_big, "maximum number of journal areas" },
  { area_size_0, "new journal areas" },
  { area_size_unit, "new journal areas" },
  { area_size_big, "new journal areas" },
  { no_areas, "0 journal areas" },
  { area_gap, "journal area 1: first sequence" },
  { area_seq_0, "journal area 0: first sequence" },
  { area_seq_big, "first sequence" },
  { area_blocks_0, "journal area 2: size" },
  { area_blocks_unit, "journal area 2: number of blocks" },
  { area_blocks_big, "journal area 2: number of blocks 16512" },
  { area_blocks_huge, "journal area 2: number of blocks 4294967168" },
  { area_unaligned, "journal area 1: host offset" },
  { area_header, "journal area 1: host offset" },
  { area_far, "journal area 1: host offset" },
  { area_far_end, "journal area 1: size" },
  { area_overlap, "overlap" },
  { area_twice, "overlap" },
  { checkpoint_0, "checkpoint" },
  { checkpoint_gone, "checkpoint" },
  { checkpoint_big, "checkpoint" },
  { index_gone, "index start" },
  { index_big, "index start" },
  { epoch_start_0, "epoch start" },
  { epoch_start_big, "epoch start" },
  { inc_id_twice, "incarnation 1: id" },
  { inc_id_order, "incarnation 1: id" },
  { inc_next_id, "next incarnation id" },
  { inc_next_big, "next incarnation id" },
  { inc_order_small, "incarnation 1: order" },
  { inc_order_big, "incarnation 1: order" },
  { inc_size, "incarnation 1: size" },
  { inc_size_small, "incarnation 1: size" },
  { inc_size_odd, "incarnation 1: size" },
  { inc_size_wraps, "incarnation 1: size" },
  { inc_entries, "incarnation 1: entries" },
  { inc_deleted, "incarnation 1: entries" },
  { inc_overlap, "overlap" },
  { inc_journal, "overlap" },
  { limbo_unaligned, "limbo area 0: host offset" },
  { limbo_size, "limbo area 0: size" },
  { limbo_overlap, "overlap" },
  { cut_0, "cut block 0" },
  { cut_order, "cut block 1" },
  { cut_epoch, "cut block 1" },
  { cut_short, "cut block 0" },
  { cut_long, "cut block 0" },
};

static void
must_refuse (struct fixture *x, const char *name)
{
  struct fault f = { 0 };

  assert_int_equal (dedup_config_decode (x->buf, CLUSTER, &x->d, &f),
                    -EINVAL);
  assert_int_equal (f.kind, FAULT_CORRUPT);
  if (strstr (f.msg, name) == NULL)
    fail_msg ("\"%s\" is not named in: %s", name, f.msg);
}

static void
test_wrong_values (void **state)
{
  struct fixture *x = *state;
  size_t i;

  for (i = 0; i < sizeof wrongs / sizeof wrongs[0]; ++i) {
    example (&x->c);
    wrongs[i].spoil (&x->c);
    dedup_config_encode (&x->c, x->buf);
    must_refuse (x, wrongs[i].names);
  }
}

/* A recovery reads all of an area, whatever the host has there: of a larger
 * one, in a hole, for hours. */
static void
test_largest_areas (void **state)
{
  struct fixture *x = *state;
  struct fault f = { 0 };

  x->c.journal_area_size = DEDUP_MAX_AREA;
  x->c.areas[2].host_off = 64 << 20;
  x->c.areas[2].nr_blocks = DEDUP_MAX_AREA / 4096;
  dedup_config_encode (&x->c, x->buf);
  if (dedup_config_decode (x->buf, CLUSTER, &x->d, &f) < 0)
    fail_msg ("%s", f.msg);
  assert_memory_equal (&x->c, &x->d, sizeof x->c);
}

/* Overwrite 4 bytes of the encoded example and make the checksum right. */
static void
patch (struct fixture *x, size_t at, uint32_t value)
{
  const be32 w = be32_make (value);
  const be64 zero = be64_make (0);
  be64 sum;
  size_t len;

  len = dedup_config_encode (&x->c, x->buf);
  memcpy (x->buf + at, &w, sizeof w);
  memcpy (x->buf + 104, &zero, sizeof zero);
  sum = be64_make (dedup_checksum (x->buf, len));
  memcpy (x->buf + 104, &sum, sizeof sum);
}

/* Version 3: areas in the store file, with segments or without. */
static void
test_store_file (void **state)
{
  struct fixture *x = *state;
  struct fault f = { 0 };
  size_t len;

  x->c.store_session = UINT64_C (0x0123456789abcdef);
  x->c.index.incarnations[1].host_off = DEDUP_IN_STORE_FILE | CLUSTER;
  x->c.index.limbo[0].host_off = DEDUP_IN_STORE_FILE | (20 << 20);
  len = dedup_config_encode (&x->c, x->buf);
  assert_int_equal (len, 128 + 3 * 24 + 2 * 40 + 16 + 8 + 16 + 2 * 16);
  assert_int_equal (x->buf[11], 3);
  assert_int_equal (x->buf[128 + 3 * 24 + 2 * 40 + 16 + 8], 0x01);
  assert_int_equal (x->buf[128 + 3 * 24 + 2 * 40 + 16 + 8 + 7], 0xef);
  if (dedup_config_decode (x->buf, CLUSTER, &x->d, &f) < 0)
    fail_msg ("%s", f.msg);
  assert_memory_equal (&x->c, &x->d, sizeof x->c);

  x->c.index.nr_segments = 1;
  x->c.index.segments[0] = (struct dedup_segment_desc) {
    .id = 3, .age = 3, .host_off = DEDUP_IN_STORE_FILE | (40 << 20),
    .size_bytes = 1 << 20, .hi = UINT32_MAX, .nr_entries = 10, .bits = 7 };
  len = dedup_config_encode (&x->c, x->buf);
  assert_int_equal (len, 128 + 3 * 24 + 2 * 40 + 16 + 8 + 56 + 16 + 2 * 16);
  if (dedup_config_decode (x->buf, CLUSTER, &x->d, &f) < 0)
    fail_msg ("%s", f.msg);
  assert_memory_equal (&x->c, &x->d, sizeof x->c);

  /* They do not depend on the size of the image, but on each other. */
  assert_int_equal (dedup_config_write (x->io, &x->ext, &x->c), 0);
  x->c.index.segments[0].host_off = DEDUP_IN_STORE_FILE | (2 * CLUSTER);
  dedup_config_encode (&x->c, x->buf);
  must_refuse (x, "overlap");
  x->c.index.segments[0].host_off = DEDUP_IN_STORE_FILE;
  dedup_config_encode (&x->c, x->buf);
  must_refuse (x, "host offset");
  x->c.index.segments[0].host_off = (DEDUP_IN_STORE_FILE << 1) | (40 << 20);
  dedup_config_encode (&x->c, x->buf);
  must_refuse (x, "host offset");
  x->c.index.segments[0].host_off = DEDUP_IN_STORE_FILE | (40 << 20);
  x->c.areas[0].host_off |= DEDUP_IN_STORE_FILE;
  dedup_config_encode (&x->c, x->buf);
  must_refuse (x, "host offset");
  x->c.areas[0].host_off &= ~DEDUP_IN_STORE_FILE;
  x->c.index.segments[0].age = x->c.index.incarnations[1].id;
  dedup_config_encode (&x->c, x->buf);
  must_refuse (x, "age");
  x->c.index.segments[0].age = 3;
  x->c.store_session = 0;
  dedup_config_encode (&x->c, x->buf);
  must_refuse (x, "there is none");
}

/* Behind all that versions 1 to 3 have but for cut blocks; with or without a
 * store file. */
static void
test_lookups (void **state)
{
  struct fixture *x = *state;
  const size_t at = 128 + 3 * 24 + 2 * 40 + 16 + 8 + 16;
  struct fault f = { 0 };
  unsigned i;

  for (i = 0; i < 2; i++) {
    x->c.store_session = i;
    x->c.lookups = (struct dedup_lookups) {
      .guessed = 1, .lookups = 0x0203, .hits = 4, .hit_reads = 5,
      .miss_reads = 6, .false_positives = 7 };
    assert_int_equal (dedup_config_encode (&x->c, x->buf), at + 48 + 2 * 16);
    assert_int_equal (x->buf[11], 4);
    assert_int_equal (x->buf[at - 16 + 7], i);
    assert_int_equal (x->buf[at + 7], 1);
    assert_int_equal (x->buf[at + 14], 2);
    assert_int_equal (x->buf[at + 15], 3);
    assert_int_equal (x->buf[at + 47], 7);
    if (dedup_config_decode (x->buf, CLUSTER, &x->d, &f) < 0)
      fail_msg ("%s", f.msg);
    assert_memory_equal (&x->c.lookups, &x->d.lookups, sizeof x->c.lookups);
    assert_int_equal (x->d.store_session, i);
    assert_memory_equal (x->c.cuts, x->d.cuts, sizeof x->c.cuts);
    memset (&x->c.lookups, 0, sizeof x->c.lookups);
    dedup_config_encode (&x->c, x->buf);
    assert_int_equal (x->buf[11], i ? 3 : 1);
    assert_int_equal (dedup_config_decode (x->buf, CLUSTER, &x->d, &f), 0);
    assert_memory_equal (&x->c.lookups, &x->d.lookups, sizeof x->c.lookups);
  }
}

/* Version 5 has all that version 4 has, even if it is 0, and one flag more. */
static void
test_disks (void **state)
{
  struct fixture *x = *state;
  const size_t at = 128 + 3 * 24 + 2 * 40 + 16 + 8 + 16;
  struct fault f = { 0 };
  unsigned i;

  x->c.has_disks = true;
  for (i = 0; i < 2; i++) {
    x->c.flags = DEDUP_CONFIG_EXACT | (i ? DEDUP_CONFIG_WORK_LEFT : 0);
    assert_int_equal (dedup_config_encode (&x->c, x->buf), at + 48 + 2 * 16);
    assert_int_equal (x->buf[11], 5);
    assert_int_equal (x->buf[87], 1 + 2 * i);
    if (dedup_config_decode (x->buf, CLUSTER, &x->d, &f) < 0)
      fail_msg ("%s", f.msg);
    assert_true (x->d.has_disks);
    assert_int_equal (x->d.flags, x->c.flags);
    assert_int_equal (x->d.store_session, 0);
    assert_memory_equal (x->c.cuts, x->d.cuts, sizeof x->c.cuts);
  }
  patch (x, 84, 4);
  must_refuse (x, "flags");
  x->c.has_disks = false;
  x->c.flags = 0;
  patch (x, 84, 2);             /* unknown to versions before 5 */
  must_refuse (x, "flags");
  patch (x, 84, 1);
  assert_int_equal (dedup_config_decode (x->buf, CLUSTER, &x->d, &f), 0);
  assert_false (x->d.has_disks);
}

/* Version 6 has that, and flags of its own. */
static void
test_packed (void **state)
{
  struct fixture *x = *state;
  const size_t at = 128 + 3 * 24 + 2 * 40 + 16 + 8 + 16 + 48;
  struct fault f = { 0 };
  unsigned i;

  x->c.may_pack = true;
  for (i = 0; i < 4; i++) {
    x->c.has_disks = i & 1;
    x->c.compress = i & 2;
    x->c.flags = DEDUP_CONFIG_EXACT | (i & 1 ? DEDUP_CONFIG_WORK_LEFT : 0);
    assert_int_equal (dedup_config_encode (&x->c, x->buf), at + 8 + 2 * 16);
    assert_int_equal (x->buf[11], 6);
    assert_int_equal (x->buf[at + 3], i);
    if (dedup_config_decode (x->buf, CLUSTER, &x->d, &f) < 0)
      fail_msg ("%s", f.msg);
    assert_true (x->d.may_pack);
    assert_int_equal (x->d.has_disks, i & 1);
    assert_int_equal (x->d.compress, i >> 1);
    assert_int_equal (x->d.flags, x->c.flags);
    assert_memory_equal (x->c.cuts, x->d.cuts, sizeof x->c.cuts);
  }
  patch (x, at, 4);
  must_refuse (x, "flags");
  x->c.may_pack = x->c.has_disks = x->c.compress = false;
  x->c.flags = 0;
  dedup_config_encode (&x->c, x->buf);
  assert_int_equal (dedup_config_decode (x->buf, CLUSTER, &x->d, &f), 0);
  assert_false (x->d.may_pack || x->d.compress);
}

/* What the encoder can't be made to write. */
static void
test_wrong_bytes (void **state)
{
  struct fixture *x = *state;
  unsigned i;

  patch (x, 32, 4);
  assert_int_equal (dedup_config_decode (x->buf, CLUSTER, &x->d, NULL), 0);
  assert_int_equal (x->d.epoch, 4);

  patch (x, 0, 0x58585858);
  must_refuse (x, "magic");
  patch (x, 8, 2);
  must_refuse (x, "version");
  patch (x, 36, 8192);
  must_refuse (x, "block size");
  for (i = 0; i < 16; i += 4) {
    patch (x, 112 + i, 0x01020304);
    assert_int_equal (dedup_config_decode (x->buf, CLUSTER, &x->d, NULL), 0);
    assert_int_equal (x->d.hash_key[i], 1);
    assert_int_equal (x->d.hash_key[i + 3], 4);
  }
  patch (x, 72, DEDUP_MAX_JOURNAL_AREAS + 1);
  must_refuse (x, "129 journal areas");
  patch (x, 72, UINT32_MAX);
  must_refuse (x, "journal areas");
  patch (x, 72, 2);
  must_refuse (x, "length");
  patch (x, 76, DEDUP_MAX_INCARNATIONS + 1);
  must_refuse (x, "1025 incarnations");
  patch (x, 76, 1);
  must_refuse (x, "length");
  patch (x, 80, DEDUP_MAX_LIMBO + 1);
  must_refuse (x, "65 limbo areas");
  patch (x, 80, 0);
  must_refuse (x, "length");
  for (i = 0; i < 128; i += 8) {
    patch (x, 12, i);
    must_refuse (x, "length");
  }
  patch (x, 12, DEDUP_CONFIG_SLOT + 1);
  must_refuse (x, "length");
  patch (x, 12, UINT32_MAX);
  must_refuse (x, "length");
}

/* --- The two slots ------------------------------------------------------- */

static void
must_read (struct fixture *x, uint64_t generation)
{
  struct fault f = { 0 };

  memset (&x->d, 0xaa, sizeof x->d);
  if (dedup_config_read (x->io, &x->ext, CLUSTER, &x->d, &f) < 0)
    fail_msg ("%s", f.msg);
  assert_int_equal (x->d.generation, generation);
  assert_int_equal (x->d.epoch, 1000 + generation);
}

/* Write a configuration that says its generation in another field too. */
static void
write_next (struct fixture *x)
{
  x->c.epoch = 1001 + (uint32_t) x->c.generation;
  assert_int_equal (dedup_config_write (x->io, &x->ext, &x->c), 0);
}

static void
test_newer_slot_counts (void **state)
{
  struct fixture *x = *state;
  uint8_t magic[8];
  unsigned i;

  for (i = 42; i < 47; ++i) {
    write_next (x);
    assert_int_equal (x->c.generation, i);
    must_read (x, i);
    assert_int_equal (io_pread (x->io, magic, 8, CONFIG_OFF +
                                (i % 2 ? DEDUP_CONFIG_SLOT : 0)), 0);
    assert_memory_equal (magic, "DDUPCONF", 8);
  }
}

/* Whatever prefix of the new slot reached the disk, there is the old one or
 * the new one. */
static void
test_torn_slot (void **state)
{
  struct fixture *x = *state;
  size_t cut, len;

  write_next (x);                           /* 42, slot 0 */
  for (cut = 0; cut < 320; cut += 8) {
    x->c.generation = 42;
    x->c.epoch = 1043;
    x->c.generation++;
    len = dedup_config_encode (&x->c, x->buf);
    memset (x->buf + cut, 0, sizeof x->buf - cut);
    assert_int_equal (io_pwrite (x->io, x->buf, sizeof x->buf,
                                 CONFIG_OFF + DEDUP_CONFIG_SLOT), 0);
    must_read (x, cut < len ? 42 : 43);
  }
}

static void
flip (struct io_store *io, uint64_t host_off)
{
  uint8_t b;

  assert_int_equal (io_pread (io, &b, 1, host_off), 0);
  b ^= 1;
  assert_int_equal (io_pwrite (io, &b, 1, host_off), 0);
}

static void
must_not_read (struct fixture *x, const char *name)
{
  struct fault f = { 0 };

  assert_int_equal (dedup_config_read (x->io, &x->ext, CLUSTER, &x->d, &f),
                    -EINVAL);
  assert_int_equal (f.kind, FAULT_CORRUPT);
  if (strstr (f.msg, name) == NULL)
    fail_msg ("\"%s\" is not named in: %s", name, f.msg);
}

static void
test_damaged_slots (void **state)
{
  struct fixture *x = *state;

  must_not_read (x, "no valid slot");
  write_next (x);                           /* 42, slot 0 */
  write_next (x);                           /* 43, slot 1 */
  flip (x->io, CONFIG_OFF + 20);
  must_read (x, 43);
  flip (x->io, CONFIG_OFF + 20);
  flip (x->io, CONFIG_OFF + DEDUP_CONFIG_SLOT + 130);
  must_read (x, 42);
  flip (x->io, CONFIG_OFF + 8);
  must_not_read (x, "version");
  must_not_read (x, "checksum");
}

/* A slot with the other one's parity, by which the next write would go over
 * the only good one. */
static void
test_slot_in_wrong_place (void **state)
{
  struct fixture *x = *state;

  write_next (x);                           /* 42, slot 0 */
  x->c.generation = 44;
  dedup_config_encode (&x->c, x->buf);
  assert_int_equal (io_pwrite (x->io, x->buf, sizeof x->buf,
                               CONFIG_OFF + DEDUP_CONFIG_SLOT), 0);
  must_read (x, 42);
}

/* Larger configuration areas: the second slot is in the middle. */
static void
test_large_area (void **state)
{
  struct fixture *x = *state;
  uint8_t magic[8];

  x->ext.config_size = 4 * DEDUP_CONFIG_SLOT;
  write_next (x);
  write_next (x);
  assert_int_equal (io_pread (x->io, magic, 8,
                              CONFIG_OFF + 2 * DEDUP_CONFIG_SLOT), 0);
  assert_memory_equal (magic, "DDUPCONF", 8);
  must_read (x, 43);
}

static void
test_wrong_place (void **state)
{
  struct fixture *x = *state;

  write_next (x);
  x->ext.config_off += 512;
  must_not_read (x, "offset");
  x->ext.config_off = 0;
  must_not_read (x, "offset");
  x->ext.config_off = FILE_SIZE;
  must_not_read (x, "offset");
  x->ext.config_off = FILE_SIZE - CLUSTER;
  must_not_read (x, "offset");
  x->ext.config_off = UINT64_MAX - CLUSTER + 1;
  must_not_read (x, "offset");
  x->ext.config_off = CONFIG_OFF;
  x->ext.config_size = 0;
  must_not_read (x, "size");
  x->ext.config_size = DEDUP_CONFIG_SLOT;
  must_not_read (x, "size");
  x->ext.config_size = 2 * DEDUP_CONFIG_SLOT + 4096;
  must_not_read (x, "size");
  x->ext.config_size = 2 * DEDUP_CONFIG_SLOT;
  must_read (x, 42);
}

/* Areas past the end of the file or in the configuration area are neither
 * written nor believed. */
static void
test_areas_in_the_file (void **state)
{
  struct fixture *x = *state;

  x->c.index.limbo[0].host_off = FILE_SIZE;
  assert_int_equal (dedup_config_write (x->io, &x->ext, &x->c), -EIO);
  assert_int_equal (x->c.generation, 41);
  x->c.index.limbo[0].host_off = FILE_SIZE - CLUSTER;
  write_next (x);
  must_read (x, 42);
  assert_int_equal (io_truncate (x->io, FILE_SIZE - CLUSTER + 1), 0);
  must_read (x, 42);
  assert_int_equal (io_truncate (x->io, FILE_SIZE - CLUSTER), 0);
  must_not_read (x, "past");

  x->c.index.limbo[0].host_off = CONFIG_OFF + CLUSTER;
  assert_int_equal (dedup_config_write (x->io, &x->ext, &x->c), -EIO);
  dedup_config_encode (&x->c, x->buf);
  assert_int_equal (io_pwrite (x->io, x->buf, sizeof x->buf, CONFIG_OFF), 0);
  must_not_read (x, "configuration area");
}

static int
fail_cb (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  return call == *(enum io_call *) opaque ? -EIO : 0;
}

/* After a failed write the next one tries the same slot; a slot that can't be
 * read is not taken for one that is not valid. */
static void
test_io_errors (void **state)
{
  struct fixture *x = *state;
  enum io_call failing = IO_NR_CALLS;
  struct fault f = { 0 };
  struct io_store *faulty;

  assert_int_equal (io_faulty_new (x->io, fail_cb, &failing, &faulty), 0);
  x->io = faulty;
  write_next (x);
  failing = IO_PWRITE;
  assert_int_equal (dedup_config_write (x->io, &x->ext, &x->c), -EIO);
  assert_int_equal (x->c.generation, 42);
  failing = IO_PREAD;
  assert_int_equal (dedup_config_read (x->io, &x->ext, CLUSTER, &x->d, &f),
                    -EIO);
  assert_int_equal (f.kind, FAULT_IO);
  failing = IO_NR_CALLS;
  must_read (x, 42);
}

#define TEST(name) cmocka_unit_test_setup_teardown (name, setup, teardown)

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_ext),
    TEST (test_round_trip),
    TEST (test_full),
    TEST (test_any_byte_flipped),
    TEST (test_wrong_values),
    TEST (test_largest_areas),
    TEST (test_store_file),
    TEST (test_lookups),
    TEST (test_disks),
    TEST (test_packed),
    TEST (test_wrong_bytes),
    TEST (test_newer_slot_counts),
    TEST (test_torn_slot),
    TEST (test_damaged_slots),
    TEST (test_slot_in_wrong_place),
    TEST (test_large_area),
    TEST (test_wrong_place),
    TEST (test_areas_in_the_file),
    TEST (test_io_errors),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
