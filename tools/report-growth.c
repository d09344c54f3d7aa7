/* SPDX-License-Identifier: BSD-3-Clause */
/* Draws how an image grew: the samples that its server kept, as two lines over
 * time, with some of them as a table.
 *
 * Samples are few and far between at first and closer together later; the lines are
 * true to time.  Times may be anything that a file says, but ascend.  One thread.
 */
#include "report.h"

#include <time.h>

#include "markup.h"
#include "svg.h"

#define WIDTH 1000.0
#define HEIGHT 200.0
#define ROWS 12u               /* of the table */

/* Writes the time as a day and minute, in UTC. */
static const char *
when (uint64_t seconds, char buf[32])
{
  const time_t t = (time_t) seconds;
  struct tm tm;

  if (seconds > UINT32_MAX || gmtime_r (&t, &tm) == NULL ||
      strftime (buf, 32, "%Y-%m-%d %H:%M", &tm) == 0)
    snprintf (buf, 32, "unknown");
  return buf;
}

static uint64_t
highest (const struct pool_report *rep)
{
  uint64_t max = 1;
  size_t i;

  for (i = 0; i < rep->nr_samples; i++) {
    const struct dedup_sample *s = &rep->samples[i];

    max = s->logical_bytes > max ? s->logical_bytes : max;
    max = s->stored_bytes > max ? s->stored_bytes : max;
  }
  return max;
}

static void
draw_line (const struct pool_report *rep, const struct svg *s, bool logical,
           uint64_t max)
{
  const uint64_t first = rep->samples[0].time;
  const uint64_t span = rep->samples[rep->nr_samples - 1].time - first;
  size_t i;

  svg_line_begin (s, logical ? "shared" : "own");
  for (i = 0; i < rep->nr_samples; i++) {
    const struct dedup_sample *v = &rep->samples[i];
    const uint64_t bytes = logical ? v->logical_bytes : v->stored_bytes;

    svg_line_to (s, WIDTH * report_percent (v->time - first, span) / 100,
                 HEIGHT - (HEIGHT - 4) * report_percent (bytes, max) / 100);
  }
  svg_line_end (s);
}

static void
draw (const struct pool_report *rep, FILE *fp)
{
  const struct svg s = { .fp = fp, .id = "grown", .class = "growth",
                         .width = WIDTH, .height = HEIGHT,
                         .stretched = true };
  const uint64_t max = highest (rep);
  char from[32], to[32], human[32];

  markup_open (fp, "figure", NULL);
  markup_line (fp, "div", "ends", "%s", tool_human (max, human));
  svg_begin (&s, "Logical and stored data over time", "Two lines from the oldest "
             "sample to the youngest. The table has some of the figures.");
  draw_line (rep, &s, true, max);
  draw_line (rep, &s, false, max);
  svg_end (&s);
  markup_open (fp, "figcaption", "class", "ends", NULL);
  markup_line (fp, "span", NULL, "%s", when (rep->samples[0].time, from));
  markup_line (fp, "span", NULL, "%s",
               when (rep->samples[rep->nr_samples - 1].time, to));
  markup_close (fp, "figcaption");
  markup_close (fp, "figure");
}

static void
write_sample (const struct dedup_sample *s, FILE *fp)
{
  char buf[32];

  markup_open (fp, "tr", NULL);
  markup_open (fp, "th", "scope", "row", NULL);
  markup_text (fp, when (s->time, buf));
  markup_close (fp, "th");
  report_cell_bytes (fp, s->logical_bytes);
  report_cell_bytes (fp, s->stored_bytes);
  if (s->stored_bytes)
    report_cell (fp, "%.2f", (double) s->logical_bytes /
                 (double) s->stored_bytes);
  else
    report_cell (fp, "\xe2\x80\x93");
  if (s->free_bytes != UINT64_MAX)
    report_cell_bytes (fp, s->free_bytes);
  else
    report_cell (fp, "\xe2\x80\x93");
  markup_close (fp, "tr");
}

/* Writes at most ROWS samples, the first and the last among them. */
static void
write_samples (const struct pool_report *rep, FILE *fp)
{
  static const char *const heads[] = { "Time (UTC)", "Logical", "Stored",
                                       "Ratio", "Free for new data", NULL };
  const size_t last = rep->nr_samples - 1;
  const size_t rows = last < ROWS - 1 ? last : ROWS - 1;
  size_t i;

  report_table (fp, "Samples, the oldest first", heads);
  for (i = 0; i <= rows; i++)
    write_sample (&rep->samples[rows ? i * last / rows : 0], fp);
  report_table_end (fp);
}

void
report_growth (const struct pool_report *rep, FILE *fp)
{
  report_section (fp, "growth", "Growth",
                  "What the image held in the past, as its servers noted.");
  if (rep->nr_samples == 0)
    markup_line (fp, "p", NULL, "There are no samples yet. A server takes them "
                 "while it runs.");
  else {
    fputs ("<ul class=\"key\"><li><i class=\"key shared\"></i>logical</li>\n<li>"
           "<i class=\"key own\"></i>stored</li></ul>\n", fp);
    if (rep->nr_samples > 1)
      draw (rep, fp);
    write_samples (rep, fp);
  }
  report_section_end (fp);
}
