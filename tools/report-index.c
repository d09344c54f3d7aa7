/* SPDX-License-Identifier: BSD-3-Clause */
/* Draws the index: its tables on disk, the oldest first, with their entries, and
 * what the index found and cost.
 *
 * There are rows for the REPORT_ROWS largest tables at most, which keep their
 * order.  One thread.
 */
#include "report.h"

#include <inttypes.h>
#include <stdlib.h>

#include "markup.h"
#include "svg.h"

#define WIDTH 1000.0

static void
draw (const struct dedup_index_table *t, size_t i, uint64_t max, FILE *fp)
{
  const double w = WIDTH * report_percent (t->entries, max) / 100;
  char id[32];
  const struct svg s = { .fp = fp, .id = id, .class = "bar", .width = WIDTH,
                         .height = 10, .stretched = true };

  snprintf (id, sizeof id, "table%zu", i);
  markup_open (fp, "td", "class", "drawing", NULL);
  svg_begin (&s, "Bar of entries, and of deletions behind it", NULL);
  svg_rect (&s, 0, 0, w, 10, "store", 1, NULL);
  svg_rect (&s, w, 0, WIDTH * report_percent (t->tombstones, max) / 100, 10,
            "unused", 1, NULL);
  svg_end (&s);
  markup_close (fp, "td");
}

static void
write_table (const struct dedup_index_table *t, size_t i, uint64_t max,
             FILE *fp)
{
  markup_open (fp, "tr", NULL);
  markup_open (fp, "th", "scope", "row", NULL);
  if (t->is_run)
    markup_textf (fp, "run, level %u%s", t->level, t->merging ? ", merging"
                  : "");
  else
    markup_text (fp, "incarnation");
  markup_close (fp, "th");
  draw (t, i, max, fp);
  report_cell (fp, "%" PRIu64, t->entries);
  report_cell (fp, "%" PRIu64, t->tombstones);
  report_cell (fp, "%" PRIu64, t->segments);
  report_cell_bytes (fp, t->disk_bytes);
  markup_close (fp, "tr");
}

static int
compare (const void *a, const void *b)
{
  const uint64_t *x = a, *y = b;

  return *x < *y ? 1 : *x > *y ? -1 : 0;
}

/* Returns how many entries a table has that is shown; 0: all are. */
static uint64_t
least_shown (const struct pool_report *rep)
{
  uint64_t *v = calloc (rep->nr_tables + 1, sizeof *v), least = 0;
  size_t i;

  for (i = 0; v && i < rep->nr_tables; i++)
    v[i] = rep->tables[i].entries + rep->tables[i].tombstones;
  if (v && rep->nr_tables > REPORT_ROWS) {
    qsort (v, rep->nr_tables, sizeof *v, compare);
    least = v[REPORT_ROWS - 1];
  }
  free (v);
  return least;
}

static void
write_tables (const struct pool_report *rep, FILE *fp)
{
  static const char *const heads[] = { "Table", "|Entries", "Number",
                                       "Deletions", "Segments", "Size", NULL };
  const uint64_t least = least_shown (rep);
  uint64_t max = 1, n;
  size_t i, nr = 0;

  for (i = 0; i < rep->nr_tables; i++) {
    n = rep->tables[i].entries + rep->tables[i].tombstones;
    max = n > max ? n : max;
  }
  report_table (fp, least ? "The 50 largest tables, the oldest first"
                : "Tables, the oldest first", heads);
  for (i = 0; i < rep->nr_tables && nr < REPORT_ROWS; i++)
    if (rep->tables[i].entries + rep->tables[i].tombstones >= least) {
      write_table (&rep->tables[i], i, max, fp);
      nr++;
    }
  report_table_end (fp);
}

static void
write_row (FILE *fp, const char *label, uint64_t n, bool bytes)
{
  markup_open (fp, "tr", NULL);
  markup_open (fp, "th", "scope", "row", NULL);
  markup_text (fp, label);
  markup_close (fp, "th");
  if (bytes)
    report_cell_bytes (fp, n);
  else
    report_cell (fp, "%" PRIu64, n);
  markup_close (fp, "tr");
}

static void
write_figures (const struct pool_report *rep, FILE *fp)
{
  static const char *const heads[] = { "Figure", "Value", NULL };
  const struct dedup_stats *s = &rep->stats;
  const struct dedup_lookups *l = &s->all_lookups;

  report_table (fp, "The index, and what lookups of all sessions found", heads);
  write_row (fp, "entries", s->index_entries, false);
  write_row (fp, "of these in log stores, in memory", s->log_store_entries,
             false);
  write_row (fp, "deletions (tombstones)", s->tombstones, false);
  write_row (fp, "memory, before filters are loaded", s->index_memory_bytes,
             true);
  write_row (fp, "on disk", s->index_disk_bytes, true);
  write_row (fp, "journal", s->journal_bytes, true);
  write_row (fp, "clusters found by hints", l->guessed, false);
  write_row (fp, "lookups in the index", l->lookups, false);
  write_row (fp, "of these found", l->hits, false);
  report_table_end (fp);
}

void
report_index (const struct pool_report *rep, FILE *fp)
{
  report_section (fp, "index", "The index",
                  "Tables from hashes to clusters. Entries in log stores are "
                  "younger than all tables.");
  if (!rep->stats.has_store)
    markup_line (fp, "p", NULL, "There is none: the image is not "
                 "deduplicated.");
  else {
    write_figures (rep, fp);
    if (rep->nr_tables > 0)
      write_tables (rep, fp);
    else
      markup_line (fp, "p", NULL, "All entries are in log stores: there are no "
                   "tables on disk yet.");
  }
  report_section_end (fp);
}
