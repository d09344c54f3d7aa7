/* SPDX-License-Identifier: BSD-3-Clause */
/* Loads the store of an open image: its configuration, then the index and the
 * journal, and after a crash the tables.
 *
 * Everything is checked before it is used: the areas must be what the anchor
 * says and apart from the tables, or the store is void.  After a crash the
 * order is that of docs/on-disk.md section 5; a writable image is complete and
 * clean in the file when dedup_load_store returns.
 *
 * One thread, at open.
 */
#include "pool.h"

#include <errno.h>

/* --- configuration ------------------------------------------------------ */

static bool
has_key (const struct dedup_config *c)
{
  static const uint8_t none[DEDUP_HASH_KEY_SIZE];

  return memcmp (c->hash_key, none, sizeof none) != 0;
}

/* Decodes the header extension: 1 if there is a store, 0 if there is none. */
static int
read_extension (struct dedup_store *s, struct fault *f)
{
  const uint8_t *ext = qcow2_store_extension (s->b->img);

  if (ext == NULL)
    return 0;
  if (!qcow2_has_anchor (s->b->img)) {
    log_line (s->b->log, LOG_INFO, "%s: deduplication was turned off by "
              "deleting the anchor snapshot", s->b->path);
    return 0;
  }
  if (dedup_ext_decode (ext, &s->ext) < 0)
    return fault_unsupported (f, "its dedup store has a layout that this "
                              "version does not know");
  if (dedup_hash_name (s->ext.hash_alg) == NULL)
    return fault_unsupported (f, "its dedup store has hash number %u, which "
                              "this version does not know",
                              (unsigned) s->ext.hash_alg);
  return 1;
}

int
dedup_read_config (struct dedup_store *s, struct dedup_hasher *hasher,
                   struct fault *f)
{
  int r = read_extension (s, f);

  if (r <= 0)
    return r;
  r = dedup_config_read (s->b->io, &s->ext, s->b->cluster_size, s->config, f);
  if (r < 0)
    return r;
  s->lookups_before = s->config->lookups;
  if (!dedup_hash_is_keyed (s->ext.hash_alg) && has_key (s->config))
    return fault_corrupt (f, UINT64_MAX, "the dedup store's configuration has "
                          "a key for a hash without keys");
  r = dedup_hasher_init (hasher, s->ext.hash_alg, s->config->hash_key);
  if (r < 0)
    return fault_io (f, -r, UINT64_MAX, "the hash %s cannot be used here",
                     dedup_hash_name (s->ext.hash_alg));
  s->checkpoint = s->config->checkpoint;
  return 1;
}

static int
open_journal (struct dedup_store *s, uint64_t next)
{
  struct dedup_journal_params p = {
    .io = s->b->io, .lock = s->b->lock, .store_id = s->config->store_id,
    .epoch = s->config->epoch, .next_seq = next,
    .areas = s->config->areas, .nr_areas = s->config->nr_areas,
  };

  return dedup_journal_new (&p, &s->journal);
}

/* Writes to the file what was replayed in memory, and clears bit 48
 * (docs/on-disk.md section 5, steps 4 and 5).  The configuration says that what
 * was replayed is durable, before any table has it (law 3).  Where the host has
 * no space for tables, they stay in memory, bit 48 stays set, and the session
 * continues as one in which no checkpoint was made yet. */
static int
complete_recovery (struct dedup_upkeep *u, struct fault *f)
{
  int r;

  r = dedup_sync (u->s);        /* the data that dedup_replay wrote again */
  if (r == 0)
    r = dedup_config_save (u->s);
  if (r == 0) {
    r = dedup_clean (u);
    r = r == -ENOSPC ? 0 : r;
  }
  if (r < 0)
    return fault_io (f, -r, UINT64_MAX, "cannot write the recovered tables: %s",
                     strerror (-r));
  return 0;
}

void
dedup_doubt_index (struct dedup_store *s)
{
  LOCK_FOR_SCOPE (s->b->lock);
  dedup_index_doubt_locked (s->index);
}

/* Returns whether the image has a table that could not be read. */
static bool
read_failed (const struct dedup_base *b)
{
  LOCK_FOR_SCOPE (b->lock);
  return qcow2_read_failed_locked (b->img);
}

/* --- journal, index and tables ------------------------------------------ */

/* Checks that the areas of the store are what its configuration says. */
static int
check_areas (struct dedup_store *s, struct fault *f)
{
  bool ok;
  int r = dedup_area_check (s, &ok);

  if (r == -ENOMEM || (r < 0 && read_failed (s->b)))
    return fault_io (f, -r, UINT64_MAX, "reading refcounts: %s",
                     strerror (-r));
  if (r < 0 || !ok)
    return fault_corrupt (f, UINT64_MAX, "the anchor does not cover the "
                          "store's areas");
  return 0;
}

/* Begins the epoch after a crash, at block NEXT (step 4); in memory only, if
 * the image is read-only. */
static void
begin_epoch (struct dedup_store *s, uint64_t next)
{
  s->config->epoch += !mutation (MUTATION_SAME_EPOCH);
  s->config->epoch_start = next;
  if (!s->b->writable)
    s->config->checkpoint = s->checkpoint = next;
}

/* Begins a later epoch where one is needed: after a crash, or (*RENEWED)
 * because the configuration of a clean image is older than its journal.  A
 * session that only left work has kept its index exact, as a clean close
 * does. */
static int
choose_epoch (struct dedup_store *s, uint64_t next, bool crashed, bool adopted,
              bool *renewed, struct fault *f)
{
  *renewed = false;
  if (!crashed)
    return s->b->writable ? dedup_renew_epoch (s, next, renewed, f) : 0;
  begin_epoch (s, next);
  if (!adopted && !s->went_on)
    s->config->flags &= ~DEDUP_CONFIG_EXACT;
  return 0;
}

/* --- disks --------------------------------------------------------------- */

/* Makes records name places if they did so in an earlier session.  Those of a
 * replay may do so before it has found the first disk. */
static void
resume_disks (struct dedup_store *s)
{
  LOCK_FOR_SCOPE (s->b->lock);
  if (s->config->has_disks)
    qcow2_begin_disks_locked (s->b->img);
}

/* Notes whether an image with disks has work left: always after a crash, because
 * no table was looked at yet.  NEXT: the block behind those that were replayed;
 * CHECKPOINT: the first of them.  Returns true if the configuration lacked the
 * disks: one of another program, or one whose store was void. */
static bool
note_disks (struct dedup_store *s, bool crashed, uint64_t checkpoint,
            uint64_t next)
{
  struct dedup_config *c = s->config;
  const bool lacked = !c->has_disks && qcow2_has_disks (s->b->img);
  LOCK_FOR_SCOPE (s->b->lock);

  s->went_on = crashed && next == checkpoint &&
    (c->flags & DEDUP_CONFIG_WORK_LEFT);
  c->flags &= ~DEDUP_CONFIG_WORK_LEFT;
  c->has_disks = c->has_disks || lacked;
  s->work_left = crashed && c->has_disks;
  s->places_only = !crashed && c->has_disks;
  return lacked;
}

/* Opens what writers need besides the index: journal, hints, and the report of
 * changes to the journal. */
static int
open_for_changes (struct dedup_writer *w, uint64_t next)
{
  int r = open_journal (w->s, next);

  if (r == 0 && w->b->writable && w->dedup)
    r = dedup_hints_new (qcow2_geometry (w->b->img)->nr_clusters, &w->hints);
  if (r == 0)
    dedup_attach_log (w->s);
  return r;
}

/* Takes the notes of the configuration over.  After a crash a bad cluster may have
 * got new data since they were written. */
static void
load_notes (struct dedup_store *s, bool crashed)
{
  LOCK_FOR_SCOPE (s->b->lock);

  if (!s->config->notes.complete)
    dedup_index_incomplete_locked (s->index);
  dedup_bad_load_locked (&s->bad, &s->config->notes, !crashed);
}

int
dedup_load_store (struct dedup_writer *w, bool adopted, struct fault *f)
{
  struct dedup_store *s = w->s;
  const bool crashed = s->gate.recovery_bit;
  const uint64_t checkpoint = s->config->checkpoint;
  bool renewed, new_disks;
  uint64_t next;
  int r;

  r = dedup_open_index (s, w->b->writable && w->dedup ? dedup_hints_size
                        (qcow2_geometry (w->b->img)->nr_clusters) : 0);
  if (r < 0)
    return fault_io (f, -r, UINT64_MAX, "out of memory");
  resume_disks (s);
  if ((r = dedup_replay (s, crashed || mutation (MUTATION_LAW_11), &next,
                         f)) < 0 ||
      (r = check_areas (s, f)) < 0 ||
      (r = dedup_guard (s, crashed, f)) < 0)
    return r;
  if (w->b->writable)
    dedup_area_fill_holes (s);
  new_disks = note_disks (s, crashed, checkpoint, next);
  r = choose_epoch (s, next, crashed, adopted, &renewed, f);
  if (r < 0)
    return r;
  r = open_for_changes (w, next);
  if (r < 0)
    return fault_io (f, -r, UINT64_MAX, "out of memory");
  s->has_store = true;
  if (!(s->config->flags & DEDUP_CONFIG_EXACT))
    dedup_doubt_index (s);
  load_notes (s, crashed && !s->went_on);
  s->replayed = crashed && !w->b->writable;
  if ((renewed || (new_disks && s->b->writable && !crashed)) &&
      (r = dedup_config_save (s)) < 0)
    return fault_io (f, -r, UINT64_MAX, "writing the store's configuration: "
                     "%s", strerror (-r));
  return crashed && w->b->writable ? complete_recovery (w->u, f) : 0;
}
