/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes images with clusters that have lost their bytes, as a scrub has found, so that
 * a workload heals them (docs/on-disk.md section 12.1).
 *
 * The base has the contents that workloads write again and again, each in two places
 * of the disk.  In some clusters one bit is wrong.  What such a cluster shows has
 * ID_ROTTEN in the model: after a crash it may have that bit, or be healed.  An
 * operation that writes the lost bytes anywhere gives its units an id without
 * ID_ROTTEN: wherever that operation is there, the bytes are.
 */
#include "crash.h"

#include <string.h>

#include "checked.h"
#include "dedup.h"

#define NR_CONTENTS 40u        /* ids 1 to 40, as in choose_ids */
#define WRONG_UNIT 2u          /* of a cluster */

static bool
is_lost (const struct world *w, uint64_t id)
{
  return w->cfg.rotten_one_in > 0 && id >= 1 && id <= NR_CONTENTS &&
    id % w->cfg.rotten_one_in == 1;
}

int
nr_lost (const struct world *w)
{
  int nr = 0;

  for (uint64_t id = 1; id <= NR_CONTENTS; id++)
    nr += is_lost (w, id);
  return nr;
}

bool
may_be_lost (const struct world *w, uint64_t id)
{
  return is_lost (w, id & ~ID_ROTTEN);
}

/* Writes the contents, a cluster each. */
static int
write_contents (struct world *w, struct dedup_pool *d)
{
  uint8_t buf[UNITS_PER_CLUSTER * 4096];
  int r = 0;

  for (size_t c = 0; c < 2 * NR_CONTENTS && r == 0; c++) {
    const uint64_t id = 1 + c % NR_CONTENTS;
    uint64_t *ids = w->base_ids + c * UNITS_PER_CLUSTER;

    for (unsigned u = 0; u < UNITS_PER_CLUSTER; u++) {
      ids[u] = is_lost (w, id) && u == WRONG_UNIT ? id | ID_ROTTEN : id;
      fill_unit (buf + u * w->unit, w->unit, id);
    }
    r = dedup_write (d, QCOW2_ROOT_ACTIVE, buf, c, 1);
  }
  return r < 0 ? r : dedup_flush (d);
}

/* Writes the wrong bit of content ID below the open image D. */
static int
spoil (struct world *w, struct dedup_pool *d, struct io_store *io, uint64_t id)
{
  const uint64_t cluster = UNITS_PER_CLUSTER * w->unit;
  uint8_t unit[4096];
  struct qcow2_extent e;

  if (qcow2_map (dedup_image (d), QCOW2_ROOT_ACTIVE, (id - 1) * cluster, cluster,
                 &e, 1) != 1 || e.kind != QCOW2_DATA)
    return -1;
  fill_unit (unit, w->unit, id | ID_ROTTEN);
  return io_pwrite (io, unit, w->unit, e.host_off + WRONG_UNIT * w->unit);
}

static int
make_rotten (struct world *w, struct dedup_pool *d, struct io_store *io)
{
  int r = write_contents (w, d);

  for (uint64_t id = 1; id <= NR_CONTENTS && r == 0; id++)
    if (is_lost (w, id))
      r = spoil (w, d, io, id);
  if (r == 0 && scrub_all (d) != nr_lost (w))
    r = -1;
  return r < 0 ? r : dedup_finish (d);
}

int
let_rot (struct world *w, struct bytes *b)
{
  struct io_store *io = store_of_bytes (b);
  struct dedup_pool *d;
  struct fault f = { 0 };
  int r = open_disk (w, io, true, &d, &f);

  bytes_free (b);
  if (r == 0) {
    r = make_rotten (w, d, io);
    dedup_free (d);
  }
  if (r == 0)
    r = bytes_of_store (io, b);
  else
    world_error (w, "rot in the base: %s", f.msg);
  io_close (io);
  return r;
}
