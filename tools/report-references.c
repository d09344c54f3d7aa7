/* SPDX-License-Identifier: BSD-3-Clause */
/* Draws how often clusters of data are referred to: a bar for each range of numbers
 * of references, with the data that is stored and the data that it stands for.
 *
 * References are counted through the tables: one for each place of a disk or
 * snapshot, also where a table is shared.  One thread.
 */
#include "report.h"

#include <inttypes.h>

#include "markup.h"
#include "svg.h"

#define WIDTH 1000.0

static void
draw (unsigned k, uint64_t stored, uint64_t stands_for, uint64_t max, FILE *fp)
{
  char id[32];
  const struct svg s = { .fp = fp, .id = id, .class = "bar", .width = WIDTH,
                         .height = 10, .stretched = true };

  snprintf (id, sizeof id, "refs%u", k);
  markup_open (fp, "td", "class", "drawing", NULL);
  svg_begin (&s, "Bar of stored data, and of what it stands for", NULL);
  svg_rect (&s, 0, 0, WIDTH * report_percent (stored, max) / 100, 5, "own", 1,
            NULL);
  svg_rect (&s, 0, 5, WIDTH * report_percent (stands_for, max) / 100, 5,
            "shared", 1, NULL);
  svg_end (&s);
  markup_close (fp, "td");
}

static void
write_label (unsigned k, FILE *fp)
{
  const uint64_t to = UINT64_C (1) << k, from = k ? to / 2 + 1 : 1;

  markup_open (fp, "th", "scope", "row", NULL);
  if (from == to)
    markup_textf (fp, "%" PRIu64, to);
  else
    markup_textf (fp, "%" PRIu64 "\xe2\x80\x93%" PRIu64, from, to);
  markup_close (fp, "th");
}

static void
write_bucket (const struct pool_report *rep, unsigned k, uint64_t max,
              FILE *fp)
{
  const uint64_t cs = rep->s.cluster_size;
  const uint64_t stored = rep->s.references[k].clusters * cs;
  const uint64_t stands_for = rep->s.references[k].references * cs;

  markup_open (fp, "tr", NULL);
  write_label (k, fp);
  draw (k, stored, stands_for, max, fp);
  report_cell (fp, "%" PRIu64, rep->s.references[k].clusters);
  report_cell_bytes (fp, stored);
  report_cell_bytes (fp, stands_for);
  markup_close (fp, "tr");
}

void
report_references (const struct pool_report *rep, FILE *fp)
{
  static const char *const heads[] = { "References", "|Stored and stands for",
                                       "Clusters", "Stored", "Stands for",
                                       NULL };
  uint64_t max = 0;
  unsigned k;

  for (k = 0; k < QCOW2_SURVEY_BUCKETS; k++)
    if (rep->s.references[k].references > max)
      max = rep->s.references[k].references;
  report_section (fp, "references", "How often data is referred to",
                  "How many places of disks and snapshots refer to one stored "
                  "cluster, and how much data that stands for.");
  if (max == 0) {
    markup_line (fp, "p", NULL, "There is no data.");
    report_section_end (fp);
    return;
  }
  fputs ("<ul class=\"key\"><li><i class=\"key own\"></i>stored</li>\n<li><i "
         "class=\"key shared\"></i>stands for</li></ul>\n", fp);
  report_table (fp, "Clusters by their number of references", heads);
  for (k = 0; k < QCOW2_SURVEY_BUCKETS; k++)
    if (rep->s.references[k].clusters)
      write_bucket (rep, k, max * rep->s.cluster_size, fp);
  report_table_end (fp);
  report_section_end (fp);
}
