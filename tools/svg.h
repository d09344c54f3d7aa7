/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes drawings in SVG, for pages that markup.h writes.
 *
 * A drawing has a coordinate system of its own, and is scaled to the width that
 * the page gives it.  Its title and description are read out in place of it.
 * Colours come from the classes of the page's style. */
#ifndef DEDUP_TOOL_SVG_H
#define DEDUP_TOOL_SVG_H

#include <stdbool.h>
#include <stdio.h>

struct svg {
  FILE *fp;
  const char *id;              /* of the drawing; one word, once in a page */
  const char *class;
  double width, height;
  unsigned max_px;             /* the largest width on a page; 0: that of the
                                * page */
  bool stretched;              /* width and height are scaled apart: for drawings
                                * without text */
};

/* Begins a drawing.  TITLE is one line; DESC, a sentence or more, may be NULL. */
void svg_begin (const struct svg *s, const char *title, const char *desc);
void svg_end (const struct svg *s);
/* Writes a rectangle of CLASS.  OPACITY of 1 is opaque.  TITLE, unless NULL, is
 * shown when somebody points at it. */
void svg_rect (const struct svg *s, double x, double y, double w, double h,
               const char *class, double opacity, const char *title);
/* Writes text that ends ("end"), begins ("start") or has its middle ("middle") at
 * X, on the base line Y. */
void svg_text (const struct svg *s, double x, double y, const char *anchor,
               const char *text);
/* Begins a line of points, adds one, and ends it. */
void svg_line_begin (const struct svg *s, const char *class);
void svg_line_to (const struct svg *s, double x, double y);
void svg_line_end (const struct svg *s);

#endif
