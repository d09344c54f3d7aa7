/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares a text that grows, and the printing of JSON to it. */
#ifndef DEDUP_TEXT_H
#define DEDUP_TEXT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

/* Empty if all is zero.  FAILED: memory ran out, and the text is not whole. */
struct text {
  char *bytes;
  size_t len, size;
  bool failed;
};

void text_free (struct text *t);
void text_add (struct text *t, const char *bytes, size_t len);
void text_add_string (struct text *t, const char *s);
void text_printf (struct text *t, const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 2, 3)));

/* Adds VALUE in one line of ASCII. */
void text_add_json (struct text *t, const json_t *value);

/* Adds S (modified UTF-8, json-text.h) in double quotes and ASCII. */
void text_add_quoted (struct text *t, const char *s);

#endif
