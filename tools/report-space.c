/* SPDX-License-Identifier: BSD-3-Clause */
/* Draws where the space of the file went: one bar for the whole file, with its
 * parts, and the figures beside.
 *
 * The parts do not overlap, and their sum is the file.  One thread.
 */
#include "report.h"

#include "markup.h"
#include "svg.h"

#define WIDTH 1000.0

struct part {
  const char *class, *name, *what;
  uint64_t bytes;
};
#define PARTS 6

static uint64_t
bytes_of (const struct pool_report *rep, enum qcow2_survey_kind kind)
{
  return rep->s.nr[kind] * rep->s.cluster_size;
}

static void
find_parts (const struct pool_report *rep, struct part v[PARTS])
{
  v[0] = (struct part) { "own", "Data of one", "exclusive to one disk or snapshot",
                         rep->exclusive_bytes };
  v[1] = (struct part) { "shared", "Shared data", "several refer to it",
                         bytes_of (rep, QCOW2_SURVEY_DATA) -
                         rep->exclusive_bytes };
  v[2] = (struct part) { "tables", "Tables", "of qcow2, and other uses",
                         bytes_of (rep, QCOW2_SURVEY_TABLE) };
  v[3] = (struct part) { "store", "Store", "journal and index",
                         bytes_of (rep, QCOW2_SURVEY_STORE) };
  v[4] = (struct part) { "unused", "Unused", "data that no disk has any more, "
                         "freed when a server has time",
                         bytes_of (rep, QCOW2_SURVEY_UNUSED) };
  v[5] = (struct part) { "free", "Free", "used before the file grows",
                         bytes_of (rep, QCOW2_SURVEY_FREE) };
}

static void
draw (const struct part v[PARTS], uint64_t all, FILE *fp)
{
  const struct svg s = { .fp = fp, .id = "whole", .class = "whole",
                         .width = WIDTH, .height = 10, .stretched = true };
  char title[128], human[32];
  double x = 0, w;
  unsigned i;

  svg_begin (&s, "The file and its parts", "A bar for the whole file. The table "
             "has the same figures.");
  for (i = 0; i < PARTS; i++) {
    w = WIDTH * report_percent (v[i].bytes, all) / 100;
    snprintf (title, sizeof title, "%s: %s", v[i].name,
              tool_human (v[i].bytes, human));
    if (v[i].bytes)
      svg_rect (&s, x, 0, w, 10, v[i].class, 1, title);
    x += w;
  }
  svg_end (&s);
}

static void
write_row (const struct part *p, uint64_t all, FILE *fp)
{
  char class[32];

  snprintf (class, sizeof class, "key %s", p->class);
  markup_open (fp, "tr", "id", p->class, NULL);
  markup_open (fp, "th", "scope", "row", NULL);
  markup_open (fp, "i", "class", class, NULL);
  fputs ("</i>", fp);
  markup_text (fp, p->name);
  markup_open (fp, "span", "class", "quiet", NULL);
  markup_textf (fp, " \xe2\x80\x93 %s", p->what);
  fputs ("</span>", fp);
  markup_close (fp, "th");
  report_cell_bytes (fp, p->bytes);
  report_cell (fp, "%.1f %%", report_percent (p->bytes, all));
  markup_close (fp, "tr");
}

void
report_space (const struct pool_report *rep, FILE *fp)
{
  static const char *const heads[] = { "Part", "Size", "Share", NULL };
  const uint64_t all = rep->s.nr_clusters * rep->s.cluster_size;
  struct part v[PARTS];
  unsigned i;

  find_parts (rep, v);
  report_section (fp, "space", "Where the space went",
                  "What the clusters of the file hold. Each counts once.");
  markup_open (fp, "figure", NULL);
  draw (v, all, fp);
  markup_close (fp, "figure");
  report_table (fp, "Parts of the file", heads);
  for (i = 0; i < PARTS; i++)
    write_row (&v[i], all, fp);
  report_table_end (fp);
  report_section_end (fp);
}
