/* SPDX-License-Identifier: BSD-3-Clause */
/* Converts between the text of JSON strings and modified UTF-8.
 *
 * What is valid is what QEMU takes: no overlong forms but C0 80, no
 * surrogates, no noncharacters.  In an invalid sequence, the bytes that look
 * like its rest belong to it, so that it becomes one replacement character,
 * not several.
 */
#include <ctype.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "json-text.h"

#define ESCAPE_LEN 6           /* of \uXXXX */

/* --- UTF-8 --------------------------------------------------------------- */

static bool
is_noncharacter (uint32_t c)
{
  return (c >= 0xfdd0 && c <= 0xfdef) || (c & 0xfffe) == 0xfffe;
}

static bool
is_surrogate (uint32_t c)
{
  return c >= 0xd800 && c <= 0xdfff;
}

static bool
is_character (uint32_t c)
{
  return c <= 0x10ffff && !is_surrogate (c) && !is_noncharacter (c);
}

/* The number of bytes that the sequence which begins with C should have, 0 if
 * none begins with it.  Five and six are lengths of long ago, and always
 * invalid. */
static unsigned
length_of (unsigned char c)
{
  if (c < 0x80)
    return 1;
  if (c < 0xc0 || c >= 0xfe)
    return 0;
  return c < 0xe0 ? 2 : c < 0xf0 ? 3 : c < 0xf8 ? 4 : c < 0xfc ? 5 : 6;
}

static bool
is_shortest (uint32_t c, unsigned len)
{
  static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };

  return len <= 4 && (c >= least[len] || (c == 0 && len == 2));
}

uint32_t
json_character (const char **p)
{
  const unsigned char *s = (const unsigned char *) *p;
  unsigned len = length_of (s[0]), i;
  uint32_t c;

  if (len <= 1) {
    (*p)++;
    return len == 1 ? s[0] : JSON_NO_CHARACTER;
  }
  c = s[0] & (0x7f >> len);
  for (i = 1; i < len && (s[i] & 0xc0) == 0x80; i++)
    c = (c << 6) | (s[i] & 0x3f);
  *p += i;
  if (i < len || !is_shortest (c, len) || !is_character (c))
    return JSON_NO_CHARACTER;
  return c;
}

size_t
json_put_character (char *out, uint32_t c)
{
  size_t len = c == 0 ? 2 : c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
  static const unsigned char mark[] = { 0, 0, 0xc0, 0xe0, 0xf0 };
  size_t i;

  if (len == 1) {
    out[0] = c;
    return 1;
  }
  for (i = len - 1; i > 0; i--, c >>= 6)
    out[i] = 0x80 | (c & 0x3f);
  out[0] = mark[len] | c;
  return len;
}

/* --- Escapes ------------------------------------------------------------- */

/* The four hexadecimal digits at S, or JSON_NO_CHARACTER. */
static uint32_t
four_digits (const char *s)
{
  uint32_t c = 0;

  for (int i = 0; i < 4; i++) {
    if (!isxdigit ((unsigned char) s[i]))
      return JSON_NO_CHARACTER;
    c = c * 16 + (isdigit ((unsigned char) s[i]) ? s[i] - '0'
                  : (s[i] | 0x20) - 'a' + 10);
  }
  return c;
}

static uint32_t
joined (uint32_t high, uint32_t low)
{
  return 0x10000 + ((high & 0x3ff) << 10) + (low & 0x3ff);
}

/* Reads the escape \uXXXX at *P, or two of them that are one character.
 * Returns JSON_NO_CHARACTER if they are none. */
static uint32_t
unicode_escape (const char **p)
{
  uint32_t c = four_digits (*p + 2), low;

  *p += ESCAPE_LEN;
  if (c >= 0xd800 && c < 0xdc00 && (*p)[0] == '\\' && (*p)[1] == 'u') {
    low = four_digits (*p + 2);
    if (low >= 0xdc00 && low <= 0xdfff) {
      *p += ESCAPE_LEN;
      c = joined (c, low);
    }
  }
  return c != JSON_NO_CHARACTER && is_character (c) ? c : JSON_NO_CHARACTER;
}

/* The character of a backslash and C, or JSON_NO_CHARACTER. */
static uint32_t
short_escape (char c)
{
  switch (c) {
  case '"': case '\'': case '\\': case '/': return c;
  case 'b': return '\b';
  case 'f': return '\f';
  case 'n': return '\n';
  case 'r': return '\r';
  case 't': return '\t';
  }
  return JSON_NO_CHARACTER;
}

static uint32_t
escaped (const char **p, struct qmp_error *e)
{
  const char *start = *p;
  uint32_t c;

  if (start[1] == 'u') {
    c = unicode_escape (p);
    if (c == JSON_NO_CHARACTER)
      qmp_error_set (e, "JSON parse error, %.*s is not a valid Unicode "
                     "character", (int) (*p - start), start);
    return c;
  }
  *p += 2;
  c = short_escape (start[1]);
  if (c == JSON_NO_CHARACTER)
    qmp_error_set (e, "JSON parse error, invalid escape sequence in string");
  return c;
}

static uint32_t
next_character (const char **p, struct qmp_error *e)
{
  uint32_t c;

  if (**p == '\\')
    return escaped (p, e);
  c = json_character (p);
  if (c == JSON_NO_CHARACTER)
    qmp_error_set (e, "JSON parse error, invalid UTF-8 sequence in string");
  return c;
}

char *
json_unquote (const char *text, size_t len, struct qmp_error *e)
{
  const char *p = text + 1, *end = text + len - 1;
  char *out = malloc (len), *o = out;
  uint32_t c;

  if (out == NULL) {
    qmp_error_set (e, "out of memory");
    return NULL;
  }
  /* No character is longer in UTF-8 than its escape. */
  while (p < end) {
    c = next_character (&p, e);
    if (c == JSON_NO_CHARACTER) {
      free (out);
      return NULL;
    }
    o += json_put_character (o, c);
  }
  *o = '\0';
  return out;
}
