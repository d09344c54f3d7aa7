/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes a new image: an empty qcow2 image, which is opened once so that it
 * gets a store (adopt.c), and closed.
 *
 * One thread.  On failure the file is as it was, or an unfinished image; make.c knows
 * what may be done with that.
 */
#include "pool.h"

/* Opens the image, and closes it with a store. */
static int
complete (struct io_store *io, const struct dedup_open_params *o, struct fault *f)
{
  struct dedup_pool *pool;
  int r = dedup_open (io, o, &pool, f);

  if (r < 0)
    return r;
  r = dedup_finish (pool);
  dedup_free (pool);
  return r < 0 ? fault_io (f, -r, UINT64_MAX, "cannot complete the image: %s",
                           strerror (-r)) : 0;
}

int
dedup_create (struct io_store *io, const struct dedup_create_params *p,
              struct fault *f)
{
  struct dedup_open_params o = {
    .path = "new image", .writable = true, .dedup = true,
    .verify = !dedup_hash_is_strong (p->hash),  /* an index stays exact */
    .hash = p->hash, .max_incarnations = p->max_incarnations,
    .order = p->order, .journal_areas = p->journal_areas,
    .compress = p->compress,
  };
  struct qcow2_create_params image = p->image;
  int r;

  /* The sizes of a pool's disks count, which are still to come. */
  if (o.order == 0 && p->image.max_disk_size > 0)
    o.order = dedup_default_order (p->image.max_disk_size >>
                                   p->image.cluster_bits);

  image.compression_type = p->compress == DEDUP_COMPRESS_ZSTD;
  r = qcow2_create (io, &image, f);
  if (r < 0)
    return r;
  r = complete (io, &o, f);
  if (r < 0)
    (void) !qcow2_mark_unfinished (io);         /* on a device it would stay */
  return r;
}
