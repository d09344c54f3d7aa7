/* SPDX-License-Identifier: BSD-3-Clause */
/* Several disks in one world: the row of clusters is cut into slots of equal
 * length, one for each disk.
 *
 * The first slot is the begin of the active disk.  A cluster that its disk does
 * not have, because it is smaller or does not exist, has the id ID_ABSENT; so
 * changes of the set of disks are operations that give the clusters of a slot
 * other ids.  The disk of slot N is called "dN", or "rN" if it was renamed, or
 * "dN@s" if it is a snapshot.
 */
#include "fault-world.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"

uint64_t
slot_clusters (const struct world *w)
{
  return NR / MAX_OF (w->shape->disks, 1);
}

/* --- Finding ------------------------------------------------------------- */

static const char *const forms[] = { "d%u", "r%u", "d%u@s" };
enum form { PLAIN, RENAMED, SNAPSHOT, NR_FORMS };

static void
name_of (unsigned slot, enum form form, char name[16])
{
  snprintf (name, 16, forms[form], slot);
}

/* Finds the disk of a slot beside the first; false: there is none. */
static bool
find (struct world *w, struct dedup_pool *d, unsigned slot,
      struct dedup_disk_info *info, enum form *form)
{
  struct dedup_disk_info *v;
  bool found = false;
  char name[16];
  size_t nr;

  if (dedup_disk_list (d, &v, &nr) < 0)
    die (w, "the test itself: listing the disks");
  for (*form = 0; *form < NR_FORMS; ++*form) {
    name_of (slot, *form, name);
    for (size_t i = 0; i < nr && !found; i++)
      if (strcmp (v[i].name, name) == 0) {
        *info = v[i];
        info->name = NULL;
        found = true;
      }
    if (found)
      break;
  }
  dedup_disk_list_free (v, nr);
  return found;
}

uint64_t
slot_find (struct world *w, struct dedup_pool *d, unsigned slot,
           unsigned *root, bool *writable)
{
  struct dedup_disk_info info;
  const bool armed = w->armed;
  enum form form;
  bool there;

  *root = 0;
  *writable = true;
  if (slot == 0)
    return slot_clusters (w);
  w->armed = false;
  there = find (w, d, slot, &info, &form);
  w->armed = armed;
  if (!there)
    return 0;
  *root = info.root;
  *writable = info.writable;
  return MIN_OF (info.size / CLUSTER, slot_clusters (w));
}

/* --- Contents ------------------------------------------------------------ */

int
read_slots (struct world *w, struct dedup_pool *d, uint64_t ids[NR])
{
  const uint64_t per = slot_clusters (w);
  CLEANUP_FREE uint8_t *buf = malloc (per * CLUSTER);
  uint64_t nr, i;
  unsigned root;
  bool writable;
  int r = 0;

  for (unsigned slot = 0; slot * per < NR && r == 0; slot++) {
    nr = slot_find (w, d, slot, &root, &writable);
    r = dedup_read (d, root, buf, 0, nr * CLUSTER);
    for (i = 0; i < per && r == 0; i++)
      if (i >= nr)
        ids[slot * per + i] = ID_ABSENT;
      else if (!identify_cluster (buf + i * CLUSTER, &ids[slot * per + i]))
        die (w, "cluster %d of slot %u is a mix", (int) i, slot);
  }
  return r;
}

/* --- Changes ------------------------------------------------------------- */

struct change {
  enum { CREATE, CLONE, SNAP, RESET, DELETE, RENAME, RESIZE } kind;
  unsigned slot, root;         /* root: 0 if there is none yet */
  unsigned from;               /* slot */
  unsigned source;             /* its root */
  uint64_t nr;                 /* new size in clusters */
  enum form form;              /* of the name that it has */
};

static void
choose (struct world *w, struct change *c)
{
  const uint64_t per = slot_clusters (w);
  struct dedup_disk_info info;
  bool writable;

  *c = (struct change) { .nr = per };
  c->slot = 1 + (unsigned) rnd (&w->rng, w->shape->disks - 1);
  do
    c->from = (unsigned) rnd (&w->rng, w->shape->disks);
  while (c->from == c->slot ||
         slot_find (w, w->d, c->from, &c->source, &writable) == 0);
  if (!find (w, w->d, c->slot, &info, &c->form)) {
    c->kind = rnd (&w->rng, 4) == 0 ? CREATE : rnd (&w->rng, 4) ? CLONE : SNAP;
    return;
  }
  c->root = info.root;
  c->kind = DELETE;
  if (!info.writable)
    return;
  switch (rnd (&w->rng, 6)) {
  case 0: c->kind = RENAME; break;
  case 1: case 2: c->kind = RESET; break;
  case 3: c->kind = RESIZE; break;
  }
  if (c->kind == RESIZE && w->now[(c->slot + 1) * per - 1] != ID_ABSENT)
    c->nr = per / 2;
}

/* Fills in what the slot holds afterwards. */
static void
contents_after (const struct world *w, const struct change *c, struct op *op)
{
  const uint64_t per = slot_clusters (w);

  op->idx = c->slot * per;
  op->nr = per;
  for (uint64_t i = 0; i < per; i++)
    switch (c->kind) {
    case CREATE: op->ids[i] = 0; break;
    case DELETE: op->ids[i] = ID_ABSENT; break;
    case RESIZE:
      op->ids[i] = i >= c->nr ? ID_ABSENT :
        w->now[op->idx + i] == ID_ABSENT ? 0 : w->now[op->idx + i];
      break;
    case RENAME: op->ids[i] = w->now[op->idx + i]; break;
    default: op->ids[i] = w->now[c->from * per + i];
    }
}

static int
make (struct world *w, const struct change *c, struct fault *f)
{
  struct dedup_pool *d = w->d;
  unsigned root;
  char name[16];

  name_of (c->slot, c->kind == SNAP ? SNAPSHOT : c->kind == RENAME &&
           c->form == PLAIN ? RENAMED : PLAIN, name);
  switch (c->kind) {
  case CREATE:
    return dedup_disk_create (d, name, c->nr * CLUSTER, &root, f);
  case CLONE: case SNAP:
    return dedup_disk_clone (d, c->source, name, c->kind == CLONE, &root, f);
  case RESET:
    return dedup_disk_reset (d, c->root, c->source, f);
  case DELETE:
    return dedup_disk_delete (d, c->root, f);
  case RENAME:
    return dedup_disk_rename (d, c->root, name, f);
  case RESIZE:
    return dedup_disk_resize (d, c->root, c->nr * CLUSTER, f);
  }
  return -EINVAL;
}

/* What a smaller disk loses is unmapped first, as one operation. */
static bool
cut (struct world *w, const struct change *c)
{
  const uint64_t per = slot_clusters (w);
  struct op op = { .idx = c->slot * per + c->nr, .nr = per - c->nr };

  if (c->kind != RESIZE || op.nr == 0)
    return true;
  return settle_op (w, ENGINE (w, dedup_unmap (w->d, c->root, c->nr, op.nr,
                                               DEDUP_ZERO)), &op,
                    "unmap of what is cut") == 0;
}

void
change_disks (struct world *w)
{
  struct fault f = { 0 };
  struct change c;
  struct op op;
  bool armed = w->armed;
  int r;

  w->armed = false;
  choose (w, &c);
  w->armed = armed;
  if (!cut (w, &c))
    return;
  contents_after (w, &c, &op);
  r = ENGINE (w, make (w, &c, &f));
  if (r < 0 && f.err != -r)
    die (w, "a change of the disks returned %d, its fault says %d", r, f.err);
  /* On a full host the change may be made, and not be durable yet. */
  if (w->plan.lifted && r == -EIO)
    r = -ENOSPC;
  if (settle_op (w, r, &op, "a change of the disks") == 0)
    w->durable = w->nr_ops;
}
