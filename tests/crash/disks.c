/* SPDX-License-Identifier: BSD-3-Clause */
/* Several disks in one world: the row of units is cut into slots, one for each
 * disk.
 *
 * The first slot is the active disk.  What a disk does not have, because it is
 * smaller than others or does not exist, has the id ID_ABSENT; so creating,
 * cloning, resetting, resizing and deleting a disk are operations that give all
 * units of a slot other ids at once, and the oracle needs to know nothing else of
 * disks.  The disk of slot N is called "dN", or "rN" if it was renamed, or "dN@s" if
 * it is a snapshot.  Which of these is the id of a unit behind the slot's data,
 * its label; so renaming is an operation, too.  The label also says what the disk's
 * setting of compression is.
 *
 * With several clients each has slots of its own, which it alone writes to and
 * changes.  It clones from its own, and from snapshots of all.
 */
#include "crash.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "dedup.h"
#include "pool.h"
#include "disk-internal.h"

/* Ids of labels. */
enum label { PLAIN = 1, RENAMED, SNAPSHOT, NR_LABELS };
#define LABEL_MASK 15u
#define SETTING_SHIFT 4         /* QCOW2_COMPRESS_* of the disk */

static void
name_of (size_t slot, enum label label, char name[16])
{
  snprintf (name, 16, "%s%zu%s", label == RENAMED ? "r" : "d", slot,
            label == SNAPSHOT ? "@s" : "");
}

/* Finds the disk of a slot, in D; false: there is none. */
static bool
find (struct dedup_pool *d, size_t slot, unsigned *root, enum label *label)
{
  struct fault f = { 0 };
  char name[16];

  for (*label = PLAIN; *label < NR_LABELS; ++*label) {
    name_of (slot, *label, name);
    if (dedup_disk_find (d, name, root, &f) == 0)
      return true;
  }
  return false;
}

bool
slot_is_of (const struct world *w, size_t slot, unsigned client)
{
  return slot % w->cfg.clients == client;
}

size_t
slot_length (const struct world *w, size_t slot)
{
  struct srv_disk *at = w->slots[slot];

  if (slot == 0)
    return w->data_units;
  return at && srv_disk_writable (at) ? srv_disk_size (at) / w->unit : 0;
}

/* --- Open disks ---------------------------------------------------------------- */

static void
open_slot (struct world *w, struct dedup_pool *d, size_t slot)
{
  static struct srv_space space;
  enum label label;
  unsigned root;

  w->slots[slot] = NULL;
  if (!find (d, slot, &root, &label))
    return;
  w->slots[slot] = malloc (sizeof *w->slots[slot]);
  srv_disk_init (w->slots[slot], d, root, true, &space);
}

static void
close_slot (struct world *w, size_t slot)
{
  if (w->slots[slot])
    srv_disk_destroy (w->slots[slot]);
  free (w->slots[slot]);
  w->slots[slot] = NULL;
}

void
slots_begin (struct world *w, struct dedup_pool *d)
{
  for (size_t slot = 1; slot < w->cfg.disks; slot++)
    open_slot (w, d, slot);
}

void
slots_end (struct world *w)
{
  for (size_t slot = 1; slot < w->cfg.disks; slot++)
    close_slot (w, slot);
}

struct srv_disk *
slot_disk (const struct world *w, struct srv_disk *disk, size_t unit,
           uint64_t *off)
{
  const size_t slot = unit / w->slot_units;

  *off = unit % w->slot_units * w->unit;
  return slot == 0 ? disk : w->slots[slot];
}

/* --- Contents ------------------------------------------------------------------ */

static uint64_t
setting_of (struct dedup_pool *d, unsigned root)
{
  LOCK_FOR_SCOPE (d->base.lock);
  return (uint64_t) qcow2_root_compress_locked (d->base.img, root) << SETTING_SHIFT;
}

static uint64_t
root_bytes (struct dedup_pool *d, unsigned root)
{
  LOCK_FOR_SCOPE (d->base.lock);
  return qcow2_root_size_locked (d->base.img, root);
}

void
final_ids (const struct world *w, uint64_t *ids)
{
  size_t i;

  memcpy (ids, w->base_ids, w->nr_units * sizeof *ids);
  for (i = 0; i < w->nr_ops; i++)
    memcpy (ids + w->ops[i].first, w->ops[i].ids,
            w->ops[i].nr * sizeof *ids);
}

/* Recognizes NR units from FIRST on in BUF. */
static int
recognize_slot (const struct world *w, const uint8_t *buf, size_t first,
                size_t nr, uint64_t *ids, size_t *unit)
{
  for (size_t u = 0; u < nr; u++)
    if (!recognize_unit (buf + u * w->unit, unit_bytes (w, first + u),
                         &ids[first + u])) {
      *unit = first + u;
      return -EILSEQ;
    }
  return 0;
}

static int
read_slot (const struct world *w, struct dedup_pool *d, size_t slot,
           uint64_t *ids, size_t *unit)
{
  const size_t first = slot * w->slot_units;
  CLEANUP_FREE uint8_t *buf = malloc (w->slot_units * w->unit);
  const bool there = w->cfg.disks > 0 && slot > 0;
  enum label label = PLAIN;
  unsigned root = 0;
  size_t nr = w->data_units;
  int r;

  for (size_t u = 0; u < w->slot_units; u++)
    ids[first + u] = ID_ABSENT;
  if (there) {
    if (!find (d, slot, &root, &label))
      return 0;
    ids[first + w->data_units] = label | setting_of (d, root);
    nr = MIN_OF (nr, root_bytes (d, root) / w->unit);
  }
  r = dedup_read (d, root, buf, 0, MIN_OF (nr * w->unit, slot_bytes (w)));
  return r < 0 ? r : recognize_slot (w, buf, first, nr, ids, unit);
}

int
read_slots (const struct world *w, struct dedup_pool *d, uint64_t *ids,
            size_t *unit)
{
  int r = 0;

  for (size_t slot = 0; slot < MAX_OF (w->cfg.disks, 1) && r == 0; slot++)
    r = read_slot (w, d, slot, ids, unit);
  return r;
}

/* --- Operations ---------------------------------------------------------------- */

/* An operation on the set of disks. */
struct change {
  enum { CREATE, CLONE, SNAP, RESET, DELETE, RENAME, RESIZE, SET } kind;
  size_t to, from;             /* slots */
  enum label label;            /* of TO, before and after */
  size_t nr;                   /* its units of data afterwards, if resized */
  uint64_t setting;            /* afterwards, with SETTING_SHIFT */
};

/* Returns the root of a slot's disk; 0, the active one, if there is none. */
static unsigned
root_of (const struct world *w, size_t slot)
{
  return slot != NEVER && w->slots[slot] ? w->slots[slot]->root : 0;
}

static enum dedup_compress
compress_of (const struct world *w, uint64_t setting)
{
  return setting == 0 ? DEDUP_COMPRESS_KEEP
    : setting >> SETTING_SHIFT == QCOW2_COMPRESS_OFF ? DEDUP_COMPRESS_OFF
    : w->cfg.compress == DEDUP_COMPRESS_KEEP ? DEDUP_COMPRESS_ZLIB : w->cfg.compress;
}

static int
make_change (struct dedup_pool *d, const struct world *w,
             const struct change *c, struct fault *f)
{
  const unsigned to = root_of (w, c->to), from = root_of (w, c->from);
  unsigned root;
  char name[16];

  name_of (c->to, c->label, name);
  switch (c->kind) {
  case CREATE:
    return dedup_disk_create (d, name, slot_bytes (w), &root, f);
  case CLONE: case SNAP:
    return dedup_disk_clone (d, from, name, c->kind == CLONE, &root, f);
  case RESET:
    return dedup_disk_reset (d, to, from, f);
  case DELETE:
    return dedup_disk_delete (d, to, f);
  case RENAME:
    return dedup_disk_rename (d, to, name, f);
  case RESIZE:
    return dedup_disk_resize (d, to, c->nr * w->unit, f);
  case SET:
    return dedup_disk_set_compress (d, to, compress_of (w, c->setting), f);
  }
  return -EINVAL;
}

/* Returns whether CLIENT may clone a slot's disk, whose contents nobody else
 * changes. */
static bool
is_source (const struct world *w, size_t slot, unsigned client)
{
  if (slot_is_of (w, slot, client))
    return slot == 0 || w->slots[slot];
  return w->slots[slot] && !srv_disk_writable (w->slots[slot]);
}

/* Chooses a slot to clone; NEVER if there is none. */
static size_t
choose_source (const struct world *w, size_t to, unsigned client,
               struct rng *r)
{
  const size_t nr = w->cfg.disks, begin = rnd (r, nr);

  for (size_t i = 0; i < nr; i++)
    if ((begin + i) % nr != to && is_source (w, (begin + i) % nr, client))
      return (begin + i) % nr;
  return NEVER;
}

/* Chooses what becomes of the disk that a slot has. */
static void
choose_for_disk (const struct world *w, struct rng *r, struct change *c)
{
  const size_t length = slot_length (w, c->to);

  c->kind = DELETE;
  if (length == 0)
    return;                    /* a snapshot */
  if (w->cfg.set_compress && chance (r, 2)) {
    c->kind = SET;
    c->setting = rnd (r, 3) << SETTING_SHIFT;
    return;
  }
  switch (rnd (r, 8)) {
  case 0: c->kind = RENAME; break;
  case 1: case 2: c->kind = RESIZE; break;
  case 3: case 4: case 5: c->kind = c->from == NEVER ? DELETE : RESET; break;
  }
  c->nr = length < w->data_units ? w->data_units :
    round_up_pow2 (w->data_units / 2, UNITS_PER_CLUSTER);
}

static void
choose_change (const struct world *w, unsigned client, struct rng *r,
               struct change *c)
{
  do
    c->to = 1 + rnd (r, w->cfg.disks - 1);
  while (!slot_is_of (w, c->to, client));
  c->from = choose_source (w, c->to, client, r);
  if (w->slots[c->to] != NULL)
    choose_for_disk (w, r, c);
  else
    c->kind = c->from == NEVER || chance (r, 4) ? CREATE
      : chance (r, w->cfg.clients > 1 ? 2 : 4) ? SNAP : CLONE;
}

/* Returns what all units hold, but for those that other clients write to. */
static uint64_t *
ids_now (struct world *w)
{
  uint64_t *all = calloc (w->nr_units, sizeof *all);

  pthread_mutex_lock (&w->mutex);
  final_ids (w, all);
  pthread_mutex_unlock (&w->mutex);
  return all;
}

/* Fills in the label of the slot afterwards, and what it holds. */
static void
contents_after (struct world *w, struct change *c, uint64_t *ids)
{
  CLEANUP_FREE uint64_t *all = ids_now (w);
  const uint64_t *now = all + c->to * w->slot_units, *from = all;

  if (c->from != NEVER)
    from += c->from * w->slot_units;
  c->label = c->kind < RESET ? PLAIN
    : (enum label) (now[w->data_units] & LABEL_MASK);
  if (c->kind == CREATE || (c->kind < RESET && from == all))
    c->setting = 0;            /* the active disk has none */
  else if (c->kind != SET)
    c->setting = (c->kind < RESET ? from : now)[w->data_units] & ~(uint64_t) LABEL_MASK;
  if (c->kind == SNAP)
    c->label = SNAPSHOT;
  if (c->kind == RENAME)
    c->label = c->label == PLAIN ? RENAMED : PLAIN;
  for (size_t u = 0; u < w->slot_units; u++)
    ids[u] = u >= w->data_units || c->kind == DELETE ? ID_ABSENT
      : c->kind == CREATE ? 0 : c->kind == RENAME || c->kind == SET ? now[u]
      : c->kind != RESIZE ? from[u] : u >= c->nr ? ID_ABSENT
      : now[u] == ID_ABSENT ? 0 : now[u];
  if (c->kind != DELETE)
    ids[w->data_units] = c->label | c->setting;
}

/* Unmaps what a smaller disk loses, in pieces that are one operation each.
 * Returns 1, or 0 if there was no space for that. */
static int
cut (struct world *w, struct srv_disk *disk, unsigned client,
     const struct change *c)
{
  const size_t piece = 12 * UNITS_PER_CLUSTER;
  const size_t first = c->to * w->slot_units;
  CLEANUP_FREE uint64_t *all = NULL;
  size_t u;
  int r = 0;

  for (u = c->nr; u < w->data_units && r == 0; u += piece)
    r = do_unmap (w, disk, client, first + u,
                  MIN_OF (piece, w->data_units - u), false, true);
  all = ids_now (w);
  for (u = c->nr; u < w->data_units && all[first + u] == 0; u++)
    ;
  return r < 0 ? r : u >= w->data_units;
}

static int
change_slot (struct world *w, struct srv_disk *disk, unsigned client,
             struct change *c)
{
  CLEANUP_FREE uint64_t *ids = calloc (w->slot_units, sizeof *ids);
  const size_t first = c->to * w->slot_units;
  struct fault f = { 0 };
  uint64_t tick;
  size_t op;
  int res;

  contents_after (w, c, ids);
  op = c->kind == RENAME || c->kind == SET ?
    note_start (w, client, first + w->data_units, 1, ids + w->data_units)
    : note_start (w, client, first, w->slot_units, ids);
  tick = next_tick (w);
  res = make_change (disk->pool, w, c, &f);
  if (res == -ENOSPC)
    note_void (w, op);
  if (res == 0) {
    note_done (w, op);
    note_durable (w, op);      /* it is when the call returns */
    note_flushed (w, tick);
  }
  close_slot (w, c->to);
  open_slot (w, disk->pool, c->to);
  if (res == -EIO && w->cfg.no_space)   /* made, and not known to be durable */
    return 0;
  return result (w, "change of the disks", res);
}

int
disk_op (struct world *w, struct srv_disk *disk, unsigned client,
         struct rng *r, size_t slots[2])
{
  struct change c = { 0 };
  int res = 1;

  pthread_mutex_lock (&w->changing);
  choose_change (w, client, r, &c);
  if (c.kind == RESIZE)
    res = cut (w, disk, client, &c);
  if (res > 0)
    res = change_slot (w, disk, client, &c);
  pthread_mutex_unlock (&w->changing);
  slots[0] = slots[1] = NEVER;
  if (res == 0 && (c.kind == CLONE || c.kind == RESET)) {
    slots[0] = c.to;
    slots[1] = c.from;
  }
  return res;
}
