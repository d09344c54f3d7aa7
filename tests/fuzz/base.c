/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes the images that the fuzzers start from, and finds where things lie in
 * them.
 *
 * Patching a good image finds more than random bytes do: the mutation is
 * small, and what it meets is all there.  The images are made by the program
 * itself, once for each process; only the plain one is put together here,
 * since it has what this program does not write.
 */
#include "fuzz.h"

#include <zlib.h>

#include "dedup.h"
#include "image.h"
#include "../../dedup/pool.h"
#include "../../dedup/index/table/incarnation-page.h"
#include "../../dedup/journal/journal-block.h"
#include "../../dedup/index/table/segment-page.h"

/* --- The plain image ------------------------------------------------------ */

enum { HEADER, REFTABLE, REFBLOCK, L1, L2, SHARED, OWN, OLD, COMPRESSED,
       SNAPSHOTS, SNAP_L1, SNAP_L2, SHARED_L2, SHARED_DATA, NR_CLUSTERS,
       BITMAP_DIR = PLAIN_BYTES / PLAIN_CLUSTER, BITMAP_TABLE, BITMAP_TABLE2,
       BITMAP_DATA };

static void
put (uint8_t *buf, size_t off, unsigned bytes, uint64_t v)
{
  for (unsigned i = 0; i < bytes; i++)
    buf[off + i] = (uint8_t) (v >> 8 * (bytes - 1 - i));
}

static size_t
at (unsigned cluster)
{
  return cluster * (size_t) PLAIN_CLUSTER;
}

/* A cluster of MAX bytes, which they take no more of. */
static size_t
deflate_cluster (uint8_t *out, size_t max)
{
  uint8_t in[EXTENDED_CLUSTER];
  z_stream s = { .next_in = in, .avail_in = (unsigned) max, .next_out = out,
                 .avail_out = (unsigned) max };

  memset (in, 'z', max);
  MUST (deflateInit2 (&s, 9, Z_DEFLATED, -12, 9, 0) == Z_OK);
  MUST (deflate (&s, Z_FINISH) == Z_STREAM_END);
  MUST (deflateEnd (&s) == Z_OK);
  return max - s.avail_out;
}

static void
plain_header (uint8_t *buf)
{
  put (buf, 0, 4, 0x514649fb);
  put (buf, 4, 4, 3);
  put (buf, 20, 4, 9);
  put (buf, 24, 8, 128 << 10);
  put (buf, 36, 4, 4);
  put (buf, 40, 8, at (L1));
  put (buf, 48, 8, at (REFTABLE));
  put (buf, 56, 4, 1);
  put (buf, 60, 4, 1);
  put (buf, 64, 8, at (SNAPSHOTS));
  put (buf, 96, 4, 4);
  put (buf, 100, 4, 112);
}

static void
plain_snapshot_at (uint8_t *s, uint64_t l1_off, uint32_t l1_entries,
                   uint64_t size)
{
  put (s, 0, 8, l1_off);
  put (s, 8, 4, l1_entries);
  put (s, 12, 2, 1);
  put (s, 14, 2, 3);
  put (s, 36, 4, 16);
  put (s, 48, 8, size);
  memcpy (s + 56, "1old", 4);
}

void
make_plain (uint8_t buf[PLAIN_BYTES])
{
  static const uint8_t refcounts[NR_CLUSTERS] = {
    [HEADER] = 1, [REFTABLE] = 1, [REFBLOCK] = 1, [L1] = 1, [L2] = 1,
    [SHARED] = 2, [OWN] = 1, [OLD] = 1, [COMPRESSED] = 2, [SNAPSHOTS] = 1,
    [SNAP_L1] = 1, [SNAP_L2] = 1, [SHARED_L2] = 2, [SHARED_DATA] = 2,
  };
  const uint64_t copied = QCOW2_L2_COPIED;

  memset (buf, 0, PLAIN_BYTES);
  plain_header (buf);
  plain_snapshot_at (buf + at (SNAPSHOTS), at (SNAP_L1), 2, 64 << 10);
  put (buf, at (REFTABLE), 8, at (REFBLOCK));
  for (unsigned i = 0; i < NR_CLUSTERS; i++)
    put (buf, at (REFBLOCK) + 2 * i, 2, refcounts[i]);
  put (buf, at (L1), 8, at (L2) | copied);
  put (buf, at (L1) + 8, 8, at (SHARED_L2));
  put (buf, at (L2), 8, at (SHARED));
  put (buf, at (L2) + 8, 8, at (OWN) | copied);
  put (buf, at (L2) + 16, 8, at (COMPRESSED) | QCOW2_L2_COMPRESSED);
  put (buf, at (L2) + 24, 8, QCOW2_L2_ZERO);
  put (buf, at (SNAP_L1), 8, at (SNAP_L2) | copied);
  put (buf, at (SNAP_L1) + 8, 8, at (SHARED_L2));
  put (buf, at (SNAP_L2), 8, at (SHARED));
  put (buf, at (SNAP_L2) + 8, 8, at (OLD) | copied);
  put (buf, at (SNAP_L2) + 16, 8, at (COMPRESSED) | QCOW2_L2_COMPRESSED);
  put (buf, at (SHARED_L2) + 8, 8, at (SHARED_DATA));
  memset (buf + at (SHARED), 's', PLAIN_CLUSTER);
  memset (buf + at (OWN), 'o', PLAIN_CLUSTER);
  memset (buf + at (OLD), 'q', PLAIN_CLUSTER);
  memset (buf + at (SHARED_DATA), 'd', PLAIN_CLUSTER);
  deflate_cluster (buf + at (COMPRESSED), PLAIN_CLUSTER);
}

/* A directory entry: table, its entries, enabled, granularity, name. */
static size_t
put_bitmap (uint8_t *buf, size_t off, uint64_t table, unsigned granularity,
            char name)
{
  put (buf, off, 8, table);
  put (buf, off + 8, 4, 1);
  put (buf, off + 12, 4, 2);
  put (buf, off + 16, 1, 1);
  put (buf, off + 17, 1, granularity);
  put (buf, off + 18, 2, 1);
  buf[off + 24] = (uint8_t) name;
  return off + 32;
}

void
make_bitmaps (uint8_t buf[BITMAPS_BYTES])
{
  size_t ext = 112, end;

  memset (buf, 0, BITMAPS_BYTES);
  make_plain (buf);
  put (buf, 88, 8, 1);
  put (buf, ext, 4, 0x23852875);
  put (buf, ext + 4, 4, 24);
  put (buf, ext + 8, 4, 2);
  put (buf, ext + 24, 8, at (BITMAP_DIR));
  end = put_bitmap (buf, at (BITMAP_DIR), at (BITMAP_TABLE), 9, 'a');
  end = put_bitmap (buf, end, at (BITMAP_TABLE2), 12, 'b');
  put (buf, ext + 16, 8, end - at (BITMAP_DIR));
  put (buf, at (BITMAP_TABLE), 8, at (BITMAP_DATA));
  for (unsigned i = BITMAP_DIR; i <= BITMAP_DATA; i++)
    put (buf, at (REFBLOCK) + 2 * i, 2, 1);
}

/* --- Extended L2 entries -------------------------------------------------- */

enum { X_HEADER, X_REFTABLE, X_REFBLOCK, X_L1, X_L2, X_SNAPSHOTS, X_SNAP_L1,
       X_SNAP_L2, X_SHARED, X_PARTIAL, X_FAR, X_COMPRESSED, X_PLACE };

static size_t
x_at (unsigned cluster)
{
  return cluster * (size_t) EXTENDED_CLUSTER;
}

static void
put_extended (uint8_t *l2, unsigned i, uint64_t entry, uint64_t bitmap)
{
  put (l2, 16 * (size_t) i, 8, entry);
  put (l2, 16 * (size_t) i + 8, 8, bitmap);
}

static void
extended_header (uint8_t *buf)
{
  plain_header (buf);
  put (buf, 20, 4, 14);
  put (buf, 24, 8, 1 << 20);
  put (buf, 36, 4, 1);
  put (buf, 40, 8, x_at (X_L1));
  put (buf, 48, 8, x_at (X_REFTABLE));
  put (buf, 64, 8, x_at (X_SNAPSHOTS));
  put (buf, 72, 8, QCOW2_INCOMPAT_EXTENDED_L2);
}

/* All allocated; some, zero and unallocated; compressed; all zero, without a
 * place and with one; some zero without a place. */
static void
extended_entries (uint8_t *buf)
{
  const uint64_t copied = QCOW2_L2_COPIED, all = 0xffffffff;
  uint8_t *l2 = buf + x_at (X_L2), *old = buf + x_at (X_SNAP_L2);
  const uint64_t packed = x_at (X_COMPRESSED) | QCOW2_L2_COMPRESSED;

  put_extended (l2, 0, x_at (X_SHARED), all);
  put_extended (l2, 1, x_at (X_PARTIAL) | copied, UINT64_C (0xf00000f30f));
  put_extended (l2, 2, packed, 0);
  put_extended (l2, 3, 0, all << 32);
  put_extended (l2, 4, x_at (X_PLACE) | copied, all << 32);
  put_extended (l2, 5, 0, UINT64_C (0x8000000100000000));
  put_extended (l2, 40, x_at (X_FAR) | copied, UINT64_C (0xff00000000ff00));
  put_extended (old, 0, x_at (X_SHARED), all);
  put_extended (old, 2, packed, 0);
  put_extended (old, 7, 0, UINT64_C (0x0000ffff00000000));
}

void
make_extended (uint8_t buf[EXTENDED_BYTES])
{
  memset (buf, 0, EXTENDED_BYTES);
  extended_header (buf);
  plain_snapshot_at (buf + x_at (X_SNAPSHOTS), x_at (X_SNAP_L1), 1, 1 << 20);
  put (buf, x_at (X_REFTABLE), 8, x_at (X_REFBLOCK));
  for (unsigned i = 0; i <= X_PLACE; i++)
    put (buf, x_at (X_REFBLOCK) + 2 * i, 2,
         i == X_SHARED || i == X_COMPRESSED ? 2 : 1);
  put (buf, x_at (X_L1), 8, x_at (X_L2) | QCOW2_L2_COPIED);
  put (buf, x_at (X_SNAP_L1), 8, x_at (X_SNAP_L2) | QCOW2_L2_COPIED);
  extended_entries (buf);
  memset (buf + x_at (X_SHARED), 's', EXTENDED_CLUSTER);
  memset (buf + x_at (X_PARTIAL), 'p', EXTENDED_CLUSTER);
  memset (buf + x_at (X_FAR), 'f', EXTENDED_CLUSTER);
  memset (buf + x_at (X_PLACE), 'z', EXTENDED_CLUSTER);
  deflate_cluster (buf + x_at (X_COMPRESSED), EXTENDED_CLUSTER);
}

/* --- An external data file ------------------------------------------------- */

/* Guest clusters 0, 3 and 40 are data, 2 is zero with a place, 4 without. */
void
make_data_file (uint8_t buf[DATA_FILE_BYTES], bool raw)
{
  const uint64_t copied = QCOW2_L2_COPIED;
  static const char name[] = "data";

  memset (buf, 0, DATA_FILE_BYTES);
  plain_header (buf);
  put (buf, 60, 4, 0);
  put (buf, 64, 8, 0);
  put (buf, 72, 8, QCOW2_INCOMPAT_DATA_FILE);
  put (buf, 88, 8, raw ? QCOW2_AUTOCLEAR_RAW_DATA : 0);
  put (buf, 112, 4, 0x44415441);
  put (buf, 116, 4, sizeof name - 1);
  memcpy (buf + 120, name, sizeof name - 1);
  put (buf, at (REFTABLE), 8, at (REFBLOCK));
  for (unsigned i = HEADER; i <= L2; i++)
    put (buf, at (REFBLOCK) + 2 * i, 2, 1);
  put (buf, at (L1), 8, at (L2) | copied);
  put (buf, at (L2), 8, copied);
  put (buf, at (L2) + 16, 8, 2 * PLAIN_CLUSTER | copied | QCOW2_L2_ZERO);
  put (buf, at (L2) + 24, 8, 3 * PLAIN_CLUSTER | copied);
  put (buf, at (L2) + 32, 8, QCOW2_L2_ZERO);
  put (buf, at (L2) + 320, 8, 40 * PLAIN_CLUSTER | copied);
}

/* --- Images with a store -------------------------------------------------- */

static const struct dedup_open_params open_params = {
  .path = "fuzz", .writable = true, .dedup = true, .verify = true,
  .max_incarnations = -1, .cache_bytes = 1 << 20,
};

static struct io_store *
new_disk (bool packed)
{
  struct dedup_create_params p = {
    .image = { .virtual_size = 8 << 20, .cluster_bits = 12,
               .refcount_order = 4 },
    .order = 4, .journal_areas = 3,
    .compress = packed ? DEDUP_COMPRESS_ZSTD : DEDUP_COMPRESS_KEEP,
  };
  struct fault f = { 0 };
  struct io_store *io;

  MUST (io_memory_new (0, &io) == 0);
  MUST (dedup_create (io, &p, &f) == 0);
  return io;
}

static void
write_ids (struct dedup_pool *d, uint64_t guest_idx, unsigned nr, uint8_t id)
{
  uint8_t buf[4096];

  for (unsigned i = 0; i < nr; i++) {
    memset (buf, 1 + i % 251, sizeof buf);
    buf[0] = id;
    buf[1] = (uint8_t) (i >> 8);
    MUST (dedup_write (d, QCOW2_ROOT_ACTIVE, buf, guest_idx + i, 1) == 0);
  }
}

static void
run_due (struct dedup_pool *d, unsigned jobs)
{
  unsigned due;

  for (unsigned n = 0; n < 1000 && (due = dedup_due (d, NULL) & jobs); n++)
    MUST (dedup_run (d, (enum dedup_job) (due & -due)) >= 0);
}

/* A limit makes freezes write incarnations. */
static void
add_incarnations (struct io_store *io)
{
  struct dedup_open_params p = open_params;
  struct fault f = { 0 };
  struct dedup_pool *d;

  p.max_incarnations = 8;
  MUST (dedup_open (io, &p, &d, &f) == 0);
  write_ids (d, 1200, 200, 'e');
  run_due (d, DEDUP_JOB_FREEZE | DEDUP_JOB_FILTERS);
  MUST (dedup_finish (d) == 0);
  dedup_free (d);
}

static void
begin_disks (struct dedup_pool *d)
{
  pthread_mutex_lock (&d->upkeep.maintenance);
  MUST (dedup_begin_disks (&d->upkeep) == 0);
  pthread_mutex_unlock (&d->upkeep.maintenance);
}

static struct io_store *
disk_with_history (bool crashed, bool disks, bool packed)
{
  struct io_store *io = new_disk (packed);
  struct fault f = { 0 };
  struct dedup_pool *d;

  MUST (dedup_open (io, &open_params, &d, &f) == 0);
  write_ids (d, 0, 200, 'a');
  run_due (d, DEDUP_JOB_FREEZE | DEDUP_JOB_FILTERS);
  write_ids (d, 100, 200, 'b');
  write_ids (d, 1000, 100, 'a');
  run_due (d, DEDUP_JOB_FREEZE | DEDUP_JOB_FILTERS);
  if (disks)
    begin_disks (d);
  if (crashed) {
    MUST (dedup_checkpoint (&d->store) == 0);
    write_ids (d, 1500, 20, 'c');
    MUST (dedup_unmap (d, QCOW2_ROOT_ACTIVE, 0, 50, DEDUP_TRIM) == 0);
    MUST (dedup_flush (d) == 0);
    write_ids (d, 1600, 5, 'd');
    MUST (dedup_flush (d) == 0);
  }
  else
    MUST (dedup_finish (d) == 0);
  dedup_free (d);
  return io;
}

/* The active disk and some disks: a disk, its clone, which has tables of its own
 * too, a snapshot, and one that is being deleted.  Closed with all the work left. */
static struct io_store *
pool_with_debts (void)
{
  struct dedup_create_params p = {
    .image = { .virtual_size = 8 << 20, .cluster_bits = 12,
               .refcount_order = 5 },
    .order = 4, .journal_areas = 3,
  };
  struct fault f = { 0 };
  struct io_store *io;
  struct dedup_pool *d;
  unsigned vm1, vm2, root;

  MUST (io_memory_new (0, &io) == 0);
  MUST (dedup_create (io, &p, &f) == 0);
  MUST (dedup_open (io, &open_params, &d, &f) == 0);
  write_ids (d, 0, 200, 'a');
  MUST (dedup_disk_clone (d, QCOW2_ROOT_ACTIVE, "vm1", true, &vm1, &f) == 0);
  MUST (dedup_disk_clone (d, vm1, "vm2", true, &vm2, &f) == 0);
  MUST (dedup_unmap (d, vm2, 600, 3, DEDUP_TRIM) == 0);
  MUST (dedup_disk_clone (d, vm2, "vm2@s", false, &root, &f) == 0);
  write_ids (d, 1500, 20, 'c');
  MUST (dedup_disk_clone (d, QCOW2_ROOT_ACTIVE, "vm3", true, &root, &f) == 0);
  MUST (dedup_disk_delete (d, root, &f) == 0);
  MUST (dedup_finish (d) == 0);
  dedup_free (d);
  return io;
}

/* --- Places --------------------------------------------------------------- */

static void
add_place (struct base *b, unsigned kind, uint64_t host_off, uint64_t len)
{
  if (host_off != 0 && b->nr_places < MAX_PLACES)
    b->places[b->nr_places++] = (struct place) {
      .host_off = host_off, .len = (uint32_t) len, .kind = kind };
}

static void
add_flat (struct base *b, const struct qcow2_flat *t)
{
  add_place (b, PLACE_TABLE, t->host_off, t->nr * 8);
  for (uint64_t i = 0; i < t->nr; i++)
    add_place (b, PLACE_TABLE, t->v[i] & QCOW2_OFFSET_MASK,
               UINT64_C (1) << b->cluster_bits);
}

static void
add_disks (struct base *b, const struct qcow2_image *img)
{
  uint64_t off = img->fields.snapshots_off;

  for (size_t i = 0; i < img->snapshots.nr; i++) {
    if (img->snapshots.v[i].is_disk)
      add_place (b, PLACE_DISK, off, img->snapshots.raw[i].len);
    off += img->snapshots.raw[i].len;
  }
}

static void
add_tables (struct base *b, const struct qcow2_image *img)
{
  b->cluster_bits = img->header.geo.cluster_bits;
  b->places[b->nr_places++] = (struct place) { .len = 512 };
  add_flat (b, &img->l1);
  add_flat (b, &img->reftable);
  add_flat (b, &img->anchor.l1);
  add_place (b, PLACE_TABLE, img->fields.snapshots_off,
             img->snapshots.raw_len);
  for (size_t i = 0; i < img->snapshots.nr; i++)
    add_place (b, PLACE_TABLE, img->snapshots.v[i].l1_off,
               img->snapshots.v[i].l1_entries * 8);
  add_disks (b, img);
}

static void
add_incarnation (struct base *b, const struct dedup_incarnation_desc *inc)
{
  uint64_t filter = inc_layout_of (inc->order).filter_pages * 4096;
  size_t first = b->nr_places;

  add_place (b, PLACE_INC_HEAD, inc->host_off, 64);
  for (uint64_t off = 4096; off < inc->size_bytes; off += 4096)
    add_place (b, off <= filter ? PLACE_INC_HEAD : PLACE_INC_PAGE,
               inc->host_off + off, 4096);
  for (; first < b->nr_places; first++) {
    b->places[first].head_off = inc->host_off;
    b->places[first].filter_bytes = (uint32_t) filter;
  }
}

static void
add_segment (struct base *b, const struct dedup_segment_desc *s)
{
  const uint64_t meta = seg_page_off (s, seg_pages (s->nr_entries));
  const uint64_t end = s->host_off + s->size_bytes;
  size_t first = b->nr_places;

  add_place (b, PLACE_SEG_HEAD, s->host_off, 72);
  for (uint64_t off = s->host_off + 4096; off < meta; off += 4096)
    add_place (b, PLACE_SEG_PAGE, off, 4096);
  for (uint64_t off = meta; off < end; off += 4096)
    add_place (b, PLACE_SEG_HEAD, off, MIN_OF (4096, end - off));
  for (; first < b->nr_places; first++) {
    b->places[first].head_off = s->host_off;
    b->places[first].meta_off = meta;
    b->places[first].area_end = end;
  }
}

static void
add_bitmaps (struct base *b)
{
  add_place (b, PLACE_BITMAP, 112, 32);
  add_place (b, PLACE_BITMAP, at (BITMAP_DIR), 32);
  add_place (b, PLACE_BITMAP, at (BITMAP_DIR) + 32, 32);
  add_place (b, PLACE_TABLE, at (BITMAP_TABLE), PLAIN_CLUSTER);
  add_place (b, PLACE_TABLE, at (BITMAP_TABLE2), PLAIN_CLUSTER);
  add_place (b, PLACE_TABLE, at (BITMAP_DATA), PLAIN_CLUSTER);
}

static void
add_store (struct base *b, const struct dedup_pool *d)
{
  const struct dedup_config *c = d->store.config;

  add_place (b, PLACE_CONFIG, d->store.ext.config_off, 512);
  add_place (b, PLACE_CONFIG, d->store.ext.config_off + d->store.ext.config_size / 2,
             512);
  for (uint32_t i = 0; i < c->nr_areas; i++)
    for (unsigned k = 0; k < 24 && k < c->areas[i].nr_blocks; k++)
      add_place (b, PLACE_JOURNAL, c->areas[i].host_off + k * 4096, 4096);
  for (uint32_t i = 0; i < c->index.nr_incarnations; i++)
    add_incarnation (b, &c->index.incarnations[i]);
  for (uint32_t i = 0; i < c->index.nr_segments; i++)
    add_segment (b, &c->index.segments[i]);
}

static void
take_bytes (struct base *b, struct io_store *io)
{
  b->len = (size_t) io_size (io);
  b->bytes = malloc (b->len);
  MUST (b->bytes && io_pread (io, b->bytes, b->len, 0) == 0);
}

/* One that is put together here; NULL: KIND is none of them. */
static struct io_store *
made_here (enum base_kind kind)
{
  uint8_t buf[EXTENDED_BYTES];

  switch (kind) {
  case BASE_PLAIN:
    make_plain (buf);
    return store_of (buf, PLAIN_BYTES);
  case BASE_BITMAPS:
    make_bitmaps (buf);
    return store_of (buf, BITMAPS_BYTES);
  case BASE_EXTENDED:
    make_extended (buf);
    return store_of (buf, EXTENDED_BYTES);
  case BASE_DATA_FILE:
    make_data_file (buf, false);
    return store_of (buf, DATA_FILE_BYTES);
  default:
    return NULL;
  }
}

static void
make_base (struct base *b, enum base_kind kind)
{
  struct dedup_open_params p = open_params;
  struct fault f = { 0 };
  struct io_store *io = made_here (kind);
  bool plain = io != NULL;
  struct dedup_pool *d;

  if (kind == BASE_POOL)
    io = pool_with_debts ();
  else if (!plain)
    io = disk_with_history (kind == BASE_CRASHED || kind == BASE_CRASHED_DISKS ||
                            kind == BASE_PACKED, kind == BASE_CRASHED_DISKS,
                            kind == BASE_PACKED);
  if (kind == BASE_BOTH)
    add_incarnations (io);
  take_bytes (b, io);
  p.writable = false;
  p.host_files = QCOW2_FILES_IGNORE;
  MUST (dedup_open (io, &p, &d, &f) == 0);
  add_tables (b, dedup_image (d));
  if (!plain)
    add_store (b, d);
  if (kind == BASE_BITMAPS)
    add_bitmaps (b);
  dedup_free (d);
  io_close (io);
}

const struct base *
get_base (enum base_kind kind)
{
  static struct base bases[NR_BASES];

  if (bases[kind].bytes == NULL)
    make_base (&bases[kind], kind);
  return &bases[kind];
}

struct io_store *
store_of (const uint8_t *bytes, size_t len)
{
  struct io_store *io;

  MUST (io_memory_new (0, &io) == 0);
  MUST (io_pwrite (io, bytes, len, 0) == 0);
  return io;
}

/* --- Checksums ------------------------------------------------------------ */

/* Of LEN bytes at HOST_OFF, kept big-endian AT of them. */
static void
fix_at (struct io_store *io, uint64_t host_off, uint32_t len, uint32_t at_off)
{
  CLEANUP_FREE uint8_t *buf = malloc (len);

  MUST (buf && io_pread (io, buf, len, host_off) == 0);
  put (buf, at_off, 8, 0);
  put (buf, at_off, 8, dedup_checksum (buf, len));
  MUST (io_pwrite (io, buf + at_off, 8, host_off + at_off) == 0);
}

static uint32_t
length_at (struct io_store *io, uint64_t host_off, uint32_t min, uint32_t max)
{
  be32 w;
  uint32_t len;

  MUST (io_pread (io, &w, sizeof w, host_off) == 0);
  len = be32_load (w);
  return len < min || len > max ? min : len;
}

static void
fix_filter (struct io_store *io, const struct place *p)
{
  CLEANUP_FREE uint8_t *buf = malloc (p->filter_bytes + 1);
  uint8_t sum[8];

  MUST (buf && io_pread (io, buf, p->filter_bytes, p->head_off + 4096) == 0);
  put (sum, 0, 8, dedup_checksum (buf, p->filter_bytes));
  MUST (io_pwrite (io, sum, sizeof sum, p->head_off + 48) == 0);
}

/* Of fences and filter: as long as page 0 says, if that is in the area. */
static void
fix_segment (struct io_store *io, const struct place *p)
{
  struct seg_wire_head h;
  CLEANUP_FREE uint8_t *buf = NULL;
  uint64_t pages, len;
  uint8_t sum[8];

  MUST (io_pread (io, &h, sizeof h, p->head_off) == 0);
  pages = seg_meta_pages ((p->meta_off - p->head_off) / 4096 - 1,
                          be32_load (h.nr_shards),
                          be64_load (h.nr_words) & 0xffffffff);
  len = MIN_OF (pages * 4096, p->area_end - p->meta_off);
  buf = malloc (len + 1);
  MUST (buf && io_pread (io, buf, len, p->meta_off) == 0);
  put (sum, 0, 8, dedup_checksum (buf, len));
  MUST (io_pwrite (io, sum, sizeof sum, p->head_off + 56) == 0);
}

void
fix_checksum (struct io_store *io, const struct place *p)
{
  switch (p->kind) {
  case PLACE_TABLE:
  case PLACE_BITMAP:
  case PLACE_DISK:
    break;
  case PLACE_SEG_HEAD:
    fix_segment (io, p);
    fix_at (io, p->head_off, 4096, 64);
    break;
  case PLACE_SEG_PAGE:
    fix_at (io, p->host_off, 4096, 24);
    break;
  case PLACE_CONFIG:
    fix_at (io, p->host_off, length_at (io, p->host_off + 12, 128,
                                        DEDUP_CONFIG_SLOT), 104);
    break;
  case PLACE_JOURNAL:
    fix_at (io, p->host_off, length_at (io, p->host_off + 36, 48, 4096), 40);
    break;
  case PLACE_INC_HEAD:
    fix_filter (io, p);
    fix_at (io, p->head_off, 4096, 56);
    break;
  case PLACE_INC_PAGE:
    fix_at (io, p->host_off, 4096, 24);
    break;
  }
}
