/* SPDX-License-Identifier: BSD-3-Clause */
/* Judges what is left of a disk without a store (dedup/storeless.c).  It must be
 * what docs/features.md promises: no refcount too low and no entry wrong; each
 * cluster as the last flush has it, or as an operation since then made it.
 * Clusters may be leaked.
 *
 * Three things are judged: what other processes see once this one has died;
 * what a power cut leaves that keeps only what was synced; and one that also
 * kept parts of the rest.
 */
#include "fault-world.h"
#include "../io-copy.h"

#include <stdlib.h>
#include <string.h>

#include "image.h"

bool
is_explained (const struct world *w, const uint64_t got[NR])
{
  bool ok[NR];
  size_t i, k;

  for (i = 0; i < NR; i++)
    ok[i] = got[i] == w->base_ids[i];
  for (k = 0; k < w->nr_ops; k++)
    for (i = 0; i < w->ops[k].nr; i++) {
      size_t at = w->ops[k].idx + i;
      bool same = got[at] == w->ops[k].ids[i];

      ok[at] = same || (k >= w->durable && ok[at]);
    }
  for (i = 0; i < NR; i++)
    if (!ok[i])
      return false;
  return true;
}

static void
close_again (struct dedup_pool *d, struct io_store *data)
{
  if (data)
    dedup_image (d)->data = NULL;
  dedup_free (d);
}

static bool
marked_dirty (struct dedup_pool *d)
{
  return qcow2_geometry (dedup_image (d))->incompatible &
    QCOW2_INCOMPAT_DIRTY;
}

static void
check_harmless (struct world *w, struct dedup_pool *d, const char *which)
{
  const struct qcow2_check_params p = { 0 };
  struct dedup_check_result r;
  struct fault f = { 0 };

  if (dedup_check (d, &p, &r, &f) < 0)
    die (w, "%s: check: %s", which, f.msg);
  if (r.image.corruptions || r.image.errors)
    die (w, "%s: %llu corruptions", which,
         (unsigned long long) r.image.corruptions);
}

static void
judge_direct (struct world *w, struct io_store *io, struct io_store *data,
              const char *which)
{
  struct dedup_pool *d = open_again (w, io, data, false, which);
  uint64_t got[NR], again[NR];

  if (!marked_dirty (d))
    check_harmless (w, d, which);
  read_disk (w, d, got, which);
  close_again (d, data);
  if (!is_explained (w, got))
    die (w, "%s: what is left nobody wrote", which);
  judge_bitmaps (w, io, got, which);
  d = open_again (w, io, data, true, which);
  read_disk (w, d, again, which);
  if (memcmp (got, again, sizeof got) != 0)
    die (w, "%s: opened for writing, it holds something else", which);
  judge_writing (w, d, again, which);
  if (dedup_finish (d) < 0)
    die (w, "%s: it does not close", which);
  close_again (d, data);
  d = open_again (w, io, data, false, which);
  check_harmless (w, d, which);
  read_disk (w, d, got, which);
  if (memcmp (got, again, sizeof got) != 0)
    die (w, "%s: closed, it holds something else", which);
  close_again (d, data);
  judge_bitmaps (w, io, got, which);
}

void
judge_all_direct (struct world *w)
{
  struct io_store *io = copy_of (w->image.power);
  struct io_store *data = copy_of (w->data.power);

  judge_direct (w, io, data, "after a power cut");
  io_close (io);
  io_close (data);
  world_settle (w, &w->chance);
  judge_direct (w, w->image.power, w->data.power,
                "after a power cut that left parts");
  judge_direct (w, w->image.mem, w->data.mem, "after the process died");
}
