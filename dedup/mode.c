/* SPDX-License-Identifier: BSD-3-Clause */
/* Decides how an image is served:
 *
 *   read-only       asked for, or the image is marked corrupt
 *   with a store    deduplicated; or, with dedup=off or refcounts that leave no
 *                   room for sharing, journalled all the same
 *   without a store images that can't hold one: version 2 has no feature bits,
 *                   refcounts of 1 bit can't count the anchor, and data in an
 *                   external file has no refcounts; or asked for
 *
 * Where that is less than was asked for, one line in the log says so, and how
 * to change it.
 *
 * One thread, at open.  Nothing is written.
 */
#include "pool.h"

#include <errno.h>
#include <inttypes.h>

static const char *
image_name (const struct dedup_open_params *p)
{
  return p->path ? p->path : "FILE";
}

static bool
can_hold_no_store (const struct qcow2_geometry *g)
{
  return g->version < 3 || g->refcount_bits < 2 ||
    (g->incompatible & QCOW2_INCOMPAT_DATA_FILE);
}

/* Refuses an image that can't be written in the way that was asked for. */
static int
check_asked (const struct qcow2_geometry *g,
             const struct dedup_open_params *p, struct fault *f)
{
  if ((g->incompatible & QCOW2_INCOMPAT_DIRTY) &&
      (g->incompatible & QCOW2_INCOMPAT_RECOVERY))
    return fault_corrupt (f, 72, "is marked dirty and needs recovery as "
                          "well: it can only be served with readonly=on");
  if (g->version < 3 && p->dedup)
    return fault_unsupported (f, "version 2 cannot be deduplicated: upgrade "
                              "it with qemu-img amend -o compat=1.1 %.120s, "
                              "or serve it with dedup=off or readonly=on",
                              image_name (p));
  return 0;
}

/* Logs why an image is served without the deduplication that was asked for. */
static void
log_no_dedup (const struct dedup_base *b, const struct qcow2_geometry *g)
{
  if (g->incompatible & QCOW2_INCOMPAT_DATA_FILE)
    log_line (b->log, LOG_INFO, "%s: its data is in an external file: served "
              "without deduplication", b->path);
  else if (g->refcount_bits <= 2)
    log_line (b->log, LOG_INFO, "%s: refcounts of %u bit%s leave no room for "
              "sharing: served without deduplication (more: qemu-img amend -o "
              "refcount_bits=16 %s)", b->path, g->refcount_bits,
              g->refcount_bits > 1 ? "s" : "", b->path);
}

/* Returns whether an image that was opened for writing must not be written. */
static bool
is_corrupt (const struct dedup_base *b, const struct qcow2_geometry *g)
{
  if (!b->writable || !(g->incompatible & QCOW2_INCOMPAT_CORRUPT))
    return false;
  log_line (b->log, LOG_INFO, "%s: it is marked corrupt: served read-only "
            "(qemu-img check -r all %s repairs what it can)", b->path,
            b->path);
  return true;
}

int
dedup_choose_mode (struct dedup_pool *pool, const struct dedup_open_params *p,
                   struct fault *f)
{
  const struct qcow2_geometry *g = qcow2_geometry (pool->base.img);
  int r;

  pool->ops = &dedup_store_ops;
  if (is_corrupt (&pool->base, g))
    pool->base.writable = false;
  if (!pool->base.writable)
    return 0;
  r = check_asked (g, p, f);
  if (r < 0)
    return r;
  if (p->no_store || can_hold_no_store (g))
    pool->ops = &dedup_storeless_ops;
  if (pool->writer.dedup &&
      (dedup_is_storeless (pool) || g->refcount_bits <= 2)) {
    log_no_dedup (&pool->base, g);
    pool->writer.dedup = false;
  }
  return 0;
}

/* Without a store tables are made larger by a rebuild only.  The slack is that
 * of grow.c: without it a rebuild would be due at every open. */
bool
dedup_needs_rebuild (const struct dedup_base *b, bool storeless,
                     uint64_t *min_clusters)
{
  const uint64_t bound = qcow2_growth_bound (b->img);

  *min_clusters = storeless ? bound : 0;
  if (!b->writable)
    return false;
  return (qcow2_geometry (b->img)->incompatible & QCOW2_INCOMPAT_DIRTY) ||
    (storeless && qcow2_countable_clusters (b->img) < bound - bound / 8);
}
