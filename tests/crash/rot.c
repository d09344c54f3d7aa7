/* SPDX-License-Identifier: BSD-3-Clause */
/* Judges rot besides the crash (docs/on-disk.md section 7).
 *
 *  - A byte of a journal block flips in the crashed image.  The image is
 *    refused, unchanged; or it holds what some prefix of the operations left:
 *    perhaps without what was flushed last, of which no other block had a record
 *    yet, but nothing mixed, and clean once closed.
 *  - In a closed image, after another program has changed it too, one of the
 *    two configurations rots, or both are replaced by an older one.  No old
 *    mapping comes back (law 11), neither at once nor after the next crash.
 */
#include "judging.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "dedup.h"
#include "config.h"
#include "journal.h"

/* The configuration of IMG in IO. */
static bool
find_config (struct io_store *io, struct qcow2_image *img,
             struct dedup_ext *ext, struct dedup_config *c)
{
  const uint8_t *bytes = qcow2_store_extension (img);
  struct fault f = { 0 };

  return bytes != NULL && dedup_ext_decode (bytes, ext) == 0 &&
    dedup_config_read (io, ext, qcow2_geometry (img)->cluster_size, c,
                       &f) == 0;
}

static struct qcow2_image *
open_stock (struct judging *j, struct io_store *io, bool recovery)
{
  struct qcow2_open_params p = { .path = "crash", .writable = true,
                                 .allow_recovery = recovery,
                                 .cache_bytes = 1 << 20 };
  struct qcow2_image *img;
  struct fault f = { 0 };

  if (qcow2_open (io, &p, &img, &f) == 0)
    return img;
  bad (j, "another program: open: %s", f.msg);
  return NULL;
}

/* --- the journal ------------------------------------------------------------ */

static int
see_durable (void *opaque, const struct dedup_journal_block *b)
{
  uint64_t *durable = opaque;

  *durable = MAX_OF (*durable, b->known_durable);
  return 0;
}

static uint64_t
place_of (const struct dedup_config *c, uint64_t seq)
{
  uint32_t i;

  for (i = 0; i + 1 < c->nr_areas; i++)
    if (seq < c->areas[i + 1].first_seq)
      break;
  return c->areas[i].host_off +
    (seq - c->areas[i].first_seq) * DEDUP_BLOCK_SIZE;
}

/* Flip a bit of a block that counts; false: there is none.  *PROVEN: another
 * block says that it was durable. */
static bool
damage_journal (struct judging *j, struct io_store *io, bool *proven)
{
  CLEANUP_FREE struct dedup_config *c = calloc (1, sizeof *c);
  struct qcow2_image *img = open_stock (j, io, true);
  struct dedup_journal_place place = { .nr_areas = 0 };
  struct dedup_ext ext;
  uint64_t durable = 0, seq, next, at;
  uint8_t b;
  bool ok;

  if (img == NULL)
    return false;
  ok = (qcow2_geometry (img)->incompatible & QCOW2_INCOMPAT_RECOVERY) &&
    find_config (io, img, &ext, c);
  qcow2_close (img);
  place = ok ? dedup_config_place (c) : place;
  if (!ok || dedup_journal_read (io, &place, c->checkpoint, UINT64_MAX, see_durable,
                                 &durable, &next) < 0 || next == c->checkpoint)
    return false;
  /* The last one matters most: it alone knows of those before it. */
  seq = chance (&j->rng, 2) ? next - 1
    : c->checkpoint + rnd (&j->rng, next - c->checkpoint);
  at = place_of (c, seq) + rnd (&j->rng, 48);
  ok = io_pread (io, &b, 1, at) == 0;
  b ^= (uint8_t) (1 << rnd (&j->rng, 8));
  *proven = seq <= durable;   /* said by a later one */
  return ok && io_pwrite (io, &b, 1, at) == 0;
}

static bool
rotten_prefix (struct judging *j, struct io_store *io, uint64_t *ids,
               bool proven)
{
  struct dedup_pool *d;
  struct fault f;
  char why[300];
  bool ok;
  int r = open_disk (j->w, io, false, &d, &f);

  ids[0] = UINT64_MAX;
  if (r < 0 && f.kind == FAULT_CORRUPT)
    return true;
  if (r < 0)
    return bad (j, "rotten journal: open: %s", f.msg);
  ok = read_ids (j, d, ids, "rotten journal");
  dedup_free (d);
  if (ok && proven)
    return bad (j, "rotten journal: a block that was durable is not missed");
  if (ok && !oracle_accepts (j->w, ids, j->st->pos, false, why, sizeof why))
    return bad (j, "rotten journal: %s", why);
  return ok;
}

static bool
rotten_recovers (struct judging *j, struct io_store *io, const uint64_t *ids)
{
  struct dedup_pool *d;
  struct fault f;
  bool ok;

  if (open_disk (j->w, io, true, &d, &f) < 0)
    return bad (j, "rotten journal: open for writing: %s", f.msg);
  ok = holds (j, d, ids, "rotten journal, for writing");
  if (dedup_disks_settle (d) < 0 || dedup_finish (d) < 0)
    ok = bad (j, "rotten journal: close");
  dedup_free (d);
  return ok && checks_clean (j, io, store_file_is_whole (j));
}

/* Refused for writing as well, and not a byte is another. */
static bool
rotten_refused (struct judging *j, struct io_store *io)
{
  struct bytes before, after;
  struct dedup_pool *d = NULL;
  struct fault f;
  bool ok;

  if (bytes_of_store (io, &before) < 0)
    abort ();
  ok = open_disk (j->w, io, true, &d, &f) < 0;
  dedup_free (d);
  if (bytes_of_store (io, &after) < 0)
    abort ();
  if (!ok)
    bad (j, "rotten journal: refused read-only, but not for writing");
  else if (before.size != after.size ||
           memcmp (before.p, after.p, after.size) != 0)
    ok = bad (j, "rotten journal: refused, and changed");
  bytes_free (&before);
  bytes_free (&after);
  return ok;
}

bool
survives_journal_rot (struct judging *j)
{
  CLEANUP_FREE uint64_t *ids = calloc (j->w->nr_units, sizeof *ids);
  struct io_store *io = cow_new (NULL, j->disk);
  bool ok = true, proven;

  j->rng = rng_of (j->st->seed, 4);
  if (damage_journal (j, io, &proven))
    ok = rotten_prefix (j, io, ids, proven) &&
      (ids[0] == UINT64_MAX ? rotten_refused (j, io)
       : rotten_recovers (j, io, ids));
  io_close (io);
  return ok && !j->v->bad;
}

/* --- the configuration --------------------------------------------------------- */

/* Write over a part of one slot. */
static bool
damage_slot (struct judging *j, struct io_store *io,
             const struct dedup_ext *ext)
{
  uint8_t b[16] = { 0xbd };

  return io_pwrite (io, b, sizeof b, ext->config_off + 32 +
                    (chance (&j->rng, 2) ? ext->config_size / 2 : 0)) == 0;
}

/* One of the configurations of C's store that W's log wrote. */
static bool
older_config (struct judging *j, const struct world *w, size_t nr_log,
              const struct dedup_ext *ext, struct dedup_config *c)
{
  CLEANUP_FREE struct dedup_config *old = calloc (1, sizeof *old);
  CLEANUP_FREE uint8_t *buf = malloc (DEDUP_CONFIG_SLOT);
  uint64_t seen = 0, generation = c->generation;
  struct dedup_config *out = c;
  size_t i;

  for (i = 0; i < nr_log; i++) {
    const struct io_record *r = &w->log[i];
    struct fault f = { 0 };

    if (r->call != IO_PWRITE || (r->host_off != ext->config_off &&
        r->host_off != ext->config_off + ext->config_size / 2))
      continue;
    memset (buf, 0, DEDUP_CONFIG_SLOT);
    memcpy (buf, r->data, MIN_OF (r->len, DEDUP_CONFIG_SLOT));
    if (dedup_config_decode (buf, 1u << w->cfg.cluster_bits, old, &f) == 0 &&
        old->store_id == c->store_id && old->generation < generation &&
        chance (&j->rng, ++seen))
      *out = *old;
  }
  out->generation = generation;
  return seen > 0;
}

static bool
roll_back (struct judging *j, const struct world *in, struct io_store *io,
           const struct dedup_ext *ext, struct dedup_config *c)
{
  bool first = chance (&j->rng, 2);

  if (!older_config (j, first ? j->w : in, first ? j->st->pos : in->nr_log,
                     ext, c))
    return damage_slot (j, io, ext);
  return dedup_config_write (io, ext, c) == 0 &&
    dedup_config_write (io, ext, c) == 0;
}

static int
load_and (struct qcow2_txn *txn, int r)
{
  struct lock *l = qcow2_lock (txn->img);

  if (r != -EAGAIN)
    return r;
  lock_release (l);
  r = qcow2_txn_load (txn);
  lock_acquire (l);
  return r < 0 ? r : -EAGAIN;
}

/* Unmap a guest cluster as another program would: one reference less.
 * False: it has no data of ours. */
static bool
unmap_as_stranger (struct qcow2_image *img, size_t guest_idx)
{
  struct qcow2_change c = { .type = QCOW2_CHANGE_L2, .count = 1,
                            .guest_idx = guest_idx };
  struct qcow2_writeback *wb;
  struct qcow2_txn txn;
  uint64_t entry, refcount = 0;
  bool anchored = false, ok;
  int r;

  qcow2_txn_begin (img, &txn);
  lock_acquire (qcow2_lock (img));
  while ((r = load_and (&txn, qcow2_get_entry_locked (&txn, 0, guest_idx,
                                                      &entry))) == -EAGAIN)
    ;
  if (r == 0)
    c.host_idx = (entry & QCOW2_OFFSET_MASK) / qcow2_geometry (img)->cluster_size;
  ok = r == 0 && c.host_idx != 0 && !(entry & QCOW2_L2_COMPRESSED);
  while (ok && (r = load_and (&txn, qcow2_get_refcount_locked
                              (&txn, c.host_idx, &refcount, &anchored)))
         == -EAGAIN)
    ;
  ok = ok && r == 0 && anchored && refcount >= 2;
  if (ok) {
    ok = qcow2_apply_locked (&txn, &c) == 0;
    c = (struct qcow2_change) { .type = QCOW2_CHANGE_REFCOUNT, .count = 1,
                                .host_idx = c.host_idx,
                                .refcount = refcount - 1, .anchored = true };
    ok = ok && qcow2_apply_locked (&txn, &c) == 0 &&
      qcow2_writeback_begin_locked (img, &wb) == 0;
  }
  lock_release (qcow2_lock (img));
  if (ok) {
    ok = qcow2_writeback_write (wb) == 0;
    lock_acquire (qcow2_lock (img));
    qcow2_writeback_end_locked (wb, ok);
    lock_release (qcow2_lock (img));
  }
  qcow2_txn_end (&txn);
  return ok;
}

static bool
spoil (struct judging *j, const struct world *in, struct io_store *io,
       uint64_t *ids)
{
  CLEANUP_FREE struct dedup_config *c = calloc (1, sizeof *c);
  struct qcow2_image *img = open_stock (j, io, false);
  size_t i, at, nr = j->w->cfg.nr_clusters - j->w->cfg.partial_end;
  struct dedup_ext ext;
  bool ok;

  if (img == NULL)
    return false;
  for (i = 0; i < 20; i++) {
    at = rnd (&j->rng, nr);
    if (unmap_as_stranger (img, at))
      memset (ids + at * UNITS_PER_CLUSTER, 0,
              UNITS_PER_CLUSTER * sizeof *ids);
  }
  ok = find_config (io, img, &ext, c);
  qcow2_close (img);
  return ok && (chance (&j->rng, 3) ? damage_slot (j, io, &ext)
                : roll_back (j, in, io, &ext, c));
}

/* Some writes, flushed, and the end without a close. */
static bool
write_and_die (struct judging *j, struct io_store *io, uint64_t *ids)
{
  size_t size = j->w->unit * UNITS_PER_CLUSTER, i, u, at;
  size_t nr = j->w->cfg.nr_clusters - j->w->cfg.partial_end;
  unsigned writes = (unsigned) rnd (&j->rng, 12);
  CLEANUP_FREE uint8_t *buf = malloc (size);
  struct dedup_pool *d;
  struct fault f;
  bool ok;

  if (open_disk (j->w, io, true, &d, &f) < 0)
    return bad (j, "old configuration: open: %s", f.msg);
  ok = holds (j, d, ids, "old configuration, for writing");
  for (i = 0; i < writes && ok; i++) {
    at = rnd (&j->rng, nr);
    for (u = 0; u < UNITS_PER_CLUSTER; u++) {
      ids[at * UNITS_PER_CLUSTER + u] = j->w->next_id + 0x40000 + i;
      fill_unit (buf + u * j->w->unit, j->w->unit,
                 ids[at * UNITS_PER_CLUSTER + u]);
    }
    if (dedup_write (d, 0, buf, at, 1) < 0 ||
        (chance (&j->rng, 3) && dedup_flush (d) < 0))
      ok = bad (j, "old configuration: write");
  }
  if (ok && dedup_flush (d) < 0)
    ok = bad (j, "old configuration: flush");
  dedup_free (d);
  return ok;
}

bool
survives_config_rot (struct judging *j, const struct world *in,
                     struct io_store *io, uint64_t *ids)
{
  struct dedup_pool *d;
  struct fault f;
  bool ok;

  j->rng = rng_of (j->st->seed, 5);
  if (!spoil (j, in, io, ids))
    return !j->v->bad;
  if (!holds_read_only (j, io, ids, "old configuration") ||
      !write_and_die (j, io, ids) ||
      !holds_read_only (j, io, ids, "old configuration, crashed"))
    return false;
  if (open_disk (j->w, io, true, &d, &f) < 0)
    return bad (j, "old configuration, crashed: open: %s", f.msg);
  ok = holds (j, d, ids, "old configuration, recovered");
  if (dedup_disks_settle (d) < 0 || dedup_finish (d) < 0)
    ok = bad (j, "old configuration: close");
  dedup_free (d);
  return ok && checks_clean (j, io, false);
}
