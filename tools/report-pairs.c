/* SPDX-License-Identifier: BSD-3-Clause */
/* Draws who shares with whom: a heat map of the largest disks and snapshots and all
 * the others together, the pairs that share most, and all figures as a table.
 *
 * The colour of a square is how much of the row's data the column has, too.  The
 * map is labelled by numbers, since names may be long; the list beside it has the
 * names.  One thread.
 */
#include "report.h"

#include <inttypes.h>
#include <stdlib.h>

#include "markup.h"
#include "svg.h"

#define SIDE 14.0              /* of a square */
#define SCALE 1.6               /* pixels a unit, at most */
#define LABEL 18.0             /* room for numbers */
#define TOP 20u                /* pairs in the list */
#define PAIRS (QCOW2_SURVEY_GROUPS * QCOW2_SURVEY_GROUPS / 2)

struct groups {
  const struct pool_report *rep;
  unsigned v[QCOW2_SURVEY_GROUPS], nr;
};

struct pair {
  unsigned a, b;
  uint64_t clusters;
};

static uint64_t
shared (const struct groups *g, unsigned a, unsigned b)
{
  return g->rep->s.pair[g->v[a]][g->v[b]];
}

static const char *
name (const struct groups *g, unsigned i, char buf[64])
{
  return report_group_name (g->rep, g->v[i], buf);
}

/* --- The map -------------------------------------------------------------------- */

static void
draw_square (const struct groups *g, const struct svg *s, unsigned a,
             unsigned b)
{
  const double share = report_percent (shared (g, a, b), shared (g, a, a));
  char one[64], two[64], human[32], title[1300];

  snprintf (title, sizeof title, "%s with %s: %s, %.0f %% of the data of %s",
            name (g, a, one), name (g, b, two),
            tool_human (shared (g, a, b) * g->rep->s.cluster_size, human),
            share, name (g, a, one));
  svg_rect (s, LABEL + b * SIDE, LABEL + a * SIDE, SIDE - 1, SIDE - 1, "rest", 1,
            share > 0 ? NULL : title);
  if (share > 0)
    svg_rect (s, LABEL + b * SIDE, LABEL + a * SIDE, SIDE - 1, SIDE - 1,
              "shared", share < 10 ? 0.1 : share / 100, title);
}

static void
draw_labels (const struct svg *s, unsigned nr)
{
  char label[16];
  unsigned i;

  for (i = 0; i < nr; i++) {
    snprintf (label, sizeof label, "%u", i + 1);
    svg_text (s, LABEL + i * SIDE + (SIDE - 1) / 2, LABEL - 5, "middle", label);
    svg_text (s, LABEL - 5, LABEL + i * SIDE + 10, "end", label);
  }
}

static void
draw (const struct groups *g, FILE *fp)
{
  const double side = LABEL + g->nr * SIDE;
  const struct svg s = { .fp = fp, .id = "heat", .class = "pairs",
                         .width = side, .height = side,
                         .max_px = (unsigned) (side * SCALE) };
  unsigned a, b;

  svg_begin (&s, "Heat map of shared data", "A square for each pair: the stronger "
             "its colour, the more of the row's data the column has, too. The "
             "tables have the figures.");
  draw_labels (&s, g->nr);
  for (a = 0; a < g->nr; a++)
    for (b = 0; b < g->nr; b++)
      if (a != b)
        draw_square (g, &s, a, b);
  svg_end (&s);
}

static void
write_names (const struct groups *g, FILE *fp)
{
  char buf[64];
  unsigned i;

  markup_open (fp, "ol", "class", "names", NULL);
  for (i = 0; i < g->nr; i++) {
    markup_open (fp, "li", NULL);
    markup_name (fp, name (g, i, buf));
    markup_close (fp, "li");
  }
  markup_close (fp, "ol");
}

static void
write_key (FILE *fp)
{
  const struct svg s = { .fp = fp, .id = "scale", .class = "bar",
                         .width = 100, .height = 10, .stretched = true };
  unsigned i;

  fputs ("<div class=\"ends\"><span>shares nothing</span><span>shares all of its "
         "data</span></div>\n", fp);
  svg_begin (&s, "Scale of the colours", NULL);
  svg_rect (&s, 0, 0, 9, 10, "rest", 1, NULL);
  for (i = 1; i <= 10; i++)
    svg_rect (&s, i * 9.1, 0, 9, 10, "shared", i / 10.0, NULL);
  svg_end (&s);
}

/* --- Tables ----------------------------------------------------------------------- */

static int
compare (const void *a, const void *b)
{
  const struct pair *x = a, *y = b;

  return x->clusters < y->clusters ? 1 : x->clusters > y->clusters ? -1 : 0;
}

static unsigned
find_pairs (const struct groups *g, struct pair v[PAIRS])
{
  unsigned a, b, nr = 0;

  for (a = 0; a < g->nr; a++)
    for (b = a + 1; b < g->nr; b++)
      if (shared (g, a, b))
        v[nr++] = (struct pair) { a, b, shared (g, a, b) };
  qsort (v, nr, sizeof *v, compare);
  return nr;
}

static void
write_pair (const struct groups *g, const struct pair *p, FILE *fp)
{
  char buf[64];

  markup_open (fp, "tr", NULL);
  markup_open (fp, "th", "scope", "row", NULL);
  markup_name (fp, name (g, p->a, buf));
  markup_text (fp, " and ");
  markup_name (fp, name (g, p->b, buf));
  markup_close (fp, "th");
  report_cell_bytes (fp, p->clusters * g->rep->s.cluster_size);
  report_cell (fp, "%.0f %%", report_percent (p->clusters,
                                              shared (g, p->a, p->a)));
  report_cell (fp, "%.0f %%", report_percent (p->clusters,
                                              shared (g, p->b, p->b)));
  markup_close (fp, "tr");
}

static void
write_pairs (const struct groups *g, FILE *fp)
{
  static const char *const heads[] = { "Pair", "Shared", "Of the first",
                                       "Of the second", NULL };
  struct pair v[PAIRS];
  unsigned i, nr = find_pairs (g, v);

  if (nr == 0) {
    markup_line (fp, "p", NULL, "No two of them share data.");
    return;
  }
  report_table (fp, nr > TOP ? "The 20 pairs that share most"
                : "All pairs that share data", heads);
  for (i = 0; i < nr && i < TOP; i++)
    write_pair (g, &v[i], fp);
  report_table_end (fp);
}

static void
write_matrix (const struct groups *g, FILE *fp)
{
  const char *heads[QCOW2_SURVEY_GROUPS + 2] = { "Row" };
  char labels[QCOW2_SURVEY_GROUPS][16], buf[64];
  unsigned a, b;

  for (a = 0; a < g->nr; a++) {
    snprintf (labels[a], sizeof labels[a], "%u", a + 1);
    heads[a + 1] = labels[a];
  }
  markup_open (fp, "details", NULL);
  markup_line (fp, "summary", NULL, "All figures of the map");
  report_table (fp, "Data that row and column share; a row with itself: all of its "
                "data", heads);
  for (a = 0; a < g->nr; a++) {
    markup_open (fp, "tr", NULL);
    markup_open (fp, "th", "scope", "row", NULL);
    markup_textf (fp, "%u ", a + 1);
    markup_name (fp, name (g, a, buf));
    markup_close (fp, "th");
    for (b = 0; b < g->nr; b++)
      report_cell_bytes (fp, shared (g, a, b) * g->rep->s.cluster_size);
    markup_close (fp, "tr");
  }
  report_table_end (fp);
  markup_close (fp, "details");
}

void
report_pairs (const struct pool_report *rep, FILE *fp)
{
  struct groups g = { .rep = rep };

  g.nr = report_groups (rep, g.v);
  report_section (fp, "pairs", "Who shares with whom",
                  "How much of the data of a row the column has, too, for the 24 "
                  "largest and all others together.");
  if (g.nr < 2)
    markup_line (fp, "p", NULL, "%s", g.nr ? "Only one of them has data, so it "
                 "shares with nobody." : "There is no data.");
  else {
    markup_open (fp, "div", "class", "two", NULL);
    markup_open (fp, "figure", NULL);
    draw (&g, fp);
    markup_close (fp, "figure");
    markup_open (fp, "div", NULL);
    write_key (fp);
    write_names (&g, fp);
    markup_close (fp, "div");
    markup_close (fp, "div");
    write_pairs (&g, fp);
    write_matrix (&g, fp);
  }
  report_section_end (fp);
}
