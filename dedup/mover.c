/* SPDX-License-Identifier: BSD-3-Clause */
/* Goes through the guest clusters of all roots whose data may be moved (mover.h).
 *
 * That is the data of the active disk, of disks, and of snapshots, this program's or not;
 * what is being deleted is left out.  A table that several roots have is changed for all of
 * them at once (docs/on-disk.md 14.4), so it is passed by way of the first root only: a
 * thousand clones take no longer than one.  Without memory to remember tables they are
 * passed more often.
 *
 * The caller's lock keeps requests for the guest clusters off that come by way of this
 * root, and keeps the root.  So their bytes do not change; for who comes by way of others
 * see write/rewrite.c.
 */
#include "mover.h"

#include <errno.h>

#include "fresh.h"
#include "qcow2-tables.h"

/* Tables that are passed by one call. */
#define TABLES_AT_ONCE 1024u

static bool
has_snapshots (struct dedup_pool *pool)
{
  const struct qcow2_snapshot *v;
  LOCK_FOR_SCOPE (pool->base.lock);
  const size_t nr = qcow2_snapshots (pool->base.img, &v);
  size_t i;

  for (i = 0; i < nr && (v[i].dead || v[i].named_anchor); i++)
    ;
  return i < nr;
}

int
dedup_mover_prepare (struct dedup_pool *pool)
{
  int r;

  if (qcow2_has_disks (pool->base.img) || !has_snapshots (pool))
    return 0;
  r = dedup_enter (&pool->store.gate);
  if (r < 0)
    return r;
  dedup_maintenance_begin (&pool->upkeep);
  r = dedup_gate_failed (&pool->store.gate);
  if (r == 0)
    r = dedup_begin_disks (&pool->upkeep);
  dedup_maintenance_end (&pool->upkeep);
  dedup_leave (&pool->store.gate);
  return r;
}

static void
begin_root (struct dedup_mover *m)
{
  m->guest_off = 0;
  m->table = 0;
}

void
dedup_mover_begin (struct dedup_mover *m)
{
  LOCK_FOR_SCOPE (m->pool->base.lock);

  qcow2_tables_free (m->seen);
  m->seen = qcow2_tables_new ();
  m->nr_roots = qcow2_nr_roots_locked (m->pool->base.img);
  m->root = QCOW2_ROOT_ACTIVE;
  begin_root (m);
}

bool
dedup_mover_next (struct dedup_mover *m)
{
  begin_root (m);
  return ++m->root < m->nr_roots;
}

uint64_t
dedup_mover_size (struct dedup_mover *m)
{
  LOCK_FOR_SCOPE (m->pool->base.lock);

  if (m->to_compress && !dedup_packs_locked (&m->pool->writer.pack, m->root))
    return 0;
  return qcow2_movable_size_locked (m->pool->base.img, m->root);
}

/* Decides on the table of a guest cluster.  Returns whether its data is moved. */
static bool
look_at_table (struct dedup_mover *m, uint64_t guest_idx)
{
  struct qcow2_image *img = m->pool->base.img;
  const uint64_t per = qcow2_geometry (img)->l2_entries;
  const uint64_t table = guest_idx / per + 1;
  enum qcow2_changeable when;

  if (m->table == table)
    return m->may;
  m->table = table;
  m->table_idx = 0;
  when = qcow2_table_changeable (img, m->root, guest_idx, &m->table_idx);
  m->may = when == QCOW2_CHANGE_NOW && !qcow2_tables_seen (m->seen, m->table_idx);
  if (when == QCOW2_CHANGE_LATER)
    dedup_fresh_note (m->fresh, m->root, guest_idx / per * per, per);
  return m->may;
}

/* Goes to the next table whose data is moved, at END_OFF at the latest.  False: it has not
 * found one yet. */
static bool
find_table (struct dedup_mover *m, uint64_t end_off)
{
  const unsigned bits = m->pool->base.cluster_bits;
  const uint64_t per = qcow2_geometry (m->pool->base.img)->l2_entries;
  unsigned i;

  for (i = 0; i < TABLES_AT_ONCE && m->guest_off < end_off; i++) {
    if (look_at_table (m, m->guest_off >> bits))
      return true;
    m->guest_off = MIN_OF (m->table * per << bits, end_off);
  }
  return false;
}

int
dedup_mover_map (struct dedup_mover *m, uint64_t end_off, struct qcow2_extent *ext,
                 size_t max)
{
  const struct dedup_base *b = &m->pool->base;
  const uint64_t per = qcow2_geometry (b->img)->l2_entries;
  int n;

  if (!find_table (m, end_off))
    return 0;
  n = qcow2_map (b->img, m->root, m->guest_off,
                 MIN_OF (m->table * per << b->cluster_bits, end_off) - m->guest_off,
                 ext, max);
  if (n == -EIO) {             /* an entry that is corrupt */
    m->guest_off = (m->guest_off | (b->cluster_size - 1)) + 1;
    return 0;
  }
  return n == -EINVAL ? -ENOENT : n;
}

int
dedup_mover_run (struct dedup_mover *m, uint64_t guest_idx, size_t nr,
                 int (*work) (void *opaque, uint64_t guest_idx, size_t nr),
                 void *opaque)
{
  int r = m->lock ? m->lock (m->opaque, m->root, guest_idx, nr) : 0;

  if (r == -ENOENT)            /* another root may have the table, too */
    qcow2_tables_forget (m->seen, m->table_idx);
  if (r < 0)
    return r;
  r = work (opaque, guest_idx, nr);
  if (m->lock)
    m->unlock (m->opaque);
  return r;
}

void
dedup_mover_end (struct dedup_mover *m)
{
  qcow2_tables_free (m->seen);
  m->seen = NULL;
}
