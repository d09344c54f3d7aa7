/* SPDX-License-Identifier: BSD-3-Clause */
/* Checks the store, and the image with it.
 *
 * The check reads the file, so the image must be open read-only with nothing
 * replayed in memory.
 */
#include "pool.h"

#include <errno.h>
#include <stdio.h>

static void
store_problem (const struct qcow2_check_params *p,
               struct dedup_check_result *r, const char *what)
{
  r->store_errors++;
  if (p->problem)
    p->problem (p->opaque, false, what);
}

struct index_problems {
  const struct qcow2_check_params *p;
  struct dedup_check_result *r;
};

static void
index_problem (void *opaque, const char *line)
{
  const struct index_problems *x = opaque;

  store_problem (x->p, x->r, line);
}

static int
ignore_block (void *opaque, const struct dedup_journal_block *b)
{
  return 0;
}

/* Checks that all blocks are there which hold the youngest index entries. */
static void
check_journal (struct io_store *io, const struct dedup_config *c,
               const struct qcow2_check_params *p,
               struct dedup_check_result *r)
{
  const struct dedup_journal_place place = dedup_config_place (c);
  uint64_t next = c->index_start;
  char line[128];

  if (c->index_start >= c->checkpoint)
    return;
  if (dedup_journal_read (io, &place, c->index_start, c->checkpoint,
                          ignore_block, NULL, &next) == 0 &&
      next == c->checkpoint)
    return;
  snprintf (line, sizeof line, "journal: block %llu is not valid",
            (unsigned long long) next);
  store_problem (p, r, line);
}

int
dedup_areas (struct dedup_pool *pool, struct qcow2_area **areas, size_t *nr)
{
  return dedup_area_list (&pool->store, areas, nr);
}

int
dedup_check (struct dedup_pool *pool, const struct qcow2_check_params *p,
             struct dedup_check_result *r, struct fault *f)
{
  CLEANUP_FREE struct qcow2_area *areas = NULL;
  struct qcow2_check_params q = *p;
  struct index_problems problems = { p, r };
  int err;

  memset (r, 0, sizeof *r);
  err = dedup_areas (pool, &areas, &q.nr_areas);
  if (err < 0)
    return fault_io (f, -err, UINT64_MAX, "out of memory");
  q.areas = areas;
  if (pool->store.has_store) {
    check_journal (pool->base.io, pool->store.config, p, r);
    dedup_index_check (pool->store.index, index_problem, &problems);
  }
  return qcow2_check (pool->base.img, &q, &r->image, f);
}
