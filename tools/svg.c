/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes drawings in SVG; svg.h is its manual.
 *
 * Coordinates have two decimals at most, and no trailing zeroes, since a map has
 * thousands of them.  One thread; errors are those of the stream.
 */
#include "svg.h"

#include <string.h>

#include "markup.h"

/* Writes V into BUF in as few characters as it takes. */
static const char *
number (double v, char buf[32])
{
  char *end;

  snprintf (buf, 32, "%.2f", v);
  end = buf + strlen (buf) - 1;
  while (*end == '0')
    *end-- = '\0';
  if (*end == '.')
    *end = '\0';
  return strcmp (buf, "-0") == 0 ? "0" : buf;
}

void
svg_begin (const struct svg *s, const char *title, const char *desc)
{
  char box[80], title_id[64], desc_id[64], both[140], w[32], h[32], max[64];

  snprintf (box, sizeof box, "0 0 %s %s", number (s->width, w),
            number (s->height, h));
  snprintf (title_id, sizeof title_id, "%s-title", s->id);
  snprintf (desc_id, sizeof desc_id, "%s-desc", s->id);
  snprintf (both, sizeof both, desc ? "%s %s" : "%s", title_id, desc_id);
  snprintf (max, sizeof max, "max-width: %upx", s->max_px);
  markup_open (s->fp, "svg", "xmlns", "http://www.w3.org/2000/svg", "class",
               s->class, "viewBox", box, "role", "img", "aria-labelledby",
               both, "preserveAspectRatio", s->stretched ? "none" : NULL,
               "style", s->max_px ? max : NULL, NULL);
  markup_open (s->fp, "title", "id", title_id, NULL);
  markup_text (s->fp, title);
  markup_close (s->fp, "title");
  if (desc == NULL)
    return;
  markup_open (s->fp, "desc", "id", desc_id, NULL);
  markup_text (s->fp, desc);
  markup_close (s->fp, "desc");
}

void
svg_end (const struct svg *s)
{
  markup_close (s->fp, "svg");
}

void
svg_rect (const struct svg *s, double x, double y, double w, double h,
          const char *class, double opacity, const char *title)
{
  char nx[32], ny[32], nw[32], nh[32], o[32];

  fprintf (s->fp, "<rect x=\"%s\" y=\"%s\" width=\"%s\" height=\"%s\" "
           "class=\"%s\"", number (x, nx), number (y, ny), number (w, nw),
           number (h, nh), class);
  if (opacity < 1)
    fprintf (s->fp, " fill-opacity=\"%s\"", number (opacity, o));
  if (title) {
    fputs ("><title>", s->fp);
    markup_text (s->fp, title);
    fputs ("</title></rect>\n", s->fp);
  }
  else
    fputs ("/>\n", s->fp);
}

void
svg_text (const struct svg *s, double x, double y, const char *anchor,
          const char *text)
{
  char nx[32], ny[32];

  markup_open (s->fp, "text", "x", number (x, nx), "y", number (y, ny),
               "text-anchor", anchor, NULL);
  markup_text (s->fp, text);
  markup_close (s->fp, "text");
}

void
svg_line_begin (const struct svg *s, const char *class)
{
  fprintf (s->fp, "<polyline class=\"%s\" points=\"", class);
}

void
svg_line_to (const struct svg *s, double x, double y)
{
  char nx[32], ny[32];

  fprintf (s->fp, "%s,%s ", number (x, nx), number (y, ny));
}

void
svg_line_end (const struct svg *s)
{
  fputs ("\"/>\n", s->fp);
}
