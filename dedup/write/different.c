/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds out what it means that a cluster does not hold the data for which the index
 * names it.
 *
 * Most often the entry is older than the cluster's data: then the index names the
 * cluster for the hash of its bytes, too, and nothing is wrong.  If it does not, and
 * has no mark of unknown data for it, then a complete index (docs/on-disk.md section
 * 12) says that the cluster has lost its data.  It is entered in the set of bad
 * clusters, without a hash, because the entry need not be the one of its last data.
 * The caller's hold keeps it from being freed meanwhile.
 *
 * In both cases the slot stores its data elsewhere, and its entry replaces the one
 * that led here.  If that may have been the one of the cluster's last data, the
 * cluster gets a mark: older entries must not count for it.  So it is where two
 * different contents have one hash, which happens with hashes that are not
 * cryptographic, if ever.
 *
 * Any thread, without locks.
 */
#include "op.h"

uint64_t
dedup_named_for (struct dedup_writer *w, const struct dedup_hash *h)
{
  struct dedup_probe p = { .hash = *h };
  struct dedup_index_view *view;

  lock_acquire (w->b->lock);
  p.found = dedup_index_lookup_locked (w->s->index, h, &p.value);
  view = dedup_index_view_locked (w->s->index);
  lock_release (w->b->lock);
  if (p.found == DEDUP_PROBE)
    dedup_index_probe (view, &p, 1);
  dedup_index_view_put (w->s->index, view);
  return p.found == DEDUP_HIT ? p.value : 0;
}

uint64_t
dedup_named_value (struct dedup_writer *w, const struct dedup_hash *h)
{
  return dedup_named_for (w, h);
}

/* Enters a cluster in the set of bad ones, unless it is there, if the index is
 * complete. */
static void
call_bad (struct dedup_writer *w, uint64_t host_idx)
{
  const struct dedup_bad_cluster c = { .host_idx = host_idx,
                                       .flags = DEDUP_BAD_SURE };
  bool found = false;

  lock_acquire (w->b->lock);
  if (dedup_index_complete_locked (w->s->index) &&
      !dedup_bad_find_locked (&w->s->bad, host_idx))
    found = dedup_bad_add_locked (&w->s->bad, &c);
  lock_release (w->b->lock);
  if (found)
    log_line (w->b->log, LOG_ERROR, "%s: the cluster at 0x%llx has other bytes "
              "than were stored", w->b->path,
              (unsigned long long) host_idx << w->b->cluster_bits);
}

void
dedup_leave_named (struct slot *s)
{
  s->replaced = s->value;
  s->marked = s->kind == SLOT_JOIN;
}

void
dedup_look_at_different (struct op *op, struct slot *s, const uint8_t *bytes)
{
  struct dedup_writer *w = op->w;
  const struct dedup_hash mark = dedup_unknown_mark (s->value);
  struct dedup_hash h;
  int r;

  if (s->kind == SLOT_JOIN) {
    dedup_leave_named (s);
    return;
  }
  r = dedup_hash_compute (&w->b->hasher, bytes, w->b->cluster_size, &h);
  if (r == 0 && dedup_hash_equal (&h, &s->hash))
    dedup_leave_named (s);
  else if (r < 0 || dedup_named_for (w, &h) != s->value) {
    dedup_leave_named (s);
    if (r == 0 && dedup_named_for (w, &mark) == 0)
      call_bad (w, s->value);
  }
}
