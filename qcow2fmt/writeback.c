/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes changed tables in place.
 *
 * It has three steps.  Begin, with the lock, copies all changed tables, which
 * count as clean from then on.  Write, without the lock, writes the copies.
 * End, with the lock, frees the copies, or marks the tables as changed again
 * if the write failed.  A table that changes after it was copied counts as
 * changed again.
 *
 * If there is a log, begin releases the lock from time to time, so that nobody
 * waits until thousands of tables are copied.  Then a copy has all changes
 * from before begin, and maybe some later ones.  That is enough: the log still
 * has these, as after-images, and the caller makes it durable up to the end of
 * begin before it writes (law 3).  Without a log (unlogged.c) all copies are
 * of one moment.
 *
 * Until the end, slices that were copied cannot be evicted: the file may still
 * hold older bytes than a reader must see.
 *
 * Copies are sorted by host offset and written in batches of neighbours.  The
 * file grows to the frontier first, in a way that cannot cut off what a writer
 * puts behind it at the same time: by allocating the last bytes, not by
 * setting a size.  If the byte store cannot do that, the file ends with the
 * last cluster that was written, which reads the same.
 *
 * One writeback runs at a time.  Syncing is left to the caller, except for
 * images without a log (unlogged.c): there only the order of the writes makes
 * a crash harmless, so the copies are written in phases, with a sync between
 * two.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "aligned.h"
#include "checked.h"
#include "image.h"

#define MAX_BATCH_BYTES (1u << 20)
#define MAX_BATCH_VECS 256

#ifdef DEDUP_MUTATIONS
#define COPIES_PER_HOLD 2      /* the crash harness has small images */
#else
#define COPIES_PER_HOLD 64     /* slices: some tens of microseconds */
#endif

#define FIELDS_OFF 24          /* specification: header bytes 24 to 71 */
#define FIELDS_LEN 48

enum copy_kind { COPY_SLICE, COPY_PAGE, COPY_PART, COPY_FIELDS };

/* The phases in their order.  Each writes tables that refer to tables of the
 * phases before it. */
enum { PHASE_REFBLOCKS, PHASE_REFTABLE, PHASE_L2, PHASE_L1 };

struct copy {
  unsigned phase;              /* with a log: always the same */
  uint64_t host_off;
  uint8_t *data;
  size_t len;
  enum copy_kind kind;
  struct qcow2_slice *slice;   /* COPY_SLICE */
  struct qcow2_flat *flat;     /* COPY_PAGE */
  uint64_t idx;                /* page or part */
};

struct qcow2_writeback {
  struct qcow2_image *img;
  struct copy *copies;
  size_t nr;
  uint8_t *buf;
  size_t used;                 /* of buf */
  uint64_t max_slices, max_parts, max_pages;   /* that fit in buf */
  uint64_t *parts;             /* of the anchor, to be copied */
  size_t nr_parts;
  unsigned breath;             /* see breathe_locked */
  uint64_t end;                /* bytes that the file should have */
};

/* --- Begin --------------------------------------------------------------- */

static void
set_phase (const struct qcow2_image *img, struct copy *c)
{
  if (!img->unlogged.on)
    return;
  if (c->kind == COPY_SLICE)
    c->phase = c->slice->is_refblock ? PHASE_REFBLOCKS : PHASE_L2;
  else
    c->phase = c->flat == &img->l1 ? PHASE_L1 : PHASE_REFTABLE;
}

static uint64_t
nr_flat_pages (const struct qcow2_image *img)
{
  return img->l1.nr_dirty + img->reftable.nr_dirty + img->anchor.l1.nr_dirty;
}

static size_t
buf_size (const struct qcow2_writeback *wb)
{
  const struct qcow2_geometry *g = &wb->img->header.geo;

  return wb->max_slices * qcow2_slice_size (g) +
    wb->max_parts * g->cluster_size + wb->max_pages * QCOW2_FLAT_PAGE_BYTES +
    FIELDS_LEN;
}

static void
free_writeback (struct qcow2_writeback *wb)
{
  if (!wb)
    return;
  free (wb->copies);
  free (wb->parts);
  free (wb->buf);
  free (wb);
}

/* Allocates memory for so many copies, and touches it.  Called without the
 * lock.  Returns NULL if there is none. */
static struct qcow2_writeback *
new_writeback (struct qcow2_image *img, uint64_t slices, uint64_t parts,
               uint64_t pages)
{
  struct qcow2_writeback *wb = calloc (1, sizeof *wb);

  if (!wb)
    return NULL;
  wb->img = img;
  wb->max_slices = slices;
  wb->max_parts = parts;
  wb->max_pages = pages;
  wb->copies = calloc (slices + parts + pages + 1, sizeof *wb->copies);
  wb->parts = calloc (parts + 1, sizeof *wb->parts);
  wb->buf = aligned_new (buf_size (wb));
  if (wb->copies && wb->parts && wb->buf) {
    memset (wb->buf, 0, buf_size (wb));
    return wb;
  }
  free_writeback (wb);
  return NULL;
}

/* Allocates a writeback with room for all tables that are changed when it
 * returns.  Releases the lock meanwhile. */
static int
allocate_locked (struct qcow2_image *img, struct qcow2_writeback **out)
{
  const struct qcow2_geometry *g = &img->header.geo;
  const uint64_t per_table = g->cluster_size / qcow2_slice_size (g);
  struct qcow2_writeback *wb = NULL;
  uint64_t slices, parts, pages;

  for (;;) {
    slices = img->cache.nr_dirty;
    parts = img->anchor.nr_dirty;
    pages = nr_flat_pages (img);
    if (wb && slices <= wb->max_slices && parts <= wb->max_parts &&
        pages <= wb->max_pages) {
      *out = wb;
      return 0;
    }
    lock_release (&img->lock);
    free_writeback (wb);
    wb = new_writeback (img, slices + slices / 4 + 16 + per_table,
                        parts + parts / 4 + 4, pages + pages / 4 + 4);
    lock_acquire (&img->lock);
    if (!wb)
      return -ENOMEM;
  }
}

/* Lets other threads have the lock after every COPIES_PER_HOLD copies.
 * Releasing it is not enough for that, because a waiting thread has to wake up
 * first. */
static void
breathe_locked (struct qcow2_writeback *wb)
{
  const struct timespec moment = { 0, 20000 };
  struct qcow2_image *img = wb->img;

  if (img->unlogged.on || ++wb->breath % COPIES_PER_HOLD != 0)
    return;
  lock_release (&img->lock);
  nanosleep (&moment, NULL);
  lock_acquire (&img->lock);
}

/* Adds a copy of LEN bytes, to be written to HOST_OFF. */
static struct copy *
add_copy (struct qcow2_writeback *wb, enum copy_kind kind, uint64_t host_off,
          size_t len)
{
  struct copy *c = &wb->copies[wb->nr++];

  c->kind = kind;
  c->host_off = host_off;
  c->len = len;
  c->data = wb->buf + wb->used;
  wb->used += len;
  return c;
}

/* Copies the NR slices that were changed first; those that are added to the
 * list meanwhile come after them.  Copies fewer if some were forgotten
 * meanwhile: a slice that is being written is one that was changed since it
 * was copied. */
static void
copy_slices (struct qcow2_writeback *wb, size_t nr)
{
  struct qcow2_image *img = wb->img;
  size_t size = qcow2_slice_size (&img->header.geo);
  struct qcow2_slice *t;
  struct copy *c;

  for (; nr > 0 && (t = img->cache.dirty_last) && !t->writing; --nr) {
    c = add_copy (wb, COPY_SLICE, t->host_off, size);
    c->slice = t;
    set_phase (img, c);
    memcpy (c->data, t->data, size);
    qcow2_cache_clean_locked (img, t);
    t->writing = true;
    breathe_locked (wb);
  }
}

static void
copy_flat (struct qcow2_writeback *wb, struct qcow2_flat *t)
{
  struct copy *c;

  for (uint64_t page = 0; t->nr_dirty > 0; ++page) {
    if (!t->dirty[page])
      continue;
    c = add_copy (wb, COPY_PAGE, t->host_off + page * QCOW2_FLAT_PAGE_BYTES,
                  0);
    c->flat = t;
    set_phase (wb->img, c);
    c->idx = page;
    c->len = qcow2_flat_take_page (t, page, c->data);
    wb->used += c->len;
  }
}

/* Takes over the list of changed parts.  They stay marked as changed until they
 * are copied, so that none is added to the new list before. */
static void
take_parts (struct qcow2_writeback *wb)
{
  struct qcow2_anchor *a = &wb->img->anchor;

  wb->nr_parts = a->nr_dirty;
  if (a->nr_dirty > 0)
    memcpy (wb->parts, a->dirty_list, a->nr_dirty * sizeof *wb->parts);
  a->nr_dirty = 0;
}

static void
copy_parts (struct qcow2_writeback *wb)
{
  struct qcow2_image *img = wb->img;
  struct copy *c;
  uint64_t part;

  for (size_t i = 0; i < wb->nr_parts; ++i) {
    part = wb->parts[i];
    img->anchor.parts[part].dirty = false;
    c = add_copy (wb, COPY_PART, img->anchor.l1.v[part] & QCOW2_OFFSET_MASK,
                  img->header.geo.cluster_size);
    c->idx = part;
    qcow2_anchor_encode_locked (img, part, c->data);
    breathe_locked (wb);
  }
}

static void
copy_fields (struct qcow2_writeback *wb)
{
  struct qcow2_image *img = wb->img;
  struct {
    be64 size;
    be32 crypt_method, l1_entries;
    be64 l1_off;
    be64 reftable_off;
    be32 reftable_clusters, nr_snapshots;
    be64 snapshots_off;
  } wire = {
    be64_make (qcow2_size_for_header (img)),
    be32_make (img->header.crypt_method),
    be32_make (img->header.l1_entries),
    be64_make (img->header.l1_off),
    be64_make (img->fields.reftable_off),
    be32_make (img->fields.reftable_clusters),
    be32_make (img->fields.nr_snapshots),
    be64_make (img->fields.snapshots_off),
  };

  _Static_assert (sizeof wire == FIELDS_LEN, "header bytes 24 to 71");
  if (!img->header_dirty)
    return;
  memcpy (add_copy (wb, COPY_FIELDS, FIELDS_OFF, FIELDS_LEN)->data, &wire,
          FIELDS_LEN);
  img->header_dirty = false;
  img->header_writing = true;
}

int
qcow2_writeback_begin_locked (struct qcow2_image *img,
                              struct qcow2_writeback **out)
{
  struct qcow2_writeback *wb;
  size_t nr_slices;
  int r;

  assert (lock_held (&img->lock));
  assert (!img->writing_back);
  if (!img->writable)
    return -EROFS;
  r = allocate_locked (img, &wb);
  if (r < 0)
    return r;
  /* The tables that there is room for must be taken before the lock is
   * released. */
  img->writing_back = true;
  nr_slices = img->cache.nr_dirty;
  take_parts (wb);
  copy_flat (wb, &img->l1);
  copy_flat (wb, &img->reftable);
  copy_flat (wb, &img->anchor.l1);
  copy_fields (wb);
  copy_slices (wb, nr_slices);
  copy_parts (wb);
  wb->end = img->alloc.frontier << img->header.geo.cluster_bits;
  *out = wb;
  return 0;
}

/* --- Sync ---------------------------------------------------------------- */

/* Returns -EIO for every failure.  A write that failed with ENOSPC can be
 * repeated, but from a sync this error means that data is lost, as any other
 * does. */
int
qcow2_final_sync (struct io_store *io)
{
  return io_sync (io) < 0 ? -EIO : 0;
}

/* --- Write --------------------------------------------------------------- */

static int
by_host_off (const void *a, const void *b)
{
  const struct copy *ca = a, *cb = b;

  if (ca->phase != cb->phase)
    return ca->phase < cb->phase ? -1 : 1;
  return (ca->host_off > cb->host_off) - (ca->host_off < cb->host_off);
}

static int
grow_file (struct qcow2_writeback *wb)
{
  struct io_store *io = wb->img->io;
  int64_t size = io_size (io);
  int r;

  if (size < 0)
    return (int) size;
  if ((uint64_t) size >= wb->end)
    return 0;
  r = io_allocate (io, wb->end - 512, 512);
  /* A short file is no harm, so a full disk must not stop the writeback. */
  return r == -EOPNOTSUPP || r == -ENOSPC ? 0 : r;
}

/* Writes the copies from *I on that are contiguous in the file, as one batch,
 * and moves *I behind them. */
static int
write_batch (struct qcow2_writeback *wb, size_t *i)
{
  const struct copy *c = &wb->copies[*i];
  struct iovec iov[MAX_BATCH_VECS];
  uint64_t next = c->host_off;
  size_t bytes = 0;
  int n = 0;

  for (; *i + n < wb->nr && n < MAX_BATCH_VECS; ++n) {
    if (c[n].host_off != next || c[n].phase != c->phase ||
        (n > 0 && bytes + c[n].len > MAX_BATCH_BYTES))
      break;
    iov[n].iov_base = c[n].data;
    iov[n].iov_len = c[n].len;
    bytes += c[n].len;
    next += c[n].len;
  }
  *i += n;
  return io_pwritev (wb->img->io, iov, n, c->host_off);
}

int
qcow2_writeback_write (struct qcow2_writeback *wb)
{
  int r = wb->nr > 0 ? grow_file (wb) : 0;

  qsort (wb->copies, wb->nr, sizeof *wb->copies, by_host_off);
  for (size_t i = 0; i < wb->nr && r == 0; ) {
    if (i > 0 && wb->copies[i].phase != wb->copies[i - 1].phase)
      r = qcow2_final_sync (wb->img->io);
    if (r == 0)
      r = write_batch (wb, &i);
  }
  return r;
}

/* --- End ----------------------------------------------------------------- */

static void
mark_again (struct qcow2_image *img, const struct copy *c)
{
  switch (c->kind) {
  case COPY_SLICE:
    if (!c->slice->forgotten)
      qcow2_cache_dirty_locked (img, c->slice);
    break;
  case COPY_PAGE:
    qcow2_flat_dirty_page (c->flat, c->idx);
    break;
  case COPY_PART:
    qcow2_anchor_dirty_locked (img, c->idx);
    break;
  case COPY_FIELDS:
    img->header_dirty = true;
    break;
  }
}

void
qcow2_writeback_end_locked (struct qcow2_writeback *wb, bool ok)
{
  struct qcow2_image *img = wb->img;

  assert (lock_held (&img->lock));
  for (size_t i = 0; i < wb->nr; ++i) {
    if (!ok)
      mark_again (img, &wb->copies[i]);
    if (wb->copies[i].kind == COPY_SLICE)
      wb->copies[i].slice->writing = false;
  }
  img->header_writing = false;
  img->writing_back = false;
  free_writeback (wb);
}

/* --- How much ------------------------------------------------------------ */

uint64_t
qcow2_dirty_bytes_locked (struct qcow2_image *img)
{
  assert (lock_held (&img->lock));
  return img->cache.nr_dirty * qcow2_slice_size (&img->header.geo) +
    img->anchor.nr_dirty * img->header.geo.cluster_size +
    nr_flat_pages (img) * QCOW2_FLAT_PAGE_BYTES +
    (img->header_dirty ? FIELDS_LEN : 0);
}

uint64_t
qcow2_memory_bytes_locked (struct qcow2_image *img)
{
  assert (lock_held (&img->lock));
  return qcow2_cache_memory (img) + qcow2_anchor_memory (img) +
    qcow2_alloc_memory (img) + img->holds.max * sizeof *img->holds.v +
    qcow2_expanded_bytes (img) + qcow2_decoders_bytes (img) +
    (img->l1.nr + img->reftable.nr + img->anchor.l1.nr) * sizeof (uint64_t);
}
