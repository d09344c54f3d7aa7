/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads the figures of a disk from a line of query-disk-lines, or from an object of
 * query-disk-stats (disk-line.h).
 *
 * A line is SIZE MAPPED CLIENTS REQUESTS NAME, with one space between words; the name may
 * have more.  Whatever a server sends, nothing here reads behind the end of its string.
 *
 * Functions of their arguments: any thread may call them.
 */
#include "disk-line.h"

#include <stdio.h>
#include <string.h>

#include "checked.h"
#include "status.h"

/* Reads digits at *S, and the character END behind them.  What has more than 64 bits wraps
 * around. */
static bool
take_number (const char **s, char end, uint64_t *n)
{
  const char *p = *s;

  for (*n = 0; *p >= '0' && *p <= '9'; p++)
    *n = *n * 10 + (uint64_t) (*p - '0');
  if (p == *s || *p != end)
    return false;
  *s = p + 1;
  return true;
}

/* Reads TYPE:REQUESTS:ERRORS:BYTES at *S. */
static bool
take_requests (const char **s, struct disk_requests *q)
{
  const size_t len = strcspn (*s, ": ");
  const char *p = *s + len;

  if (*p++ != ':' || len >= sizeof q->type)
    return false;
  memcpy (q->type, *s, len);
  q->type[len] = '\0';
  if (!take_number (&p, ':', &q->requests) || !take_number (&p, ':', &q->errors) ||
      (!take_number (&p, ',', &q->bytes) && !take_number (&p, ' ', &q->bytes)))
    return false;
  *s = p;
  return true;
}

/* Reads "- " at *S. */
static bool
take_none (const char **s)
{
  if (strncmp (*s, "- ", 2) != 0)
    return false;
  *s += 2;
  return true;
}

static bool
read_all (const char *s, struct disk_line *line)
{
  if (!take_number (&s, ' ', &line->size))
    return false;
  line->mapped_known = !take_none (&s);
  if ((line->mapped_known && !take_number (&s, ' ', &line->mapped_bytes)) ||
      !take_number (&s, ' ', &line->clients))
    return false;
  if (!take_none (&s))
    do
      if (line->nr == DISK_LINE_TYPES || !take_requests (&s, &line->v[line->nr++]))
        return false;
    while (s[-1] == ',');
  line->name = s;
  return true;
}

bool
disk_line_read (const char *s, struct disk_line *line)
{
  line->nr = 0;
  line->mapped_bytes = 0;
  if (read_all (s, line))
    return true;
  line->nr = 0;
  line->name = "";
  return false;
}

void
disk_line_of_object (const json_t *disk, struct disk_line *line)
{
  const json_t *list = json_object_get (disk, "requests"), *v;
  size_t i;

  line->name = figure_text (disk, "name");
  line->size = figure (disk, "size");
  line->mapped_known = figure_known (disk, "mapped-bytes");
  line->mapped_bytes = figure (disk, "mapped-bytes");
  line->clients = figure (disk, "clients");
  line->nr = 0;
  json_array_foreach (list, i, v) {
    struct disk_requests *q = &line->v[line->nr];

    if (line->nr++ == DISK_LINE_TYPES)
      break;
    snprintf (q->type, sizeof q->type, "%s", figure_text (v, "type"));
    q->requests = figure (v, "requests");
    q->errors = figure (v, "errors");
    q->bytes = figure (v, "bytes");
  }
  line->nr = MIN_OF (line->nr, DISK_LINE_TYPES);
}

json_t *
disk_line_key (const json_t *item)
{
  const char *s = json_string_value (item);
  struct disk_line line;

  return s && disk_line_read (s, &line) ? json_string (line.name) : NULL;
}
