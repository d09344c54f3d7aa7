/* SPDX-License-Identifier: BSD-3-Clause */
/* Prints JSON as QEMU's monitor does: in one line, with a space behind commas
 * and colons, and with everything that is not ASCII as \uXXXX, so that clients
 * which read lines of any encoding understand it.
 *
 * Memory that runs out is noted in the text and asked for once, at its end.
 */
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json-text.h"
#include "text.h"

#define FIRST_SIZE 256

void
text_free (struct text *t)
{
  free (t->bytes);
  memset (t, 0, sizeof *t);
}

static bool
reserve (struct text *t, size_t len)
{
  size_t size = t->size > 0 ? t->size : FIRST_SIZE;
  char *bytes;

  while (size - t->len < len)
    size *= 2;
  if (size == t->size)
    return true;
  bytes = realloc (t->bytes, size);
  if (bytes == NULL) {
    t->failed = true;
    return false;
  }
  t->bytes = bytes;
  t->size = size;
  return true;
}

void
text_add (struct text *t, const char *bytes, size_t len)
{
  if (len == 0 || t->failed || !reserve (t, len))
    return;
  memcpy (t->bytes + t->len, bytes, len);
  t->len += len;
}

void
text_add_string (struct text *t, const char *s)
{
  text_add (t, s, strlen (s));
}

void
text_printf (struct text *t, const char *fmt, ...)
{
  va_list args;
  char *s = NULL;
  int r;

  va_start (args, fmt);
  r = vasprintf (&s, fmt, args);
  va_end (args);
  if (r < 0)
    t->failed = true;
  else {
    text_add (t, s, r);
    free (s);
  }
}

/* --- Strings ------------------------------------------------------------- */

/* Adds a unit of UTF-16.  Names in many scripts have nothing else. */
static void
add_unit (struct text *t, uint32_t u)
{
  static const char digits[] = "0123456789ABCDEF";
  const char s[6] = { '\\', 'u', digits[u >> 12 & 15], digits[u >> 8 & 15],
                      digits[u >> 4 & 15], digits[u & 15] };

  text_add (t, s, sizeof s);
}

static void
add_unicode (struct text *t, uint32_t c)
{
  if (c == JSON_NO_CHARACTER)
    c = 0xfffd;
  if (c >= 0x10000) {
    c -= 0x10000;
    add_unit (t, 0xd800 + (c >> 10));
    add_unit (t, 0xdc00 + (c & 0x3ff));
  }
  else
    add_unit (t, c);
}

static void
add_character (struct text *t, uint32_t c)
{
  switch (c) {
  case '"': text_add_string (t, "\\\""); break;
  case '\\': text_add_string (t, "\\\\"); break;
  case '\b': text_add_string (t, "\\b"); break;
  case '\f': text_add_string (t, "\\f"); break;
  case '\n': text_add_string (t, "\\n"); break;
  case '\r': text_add_string (t, "\\r"); break;
  case '\t': text_add_string (t, "\\t"); break;
  default: add_unicode (t, c);
  }
}

static size_t
plain_run (const char *s)
{
  const char *p = s;

  while (*p >= 0x20 && *p < 0x7f && *p != '"' && *p != '\\')
    p++;
  return p - s;
}

void
text_add_quoted (struct text *t, const char *s)
{
  size_t run;

  text_add (t, "\"", 1);
  while (*s != '\0') {
    run = plain_run (s);
    text_add (t, s, run);
    s += run;
    if (run == 0)
      add_character (t, json_character (&s));
  }
  text_add (t, "\"", 1);
}

/* --- Values -------------------------------------------------------------- */

static void
add_integer (struct text *t, json_int_t n)
{
  char s[24];                   /* 20 characters at most */

  text_add (t, s, (size_t) snprintf (s, sizeof s, "%" JSON_INTEGER_FORMAT, n));
}

static void
add_object (struct text *t, const json_t *object)
{
  /* jansson's iteration does not change the object. */
  json_t *o = (json_t *) object, *value;
  const char *key, *before = "";

  text_add (t, "{", 1);
  json_object_foreach (o, key, value) {
    text_add_string (t, before);
    text_add_quoted (t, key);
    text_add (t, ": ", 2);
    text_add_json (t, value);
    before = ", ";
  }
  text_add (t, "}", 1);
}

static void
add_list (struct text *t, const json_t *list)
{
  text_add (t, "[", 1);
  for (size_t i = 0; i < json_array_size (list); i++) {
    text_add_string (t, i > 0 ? ", " : "");
    text_add_json (t, json_array_get (list, i));
  }
  text_add (t, "]", 1);
}

void
text_add_json (struct text *t, const json_t *value)
{
  switch (json_typeof (value)) {
  case JSON_OBJECT: add_object (t, value); break;
  case JSON_ARRAY: add_list (t, value); break;
  case JSON_STRING: text_add_quoted (t, json_string_value (value)); break;
  case JSON_INTEGER: add_integer (t, json_integer_value (value)); break;
  case JSON_REAL: text_printf (t, "%.17g", json_real_value (value)); break;
  case JSON_TRUE: text_add_string (t, "true"); break;
  case JSON_FALSE: text_add_string (t, "false"); break;
  case JSON_NULL: text_add_string (t, "null"); break;
  }
}
