/* SPDX-License-Identifier: BSD-3-Clause */
/* Draws, for a survey, the map of the file: what clusters hold, by their place.
 *
 * The map has a bounded number of cells of equal size.  Clusters are entered in
 * order, so areas of the store are looked for by one look at the next one.  Holes
 * come from the host, in bytes, and are added to cells beside what the clusters
 * hold.
 */
#include <errno.h>
#include <stdlib.h>

#include "checked.h"
#include "survey.h"

static int
compare_areas (const void *a, const void *b)
{
  const struct qcow2_area *x = a, *y = b;

  return (x->host_off > y->host_off) - (x->host_off < y->host_off);
}

int
survey_map_begin (struct survey *v)
{
  struct qcow2_survey *s = v->s;
  size_t i;

  s->cell_clusters = MAX_OF (UINT64_C (1), div_round_up (s->nr_clusters,
                                                         v->p->max_cells));
  s->nr_cells = (size_t) div_round_up (s->nr_clusters, s->cell_clusters);
  s->cells = calloc (s->nr_cells + 1, sizeof *s->cells);
  v->areas = calloc (v->p->nr_areas + 1, sizeof *v->areas);
  if (s->cells == NULL || v->areas == NULL)
    return -ENOMEM;
  for (i = 0; i < v->p->nr_areas; i++)
    v->areas[i] = v->p->areas[i];
  qsort (v->areas, v->p->nr_areas, sizeof *v->areas, compare_areas);
  return 0;
}

/* Returns whether a cluster is in an area.  Called for ascending clusters. */
static bool
is_store (struct survey *v, uint64_t host_idx)
{
  const uint64_t off = host_idx * v->s->cluster_size;
  const struct qcow2_area *a;

  for (; v->area < v->p->nr_areas; v->area++) {
    a = &v->areas[v->area];
    if (off < a->host_off)
      return false;
    if (off - a->host_off < a->size)
      return true;
  }
  return false;
}

static void
end_free_run (struct survey *v)
{
  v->s->free_runs += v->free_run > 0;
  v->s->largest_free_run = MAX_OF (v->s->largest_free_run, v->free_run);
  v->free_run = 0;
}

void
survey_map_put (struct survey *v, uint64_t host_idx, bool has_data,
                uint64_t refcount, bool anchored)
{
  const bool store = is_store (v, host_idx);
  const enum qcow2_survey_kind kind = has_data ? QCOW2_SURVEY_DATA :
    store ? QCOW2_SURVEY_STORE : refcount == 0 ? QCOW2_SURVEY_FREE :
    anchored ? QCOW2_SURVEY_UNUSED : QCOW2_SURVEY_TABLE;

  if (kind == QCOW2_SURVEY_FREE)
    v->free_run++;
  else
    end_free_run (v);
  v->s->nr[kind]++;
  v->s->cells[host_idx / v->s->cell_clusters].nr[kind]++;
}

/* Enters the clusters behind the last that can be used: they are free. */
static void
put_rest (struct survey *v)
{
  struct qcow2_survey *s = v->s;
  uint64_t at, nr;

  for (at = v->nr_clusters; at < s->nr_clusters; at += nr) {
    nr = MIN_OF (s->cell_clusters - at % s->cell_clusters,
                 s->nr_clusters - at);
    s->cells[at / s->cell_clusters].nr[QCOW2_SURVEY_FREE] += nr;
    s->nr[QCOW2_SURVEY_FREE] += nr;
    v->free_run += nr;
  }
  end_free_run (v);
}

static void
put_hole (struct qcow2_survey *s, uint64_t from, uint64_t to)
{
  const uint64_t per = s->cell_clusters * s->cluster_size;
  uint64_t n;

  s->hole_bytes += to - from;
  for (; from < to; from += n) {
    n = MIN_OF (per - from % per, to - from);
    s->cells[from / per].hole_bytes += n;
  }
}

static int
find_holes (struct survey *v, uint64_t size)
{
  const struct qcow2_usage_params *p = v->w.p;
  struct io_store *io = v->w.img->io;
  uint64_t at = 0, hole, data;
  int r = io_next_data (io, 0, &data);

  v->s->holes_known = r != -EOPNOTSUPP && io_next_hole (io, 0) != UINT64_MAX;
  while (v->s->holes_known && r == 0 && at < size) {
    if (p->stop && p->stop (p->opaque))
      return -EINTR;
    hole = io_next_hole (io, at);
    if (hole >= size)
      break;
    r = io_next_data (io, hole, &data);
    at = r == 0 ? MIN_OF (data, size) : size;
    put_hole (v->s, hole, r == 0 ? at : hole);
  }
  return r == -EOPNOTSUPP ? 0 : r;
}

int
survey_map_finish (struct survey *v)
{
  const int64_t size = io_size (v->w.img->io);

  put_rest (v);
  if (size < 0)
    return (int) size;
  return find_holes (v, MIN_OF ((uint64_t) size, v->s->nr_clusters *
                                v->s->cluster_size));
}
