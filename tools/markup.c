/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes elements and text of a page; markup.h is its manual.
 *
 * XML allows no control characters but tab and line ends, not even escaped, nor
 * U+FFFE and U+FFFF.  Characters that change the direction of text could make a
 * name look like another one, or swap it with what follows.  Both are written as
 * U+FFFD or as their number.  Bytes that are no UTF-8 become U+FFFD.
 */
#include "markup.h"

#include <stdarg.h>
#include <stdbool.h>
#include <string.h>

#include "tool.h"

#define LONG_NAME 20            /* bytes: the style may cut longer ones */
#define REPLACEMENT "\xef\xbf\xbd"

/* --- Text ----------------------------------------------------------------- */

/* Decodes the character at S.  Returns its number of bytes; 0: it is none. */
static unsigned
decode (const unsigned char *s, uint32_t *c)
{
  static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
  const unsigned n = s[0] < 0x80 ? 1 : s[0] >> 5 == 6 ? 2 : s[0] >> 4 == 14 ? 3
    : s[0] >> 3 == 30 ? 4 : 0;
  unsigned i;

  *c = n < 2 ? s[0] : s[0] & (0x7fu >> n);
  for (i = 1; i < n; i++) {
    if (s[i] >> 6 != 2)
      return 0;
    *c = *c << 6 | (s[i] & 0x3f);
  }
  return n == 0 || *c < least[n] || *c > 0x10ffff || *c >> 11 == 27 ? 0 : n;
}

static bool
turns_text (uint32_t c)
{
  return c == 0x61c || c == 0x200e || c == 0x200f ||
    (c >= 0x202a && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069);
}

static bool
cannot_be_shown (uint32_t c)
{
  return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x2028 || c == 0x2029 ||
    c == 0xfeff || (c & 0xfffe) == 0xfffe;
}

static void
put (FILE *fp, const char *s, unsigned n, uint32_t c)
{
  switch (c) {
  case '&': fputs ("&amp;", fp); break;
  case '<': fputs ("&lt;", fp); break;
  case '>': fputs ("&gt;", fp); break;
  case '"': fputs ("&quot;", fp); break;
  case '\'': fputs ("&#39;", fp); break;
  default:
    if (turns_text (c))
      fprintf (fp, "[U+%04X]", c);
    else if (cannot_be_shown (c))
      fputs (REPLACEMENT, fp);
    else
      fwrite (s, 1, n, fp);
  }
}

void
markup_text (FILE *fp, const char *s)
{
  uint32_t c;
  unsigned n;

  for (; *s; s += n ? n : 1) {
    n = decode ((const unsigned char *) s, &c);
    if (n)
      put (fp, s, n, c);
    else
      fputs (REPLACEMENT, fp);
  }
}

static void __attribute__ ((__format__ (__printf__, 2, 0)))
text_va (FILE *fp, const char *fmt, va_list ap)
{
  char s[2048];

  vsnprintf (s, sizeof s, fmt, ap);
  markup_text (fp, s);
}

void
markup_textf (FILE *fp, const char *fmt, ...)
{
  va_list ap;

  va_start (ap, fmt);
  text_va (fp, fmt, ap);
  va_end (ap);
}

/* --- Elements ------------------------------------------------------------- */

static void
open_va (FILE *fp, const char *tag, va_list ap)
{
  const char *name, *value;

  fprintf (fp, "<%s", tag);
  while ((name = va_arg (ap, const char *)) != NULL) {
    value = va_arg (ap, const char *);
    if (value == NULL)
      continue;
    fprintf (fp, " %s=\"", name);
    markup_text (fp, value);
    fputc ('"', fp);
  }
}

void
markup_open (FILE *fp, const char *tag, ...)
{
  va_list ap;

  va_start (ap, tag);
  open_va (fp, tag, ap);
  va_end (ap);
  fputc ('>', fp);
}

void
markup_close (FILE *fp, const char *tag)
{
  fprintf (fp, "</%s>\n", tag);
}

void
markup_empty (FILE *fp, const char *tag, ...)
{
  va_list ap;

  va_start (ap, tag);
  open_va (fp, tag, ap);
  va_end (ap);
  fputs (" />\n", fp);
}

void
markup_line (FILE *fp, const char *tag, const char *class, const char *fmt,
             ...)
{
  va_list ap;

  markup_open (fp, tag, "class", class, NULL);
  va_start (ap, fmt);
  text_va (fp, fmt, ap);
  va_end (ap);
  markup_close (fp, tag);
}

void
markup_bytes (FILE *fp, uint64_t bytes)
{
  char human[32], exact[32];

  snprintf (exact, sizeof exact, "%llu", (unsigned long long) bytes);
  markup_open (fp, "data", "value", exact, NULL);
  markup_text (fp, tool_human (bytes, human));
  fputs ("</data>", fp);
}

void
markup_name (FILE *fp, const char *name)
{
  markup_open (fp, "bdi", "title", strlen (name) > LONG_NAME ? name : NULL,
               NULL);
  markup_text (fp, name);
  fputs ("</bdi>", fp);
}
