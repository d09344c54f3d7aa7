/* SPDX-License-Identifier: BSD-3-Clause */
/* Draws a map of the file: at most 2,000 cells, from the begin of the file in the
 * upper left corner to its end, in the colour of what they hold most of.
 *
 * A cell that is partly free has a fainter colour over that of free space, so a
 * fragmented file looks mottled.  Cells in a row that look alike are one rectangle.
 * The table has the figures of twenty parts of the file.  One thread.
 */
#include "report.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "markup.h"
#include "svg.h"

#define COLUMNS 80u
#define SIDE 10.0
#define PARTS 20u              /* in the table */
#define SHADES 4u

struct look {                  /* of a cell */
  const char *below, *class;   /* CLASS may be NULL */
  unsigned shade;              /* of SHADES */
};

static const char *const classes[QCOW2_SURVEY_KINDS] = {
  [QCOW2_SURVEY_DATA] = "own", [QCOW2_SURVEY_STORE] = "store",
  [QCOW2_SURVEY_FREE] = "free", [QCOW2_SURVEY_UNUSED] = "unused",
  [QCOW2_SURVEY_TABLE] = "tables",
};

static uint64_t
sum (const struct qcow2_survey_cell *c)
{
  uint64_t n = 0;
  unsigned k;

  for (k = 0; k < QCOW2_SURVEY_KINDS; k++)
    n += c->nr[k];
  return n;
}

static struct look
look_of (const struct pool_report *rep, const struct qcow2_survey_cell *c)
{
  const uint64_t all = sum (c), used = all - c->nr[QCOW2_SURVEY_FREE];
  struct look l = { .below = "free" };
  unsigned k, most = QCOW2_SURVEY_DATA;

  if (c->hole_bytes * 2 > all * rep->s.cluster_size)
    l.below = "hole";
  if (used == 0)
    return l;
  for (k = 0; k < QCOW2_SURVEY_KINDS; k++)
    if (k != QCOW2_SURVEY_FREE && c->nr[k] > c->nr[most])
      most = k;
  l.class = classes[most];
  l.shade = (unsigned) div_round_up (used * SHADES, all);
  return l;
}

static bool
alike (const struct look *a, const struct look *b)
{
  return strcmp (a->below, b->below) == 0 && a->shade == b->shade &&
    (a->class == b->class || (a->class && b->class &&
                              strcmp (a->class, b->class) == 0));
}

/* Draws NR cells in a row that look alike, the first one at X, Y. */
static void
draw_run (const struct svg *s, const struct look *l, double x, double y,
          size_t nr)
{
  const double w = (double) nr * SIDE;

  if (l->class == NULL || l->shade < SHADES)
    svg_rect (s, x, y, w, SIDE, l->below, 1, NULL);
  if (l->class)
    svg_rect (s, x, y, w, SIDE, l->class, 0.25 + 0.75 * l->shade / SHADES,
              NULL);
}

static void
draw_row (const struct pool_report *rep, const struct svg *s, size_t first)
{
  const size_t end = MIN_OF (first + COLUMNS, rep->s.nr_cells);
  const double y = (double) (first / COLUMNS) * SIDE;
  size_t from, i;

  for (from = first; from < end; from = i) {
    const struct look l = look_of (rep, &rep->s.cells[from]);

    for (i = from + 1; i < end; i++) {
      const struct look next = look_of (rep, &rep->s.cells[i]);

      if (!alike (&l, &next))
        break;
    }
    draw_run (s, &l, (double) (from - first) * SIDE, y, i - from);
  }
}

static void
draw (const struct pool_report *rep, FILE *fp)
{
  const size_t rows = (rep->s.nr_cells + COLUMNS - 1) / COLUMNS;
  const struct svg s = { .fp = fp, .id = "mapped", .class = "map",
                         .width = COLUMNS * SIDE,
                         .height = (double) rows * SIDE };
  size_t i;

  svg_begin (&s, "Map of the file", "Row by row from the begin of the file to its "
             "end, each cell in the colour of what it holds most of; fainter where "
             "a part of it is free. The table has the figures.");
  for (i = 0; i < rep->s.nr_cells; i += COLUMNS)
    draw_row (rep, &s, i);
  svg_end (&s);
}

static void
write_key (const struct pool_report *rep, FILE *fp)
{
  static const char *const keys[][2] = {
    { "own", "data" }, { "tables", "tables" }, { "store", "store" },
    { "unused", "unused" }, { "free", "free" },
    { "hole", "free, without space on the host" },
  };
  char class[32];
  size_t i;

  markup_open (fp, "ul", "class", "key", NULL);
  for (i = 0; i < sizeof keys / sizeof keys[0]; i++) {
    if (strcmp (keys[i][0], "hole") == 0 && !rep->s.holes_known)
      continue;
    snprintf (class, sizeof class, "key %s", keys[i][0]);
    markup_open (fp, "li", NULL);
    markup_open (fp, "i", "class", class, NULL);
    fputs ("</i>", fp);
    markup_text (fp, keys[i][1]);
    markup_close (fp, "li");
  }
  markup_close (fp, "ul");
}

/* --- Figures ---------------------------------------------------------------------- */

static void
write_facts (const struct pool_report *rep, FILE *fp)
{
  const uint64_t cs = rep->s.cluster_size;
  char cell[32], run[32], hole[32];

  markup_line (fp, "p", NULL, "A cell is %s. Free space is in %" PRIu64 " %s, the "
               "largest of %s.", tool_human (rep->s.cell_clusters * cs, cell),
               rep->s.free_runs, rep->s.free_runs == 1 ? "piece" : "pieces",
               tool_human (rep->s.largest_free_run * cs, run));
  if (rep->s.holes_known)
    markup_line (fp, "p", NULL, "Holes, which take no space on the host: %s.",
                 tool_human (rep->s.hole_bytes, hole));
}

static void
write_part (const struct pool_report *rep, size_t from, size_t to, FILE *fp)
{
  static const enum qcow2_survey_kind order[] = {
    QCOW2_SURVEY_DATA, QCOW2_SURVEY_TABLE, QCOW2_SURVEY_STORE,
    QCOW2_SURVEY_UNUSED, QCOW2_SURVEY_FREE,
  };
  const uint64_t cs = rep->s.cluster_size;
  uint64_t nr[QCOW2_SURVEY_KINDS] = { 0 }, holes = 0;
  size_t i, k;

  for (i = from; i < to; i++) {
    for (k = 0; k < QCOW2_SURVEY_KINDS; k++)
      nr[k] += rep->s.cells[i].nr[k];
    holes += rep->s.cells[i].hole_bytes;
  }
  markup_open (fp, "tr", NULL);
  markup_open (fp, "th", "scope", "row", NULL);
  markup_bytes (fp, from * rep->s.cell_clusters * cs);
  markup_close (fp, "th");
  for (k = 0; k < sizeof order / sizeof order[0]; k++)
    report_cell_bytes (fp, nr[order[k]] * cs);
  if (rep->s.holes_known)
    report_cell_bytes (fp, holes);
  markup_close (fp, "tr");
}

static void
write_parts (const struct pool_report *rep, FILE *fp)
{
  const char *heads[] = { "From", "Data", "Tables", "Store", "Unused", "Free",
                          rep->s.holes_known ? "Holes" : NULL, NULL };
  const size_t per = (rep->s.nr_cells + PARTS - 1) / PARTS;
  size_t i;

  markup_open (fp, "details", NULL);
  markup_line (fp, "summary", NULL, "Figures of the map");
  report_table (fp, "What parts of the file hold, by their offset in it", heads);
  for (i = 0; i < rep->s.nr_cells; i += per)
    write_part (rep, i, MIN_OF (i + per, rep->s.nr_cells), fp);
  report_table_end (fp);
  markup_close (fp, "details");
}

void
report_map (const struct pool_report *rep, FILE *fp)
{
  char human[32];

  report_section (fp, "map", "Map of the file",
                  "What lies where, from the begin of the file to its end.");
  write_key (rep, fp);
  markup_open (fp, "figure", NULL);
  draw (rep, fp);
  markup_open (fp, "figcaption", "class", "ends", NULL);
  markup_line (fp, "span", NULL, "offset 0");
  markup_line (fp, "span", NULL, "%s", tool_human
               (rep->s.nr_clusters * rep->s.cluster_size, human));
  markup_close (fp, "figcaption");
  markup_close (fp, "figure");
  write_facts (rep, fp);
  write_parts (rep, fp);
  report_section_end (fp);
}
