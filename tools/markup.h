/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes elements and text of a page that is well-formed as HTML and as XML.
 *
 * Text may be any bytes: what has a meaning in markup is escaped, and what cannot
 * be shown, or would change the order of what is around it, is replaced by
 * something visible.  Errors are those of the stream, for its owner to look at. */
#ifndef DEDUP_TOOL_MARKUP_H
#define DEDUP_TOOL_MARKUP_H

#include <stdint.h>
#include <stdio.h>

/* Writes S as text or as a part of an attribute's value. */
void markup_text (FILE *fp, const char *s);
void markup_textf (FILE *fp, const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 2, 3)));

/* Begins an element.  Pairs of an attribute's name and value follow, and NULL; a
 * pair whose value is NULL is left out. */
void markup_open (FILE *fp, const char *tag, ...)
  __attribute__ ((__sentinel__));
void markup_close (FILE *fp, const char *tag);
/* Writes an element that has no contents. */
void markup_empty (FILE *fp, const char *tag, ...)
  __attribute__ ((__sentinel__));
/* Writes <TAG class="CLASS">TEXT</TAG>; CLASS may be NULL. */
void markup_line (FILE *fp, const char *tag, const char *class,
                  const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 4, 5)));

/* Writes a number of bytes for people, and exactly as the value of a data
 * element. */
void markup_bytes (FILE *fp, uint64_t bytes);
/* Writes a name that may be of a script written from right to left, so that it
 * does not move what is beside it.  A long name is also in the title, as the style
 * may cut what is shown. */
void markup_name (FILE *fp, const char *name);

#endif
