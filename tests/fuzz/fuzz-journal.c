/* SPDX-License-Identifier: BSD-3-Clause */
/* Fuzzes replay: the records are the input's, in valid blocks at the end of a
 * crashed image's journal; the image is recovered, worked on and closed.
 *
 * The first byte: bit 0, the records are bytes as they are, else each is made
 * of fields; bit 1, the last blocks are not known durable, so that data is
 * compared; bit 2, read-only; bits 3 to 7 being 1, an image where records name
 * places.
 */
#include "fuzz.h"

#include "../../dedup/pool.h"
#include "../../dedup/journal/journal-block.h"

#define MAX_BLOCKS 8u

struct journal_end {
  uint64_t host_off;           /* of the first block behind the last */
  struct dedup_block_head head;
};

/* Where the journal of the crashed image ends. */
static struct journal_end
find_end (const struct base *b)
{
  struct journal_end e = { 0 };
  uint8_t block[DEDUP_BLOCK_SIZE];
  struct dedup_block_head h;

  for (size_t i = 0; i < b->nr_places; i++) {
    if (b->places[i].kind != PLACE_JOURNAL)
      continue;
    memcpy (block, b->bytes + b->places[i].host_off, sizeof block);
    if (!dedup_block_decode (block, &h) || h.seq < e.head.seq)
      continue;
    e.head = h;
    e.host_off = b->places[i].host_off + DEDUP_BLOCK_SIZE;
  }
  MUST (e.host_off != 0);
  return e;
}

/* A number that is often one that means something. */
static uint64_t
number (struct input *in)
{
  uint64_t kind = take (in, 1), v = take (in, 2);

  switch (kind % 8) {
  case 0: return take (in, 8);
  case 1: return v * 8;
  case 2: return UINT64_MAX - v;
  case 3: return UINT64_C (1) << v % 64;
  case 4: return v;
  default: return v % 2048;
  }
}

static enum dedup_record_type
take_type (struct input *in)
{
  const unsigned v = (unsigned) take (in, 1);

  return (enum dedup_record_type) (v < 192 ? 1 + v % 12
                                   : DEDUP_REC_BITMAP + v % 6);
}

static size_t
make_list (struct input *in, uint64_t host_idx, uint8_t *out)
{
  struct dedup_record r;

  dedup_reflist_begin (&r, host_idx, (uint32_t) number (in), take (in, 1) & 1);
  dedup_record_encode (&r, out);
  for (unsigned n = take (in, 1) % 32; n > 0; n--)
    dedup_reflist_extend (out, (size_t) (DEDUP_REC_MAX - out[0]),
                          1 + take (in, 1) % 128, take (in, 1),
                          take (in, 1) & 1);
  return out[0];
}

static size_t
make_record (struct input *in, uint8_t *out)
{
  struct dedup_record r = { 0 };

  r.type = take_type (in);
  r.root = take (in, 1) % 16 ? 0 : 1;
  r.host_idx = number (in);
  r.guest_idx = number (in);
  memset (r.hash.b, (int) take (in, 1), sizeof r.hash.b);
  r.change.root = r.root;
  r.change.count = (uint32_t) (1 + take (in, 1));
  r.change.guest_idx = r.guest_idx;
  r.change.host_idx = r.host_idx;
  r.change.entry = r.host_idx * 4096;
  r.change.refcount = number (in);
  r.change.anchored = take (in, 1) & 1;
  r.change.table_idx = number (in) % 4096;
  r.change.host_off = r.guest_idx * 4096;
  r.change.source_off = take (in, 1) & 1 ? r.host_idx * 4096 : 0;
  r.place = r.change.place = r.host_idx * 4096 + r.guest_idx % 512 * 8;
  r.entry_kind = r.change.table_idx & 1;
  r.change.header = (struct qcow2_header_fields) {
    .reftable_off = r.host_idx * 4096, .reftable_clusters = r.change.count,
    .nr_snapshots = 1, .snapshots_off = r.guest_idx * 4096,
    .anchor_l1_off = number (in) * 4096,
    .anchor_l1_entries = (uint32_t) number (in),
  };
  switch (r.type) {             /* what the wire form has no name for */
  case DEDUP_REC_L2: r.change.type = QCOW2_CHANGE_L2; break;
  case DEDUP_REC_REFCOUNT: r.change.type = QCOW2_CHANGE_REFCOUNT; break;
  case DEDUP_REC_L2TABLE: r.change.type = QCOW2_CHANGE_L2_TABLE; break;
  case DEDUP_REC_REFBLOCK: r.change.type = QCOW2_CHANGE_REFBLOCK; break;
  case DEDUP_REC_ANCHORTABLE:
    r.change.type = QCOW2_CHANGE_ANCHOR_TABLE; break;
  case DEDUP_REC_HEADER: r.change.type = QCOW2_CHANGE_HEADER; break;
  case DEDUP_REC_BITMAP: r.change.type = QCOW2_CHANGE_BITMAP; break;
  case DEDUP_REC_ENTRY: r.change.type = QCOW2_CHANGE_ENTRY; break;
  case DEDUP_REC_TABLE: r.change.type = QCOW2_CHANGE_TABLE; break;
  case DEDUP_REC_REFLIST: return make_list (in, r.host_idx, out);
  default: break;
  }
  return dedup_record_encode (&r, out);
}

static size_t
fill_block (struct input *in, bool raw, uint8_t *block)
{
  size_t len = DEDUP_BLOCK_HEADER, want;

  if (raw) {
    want = take (in, 1) * 16;
    want = MIN_OF (want, DEDUP_BLOCK_SIZE - DEDUP_BLOCK_HEADER);
    for (; len < DEDUP_BLOCK_HEADER + want && in->left > 0; len++)
      block[len] = (uint8_t) take (in, 1);
    return len;
  }
  for (want = take (in, 1) % 32; want > 0 && in->left > 0; want--)
    len += make_record (in, block + len);
  return len;
}

static void
add_blocks (struct io_store *io, struct journal_end e, struct input *in,
            bool raw, bool durable)
{
  uint8_t block[DEDUP_BLOCK_SIZE];

  for (unsigned i = 0; i < MAX_BLOCKS && in->left > 0; i++) {
    memset (block, 0, sizeof block);
    e.head.seq++;
    if (durable)
      e.head.known_durable = e.head.seq - 1;
    e.head.len = (uint32_t) fill_block (in, raw, block);
    dedup_block_encode (&e.head, block);
    MUST (io_pwrite (io, block, sizeof block, e.host_off) == 0);
    e.host_off += DEDUP_BLOCK_SIZE;
    if (take (in, 1) % 4 == 0)
      break;
  }
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t len)
{
  struct input in = { data, len };
  unsigned mode = (unsigned) take (&in, 1);
  const struct base *b = get_base (mode >> 3 == 1 ? BASE_CRASHED_DISKS
                                   : BASE_CRASHED);
  struct io_store *io;

  if (len > 1 << 15)
    return -1;
  io = store_of (b->bytes, b->len);
  add_blocks (io, find_end (b), &in, mode & 1, !(mode & 2));
  work_on_disk (io, &in, !(mode & 4));
  io_close (io);
  return 0;
}
