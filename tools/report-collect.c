/* SPDX-License-Identifier: BSD-3-Clause */
/* Gathers the figures of a report: a survey of the image (qcow2-survey.h), the
 * names of its disks, the tables of the index, samples of the past, and what the host
 * says of the file.
 *
 * They are those of info and disk info: the same counting, only of all disks at
 * once.  The image is open read-only, so nothing changes meanwhile.  One thread.
 */
#include "report.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

/* --- The survey --------------------------------------------------------------- */

static bool
stop_cb (void *opaque)
{
  return tool_interrupted ();
}

static void
progress_cb (void *opaque, uint64_t done, uint64_t total)
{
  tool_progress_step (opaque, done, total);
}

static int
survey (struct disk_pool *p, struct pool_report *rep, struct fault *f)
{
  CLEANUP_FREE struct qcow2_area *areas = NULL;
  struct tool_progress progress = { .what = "Surveying" };
  struct qcow2_survey_params params = {
    .usage = { .stop = stop_cb, .opaque = &progress },
    .progress = progress_cb, .max_cells = REPORT_CELLS,
  };
  int r = dedup_areas (p->d, &areas, &params.nr_areas);

  params.areas = areas;
  if (r == 0)
    r = qcow2_survey (dedup_image (p->d), &params, &rep->s, f);
  params.usage.max_packed = POOL_FIGURES_PACKED;
  if (r == 0 && rep->s.any_packed) {
    r = qcow2_packed_usage (dedup_image (p->d), &params.usage, &rep->pool.u);
    if (r < 0 && r != -EINTR)
      r = fault_io (f, -r, UINT64_MAX, "cannot read the tables: %s",
                    strerror (-r));
  }
  tool_progress_clear (&progress);
  return r;
}

/* --- Names --------------------------------------------------------------------- */

static const char *
type_of (const struct qcow2_survey_root *root,
         const struct dedup_disk_info *info)
{
  if (root->root == QCOW2_ROOT_ACTIVE)
    return "active";
  if (root->doomed || info == NULL)
    return "deleted";
  return !info->is_disk ? "other" : info->writable ? "disk" : "snapshot";
}

static char *
name_of (const struct qcow2_survey_root *root,
         const struct dedup_disk_info *info)
{
  if (root->root == QCOW2_ROOT_ACTIVE)
    return strdup ("the active disk");
  return root->doomed || info == NULL ? strdup ("a deleted disk")
    : disk_printable (info->name);
}

/* Orders by root. */
static int
compare (const void *a, const void *b)
{
  const struct dedup_disk_info *x = a, *y = b;

  return x->root < y->root ? -1 : x->root > y->root;
}

static int
name_roots (struct pool_report *rep, struct dedup_disk_info *v, size_t nr)
{
  struct dedup_disk_info key, *info;
  size_t i;

  if (nr > 1)
    qsort (v, nr, sizeof *v, compare);
  for (i = 0; i < rep->s.nr_roots; i++) {
    key.root = rep->s.roots[i].root;
    info = nr ? bsearch (&key, v, nr, sizeof *v, compare) : NULL;
    rep->types[i] = type_of (&rep->s.roots[i], info);
    rep->names[i] = name_of (&rep->s.roots[i], info);
    if (rep->names[i] == NULL)
      return -ENOMEM;
  }
  return 0;
}

static int
find_names (struct disk_pool *p, struct pool_report *rep)
{
  struct dedup_disk_info *v;
  size_t nr, i;
  int r = dedup_disk_list (p->d, &v, &nr);

  if (r < 0)
    return r;
  for (i = 0; i < nr; i++) {
    *(v[i].writable ? &rep->pool.nr_disks : &rep->pool.nr_snapshots) += 1;
    rep->pool.has_disks |= v[i].is_disk;
  }
  rep->names = calloc (rep->s.nr_roots, sizeof *rep->names);
  rep->types = calloc (rep->s.nr_roots, sizeof *rep->types);
  r = rep->names && rep->types ? name_roots (rep, v, nr) : -ENOMEM;
  dedup_disk_list_free (v, nr);
  return r;
}

/* --- Samples ------------------------------------------------------------------- */

static int
sample_cb (void *opaque, const struct dedup_sample *s)
{
  struct pool_report *rep = opaque;

  rep->samples[rep->nr_samples++] = *s;
  return rep->nr_samples == REPORT_SAMPLES;
}

static int
find_samples (struct disk_pool *p, struct pool_report *rep)
{
  int r;

  rep->samples = calloc (REPORT_SAMPLES, sizeof *rep->samples);
  if (rep->samples == NULL)
    return -ENOMEM;
  r = dedup_samples (p->d, sample_cb, rep);
  return r < 0 ? r : 0;
}

/* --- Sums ------------------------------------------------------------------------ */

static void
sum_up (struct disk_pool *p, struct pool_report *rep)
{
  struct qcow2_pool_usage *u = &rep->pool.u;
  size_t i;

  for (i = 0; i < rep->s.nr_roots; i++) {
    const struct qcow2_survey_root *r = &rep->s.roots[i];

    rep->exclusive_bytes += r->u.exclusive_bytes;
    if (r->doomed)
      continue;
    u->nr_roots++;
    u->root_bytes += r->u.mapped_bytes;
    u->nr_disks += r->writable;
    u->disk_bytes += r->writable ? r->u.mapped_bytes : 0;
  }
  rep->pool.cluster_size = rep->s.cluster_size;
  u->stored_bytes = rep->s.nr[QCOW2_SURVEY_DATA] * rep->s.cluster_size;
  rep->pool.pending = pool_figures_pending (p->d);
}

static void
ask_host (struct disk_pool *p, struct pool_report *rep)
{
  struct stat st;

  rep->host_known = io_host_space (p->io, &rep->host_free_bytes,
                                   &rep->host_bytes);
  rep->is_device = stat (rep->path, &st) < 0 || !S_ISREG (st.st_mode);
  if (!rep->is_device)
    rep->actual_bytes = (uint64_t) st.st_blocks * 512;
}

int
report_collect (struct disk_pool *p, struct pool_report *rep, struct fault *f)
{
  int r;

  memset (rep, 0, sizeof *rep);
  rep->path = p->args->path;
  rep->when = time (NULL);
  r = survey (p, rep, f);
  if (r == 0)
    r = find_names (p, rep);
  if (r == 0)
    r = dedup_index_tables (p->d, &rep->tables, &rep->nr_tables);
  if (r == 0)
    r = find_samples (p, rep);
  if (r < 0)
    return r;
  dedup_get_stats (p->d, &rep->stats);
  dedup_scrub_remembered (p->d, &rep->scrub);
  rep->nr_bad = dedup_scrub_bad_places (p->d, rep->bad, REPORT_BAD);
  r = report_find_places (p, rep);
  if (r < 0)
    return r;
  sum_up (p, rep);
  ask_host (p, rep);
  return 0;
}

void
report_free (struct pool_report *rep)
{
  size_t i;

  for (i = 0; rep->names && i < rep->s.nr_roots; i++)
    free (rep->names[i]);
  free (rep->names);
  free (rep->types);
  free (rep->tables);
  free (rep->samples);
  free (rep->places);
  qcow2_survey_free (&rep->s);
}

/* --- Questions of the sections ---------------------------------------------------- */

bool
report_has_root (const struct pool_report *rep, size_t i)
{
  const struct qcow2_survey_root *r = &rep->s.roots[i];

  return r->root != QCOW2_ROOT_ACTIVE || r->u.mapped_bytes > 0 ||
    !rep->pool.has_disks;
}

size_t
report_count_from (const struct pool_report *rep, size_t first)
{
  size_t i, nr = 0;

  for (i = first; i < rep->s.nr_roots; i++)
    nr += report_has_root (rep, i);
  return nr;
}

const char *
report_group_name (const struct pool_report *rep, unsigned g, char buf[64])
{
  if (rep->s.nr_roots <= QCOW2_SURVEY_GROUPS || g + 1 < rep->s.nr_groups)
    return rep->names[g];
  snprintf (buf, 64, "%zu others", report_count_from (rep, g));
  return buf;
}

unsigned
report_groups (const struct pool_report *rep, unsigned v[QCOW2_SURVEY_GROUPS])
{
  unsigned g, nr = 0;

  for (g = 0; g < rep->s.nr_groups; g++)
    if (rep->s.pair[g][g] > 0)
      v[nr++] = g;
  return nr;
}

double
report_percent (uint64_t n, uint64_t all)
{
  return all ? 100.0 * (double) n / (double) all : 0;
}
