/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes the page of a report: its head, the figures on top, and the sections in
 * their order.
 *
 * The page is one file without scripts.  A policy in its head forbids to load
 * anything, so it is the same on a desk as in a mail.  It is well-formed as HTML and
 * as XML, which a test uses.  One thread.
 */
#include "report.h"

#include <inttypes.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>

#include "markup.h"

/* --- Parts of sections -------------------------------------------------------- */

void
report_section (FILE *fp, const char *id, const char *heading,
                const char *what)
{
  markup_open (fp, "section", "id", id, NULL);
  fputc ('\n', fp);
  markup_line (fp, "h2", NULL, "%s", heading);
  markup_line (fp, "p", "quiet", "%s", what);
}

void
report_section_end (FILE *fp)
{
  markup_close (fp, "section");
}

void
report_table (FILE *fp, const char *what, const char *const *heads)
{
  markup_line (fp, "p", "caption", "%s", what);
  markup_open (fp, "div", "class", "scroll", "tabindex", "0", "role", "region",
               "aria-label", what, NULL);
  markup_open (fp, "table", NULL);
  markup_open (fp, "thead", NULL);
  markup_open (fp, "tr", NULL);
  for (; *heads; heads++) {
    const bool drawing = **heads == '|';

    markup_open (fp, "th", "scope", "col", "class", drawing ? "drawing" : NULL,
                 NULL);
    markup_text (fp, *heads + drawing);
    markup_close (fp, "th");
  }
  markup_close (fp, "tr");
  markup_close (fp, "thead");
  markup_open (fp, "tbody", NULL);
}

void
report_table_end (FILE *fp)
{
  markup_close (fp, "tbody");
  markup_close (fp, "table");
  markup_close (fp, "div");
}

void
report_cell_bytes (FILE *fp, uint64_t bytes)
{
  markup_open (fp, "td", NULL);
  markup_bytes (fp, bytes);
  markup_close (fp, "td");
}

void
report_cell (FILE *fp, const char *fmt, ...)
{
  char s[256];
  va_list ap;

  va_start (ap, fmt);
  vsnprintf (s, sizeof s, fmt, ap);
  va_end (ap);
  markup_line (fp, "td", NULL, "%s", s);
}

/* --- Head --------------------------------------------------------------------- */

static const char *
base_name (const char *path)
{
  const char *slash = strrchr (path, '/');

  return slash && slash[1] ? slash + 1 : path;
}

static void
head (const struct pool_report *rep, FILE *fp)
{
  const char *const *line;

  markup_open (fp, "head", NULL);
  markup_empty (fp, "meta", "charset", "utf-8", NULL);
  markup_empty (fp, "meta", "http-equiv", "Content-Security-Policy", "content",
                "default-src 'none'; style-src 'unsafe-inline'", NULL);
  markup_empty (fp, "meta", "name", "viewport", "content",
                "width=device-width, initial-scale=1", NULL);
  markup_empty (fp, "meta", "name", "color-scheme", "content", "light dark",
                NULL);
  markup_open (fp, "title", NULL);
  markup_textf (fp, "Report on %.300s", base_name (rep->path));
  markup_close (fp, "title");
  fputs ("<style>\n", fp);
  for (line = report_style; *line; line++)
    fprintf (fp, "%s\n", *line);
  markup_close (fp, "style");
  markup_close (fp, "head");
}

static void
heading (const struct pool_report *rep, FILE *fp)
{
  char when[64] = "";
  struct tm tm;

  if (gmtime_r (&rep->when, &tm) == NULL ||
      strftime (when, sizeof when, "%Y-%m-%d %H:%M UTC", &tm) == 0)
    when[0] = '\0';
  markup_open (fp, "header", NULL);
  markup_open (fp, "h1", NULL);
  markup_name (fp, base_name (rep->path));
  markup_close (fp, "h1");
  markup_line (fp, "p", "quiet", "%s. %" PRIu64 " %s, %" PRIu64 " %s. Clusters "
               "of %" PRIu64 " bytes.", when, rep->pool.nr_disks,
               rep->pool.nr_disks == 1 ? "disk" : "disks",
               rep->pool.nr_snapshots,
               rep->pool.nr_snapshots == 1 ? "snapshot" : "snapshots",
               rep->s.cluster_size);
  markup_close (fp, "header");
}

/* --- The figures on top --------------------------------------------------------- */

static void
tile_begin (FILE *fp, const char *label)
{
  markup_open (fp, "div", NULL);
  markup_line (fp, "dt", NULL, "%s", label);
  markup_open (fp, "dd", NULL);
}

static void
tile_end (FILE *fp, const char *small)
{
  markup_line (fp, "small", NULL, "%s", small);
  markup_close (fp, "dd");
  markup_close (fp, "div");
}

static void
tile_bytes (FILE *fp, const char *label, uint64_t bytes, const char *small)
{
  tile_begin (fp, label);
  markup_bytes (fp, bytes);
  tile_end (fp, small);
}

static void
compression_tiles (const struct pool_figures *p, FILE *fp)
{
  const uint64_t unpacked = qcow2_usage_unpacked (&p->u, p->cluster_size);

  tile_bytes (fp, "Deduplicated", unpacked, "before compression");
  tile_begin (fp, "Compression");
  markup_textf (fp, "%.2f", qcow2_usage_quotient (unpacked,
                                                  p->u.stored_bytes));
  tile_end (fp, "deduplicated to stored");
  tile_bytes (fp, "Dead", qcow2_usage_dead (&p->u), "of the stored, left of "
              "compressed data");
}

static void
tiles (const struct pool_report *rep, FILE *fp)
{
  const struct qcow2_pool_usage *u = &rep->pool.u;
  char of[64], human[32];

  markup_open (fp, "dl", "class", "tiles", NULL);
  tile_bytes (fp, "Logical", u->disk_bytes, "mapped in all disks");
  tile_bytes (fp, "Stored", u->stored_bytes, "data in the file");
  if (u->packed > 0)
    compression_tiles (&rep->pool, fp);
  tile_begin (fp, "Ratio");
  if (u->stored_bytes)
    markup_textf (fp, "%.2f", qcow2_usage_ratio (u));
  else
    markup_text (fp, "none");
  tile_end (fp, "logical to stored");
  tile_bytes (fp, "Saved", u->disk_bytes > u->stored_bytes ?
              u->disk_bytes - u->stored_bytes : 0, "logical less stored");
  if (!rep->is_device)
    tile_bytes (fp, "On the host", rep->actual_bytes, "space of the file");
  snprintf (of, sizeof of, "of %s", tool_human (rep->host_bytes, human));
  if (rep->host_known)
    tile_bytes (fp, "Free on the host", rep->host_free_bytes, of);
  markup_close (fp, "dl");
}

/* --- The page ------------------------------------------------------------------- */

static void
notes (const struct pool_report *rep, FILE *fp)
{
  if (rep->pool.pending)
    markup_line (fp, "p", NULL, "Work of clones or deletions is left, and stock "
                 "programs refuse the image until it is done: qcow2-dedup "
                 "recover does it.");
  if (rep->stats.needs_recovery && !rep->stats.closed_with_work)
    markup_line (fp, "p", NULL, "The image was not closed. Its journal was "
                 "replayed in memory for this report.");
}

static void
body (const struct pool_report *rep, FILE *fp)
{
  heading (rep, fp);
  markup_open (fp, "main", NULL);
  notes (rep, fp);
  tiles (rep, fp);
  report_space (rep, fp);
  report_disks (rep, fp);
  report_pairs (rep, fp);
  report_references (rep, fp);
  report_growth (rep, fp);
  report_map (rep, fp);
  report_scrub (rep, fp);
  report_index (rep, fp);
  markup_close (fp, "main");
  markup_open (fp, "footer", NULL);
  markup_textf (fp, "Made by qcow2-dedup %s from ", PACKAGE_VERSION);
  markup_name (fp, rep->path);
  markup_text (fp, ". Sizes are in units of 1024; clusters of the file count as "
               "a whole.");
  markup_close (fp, "footer");
}

void
report_page (const struct pool_report *rep, FILE *fp)
{
  fputs ("<!DOCTYPE html>\n", fp);
  markup_open (fp, "html", "xmlns", "http://www.w3.org/1999/xhtml", "lang", "en",
               NULL);
  fputc ('\n', fp);
  head (rep, fp);
  markup_open (fp, "body", NULL);
  fputc ('\n', fp);
  body (rep, fp);
  markup_close (fp, "body");
  markup_close (fp, "html");
}
