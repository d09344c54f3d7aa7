/* SPDX-License-Identifier: BSD-3-Clause */
/* Surveys an image: the order of the passes, and what they share.
 *
 * First the roots are read (survey-roots.c), then the clusters of the file are
 * counted window by window (survey-window.c) and entered in the map
 * (survey-map.c).  Each pass asks whether it is to stop about once for each L2
 * table.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "survey.h"

/* Finds out how many clusters the file has, and how many may be in use. */
static int
measure (struct survey *v, struct fault *f)
{
  const uint64_t cs = v->w.img->header.geo.cluster_size;
  const int64_t size = io_size (v->w.img->io);
  int r = size < 0 ? (int) size
    : usage_file_clusters (v->w.img, &v->nr_clusters);

  if (r < 0)
    return r;
  if (v->nr_clusters > QCOW2_SURVEY_MAX_CLUSTERS)
    return fault_unsupported (f, "the image is too large to be counted: it has "
                              "%" PRIu64 " host clusters of at most %" PRIu64,
                              v->nr_clusters, QCOW2_SURVEY_MAX_CLUSTERS);
  v->s->cluster_size = cs;
  v->s->nr_clusters = MAX_OF (v->nr_clusters,
                              div_round_up ((uint64_t) size, cs));
  return 0;
}

static int
run (struct survey *v, struct fault *f)
{
  int r = measure (v, f);

  if (r == 0)
    r = survey_roots (v, f);
  if (r == 0)
    r = survey_map_begin (v);
  if (r == 0)
    r = survey_windows (v);
  if (r == 0)
    r = survey_map_finish (v);
  if (r < 0 && r != -EINTR)    /* an earlier fault stands */
    return fault_io (f, -r, UINT64_MAX, "cannot read the tables: %s",
                     strerror (-r));
  return r;
}

int
qcow2_survey (struct qcow2_image *img, const struct qcow2_survey_params *p,
              struct qcow2_survey *s, struct fault *f)
{
  struct survey *v = calloc (1, sizeof *v);
  int r = v ? 0 : -ENOMEM;

  memset (s, 0, sizeof *s);
  if (v == NULL)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  v->p = p;
  v->s = s;
  r = usage_walk_init (&v->w, img, &p->usage);
  if (r == 0)
    r = run (v, f);
  usage_walk_free (&v->w);
  survey_tables_free (&v->tables);
  free (v->position);
  free (v->busy);
  free (v->counters);
  free (v->areas);
  free (v);
  return r;
}

void
qcow2_survey_free (struct qcow2_survey *s)
{
  free (s->roots);
  free (s->cells);
  memset (s, 0, sizeof *s);
}
