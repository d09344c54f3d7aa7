/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the journal: records keep their values, committed records are read back
 * in order, torn and stale blocks are not, and errors are permanent.
 *
 * Random tests print their seed; TEST_SEED=n repeats one.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

#include <cmocka.h>

#include "journal-block.h"
#include "config.h"
#include "journal.h"
#include "wire.h"

#define STORE_ID UINT64_C (0x1122334455667788)
#define AREA_BLOCKS 128         /* 512 KiB */
#define AREA_BYTES ((uint64_t) AREA_BLOCKS * DEDUP_BLOCK_SIZE)

/* --- Helpers ---------------------------------------------------------- */

static uint64_t rng_state;

static uint64_t
rng (void)
{
  rng_state ^= rng_state << 13;
  rng_state ^= rng_state >> 7;
  rng_state ^= rng_state << 17;
  return rng_state;
}

static void
seed_rng (uint64_t seed)
{
  const char *s = getenv ("TEST_SEED");

  rng_state = s ? strtoull (s, NULL, 0) : seed;
  print_message ("TEST_SEED=%llu\n", (unsigned long long) rng_state);
}

/* Where the journal of C lies, for one call. */
static const struct dedup_journal_place *
place_of (const struct dedup_config *c)
{
  static struct dedup_journal_place place;

  place = dedup_config_place (c);
  return &place;
}

struct env {
  struct io_store *io;
  struct lock lock;
  struct dedup_config *c;
  struct dedup_journal *j;
  /* Faults and counts; atomic. */
  unsigned syncs, writes, fail_sync_at, fail_write_at, fail_reads;
  int (*hook) (struct env *e, enum io_call call);
  unsigned arrived;
};

static int
faulty_cb (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  struct env *e = opaque;
  unsigned n;

  if (e->hook) {
    int r = e->hook (e, call);
    if (r < 0)
      return r;
  }
  switch (call) {
  case IO_SYNC:
    n = __atomic_add_fetch (&e->syncs, 1, __ATOMIC_SEQ_CST);
    return n == e->fail_sync_at ? -EIO : 0;
  case IO_PWRITE:
    n = __atomic_add_fetch (&e->writes, 1, __ATOMIC_SEQ_CST);
    return n == e->fail_write_at ? -EIO : 0;
  case IO_PREAD:
    return e->fail_reads ? -ENXIO : 0;
  default:
    return 0;
  }
}

/* Areas lie in the file in descending order: not contiguous. */
static uint64_t
area_off (unsigned i, unsigned nr)
{
  return (nr - i) * (AREA_BYTES + 65536);
}

static void
open_journal (struct env *e, uint32_t epoch, uint64_t next_seq)
{
  struct dedup_journal_params p = {
    .io = e->io, .lock = &e->lock, .store_id = STORE_ID, .epoch = epoch,
    .next_seq = next_seq, .areas = e->c->areas, .nr_areas = e->c->nr_areas };

  dedup_journal_free (e->j);
  assert_int_equal (dedup_journal_new (&p, &e->j), 0);
}

static void
env_start (struct env *e, unsigned nr_areas, uint64_t first_seq)
{
  struct io_store *memory;

  memset (e, 0, sizeof *e);
  lock_init (&e->lock);
  e->c = calloc (1, sizeof *e->c);
  assert_non_null (e->c);
  assert_int_equal (io_memory_new (0, &memory), 0);
  assert_int_equal (io_faulty_new (memory, faulty_cb, e, &e->io), 0);
  e->c->store_id = STORE_ID;
  e->c->epoch = 3;
  e->c->epoch_start = 1;
  e->c->nr_areas = nr_areas;
  for (unsigned i = 0; i < nr_areas; i++) {
    e->c->areas[i].host_off = area_off (i, nr_areas);
    e->c->areas[i].first_seq = first_seq + i * AREA_BLOCKS;
    e->c->areas[i].nr_blocks = AREA_BLOCKS;
  }
  open_journal (e, 3, first_seq);
}

static void
env_stop (struct env *e)
{
  dedup_journal_free (e->j);
  io_close (e->io);
  lock_destroy (&e->lock);
  free (e->c);
}

static struct dedup_record
record_no (uint64_t n)
{
  return (struct dedup_record) { .type = DEDUP_REC_INDEX, .host_idx = n };
}

/* Append NR records numbered from FIRST as one group. */
static void
append_group (struct env *e, uint64_t first, uint64_t nr)
{
  lock_acquire (&e->lock);
  assert_true (dedup_journal_room_locked (e->j, nr, 0));
  for (uint64_t i = 0; i < nr; i++) {
    struct dedup_record r = record_no (first + i);
    dedup_journal_append_locked (e->j, &r);
  }
  dedup_journal_end_locked (e->j);
  lock_release (&e->lock);
}

/* Write NR blocks, each in a commit of its own. */
static void
write_blocks (struct env *e, unsigned nr, unsigned nr_records)
{
  for (unsigned i = 0; i < nr; i++) {
    append_group (e, i * nr_records, nr_records);
    assert_int_equal (dedup_journal_commit (e->j), 0);
  }
}

/* Nearly full ones: 96 * 42 + 2 of 4048 bytes. */
static void
write_full_blocks (struct env *e, unsigned nr)
{
  write_blocks (e, nr, 96);
}

/* What a read found. */
struct found {
  uint64_t nr_records, nr_ends, nr_blocks, last_known;
  bool in_order;
  uint64_t stop_at;     /* the callback stops there */
  int stop_with;
};

static int
found_cb (void *opaque, const struct dedup_journal_block *b)
{
  struct found *f = opaque;
  struct dedup_record r;

  for (size_t at = 0; at < b->len;) {
    int size = dedup_record_decode (b->records + at, b->len - at, &r);

    assert_true (size > 0);
    at += (size_t) size;
    if (r.type == DEDUP_REC_END)
      f->nr_ends++;
    else if (r.host_idx != f->nr_records++)
      f->in_order = false;
  }
  f->nr_blocks++;
  f->last_known = b->known_durable;
  return b->seq == f->stop_at ? f->stop_with : 0;
}

static uint64_t
read_back (struct env *e, uint64_t from, struct found *f)
{
  uint64_t next;

  *f = (struct found) { .in_order = true };
  assert_int_equal (dedup_journal_read (e->io, place_of (e->c), from, UINT64_MAX,
                                        found_cb, f, &next), 0);
  return next;
}

static uint64_t
durable (struct env *e)
{
  LOCK_FOR_SCOPE (&e->lock);
  return dedup_journal_durable_locked (e->j);
}

static uint64_t
known_durable (struct env *e)
{
  LOCK_FOR_SCOPE (&e->lock);
  return dedup_journal_known_durable_locked (e->j);
}

static bool
room (struct env *e, size_t nr)
{
  LOCK_FOR_SCOPE (&e->lock);
  return dedup_journal_room_locked (e->j, nr, 0);
}

static bool
force (struct env *e)
{
  LOCK_FOR_SCOPE (&e->lock);
  return dedup_journal_force_locked (e->j);
}

/* --- Records ------------------------------------------------------------ */

static const struct {
  enum dedup_record_type type;
  unsigned size;
} sizes[] = {
  { DEDUP_REC_END, 2 }, { DEDUP_REC_HASH, 52 }, { DEDUP_REC_WRITE, 28 },
  { DEDUP_REC_INDEX, 42 }, { DEDUP_REC_DELETE, 34 }, { DEDUP_REC_L2, 24 },
  { DEDUP_REC_REFCOUNT, 23 }, { DEDUP_REC_L2TABLE, 24 },
  { DEDUP_REC_REFBLOCK, 18 }, { DEDUP_REC_ANCHORTABLE, 14 },
  { DEDUP_REC_FREEZE, 2 }, { DEDUP_REC_HEADER, 38 },
  { DEDUP_REC_BITMAP, 18 }, { DEDUP_REC_ENTRY, 23 }, { DEDUP_REC_TABLE, 18 },
  { DEDUP_REC_HASHAT, 50 }, { DEDUP_REC_WRITEAT, 26 },
  { DEDUP_REC_PACKED, 52 }, { DEDUP_REC_PACKEDAT, 50 }, { DEDUP_REC_NONE, 2 },
};
#define NR_TYPES (sizeof sizes / sizeof sizes[0])

static void
fill_change (struct qcow2_change *c, enum dedup_record_type type)
{
  switch (type) {
  case DEDUP_REC_L2:
    *c = (struct qcow2_change) {
      .type = QCOW2_CHANGE_L2, .root = (uint16_t) rng (),
      .guest_idx = rng (), .entry = rng (), .count = rng () | 1 };
    break;
  case DEDUP_REC_REFCOUNT:
    *c = (struct qcow2_change) {
      .type = QCOW2_CHANGE_REFCOUNT, .host_idx = rng (), .refcount = rng (),
      .anchored = rng () & 1, .count = rng () | 1 };
    break;
  case DEDUP_REC_L2TABLE:
    *c = (struct qcow2_change) {
      .type = QCOW2_CHANGE_L2_TABLE, .root = (uint16_t) rng (),
      .table_idx = (uint32_t) rng (), .host_off = rng (),
      .source_off = rng () };
    break;
  case DEDUP_REC_REFBLOCK:
    *c = (struct qcow2_change) {
      .type = QCOW2_CHANGE_REFBLOCK, .table_idx = rng (),
      .host_off = rng () };
    break;
  case DEDUP_REC_ANCHORTABLE:
    *c = (struct qcow2_change) {
      .type = QCOW2_CHANGE_ANCHOR_TABLE, .table_idx = (uint32_t) rng (),
      .host_off = rng () };
    break;
  case DEDUP_REC_BITMAP:
    *c = (struct qcow2_change) {
      .type = QCOW2_CHANGE_BITMAP, .table_idx = rng (), .host_off = rng () };
    break;
  case DEDUP_REC_ENTRY:
    *c = (struct qcow2_change) {
      .type = QCOW2_CHANGE_ENTRY, .place = rng (), .entry = rng (),
      .count = rng () | 1, .is_l1 = rng () & 1 };
    break;
  case DEDUP_REC_TABLE:
    *c = (struct qcow2_change) {
      .type = QCOW2_CHANGE_TABLE, .host_off = rng (), .source_off = rng () };
    break;
  default:
    *c = (struct qcow2_change) { .type = QCOW2_CHANGE_HEADER, .header = {
        .reftable_off = rng (), .reftable_clusters = (uint32_t) rng (),
        .nr_snapshots = (uint32_t) rng (), .snapshots_off = rng (),
        .anchor_l1_off = rng (), .anchor_l1_entries = (uint32_t) rng () } };
  }
}

static void
fill_record (struct dedup_record *r, enum dedup_record_type type)
{
  memset (r, 0, sizeof *r);
  r->type = type;
  if (type == DEDUP_REC_HASH || type == DEDUP_REC_HASHAT ||
      dedup_record_is_packed (r) || type == DEDUP_REC_INDEX || type == DEDUP_REC_DELETE)
    for (unsigned i = 0; i < sizeof r->hash; i++)
      r->hash.b[i] = (uint8_t) rng ();
  if (type == DEDUP_REC_HASH || type == DEDUP_REC_WRITE ||
      type == DEDUP_REC_PACKED) {
    r->root = (uint16_t) rng ();
    r->guest_idx = rng ();
  }
  if (dedup_record_is_new_data (r) || type == DEDUP_REC_INDEX)
    r->host_idx = rng ();
  if (dedup_record_is_packed (r))
    r->host_idx = UINT64_C (1) << 62 | rng () >> 2;
  if (type == DEDUP_REC_WRITE || type == DEDUP_REC_WRITEAT)
    r->checksum = rng ();
  if (type == DEDUP_REC_HASHAT || type == DEDUP_REC_WRITEAT ||
      type == DEDUP_REC_PACKEDAT)
    r->place = rng ();
}

static bool
carries_change (enum dedup_record_type type)
{
  return (type >= DEDUP_REC_L2 && type <= DEDUP_REC_ANCHORTABLE) ||
    type == DEDUP_REC_HEADER || type == DEDUP_REC_BITMAP ||
    type == DEDUP_REC_ENTRY || type == DEDUP_REC_TABLE;
}

static void
same_change (const struct qcow2_change *a, const struct qcow2_change *b)
{
  assert_int_equal (a->type, b->type);
  assert_int_equal (a->root, b->root);
  assert_int_equal (a->count, b->count);
  assert_int_equal (a->guest_idx, b->guest_idx);
  assert_int_equal (a->host_idx, b->host_idx);
  assert_int_equal (a->entry, b->entry);
  assert_int_equal (a->refcount, b->refcount);
  assert_int_equal (a->anchored, b->anchored);
  assert_int_equal (a->table_idx, b->table_idx);
  assert_int_equal (a->host_off, b->host_off);
  assert_int_equal (a->source_off, b->source_off);
  assert_int_equal (a->place, b->place);
  assert_int_equal (a->is_l1, b->is_l1);
  assert_memory_equal (&a->header, &b->header,
                       offsetof (struct qcow2_header_fields,
                                 anchor_l1_entries) + 4);
}

static void
same_record (const struct dedup_record *a, const struct dedup_record *b)
{
  assert_int_equal (a->type, b->type);
  assert_int_equal (a->root, b->root);
  assert_memory_equal (&a->hash, &b->hash, sizeof a->hash);
  assert_int_equal (a->checksum, b->checksum);
  assert_int_equal (a->host_idx, b->host_idx);
  assert_int_equal (a->guest_idx, b->guest_idx);
  assert_int_equal (a->place, b->place);
  same_change (&a->change, &b->change);
}

static void
record_round_trip (size_t t)
{
  struct dedup_record r, back;
  struct qcow2_change c;
  uint8_t buf[DEDUP_REC_MAX];

  if (carries_change (sizes[t].type)) {
    fill_change (&c, sizes[t].type);
    dedup_record_of_change (&c, &r);
  }
  else
    fill_record (&r, sizes[t].type);
  assert_int_equal (dedup_record_encode (&r, buf), sizes[t].size);
  assert_int_equal (buf[0], sizes[t].size);
  assert_int_equal (buf[1], sizes[t].type);
  assert_int_equal (dedup_record_decode (buf, sizes[t].size, &back),
                    sizes[t].size);
  same_record (&r, &back);
  assert_int_equal (dedup_record_decode (buf, sizes[t].size - 1, &back),
                    -EBADMSG);
  if (sizes[t].type != DEDUP_REC_NONE) {
    buf[0]++;
    assert_int_equal (dedup_record_decode (buf, sizeof buf, &back), -EBADMSG);
    buf[0] -= 2;
    assert_int_equal (dedup_record_decode (buf, sizeof buf, &back), -EBADMSG);
  }
}

static void
test_records_keep_their_values (void **state)
{
  seed_rng (1);
  for (unsigned i = 0; i < 500; i++)
    for (size_t t = 0; t < NR_TYPES; t++)
      record_round_trip (t);
}

static void
test_record_bytes_are_those_of_the_document (void **state)
{
  struct qcow2_change l2 = {
    .type = QCOW2_CHANGE_L2, .root = 0x0102, .guest_idx = 0x1112131415161718,
    .entry = 0x2122232425262728, .count = 0x31323334 };
  static const uint8_t want_l2[] = {
    24, 6, 1, 2, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18,
    0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28, 0x31, 0x32, 0x33, 0x34 };
  struct qcow2_change rc = {
    .type = QCOW2_CHANGE_REFCOUNT, .host_idx = 5, .refcount = 6,
    .anchored = true, .count = 7 };
  static const uint8_t want_rc[] = {
    23, 7, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 6, 1, 0, 0, 0, 7 };
  struct dedup_record r;
  uint8_t buf[DEDUP_REC_MAX];

  dedup_record_of_change (&l2, &r);
  assert_int_equal (dedup_record_encode (&r, buf), sizeof want_l2);
  assert_memory_equal (buf, want_l2, sizeof want_l2);
  dedup_record_of_change (&rc, &r);
  assert_int_equal (dedup_record_encode (&r, buf), sizeof want_rc);
  assert_memory_equal (buf, want_rc, sizeof want_rc);

  r = (struct dedup_record) { .type = DEDUP_REC_HASH, .root = 0x0a0b,
                              .host_idx = 0xc, .guest_idx = 0xd };
  memset (r.hash.b, 0xee, sizeof r.hash.b);
  assert_int_equal (dedup_record_encode (&r, buf), 52);
  assert_int_equal (buf[2] << 8 | buf[3], 0x0a0b);
  assert_int_equal (buf[4], 0xee);
  assert_int_equal (buf[35], 0xee);
  assert_int_equal (buf[43], 0xc);
  assert_int_equal (buf[51], 0xd);
}

static void
test_bytes_of_records_with_places (void **state)
{
  struct qcow2_change l2 = {
    .type = QCOW2_CHANGE_L2, .root = 3, .guest_idx = 99, .count = 0x0607,
    .place = 0x1112131415161718, .entry = 0x2122232425262728 };
  struct qcow2_change l1 = {
    .type = QCOW2_CHANGE_ENTRY, .is_l1 = true, .count = 1, .place = 0x20008 };
  struct qcow2_change table = {
    .type = QCOW2_CHANGE_TABLE, .host_off = 0x30000, .source_off = 0x40000 };
  static const uint8_t want_l2[] = {
    23, 14, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18,
    0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28, 0, 0, 6, 7, 1 };
  static const uint8_t want_l1[] = {
    23, 14, 0, 0, 0, 0, 0, 2, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0 };
  static const uint8_t want_table[] = {
    18, 15, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0 };
  static const uint8_t want_write[] = {
    26, 17, 0, 0, 0, 0, 0, 0, 0, 0xa, 0, 0, 0, 0, 0, 0, 0, 0xb,
    0, 0, 0, 0, 0, 0, 0, 0xc };
  struct dedup_record r;
  uint8_t buf[DEDUP_REC_MAX];

  dedup_record_of_change (&l2, &r);
  assert_int_equal (dedup_record_encode (&r, buf), sizeof want_l2);
  assert_memory_equal (buf, want_l2, sizeof want_l2);
  dedup_record_of_change (&l1, &r);
  assert_int_equal (dedup_record_encode (&r, buf), sizeof want_l1);
  assert_memory_equal (buf, want_l1, sizeof want_l1);
  dedup_record_of_change (&table, &r);
  assert_int_equal (dedup_record_encode (&r, buf), sizeof want_table);
  assert_memory_equal (buf, want_table, sizeof want_table);

  r = (struct dedup_record) { .type = DEDUP_REC_WRITEAT, .checksum = 0xa,
                              .host_idx = 0xb, .place = 0xc, .root = 1,
                              .guest_idx = 5 };
  assert_int_equal (dedup_record_encode (&r, buf), sizeof want_write);
  assert_memory_equal (buf, want_write, sizeof want_write);
  r.type = DEDUP_REC_HASHAT;
  memset (r.hash.b, 0xee, sizeof r.hash.b);
  assert_int_equal (dedup_record_encode (&r, buf), 50);
  assert_int_equal (buf[1], 16);
  assert_int_equal (buf[33], 0xee);
  assert_int_equal (buf[41], 0xb);
  assert_int_equal (buf[49], 0xc);
}

/* A descriptor has bit 62, and not bit 63. */
static void
test_bytes_of_records_of_packed_data (void **state)
{
  const uint64_t descriptor = UINT64_C (0x4123456789abcdef);
  struct dedup_record r = { .type = DEDUP_REC_PACKED, .root = 0x0a0b,
                            .host_idx = descriptor, .guest_idx = 0xd };
  uint8_t buf[DEDUP_REC_MAX];
  unsigned top;

  memset (r.hash.b, 0xee, sizeof r.hash.b);
  assert_int_equal (dedup_record_encode (&r, buf), 52);
  assert_int_equal (buf[1], 19);
  assert_int_equal (buf[2] << 8 | buf[3], 0x0a0b);
  assert_int_equal (buf[35], 0xee);
  assert_int_equal (buf[36], 0x41);
  assert_int_equal (buf[43], 0xef);
  assert_int_equal (buf[51], 0xd);
  for (top = 0; top < 256; top++) {
    buf[36] = (uint8_t) top;
    assert_int_equal (dedup_record_check (buf, 52), top >> 6 == 1 ? 52 : -EBADMSG);
  }
  r.type = DEDUP_REC_PACKEDAT;
  r.place = 0xc;
  assert_int_equal (dedup_record_encode (&r, buf), 50);
  assert_int_equal (buf[1], 20);
  assert_int_equal (buf[33], 0xee);
  assert_int_equal (buf[34], 0x41);
  assert_int_equal (buf[41], 0xef);
  assert_int_equal (buf[49], 0xc);
  for (top = 0; top < 256; top++) {
    buf[34] = (uint8_t) top;
    assert_int_equal (dedup_record_check (buf, 50), top >> 6 == 1 ? 50 : -EBADMSG);
  }
}

/* Random clusters in lists, appended to a journal and read back. */
static void
test_lists_keep_their_values (void **state)
{
  struct qcow2_change in[400], c;
  uint8_t buf[DEDUP_REC_MAX];
  struct dedup_record r, back;
  size_t nr = 0, at, n = 0, len = 0, nr_records = 0;

  seed_rng (3);
  for (uint64_t idx = 1000; nr < 400; nr++) {
    in[nr] = (struct qcow2_change) {
      .host_idx = idx, .refcount = rng () % (rng () & 1 ? 60 : UINT32_MAX),
      .anchored = rng () & 1 };
    idx += 1 + (rng () % 8 ? rng () % 3 : rng () % 100000000000);
  }
  for (size_t i = 0; i <= nr; i++) {
    if (i > 0 && i < nr &&
        dedup_reflist_extend (buf, sizeof buf - buf[0], in[i].host_idx -
                              in[i - 1].host_idx, in[i].refcount,
                              in[i].anchored) > 0)
      continue;
    if (i > 0) {
      assert_int_equal (dedup_record_decode (buf, sizeof buf, &back), buf[0]);
      for (at = 0; dedup_reflist_next (&back, &at, &c); n++) {
        assert_int_equal (c.type, QCOW2_CHANGE_REFCOUNT);
        assert_int_equal (c.count, 1);
        assert_int_equal (c.host_idx, in[n].host_idx);
        assert_int_equal (c.refcount, in[n].refcount);
        assert_int_equal (c.anchored, in[n].anchored);
      }
      nr_records++;
      len += buf[0];
    }
    if (i < nr) {
      dedup_reflist_begin (&r, in[i].host_idx, in[i].refcount,
                           in[i].anchored);
      assert_int_equal (dedup_record_encode (&r, buf), DEDUP_REFLIST_SIZE (&r));
    }
  }
  assert_int_equal (n, nr);
  assert_true (nr_records < nr / 4 && len > nr_records * 13);
}

static void
test_bytes_of_lists (void **state)
{
  static const uint8_t want[] = {
    17, 18, 0, 0, 0, 0, 0, 0, 0, 5, 6, 0, 7, 0x80, 1, 0xac, 2 };
  uint8_t buf[DEDUP_REC_MAX], bad[DEDUP_REC_MAX];
  struct dedup_record r;

  dedup_reflist_begin (&r, 5, 3, true);
  assert_int_equal (dedup_record_encode (&r, buf), 13);
  assert_int_equal (dedup_reflist_extend (buf, 3, 128, 150, false), 0);
  assert_int_equal (dedup_reflist_extend (buf, 4, 128, 150, false), 4);
  assert_memory_equal (buf, want, sizeof want);
  assert_int_equal (dedup_record_decode (buf, sizeof want, &r), sizeof want);
  assert_int_equal (dedup_record_decode (buf, sizeof want - 1, &r), -EBADMSG);
  static const struct { uint8_t at, value; } wrong[] = {
    { 0, 16 }, { 0, 18 }, { 10, 5 }, { 10, 7 }, { 11, 1 },
    { 16, 0x82 },               /* a number does not end */
    { 13, 0 },                  /* gap 0, and then half a pair */
  };
  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
    memcpy (bad, buf, sizeof bad);
    bad[wrong[i].at] = wrong[i].value;
    assert_int_equal (dedup_record_decode (bad, sizeof bad, &r), -EBADMSG);
  }
  memcpy (bad, buf, sizeof bad);
  memcpy (bad + 13, (uint8_t[4]) { 0, 1, 1, 1 }, 4);    /* a cluster twice */
  assert_int_equal (dedup_record_decode (bad, sizeof bad, &r), -EBADMSG);
  bad[13] = 1;
  assert_int_equal (dedup_record_decode (bad, sizeof bad, &r), 17);
  memset (bad + 2, 0xff, 8);                            /* past 2^64 */
  assert_int_equal (dedup_record_decode (bad, sizeof bad, &r), -EBADMSG);
  memcpy (bad, (uint8_t[11]) { 11, 18 }, 11);           /* empty */
  assert_int_equal (dedup_record_decode (bad, sizeof bad, &r), -EBADMSG);
}

static int
count_lists (void *opaque, const struct dedup_journal_block *b)
{
  struct { uint64_t next; size_t nr, bytes; } *x = opaque;
  struct dedup_record r;
  struct qcow2_change c;
  size_t at;

  for (size_t pos = 0; pos < b->len; pos += (size_t) b->records[pos]) {
    assert_true (dedup_record_decode (b->records + pos, b->len - pos, &r) > 0);
    x->bytes += b->records[pos];
    for (at = 0; r.type == DEDUP_REC_REFLIST && dedup_reflist_next (&r, &at, &c);
         x->nr++, x->next += 2)
      assert_int_equal (c.host_idx, x->next);
  }
  return 0;
}

/* Over several blocks, each sealed while a list is open. */
static void
test_refcounts_in_order_take_few_bytes (void **state)
{
  struct { uint64_t next; size_t nr, bytes; } x = { 7, 0, 0 };
  struct env e;
  uint64_t next;

  env_start (&e, 1, 1);
  lock_acquire (&e.lock);
  for (uint64_t i = 0; i < 5000; i++)
    dedup_journal_append_refcount_locked (e.j, 7 + 2 * i, i % 50, true);
  dedup_journal_end_locked (e.j);
  dedup_journal_append_refcount_locked (e.j, 7 + 2 * 5000, 3, true);
  dedup_journal_end_locked (e.j);
  lock_release (&e.lock);
  assert_int_equal (dedup_journal_commit (e.j), 0);
  assert_int_equal (dedup_journal_read (e.io, place_of (e.c), 1, UINT64_MAX,
                                        count_lists, &x, &next), 0);
  assert_int_equal (x.nr, 5001);
  assert_true (x.bytes < 5001 * 5 / 2);
  env_stop (&e);
}

static void
test_impossible_records_are_refused (void **state)
{
  struct dedup_record r;
  uint8_t l2[24] = { 24, DEDUP_REC_L2 };                /* count 0 */
  uint8_t rc[23] = { 23, DEDUP_REC_REFCOUNT };
  uint8_t entry[23] = { 23, DEDUP_REC_ENTRY };
  const uint8_t none[5] = { 5, DEDUP_REC_NONE, 1, 2, 3 };
  uint8_t any[64] = { 0 };

  assert_int_equal (dedup_record_decode (l2, sizeof l2, &r), -EBADMSG);
  l2[23] = 1;
  assert_int_equal (dedup_record_decode (l2, sizeof l2, &r), 24);
  assert_int_equal (dedup_record_decode (rc, sizeof rc, &r), -EBADMSG);
  rc[22] = 1;
  assert_int_equal (dedup_record_decode (rc, sizeof rc, &r), 23);
  rc[18] = 2;                                           /* unknown flag */
  assert_int_equal (dedup_record_decode (rc, sizeof rc, &r), -EBADMSG);
  assert_int_equal (dedup_record_decode (entry, sizeof entry, &r), -EBADMSG);
  entry[18] = 1;                                        /* count 2^24 */
  assert_int_equal (dedup_record_decode (entry, sizeof entry, &r), 23);
  assert_true (r.change.is_l1);
  entry[22] = 1;
  assert_int_equal (dedup_record_decode (entry, sizeof entry, &r), 23);
  assert_false (r.change.is_l1);
  entry[22] = 2;                                        /* unknown kind */
  assert_int_equal (dedup_record_decode (entry, sizeof entry, &r), -EBADMSG);
  assert_int_equal (dedup_record_decode (none, 5, &r), 5);
  assert_int_equal (r.type, DEDUP_REC_NONE);
  assert_int_equal (dedup_record_decode (none, 4, &r), -EBADMSG);

  for (unsigned size = 0; size < 64; size++) {
    any[0] = (uint8_t) size;
    for (unsigned type = 19; type < 0xff; type++) {
      any[1] = (uint8_t) type;
      assert_int_equal (dedup_record_decode (any, 64, &r), -EBADMSG);
    }
    any[1] = 0;
    assert_int_equal (dedup_record_decode (any, 64, &r), -EBADMSG);
  }
}

static void
test_garbage_records_decode_to_themselves_or_not_at_all (void **state)
{
  unsigned good = 0;

  seed_rng (2);
  for (unsigned i = 0; i < 50000; i++) {
    size_t len = rng () % 70;
    uint8_t *buf = malloc (len + !len);       /* exact, for the sanitizer */
    uint8_t again[DEDUP_REC_MAX];
    struct dedup_record r;
    int size;

    for (size_t k = 0; k < len; k++)
      buf[k] = (uint8_t) rng ();
    if (len >= 2 && rng () % 4) {
      size_t t = rng () % NR_TYPES;
      buf[0] = (uint8_t) (sizes[t].size + (rng () % 8 == 0));
      buf[1] = (uint8_t) sizes[t].type;
    }
    size = dedup_record_decode (buf, len, &r);
    if (size < 0)
      assert_int_equal (size, -EBADMSG);
    else {
      assert_true (size >= 2 && (size_t) size <= len && size == buf[0]);
      good++;
      if (r.type != DEDUP_REC_NONE) {
        assert_int_equal (dedup_record_encode (&r, again), size);
        assert_memory_equal (again, buf, size);
      }
    }
    free (buf);
  }
  assert_true (good > 1000);
}

/* --- Append, commit, read ---------------------------------------------- */

static void
test_committed_records_are_read_back_in_order (void **state)
{
  struct env e;
  struct found f;

  env_start (&e, 1, 1);
  assert_int_equal (read_back (&e, 1, &f), 1);
  assert_int_equal (f.nr_blocks, 0);

  append_group (&e, 0, 1000);           /* several blocks */
  assert_int_equal (durable (&e), 0);
  assert_int_equal (read_back (&e, 1, &f), 1);
  assert_int_equal (dedup_journal_commit (e.j), 0);
  assert_int_equal (e.writes, 1);       /* coalesced */
  assert_int_equal (e.syncs, 1);
  append_group (&e, 1000, 3);
  assert_int_equal (dedup_journal_commit (e.j), 0);
  assert_int_equal (dedup_journal_commit (e.j), 0);
  assert_int_equal (e.syncs, 2);        /* nothing to do: no I/O */

  /* ceil (1000 / 96) = 11 blocks, and one */
  assert_int_equal (read_back (&e, 1, &f), 13);
  assert_int_equal (f.nr_records, 1003);
  assert_int_equal (f.nr_ends, 2);
  assert_true (f.in_order);
  assert_int_equal (f.last_known, 11);
  assert_int_equal (durable (&e), 12);
  assert_int_equal (known_durable (&e), 11);
  lock_acquire (&e.lock);
  assert_int_equal (dedup_journal_seq_locked (e.j), 13);
  assert_int_equal (dedup_journal_left_locked (e.j), AREA_BLOCKS - 13);
  assert_int_equal (dedup_journal_pending_locked (e.j), 0);
  lock_release (&e.lock);
  env_stop (&e);
}

static void
test_end_is_written_once_a_group (void **state)
{
  struct env e;
  struct found f;

  env_start (&e, 1, 1);
  lock_acquire (&e.lock);
  dedup_journal_end_locked (e.j);
  assert_int_equal (dedup_journal_pending_locked (e.j), 0);
  lock_release (&e.lock);
  append_group (&e, 0, 1);
  lock_acquire (&e.lock);
  assert_int_equal (dedup_journal_pending_locked (e.j), 44);
  dedup_journal_end_locked (e.j);
  assert_int_equal (dedup_journal_pending_locked (e.j), 44);
  assert_int_equal (dedup_journal_seal_locked (e.j), 2);
  assert_int_equal (dedup_journal_seal_locked (e.j), 2);
  lock_release (&e.lock);
  append_group (&e, 1, 1);
  assert_int_equal (dedup_journal_commit (e.j), 0);
  assert_int_equal (read_back (&e, 1, &f), 3);
  assert_int_equal (f.nr_ends, 2);
  assert_int_equal (f.nr_blocks, 2);
  env_stop (&e);
}

static void
test_forced_block_makes_durable_number_durable (void **state)
{
  struct env e;
  struct found f;

  env_start (&e, 1, 41);
  assert_int_equal (durable (&e), 40);
  assert_int_equal (known_durable (&e), 40);
  append_group (&e, 0, 1);
  assert_int_equal (dedup_journal_commit (e.j), 0);
  assert_int_equal (known_durable (&e), 40);
  assert_true (force (&e));
  assert_false (force (&e));    /* one waits already */
  assert_int_equal (dedup_journal_commit (e.j), 0);
  assert_int_equal (durable (&e), 42);
  assert_int_equal (known_durable (&e), 41);
  assert_int_equal (read_back (&e, 41, &f), 43);
  assert_int_equal (f.nr_records, 1);
  assert_int_equal (f.last_known, 41);

  /* A block sealed before a commit carries what that commit made durable. */
  append_group (&e, 1, 1);
  assert_false (force (&e));    /* it has records */
  assert_int_equal (dedup_journal_commit (e.j), 0);
  assert_int_equal (read_back (&e, 41, &f), 44);
  assert_int_equal (f.last_known, 42);
  env_stop (&e);
}

static void
test_areas_are_crossed_added_and_dropped (void **state)
{
  struct env e;
  struct found f;
  struct dedup_journal_area a[3], more = { .host_off = 64 << 20,
                                           .nr_blocks = AREA_BLOCKS };

  env_start (&e, 2, 1000);
  append_group (&e, 0, 96 * 130);       /* over the border, in one commit */
  assert_int_equal (dedup_journal_commit (e.j), 0);
  assert_int_equal (e.writes, 2);
  assert_int_equal (read_back (&e, 1000, &f), 1000 + 130);
  assert_int_equal (f.nr_records, 96 * 130);
  assert_true (f.in_order);

  lock_acquire (&e.lock);
  assert_int_equal (dedup_journal_drop_locked (e.j, 1127, a, 3), 0);
  assert_int_equal (dedup_journal_add_area_locked (e.j, &more), 0);
  assert_int_equal (more.first_seq, 1000 + 2 * AREA_BLOCKS);
  assert_int_equal (dedup_journal_drop_locked (e.j, 1128, a, 3), 1);
  assert_int_equal (a[0].first_seq, 1000);
  assert_int_equal (a[0].host_off, e.c->areas[0].host_off);
  assert_int_equal (dedup_journal_drop_locked (e.j, UINT64_MAX, a, 3), 0);
  assert_int_equal (dedup_journal_areas_locked (e.j, e.c->areas,
                                                DEDUP_MAX_JOURNAL_AREAS), 2);
  lock_release (&e.lock);

  append_group (&e, 96 * 130, 96 * 150);
  assert_int_equal (dedup_journal_commit (e.j), 0);
  assert_int_equal (read_back (&e, 1000 + AREA_BLOCKS, &f), 1000 + 280);
  assert_int_equal (f.nr_blocks, 280 - AREA_BLOCKS);
  assert_int_equal (f.nr_ends, 2);
  env_stop (&e);
}

static void
test_last_area_is_never_dropped (void **state)
{
  struct env e;
  struct dedup_journal_area a[2], more = { .host_off = 64 << 20,
                                           .nr_blocks = AREA_BLOCKS };

  env_start (&e, 1, 1);
  write_blocks (&e, AREA_BLOCKS, 62);
  lock_acquire (&e.lock);
  assert_int_equal (dedup_journal_left_locked (e.j), 0);
  assert_int_equal (dedup_journal_drop_locked (e.j, UINT64_MAX, a, 2), 0);
  assert_int_equal (dedup_journal_add_area_locked (e.j, &more), 0);
  assert_int_equal (more.first_seq, AREA_BLOCKS + 1);
  assert_int_equal (dedup_journal_drop_locked (e.j, UINT64_MAX, a, 0), 0);
  assert_int_equal (dedup_journal_drop_locked (e.j, UINT64_MAX, a, 2), 1);
  lock_release (&e.lock);
  write_blocks (&e, 1, 62);
  env_stop (&e);
}

static void
test_area_list_has_a_limit (void **state)
{
  struct env e;
  struct dedup_journal_area a = { .host_off = 1 << 20, .nr_blocks = 1 };

  env_start (&e, 1, 1);
  lock_acquire (&e.lock);
  for (unsigned i = 1; i < DEDUP_MAX_JOURNAL_AREAS; i++)
    assert_int_equal (dedup_journal_add_area_locked (e.j, &a), 0);
  assert_int_equal (dedup_journal_add_area_locked (e.j, &a), -ENOSPC);
  lock_release (&e.lock);
  env_stop (&e);
}

static void
test_bad_areas_and_start_are_refused (void **state)
{
  struct env e;
  struct dedup_journal *j;
  struct dedup_journal_params p;

  env_start (&e, 2, 10);
  p = (struct dedup_journal_params) {
    .io = e.io, .lock = &e.lock, .areas = e.c->areas, .nr_areas = 2,
    .next_seq = 9 };
  assert_int_equal (dedup_journal_new (&p, &j), -EINVAL);
  p.next_seq = 10 + 2 * AREA_BLOCKS + 1;
  assert_int_equal (dedup_journal_new (&p, &j), -EINVAL);
  p.next_seq--;
  assert_int_equal (dedup_journal_new (&p, &j), 0);     /* full */
  lock_acquire (&e.lock);
  assert_false (dedup_journal_room_locked (j, 1, 0));
  assert_int_equal (dedup_journal_left_locked (j), 0);
  assert_false (dedup_journal_force_locked (j));        /* no place: no-op */
  lock_release (&e.lock);
  assert_int_equal (dedup_journal_commit (j), 0);
  dedup_journal_free (j);
  e.c->areas[1].first_seq++;
  assert_int_equal (dedup_journal_new (&p, &j), -EINVAL);
  env_stop (&e);
}

/* --- Room -------------------------------------------------------------- */

/* Append what room promised: NR records of the largest kind, and END. */
static void
use_promise (struct env *e, size_t nr)
{
  struct dedup_record hash = { .type = DEDUP_REC_HASH };

  LOCK_FOR_SCOPE (&e->lock);
  if (!dedup_journal_room_locked (e->j, nr, 0))
    return;
  while (nr-- > 0)
    dedup_journal_append_locked (e->j, &hash);
  dedup_journal_end_locked (e->j);
}

static void
test_room_promised_is_there (void **state)
{
  struct env e;

  seed_rng (3);
  env_start (&e, 1, 1);
  /* 63 records of 64 bytes in each of 128 blocks, one of them END. */
  assert_true (room (&e, 63 * AREA_BLOCKS - 1));
  assert_false (room (&e, 63 * AREA_BLOCKS));
  assert_false (room (&e, SIZE_MAX));
  use_promise (&e, 63 * AREA_BLOCKS - 1);
  assert_int_equal (dedup_journal_commit (e.j), 0);
  env_stop (&e);

  for (unsigned round = 0; round < 20; round++) {
    env_start (&e, 1, 1);
    while (room (&e, 1)) {
      use_promise (&e, rng () % 400);
      if (rng () % 8 == 0)
        force (&e);
      if (rng () % 8 == 0)
        assert_int_equal (dedup_journal_commit (e.j), 0);
    }
    assert_int_equal (dedup_journal_commit (e.j), 0);
    env_stop (&e);
  }
}

/* The leader's batch holds every block that room promised. */
static int
force_meanwhile (struct env *e, enum io_call call)
{
  if (call == IO_SYNC && e->arrived++ == 0)
    force (e);
  return 0;
}

static void
test_what_waits_in_memory_is_bounded (void **state)
{
  struct env e;
  struct found f;
  uint64_t pending;

  env_start (&e, 20, 1);        /* 10 MiB */
  while (room (&e, 100))
    append_group (&e, 0, 100);
  while (room (&e, 1))
    append_group (&e, 0, 1);
  lock_acquire (&e.lock);
  pending = dedup_journal_pending_locked (e.j);
  assert_true (dedup_journal_left_locked (e.j) > 400);
  lock_release (&e.lock);
  assert_true (pending <= 8 << 20 && pending > (8 << 20) * 97 / 100);
  force (&e);
  e.hook = force_meanwhile;
  assert_int_equal (dedup_journal_commit (e.j), 0);
  assert_int_equal (known_durable (&e), 0);
  assert_int_equal (dedup_journal_commit (e.j), 0);
  assert_true (known_durable (&e) == durable (&e) - 1);
  assert_true (room (&e, 100));
  read_back (&e, 1, &f);
  assert_true (f.nr_blocks >= 2048);
  env_stop (&e);
}

/* --- Errors ------------------------------------------------------------ */

static void
check_stuck (struct env *e, int err, uint64_t was_durable)
{
  append_group (e, 0, 1);
  for (unsigned i = 0; i < 3; i++) {
    assert_int_equal (dedup_journal_commit (e->j), err);
    assert_int_equal (durable (e), was_durable);
    append_group (e, 0, 1);
    force (e);
  }
  lock_acquire (&e->lock);
  assert_int_equal (dedup_journal_error_locked (e->j), err);
  lock_release (&e->lock);
}

static void
test_failed_write_or_sync_sticks (void **state)
{
  struct env e;

  for (unsigned n = 1; n <= 3; n++) {
    env_start (&e, 1, 1);
    e.fail_sync_at = n;
    write_full_blocks (&e, n - 1);
    check_stuck (&e, -EIO, n - 1);
    assert_int_equal (e.syncs, n);      /* no further attempt */
    env_stop (&e);

    env_start (&e, 1, 1);
    e.fail_write_at = n;
    write_full_blocks (&e, n - 1);
    check_stuck (&e, -EIO, n - 1);
    assert_int_equal (e.syncs, n - 1);
    env_stop (&e);
  }
}

/* --- Threads ------------------------------------------------------------ */

#define THREADS 8
#define GROUPS 40
#define GROUP_RECORDS 7

struct worker {
  struct env *e;
  unsigned id;
  pthread_t thread;
  int result;
};

static void
start_workers (struct env *e, struct worker *w, unsigned nr,
               void *(*run) (void *))
{
  for (unsigned i = 0; i < nr; i++) {
    w[i].e = e;
    w[i].id = i;
    assert_int_equal (pthread_create (&w[i].thread, NULL, run, &w[i]), 0);
  }
}

static void
join_workers (struct worker *w, unsigned nr)
{
  for (unsigned i = 0; i < nr; i++)
    pthread_join (w[i].thread, NULL);
}

/* No cmocka asserts off the main thread: report by result. */
static void *
commit_groups (void *opaque)
{
  struct worker *w = opaque;

  for (unsigned g = 0; g < GROUPS && w->result == 0; g++) {
    lock_acquire (&w->e->lock);
    if (!dedup_journal_room_locked (w->e->j, GROUP_RECORDS, 0))
      w->result = -ENOSPC;
    for (unsigned i = 0; i < GROUP_RECORDS && w->result == 0; i++) {
      struct dedup_record r = { .type = DEDUP_REC_WRITE, .root = w->id,
                                .host_idx = g, .guest_idx = i };
      dedup_journal_append_locked (w->e->j, &r);
    }
    dedup_journal_end_locked (w->e->j);
    lock_release (&w->e->lock);
    if (w->result == 0)
      w->result = dedup_journal_commit (w->e->j);
  }
  return NULL;
}

struct groups {
  uint64_t next_group[THREADS];
  struct dedup_record last;
  unsigned in_group;
  bool broken;
};

static void
take_record (struct groups *g, const struct dedup_record *r)
{
  if (r->type == DEDUP_REC_END) {
    g->broken |= g->in_group != GROUP_RECORDS;
    g->broken |= g->last.host_idx != g->next_group[g->last.root]++;
    g->in_group = 0;
    return;
  }
  g->broken |= r->root >= THREADS || r->guest_idx != g->in_group;
  g->broken |= g->in_group > 0 && (r->root != g->last.root ||
                                   r->host_idx != g->last.host_idx);
  g->in_group++;
  g->last = *r;
}

static int
groups_cb (void *opaque, const struct dedup_journal_block *b)
{
  struct groups *g = opaque;
  struct dedup_record r;

  for (size_t at = 0; at < b->len && !g->broken;) {
    int size = dedup_record_decode (b->records + at, b->len - at, &r);

    if (size < 0)
      return size;
    at += (size_t) size;
    take_record (g, &r);
  }
  return g->broken ? -EBADMSG : 0;
}

static int
slow_sync (struct env *e, enum io_call call)
{
  if (call == IO_SYNC)
    usleep (500);
  return 0;
}

static void
test_acknowledged_groups_of_many_threads_are_there (void **state)
{
  struct env e;
  struct worker w[THREADS] = { 0 };
  struct groups g = { 0 };
  uint64_t next;

  env_start (&e, 4, 1);
  e.hook = slow_sync;
  start_workers (&e, w, THREADS, commit_groups);
  join_workers (w, THREADS);
  for (unsigned i = 0; i < THREADS; i++)
    assert_int_equal (w[i].result, 0);
  print_message ("%u commits, %u syncs\n", THREADS * GROUPS, e.syncs);
  assert_true (e.syncs < THREADS * GROUPS);
  assert_int_equal (dedup_journal_read (e.io, place_of (e.c), 1, UINT64_MAX, groups_cb,
                                        &g, &next), 0);
  assert_int_equal (next, durable (&e) + 1);
  assert_int_equal (g.in_group, 0);
  for (unsigned i = 0; i < THREADS; i++)
    assert_int_equal (g.next_group[i], GROUPS);
  env_stop (&e);
}

/* Hold the first sync up until all but its own thread have appended. */
static int
wait_for_others (struct env *e, enum io_call call)
{
  if (call == IO_SYNC && __atomic_load_n (&e->syncs, __ATOMIC_SEQ_CST) == 0)
    while (__atomic_load_n (&e->arrived, __ATOMIC_SEQ_CST) < THREADS)
      usleep (100);
  return 0;
}

static void *
append_and_commit (void *opaque)
{
  struct worker *w = opaque;
  struct dedup_record r = record_no (w->id);

  lock_acquire (&w->e->lock);
  dedup_journal_append_locked (w->e->j, &r);
  dedup_journal_end_locked (w->e->j);
  lock_release (&w->e->lock);
  __atomic_add_fetch (&w->e->arrived, 1, __ATOMIC_SEQ_CST);
  w->result = dedup_journal_commit (w->e->j);
  return NULL;
}

static void
test_one_sync_serves_all_that_wait (void **state)
{
  struct env e;
  struct worker w[THREADS] = { 0 };
  struct found f;

  env_start (&e, 1, 1);
  e.hook = wait_for_others;
  start_workers (&e, w, THREADS, append_and_commit);
  join_workers (w, THREADS);
  for (unsigned i = 0; i < THREADS; i++)
    assert_int_equal (w[i].result, 0);
  assert_in_range (e.syncs, 1, 2);
  read_back (&e, 1, &f);
  assert_int_equal (f.nr_records, THREADS);
  env_stop (&e);
}

static void
test_all_that_wait_for_a_failed_sync_fail (void **state)
{
  struct env e;
  struct worker w[THREADS] = { 0 };

  env_start (&e, 1, 1);
  e.hook = wait_for_others;
  e.fail_sync_at = 1;
  start_workers (&e, w, THREADS, append_and_commit);
  join_workers (w, THREADS);
  for (unsigned i = 0; i < THREADS; i++)
    assert_int_equal (w[i].result, -EIO);
  assert_int_equal (e.syncs, 1);
  assert_int_equal (durable (&e), 0);
  env_stop (&e);
}

/* Called by the leader, without the lock, before its writes and its sync. */
static int
maintain_meanwhile (struct env *e, enum io_call call)
{
  struct dedup_journal_area a[4], more = { .host_off = 64 << 20,
                                           .nr_blocks = AREA_BLOCKS };
  LOCK_FOR_SCOPE (&e->lock);

  if (e->arrived++ == 0 &&
      dedup_journal_add_area_locked (e->j, &more) != 0)
    return -EINVAL;
  return dedup_journal_drop_locked (e->j, UINT64_MAX, a, 4) ? -EPERM : 0;
}

static void
test_area_with_unwritten_blocks_is_not_dropped (void **state)
{
  struct env e;
  struct found f;
  struct dedup_journal_area a[4];

  env_start (&e, 2, 1);
  append_group (&e, 0, 96 * 160);
  e.hook = maintain_meanwhile;
  assert_int_equal (dedup_journal_commit (e.j), 0);
  e.hook = NULL;
  read_back (&e, 1, &f);
  assert_int_equal (f.nr_records, 96 * 160);
  lock_acquire (&e.lock);
  assert_int_equal (dedup_journal_drop_locked (e.j, UINT64_MAX, a, 4), 1);
  lock_release (&e.lock);
  env_stop (&e);
}

/* --- Reading what is not right ------------------------------------------- */

static uint64_t
block_off (struct env *e, uint64_t seq)
{
  return e->c->areas[0].host_off +
    (seq - e->c->areas[0].first_seq) * DEDUP_BLOCK_SIZE;
}

static void
damage (struct env *e, uint64_t host_off, bool zero)
{
  uint8_t sector[512];

  assert_int_equal (io_pread (e->io, sector, 512, host_off), 0);
  if (zero)
    memset (sector, 0, 512);
  else
    sector[rng () % 256] ^= (uint8_t) (1 << rng () % 8);
  assert_int_equal (io_pwrite (e->io, sector, 512, host_off), 0);
}

static void
test_journal_ends_before_a_torn_block (void **state)
{
  struct env e;
  struct found f;
  uint8_t saved[DEDUP_BLOCK_SIZE];

  seed_rng (4);
  env_start (&e, 1, 1);
  write_full_blocks (&e, 6);
  for (uint64_t seq = 1; seq <= 6; seq++)
    for (unsigned i = 0; i < 8 * 2; i++) {
      uint64_t off = block_off (&e, seq);

      assert_int_equal (io_pread (e.io, saved, sizeof saved, off), 0);
      damage (&e, off + i / 2 * 512, i % 2);
      assert_int_equal (read_back (&e, 1, &f), seq);
      assert_int_equal (f.nr_blocks, seq - 1);
      assert_int_equal (io_pwrite (e.io, saved, sizeof saved, off), 0);
      assert_int_equal (read_back (&e, 1, &f), 7);
    }
  env_stop (&e);
}

static void
test_blocks_of_an_old_epoch_end_the_journal (void **state)
{
  struct env e;
  struct found f;

  env_start (&e, 1, 1);
  write_full_blocks (&e, 8);            /* epoch 3 */
  e.c->epoch = 4;
  e.c->epoch_start = 5;
  assert_int_equal (read_back (&e, 1, &f), 5);
  open_journal (&e, 4, 5);
  write_full_blocks (&e, 2);
  assert_int_equal (read_back (&e, 1, &f), 7);
  env_stop (&e);
}

static void
test_blocks_of_an_earlier_lap_or_store_end_the_journal (void **state)
{
  struct env e;
  struct found f;

  env_start (&e, 1, 1);
  write_blocks (&e, AREA_BLOCKS, 62);
  assert_int_equal (read_back (&e, 1, &f), AREA_BLOCKS + 1);
  e.c->areas[0].first_seq += AREA_BLOCKS;
  assert_int_equal (read_back (&e, AREA_BLOCKS + 1, &f), AREA_BLOCKS + 1);
  assert_int_equal (f.nr_blocks, 0);
  open_journal (&e, 3, AREA_BLOCKS + 1);
  write_full_blocks (&e, 3);
  assert_int_equal (read_back (&e, AREA_BLOCKS + 1, &f), AREA_BLOCKS + 4);
  e.c->store_id++;
  assert_int_equal (read_back (&e, AREA_BLOCKS + 1, &f), AREA_BLOCKS + 1);
  env_stop (&e);
}

/* Put a block with a right checksum at number 1. */
static uint64_t
read_crafted (struct env *e, struct dedup_block_head h, const uint8_t *records,
              size_t len)
{
  uint8_t block[DEDUP_BLOCK_SIZE] = { 0 };
  struct found f;

  memcpy (block + DEDUP_BLOCK_HEADER, records, len);
  h.len = (uint32_t) (DEDUP_BLOCK_HEADER + len);
  dedup_block_encode (&h, block);
  assert_int_equal (io_pwrite (e->io, block, sizeof block,
                               block_off (e, h.seq)), 0);
  return read_back (e, h.seq, &f);
}

static void
test_well_summed_nonsense_ends_the_journal (void **state)
{
  struct env e;
  struct dedup_block_head h = { .store_id = STORE_ID, .seq = 1, .epoch = 3 };
  const uint8_t good[] = { 3, DEDUP_REC_NONE, 0, 2, DEDUP_REC_END };
  const uint8_t bad[] = { 2, DEDUP_REC_END, 2, 99 };
  uint8_t long_none[DEDUP_BLOCK_SIZE - DEDUP_BLOCK_HEADER];
  size_t at = 0;

  env_start (&e, 1, 1);
  assert_int_equal (read_crafted (&e, h, good, 0), 2);
  assert_int_equal (read_crafted (&e, h, good, sizeof good), 2);
  assert_int_equal (read_crafted (&e, h, good, 4), 1);  /* cut short */
  assert_int_equal (read_crafted (&e, h, bad, sizeof bad), 1);
  h.known_durable = 1;
  assert_int_equal (read_crafted (&e, h, good, sizeof good), 1);
  h.known_durable = 0;
  h.epoch = 2;
  assert_int_equal (read_crafted (&e, h, good, sizeof good), 1);
  h.epoch = 3;

  for (; sizeof long_none - at > 255; at += 253)  /* the whole block */
    memcpy (long_none + at, (uint8_t[2]) { 253, DEDUP_REC_NONE }, 2);
  long_none[at] = (uint8_t) (sizeof long_none - at);
  long_none[at + 1] = DEDUP_REC_NONE;
  assert_int_equal (read_crafted (&e, h, long_none, sizeof long_none), 2);
  env_stop (&e);
}

static void
test_length_outside_the_block_is_refused (void **state)
{
  static const uint32_t lengths[] = { 0, 1, 47, 4097, 8192, UINT32_MAX };
  uint8_t block[DEDUP_BLOCK_SIZE];
  struct dedup_block_head h = { .store_id = 1, .seq = 1, .len = 48 }, back;
  be64 sum;

  dedup_block_encode (&h, block);
  assert_true (dedup_block_decode (block, &back));
  assert_int_equal (back.len, 48);
  for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
    for (unsigned k = 0; k < 4; k++)
      block[36 + k] = (uint8_t) (lengths[i] >> (24 - 8 * k));
    assert_false (dedup_block_decode (block, &back));
  }

  /* A sum that is right for a length within the header; what follows would
   * parse up to the end of the block and past it. */
  for (unsigned k = 48; k < sizeof block; k += 2)
    memcpy (block + k, (uint8_t[2]) { 2, DEDUP_REC_NONE }, 2);
  block[36] = block[37] = block[38] = 0;
  block[39] = 40;
  sum = be64_make (dedup_checksum (block, 40));
  memcpy (block + 40, &sum, sizeof sum);
  assert_false (dedup_block_decode (block, &back));
}

static void
test_read_keeps_to_its_bounds_and_reports_errors (void **state)
{
  struct env e;
  struct found f = { .in_order = true };
  uint64_t next;

  env_start (&e, 1, 10);
  write_full_blocks (&e, 100);          /* more than a batch */
  assert_int_equal (dedup_journal_read (e.io, place_of (e.c), 9, UINT64_MAX, found_cb,
                                        &f, &next), -EINVAL);
  assert_int_equal (dedup_journal_read (e.io, place_of (e.c), 10 + AREA_BLOCKS + 1,
                                        UINT64_MAX, found_cb, &f, &next),
                    -EINVAL);
  assert_int_equal (dedup_journal_read (e.io, place_of (e.c), 10 + AREA_BLOCKS,
                                        UINT64_MAX, found_cb, &f, &next), 0);
  assert_int_equal (next, 10 + AREA_BLOCKS);
  assert_int_equal (dedup_journal_read (e.io, place_of (e.c), 10, 95, found_cb, &f,
                                        &next), 0);
  assert_int_equal (next, 95);
  assert_int_equal (f.nr_blocks, 85);
  f.stop_at = 20;
  f.stop_with = 1;
  assert_int_equal (dedup_journal_read (e.io, place_of (e.c), 15, 95, found_cb, &f,
                                        &next), 0);
  assert_int_equal (next, 21);
  f.stop_with = -ENOMEM;
  assert_int_equal (dedup_journal_read (e.io, place_of (e.c), 15, 95, found_cb, &f,
                                        &next), -ENOMEM);
  e.fail_reads = 1;
  assert_int_equal (dedup_journal_read (e.io, place_of (e.c), 10, UINT64_MAX, found_cb,
                                        &f, &next), -EIO);
  env_stop (&e);
}

static void
test_composed_blocks_are_a_journal (void **state)
{
  struct env e;
  struct found f;
  struct dedup_record r[500];
  uint8_t *buf;
  size_t len;

  env_start (&e, 1, 1);
  for (unsigned i = 0; i < 500; i++)
    r[i] = record_no (i);
  assert_int_equal (dedup_journal_compose (STORE_ID, 3, 1, r, 500, &buf,
                                           &len), 0);
  assert_int_equal (len, 6 * DEDUP_BLOCK_SIZE);
  assert_int_equal (io_pwrite (e.io, buf, len, block_off (&e, 1)), 0);
  free (buf);
  assert_int_equal (read_back (&e, 1, &f), 7);
  assert_int_equal (f.nr_records, 500);
  assert_int_equal (f.nr_ends, 1);
  assert_true (f.in_order);

  r[499] = (struct dedup_record) { .type = DEDUP_REC_END };
  assert_int_equal (dedup_journal_compose (STORE_ID, 3, 1, r, 500, &buf,
                                           &len), 0);
  assert_int_equal (io_pwrite (e.io, buf, len, block_off (&e, 1)), 0);
  free (buf);
  read_back (&e, 1, &f);
  assert_int_equal (f.nr_records, 499);
  assert_int_equal (f.nr_ends, 1);
  env_stop (&e);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_records_keep_their_values),
    cmocka_unit_test (test_record_bytes_are_those_of_the_document),
    cmocka_unit_test (test_bytes_of_records_with_places),
    cmocka_unit_test (test_bytes_of_records_of_packed_data),
    cmocka_unit_test (test_lists_keep_their_values),
    cmocka_unit_test (test_bytes_of_lists),
    cmocka_unit_test (test_refcounts_in_order_take_few_bytes),
    cmocka_unit_test (test_impossible_records_are_refused),
    cmocka_unit_test (test_garbage_records_decode_to_themselves_or_not_at_all),
    cmocka_unit_test (test_committed_records_are_read_back_in_order),
    cmocka_unit_test (test_end_is_written_once_a_group),
    cmocka_unit_test (test_forced_block_makes_durable_number_durable),
    cmocka_unit_test (test_areas_are_crossed_added_and_dropped),
    cmocka_unit_test (test_last_area_is_never_dropped),
    cmocka_unit_test (test_area_list_has_a_limit),
    cmocka_unit_test (test_bad_areas_and_start_are_refused),
    cmocka_unit_test (test_room_promised_is_there),
    cmocka_unit_test (test_what_waits_in_memory_is_bounded),
    cmocka_unit_test (test_failed_write_or_sync_sticks),
    cmocka_unit_test (test_acknowledged_groups_of_many_threads_are_there),
    cmocka_unit_test (test_one_sync_serves_all_that_wait),
    cmocka_unit_test (test_all_that_wait_for_a_failed_sync_fail),
    cmocka_unit_test (test_area_with_unwritten_blocks_is_not_dropped),
    cmocka_unit_test (test_journal_ends_before_a_torn_block),
    cmocka_unit_test (test_blocks_of_an_old_epoch_end_the_journal),
    cmocka_unit_test (test_blocks_of_an_earlier_lap_or_store_end_the_journal),
    cmocka_unit_test (test_well_summed_nonsense_ends_the_journal),
    cmocka_unit_test (test_length_outside_the_block_is_refused),
    cmocka_unit_test (test_read_keeps_to_its_bounds_and_reports_errors),
    cmocka_unit_test (test_composed_blocks_are_a_journal),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
