/* SPDX-License-Identifier: BSD-3-Clause */
/* How an image is served:
 *
 *   read only    asked for, or the image is marked corrupt
 *   with a store deduplicated; or, with dedup=off or refcounts that leave no
 *                room for sharing, journalled all the same
 *   direct       what can't hold a store: version 2 has no feature bits,
 *                refcounts of 1 bit can't count the anchor, and data in an
 *                external file has no refcounts
 *
 * Where that is less than was asked for, one line says so, and how to change
 * it.
 */
#include "direct.h"

#include <errno.h>
#include <inttypes.h>

static const char *
image_name (const struct dedup_open_params *p)
{
  return p->path ? p->path : "FILE";
}

static bool
needs_direct (const struct qcow2_geometry *g)
{
  return g->version < 3 || g->refcount_bits < 2 ||
    (g->incompatible & QCOW2_INCOMPAT_DATA_FILE);
}

/* What can't be written in the way that was asked for. */
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

static void
say (const struct dedup_disk *d, const char *why, const char *advice)
{
  log_line (d->log, LOG_INFO, "%s: %s: served without deduplication%s%s",
            d->path, why, advice, advice[0] ? d->path : "");
}

/* Only what differs from what was asked for. */
static void
say_no_dedup (const struct dedup_disk *d, const struct qcow2_geometry *g)
{
  static const char amend[] = " (more: qemu-img amend -o refcount_bits=16 ";

  if (g->incompatible & QCOW2_INCOMPAT_DATA_FILE)
    say (d, "its data is in an external file", "");
  else if (g->refcount_bits <= 2)
    log_line (d->log, LOG_INFO, "%s: refcounts of %u bit%s leave no room for "
              "sharing: served without deduplication%s%s)", d->path,
              g->refcount_bits, g->refcount_bits > 1 ? "s" : "", amend,
              d->path);
}

int
dedup_choose_mode (struct dedup_disk *d, const struct dedup_open_params *p,
                   struct fault *f)
{
  const struct qcow2_geometry *g = qcow2_geometry (d->img);
  int r;

  d->direct = false;
  if (d->writable && (g->incompatible & QCOW2_INCOMPAT_CORRUPT)) {
    log_line (d->log, LOG_INFO, "%s: it is marked corrupt: served read-only "
              "(qemu-img check -r all %s repairs what it can)", d->path,
              d->path);
    d->writable = false;
  }
  if (!d->writable)
    return 0;
  r = check_asked (g, p, f);
  if (r < 0)
    return r;
  d->direct = needs_direct (g);
  if (d->dedup && (d->direct || g->refcount_bits <= 2)) {
    say_no_dedup (d, g);
    d->dedup = false;
  }
  return 0;
}

/* With slack, as in grow.c, so that it is not due at every
 * open. */
bool
dedup_wants_rebuild (const struct dedup_disk *d, uint64_t *min_clusters)
{
  const struct qcow2_geometry *g = qcow2_geometry (d->img);
  uint64_t bound = qcow2_growth_bound (d->img);

  *min_clusters = d->direct ? bound : 0;
  if (!d->writable)
    return false;
  return (g->incompatible & QCOW2_INCOMPAT_DIRTY) ||
    (d->direct && qcow2_countable_clusters (d->img) < bound - bound / 8);
}
