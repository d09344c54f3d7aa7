/* SPDX-License-Identifier: BSD-3-Clause */
/* Free clusters that an earlier session left with data: is it really nobody's?
 *
 * A crash forgets what was freed, a close has not the time to give all of it
 * back, and other programs leave what they free as it is.  The scan finds these
 * clusters by their refcounts, of 0.  But refcounts may be wrong, in an image
 * that another program did not close, and repairing that (qemu-img check -r)
 * needs the data, which would be lost within seconds of being served.  So
 * before anything is emptied:
 *
 *   1. the host is asked where it holds data.  Mostly that is the end of it;
 *   2. where there is some, every L2 table of the active disk and of every
 *      snapshot is read once, as it is in the file.  A suspect that an entry
 *      names is in use: no longer free for anybody, with one line in the log.
 *      The anchor's tables are left out: what they name is no suspect.
 *
 * What is left is stale then.  The tables in the file are old in what changed
 * since.  What was freed before the scan came to it is no suspect (alloc.c).  A
 * suspect that came to be used is none any more, and an entry that names one
 * wrongly has done so since before the scan, and is in the file until it is
 * changed: where it was changed in memory, the suspect is left alone.  An L2 table
 * that was copied since (a snapshot's) is found where it was copied from.
 *
 * Until then the file is not cut off before a suspect either, at close.
 *
 * Left alone until they are used: suspects where the host does not tell what it
 * holds (devices); in images with persistent bitmaps, whose clusters no L2 table
 * names; with an external data file; and if a table can't be read.
 *
 * One thread at a time; the lock protects the bits, I/O happens without it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bitmap.h"
#include "checked.h"
#include "image.h"

/* Of one step: questions to the host, bytes of tables; of one hold of the lock:
 * entries looked at, runs that become stale. */
#define STEP_QUESTIONS 2048
#define STEP_BYTES (UINT64_C (2) << 20)
#define ENTRIES_PER_HOLD 4096
#define RUNS_PER_HOLD 2048

enum phase { ASK_HOST, READ_TABLES, DONE };

struct qcow2_suspects {
  enum phase phase;
  uint64_t next;               /* ASK_HOST: cluster; READ_TABLES: L1 entry */
  size_t root;                 /* 0: active, else snapshot + 1 */
  struct qcow2_flat l1;        /* the snapshot's */
  uint64_t nr_in_use;
};

void
qcow2_stale_free (struct qcow2_image *img)
{
  struct qcow2_alloc *a = &img->alloc;

  qcow2_bitmap_free (a->stale);
  qcow2_bitmap_free (a->suspect);
  qcow2_bitmap_free (a->released);
  if (a->suspects)
    qcow2_flat_free (&a->suspects->l1);
  free (a->suspects);
}

static uint64_t
next_suspect (struct qcow2_image *img, uint64_t from)
{
  LOCK_FOR_SCOPE (&img->lock);
  return qcow2_bitmap_next (img->alloc.suspect, from);
}

static void
forget (struct qcow2_image *img, uint64_t first, uint64_t end)
{
  LOCK_FOR_SCOPE (&img->lock);
  if (first < end)
    qcow2_bitmap_clear (img->alloc.suspect, first, end - first);
}

static void
set_phase (struct qcow2_image *img, enum phase phase)
{
  LOCK_FOR_SCOPE (&img->lock);
  img->alloc.suspects->phase = phase;
  img->alloc.suspects->next = 0;
}

/* They stay suspects. */
static int
leave_alone (struct qcow2_image *img)
{
  set_phase (img, DONE);
  return 0;
}

/* --- The host --------------------------------------------------------------- */

/* Suspects for which the host holds nothing are none. */
static int
ask_host (struct qcow2_image *img, struct qcow2_suspects *s)
{
  unsigned bits = img->header.geo.cluster_bits;
  uint64_t idx, data, hole;
  int r;

  for (unsigned i = 0; i < STEP_QUESTIONS; ++i) {
    idx = next_suspect (img, s->next);
    if (idx == QCOW2_BITMAP_NONE) {
      set_phase (img, READ_TABLES);
      return 1;
    }
    r = io_next_data (img->io, idx << bits, &data);
    if (r < 0)
      return leave_alone (img);
    data = data == UINT64_MAX ? UINT64_MAX - QCOW2_BITMAP_CHUNK : data >> bits;
    forget (img, idx, data);
    s->next = data;
    if (data != idx)
      continue;
    hole = io_next_hole (img->io, idx << bits);
    s->next = hole == UINT64_MAX ? idx + 1 : MAX_OF (hole >> bits, idx + 1);
  }
  return 1;
}

/* --- The tables ------------------------------------------------------------- */

/* These clusters are named by an entry: whoever was told that they are free was
 * told wrong. */
static void
in_use (struct qcow2_image *img, uint64_t host_off, uint64_t bytes)
{
  struct qcow2_alloc *a = &img->alloc;
  unsigned bits = img->header.geo.cluster_bits;
  uint64_t end;

  if (!add_u64 (host_off, bytes, &end) || end == 0)
    return;
  for (uint64_t i = host_off >> bits; i <= (end - 1) >> bits; ++i)
    if (qcow2_bitmap_test (a->suspect, i)) {
      qcow2_bitmap_clear (a->free, i, 1);
      qcow2_stale_clear (a, i, 1);
      a->suspects->nr_in_use++;
    }
}

/* What the L2 entry E names: BYTES from HOST_OFF on; none: false. */
static bool
named_by (const struct qcow2_image *img, uint64_t e, uint64_t *host_off,
          uint64_t *bytes)
{
  *bytes = 1;
  *host_off = e & QCOW2_OFFSET_MASK;
  if (e & QCOW2_L2_COMPRESSED)
    qcow2_compressed_extent (img, e, host_off, bytes);
  return e & QCOW2_L2_COMPRESSED || *host_off != 0;
}

static bool
names_suspect (struct qcow2_image *img, uint64_t e)
{
  const unsigned bits = img->header.geo.cluster_bits;
  uint64_t host_off, bytes, end;

  return named_by (img, e, &host_off, &bytes) &&
    add_u64 (host_off, bytes, &end) && end > 0 &&
    qcow2_bitmap_next (img->alloc.suspect, host_off >> bits)
      <= (end - 1) >> bits;
}

static uint64_t
entry_at (const struct qcow2_image *img, const uint8_t *table, unsigned i)
{
  const size_t size = img->header.geo.l2_entry_size;

  return be64_load (*(const be64 *) (table + i * size));
}

/* The first entry from I on that names a suspect; l2_entries: none. */
static unsigned
next_hit (struct qcow2_image *img, const uint8_t *table, unsigned i)
{
  const unsigned end = (unsigned) img->header.geo.l2_entries;

  while (i < end) {
    LOCK_FOR_SCOPE (&img->lock);
    for (unsigned n = 0; n < ENTRIES_PER_HOLD && i < end; ++n, ++i)
      if (names_suspect (img, entry_at (img, table, i)))
        return i;
  }
  return end;
}

/* The disk's entry of GUEST_IDX as it is in memory, which may be younger than E,
 * in the file. */
static uint64_t
entry_now (struct qcow2_image *img, uint64_t guest_idx, uint64_t e)
{
  struct qcow2_txn txn;
  uint64_t now = e;
  int r;

  if (guest_idx >= img->header.geo.nr_clusters)
    return e;
  qcow2_txn_begin (img, &txn);
  do {
    lock_acquire (&img->lock);
    r = qcow2_get_entry_locked (&txn, QCOW2_ROOT_ACTIVE, guest_idx, &now);
    lock_release (&img->lock);
  } while (r == -EAGAIN && (r = qcow2_txn_load (&txn)) == 0);
  qcow2_txn_end (&txn);
  return r == 0 ? now : e;
}

/* Nobody knows: neither emptied nor cut off in this session. */
static void
leave_range_alone (struct qcow2_image *img, uint64_t host_off, uint64_t bytes)
{
  const unsigned bits = img->header.geo.cluster_bits;

  qcow2_bitmap_clear (img->alloc.suspect, host_off >> bits,
                      ((host_off + bytes - 1) >> bits) - (host_off >> bits) + 1);
  img->alloc.suspects_lost = true;
}

/* The entry E in the file names a suspect, NOW is in memory.  Where it is another
 * one, a crash may bring E back; but E may also be a table's that is not in the
 * file yet. */
static void
hit (struct qcow2_image *img, uint64_t e, uint64_t now)
{
  LOCK_FOR_SCOPE (&img->lock);
  uint64_t host_off, bytes;

  if (named_by (img, now, &host_off, &bytes))
    in_use (img, host_off, bytes);
  if (now != e && names_suspect (img, e) &&
      named_by (img, e, &host_off, &bytes))
    leave_range_alone (img, host_off, bytes);
}

/* A table of the disk, whose first entry is that of GUEST_IDX; or of a snapshot:
 * UINT64_MAX. */
static void
look_at_table (struct qcow2_image *img, const uint8_t *table,
               uint64_t guest_idx)
{
  uint64_t e;
  unsigned i = 0;

  while ((i = next_hit (img, table, i)) < img->header.geo.l2_entries) {
    e = entry_at (img, table, i);
    hit (img, e, guest_idx == UINT64_MAX ? e :
         entry_now (img, guest_idx + i, e));
    ++i;
  }
}

/* The L1 entry that is next; false: this root has no more. */
static bool
next_table (struct qcow2_image *img, struct qcow2_suspects *s,
            uint64_t *host_off)
{
  const struct qcow2_flat *l1 = s->root == 0 ? &img->l1 : &s->l1;
  LOCK_FOR_SCOPE (&img->lock);

  if (s->next >= l1->nr)
    return false;
  *host_off = l1->v[s->next++] & QCOW2_OFFSET_MASK;
  return true;
}

/* 1: go on with the next root; 0: there is none. */
static int
next_root (struct qcow2_image *img, struct qcow2_suspects *s)
{
  const struct qcow2_snapshot *sn;

  qcow2_flat_free (&s->l1);
  memset (&s->l1, 0, sizeof s->l1);
  s->next = 0;
  do {
    if (s->root == img->snapshots.nr)
      return 0;
    sn = &img->snapshots.v[s->root++];
  } while (sn->is_anchor || sn->l1_entries == 0);
  return qcow2_flat_load (img->io, &s->l1, sn->l1_off, sn->l1_entries) < 0
    ? -EIO : 1;
}

/* Suspects become stale, as many runs as one hold of the lock should take.
 * False: there are no more. */
static bool
some_become_stale (struct qcow2_image *img)
{
  struct qcow2_alloc *a = &img->alloc;
  LOCK_FOR_SCOPE (&img->lock);
  uint64_t idx, n;

  for (unsigned i = 0; i < RUNS_PER_HOLD; ++i) {
    idx = qcow2_bitmap_next (a->suspect, 0);
    if (idx == QCOW2_BITMAP_NONE)
      return false;
    n = qcow2_bitmap_run (a->suspect, idx, QCOW2_BITMAP_CHUNK);
    qcow2_bitmap_clear (a->suspect, idx, n);
    qcow2_stale_put (a, idx, n);
  }
  return true;
}

/* All that is left is nobody's. */
static int
become_stale (struct qcow2_image *img, struct qcow2_suspects *s)
{
  if (s->nr_in_use > 0)
    log_line (img->log_sink, LOG_ERROR, "%s: %llu clusters are in use though "
              "their refcounts are 0, and are left alone: run qemu-img check",
              img->path ? img->path : "image",
              (unsigned long long) s->nr_in_use);
  while (some_become_stale (img))
    ;
  set_phase (img, DONE);
  return 0;
}

static int
read_tables (struct qcow2_image *img, struct qcow2_suspects *s)
{
  uint64_t size = img->header.geo.cluster_size, host_off;
  CLEANUP_FREE uint8_t *table = malloc (size);
  int r;

  if (!table)
    return -ENOMEM;
  if (next_suspect (img, 0) == QCOW2_BITMAP_NONE)
    return become_stale (img, s);
  for (uint64_t bytes = 0; bytes < STEP_BYTES; ) {
    if (!next_table (img, s, &host_off)) {
      r = next_root (img, s);
      if (r < 0)
        return leave_alone (img);
      if (r == 0)
        return become_stale (img, s);
      continue;
    }
    bytes += host_off ? size : sizeof (be64);
    if (host_off == 0)
      continue;
    if (io_pread (img->io, table, size, host_off) < 0)
      return leave_alone (img);
    look_at_table (img, table, s->root > 0 ? UINT64_MAX :
                   (s->next - 1) * img->header.geo.l2_entries);
  }
  return 1;
}

/* --- Steps ------------------------------------------------------------------ */

static bool
can_tell (const struct qcow2_image *img)
{
  return !qcow2_has_data_file (&img->header.geo) &&
    img->header.bitmaps_ext_len == 0 && img->bitmaps.nr == 0;
}

bool
qcow2_suspects_due_locked (struct qcow2_image *img)
{
  const struct qcow2_alloc *a = &img->alloc;

  assert (lock_held (&img->lock));
  return img->writable && qcow2_scan_done_locked (img) &&
    a->scan_end != UINT64_MAX && (!a->suspects || a->suspects->phase != DONE);
}

int
qcow2_suspect_step (struct qcow2_image *img)
{
  struct qcow2_alloc *a = &img->alloc;
  bool due;

  lock_acquire (&img->lock);
  due = qcow2_suspects_due_locked (img);
  if (due && !a->suspects)
    a->suspects = calloc (1, sizeof *a->suspects);
  lock_release (&img->lock);
  if (!due)
    return 0;
  if (!a->suspects)
    return -ENOMEM;
  if (!can_tell (img))
    return leave_alone (img);
  return a->suspects->phase == ASK_HOST ? ask_host (img, a->suspects)
    : read_tables (img, a->suspects);
}
