/* SPDX-License-Identifier: BSD-3-Clause */
/* A new image: an empty qcow2 image, which is opened once so that it gets a store
 * (adopt.c), and closed. */
#include "disk.h"

int
dedup_create (struct io_store *io, const struct dedup_create_params *p,
              struct fault *f)
{
  struct dedup_open_params o = {
    .path = "new image", .writable = true, .dedup = true,
    .verify = !dedup_hash_is_strong (p->hash),  /* an index stays exact */
    .hash = p->hash, .max_incarnations = p->max_incarnations,
    .order = p->order, .journal_areas = p->journal_areas,
  };
  struct dedup_disk *d;
  int r;

  r = qcow2_create (io, &p->image, f);
  if (r < 0)
    return r;
  r = dedup_open (io, &o, &d, f);
  if (r < 0)
    return r;
  r = dedup_finish (d);
  dedup_free (d);
  return r < 0 ? fault_io (f, -r, UINT64_MAX, "cannot complete the image: %s",
                           strerror (-r)) : 0;
}
