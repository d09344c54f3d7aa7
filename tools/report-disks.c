/* SPDX-License-Identifier: BSD-3-Clause */
/* Draws what each disk and snapshot takes: a bar in a row of a table, with what
 * deleting it would free and what it shares.
 *
 * All bars have one scale.  What a disk shares is known of the largest only
 * (qcow2-survey.h); the others have no bar.  There are rows for the first REPORT_ROWS, which are the
 * largest; the others are one row, whose figures are sums.  One thread.
 */
#include "report.h"

#include <inttypes.h>

#include "markup.h"
#include "svg.h"

#define WIDTH 1000.0

static uint64_t
freed (const struct qcow2_survey_root *r)
{
  return r->u.exclusive_bytes + r->u.table_bytes;
}

static uint64_t
widest (const struct pool_report *rep)
{
  uint64_t max = 1;
  size_t i;

  for (i = 0; i < rep->s.nr_roots; i++) {
    const struct qcow2_survey_root *r = &rep->s.roots[i];

    max = freed (r) + r->u.shared_bytes > max ?
      freed (r) + r->u.shared_bytes : max;
  }
  return max;
}

static void
draw (const struct pool_report *rep, size_t i, uint64_t max, FILE *fp)
{
  const struct qcow2_survey_root *r = &rep->s.roots[i];
  const double own = WIDTH * report_percent (freed (r), max) / 100;
  const double shared = WIDTH * report_percent (r->u.shared_bytes, max) / 100;
  char id[32], title[700];
  const struct svg s = { .fp = fp, .id = id, .class = "bar", .width = WIDTH,
                         .height = 10, .stretched = true };

  snprintf (id, sizeof id, "bar%zu", i);
  snprintf (title, sizeof title, "Bar of %s", rep->names[i]);
  markup_open (fp, "td", "class", "drawing", NULL);
  svg_begin (&s, title, NULL);
  svg_rect (&s, 0, 0, own, 10, "own", 1, NULL);
  svg_rect (&s, own, 0, shared, 10, "shared", 1, NULL);
  svg_end (&s);
  markup_close (fp, "td");
}

/* Writes how long runs of the disk's data are on average. */
static void
write_run (const struct qcow2_survey_root *r, FILE *fp)
{
  if (r->runs)
    report_cell_bytes (fp, r->u.mapped_bytes / r->runs);
  else
    report_cell (fp, "\xe2\x80\x93");
}

static void
write_root (const struct pool_report *rep, size_t i, uint64_t max, FILE *fp)
{
  const struct qcow2_survey_root *r = &rep->s.roots[i];

  markup_open (fp, "tr", NULL);
  markup_open (fp, "th", "scope", "row", NULL);
  markup_name (fp, rep->names[i]);
  markup_close (fp, "th");
  if (r->shared_known)
    draw (rep, i, max, fp);
  else
    markup_line (fp, "td", "drawing", "\xe2\x80\x93");
  report_cell_bytes (fp, freed (r));
  if (r->shared_known)
    report_cell_bytes (fp, r->u.shared_bytes);
  else
    report_cell (fp, "\xe2\x80\x93");
  report_cell_bytes (fp, r->u.mapped_bytes);
  report_cell_bytes (fp, r->u.virtual_bytes);
  write_run (r, fp);
  report_cell (fp, "%s", rep->types[i]);
  markup_close (fp, "tr");
}

/* Writes the sums of the roots from FIRST on. */
static void
write_others (const struct pool_report *rep, size_t first, FILE *fp)
{
  uint64_t own = 0, mapped = 0, virtual = 0;
  size_t i;

  for (i = first; i < rep->s.nr_roots; i++) {
    if (!report_has_root (rep, i))
      continue;
    own += freed (&rep->s.roots[i]);
    mapped += rep->s.roots[i].u.mapped_bytes;
    virtual += rep->s.roots[i].u.virtual_bytes;
  }
  markup_open (fp, "tr", "id", "others", NULL);
  markup_open (fp, "th", "scope", "row", NULL);
  markup_textf (fp, "%zu others", report_count_from (rep, first));
  markup_close (fp, "th");
  report_cell (fp, "sums");
  report_cell_bytes (fp, own);
  report_cell (fp, "\xe2\x80\x93");
  report_cell_bytes (fp, mapped);
  report_cell_bytes (fp, virtual);
  report_cell (fp, "\xe2\x80\x93");
  report_cell (fp, "\xe2\x80\x93");
  markup_close (fp, "tr");
}

static void
write_key (FILE *fp)
{
  fputs ("<ul class=\"key\"><li><i class=\"key own\"></i>freed if it is deleted: "
         "its own data and tables</li>\n<li><i class=\"key shared\"></i>shared "
         "with others: stays</li></ul>\n", fp);
}

void
report_disks (const struct pool_report *rep, FILE *fp)
{
  static const char *const heads[] = {
    "Name", "|In the file", "Freed if deleted", "Shared", "Mapped",
    "Virtual size", "Mean run", "Type", NULL,
  };
  const uint64_t max = widest (rep);
  size_t i, nr = 0;

  report_section (fp, "disks", "Disks and snapshots",
                  "What each takes in the file. The mean run is how much of a "
                  "disk lies in sequence in the file.");
  write_key (fp);
  report_table (fp, "Disks first, then snapshots; those that map most come first",
                heads);
  for (i = 0; i < rep->s.nr_roots && nr < REPORT_ROWS; i++)
    if (report_has_root (rep, i)) {
      write_root (rep, i, max, fp);
      nr++;
    }
  if (report_count_from (rep, i) > 0)
    write_others (rep, i, fp);
  report_table_end (fp);
  report_section_end (fp);
}
