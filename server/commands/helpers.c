/* SPDX-License-Identifier: BSD-3-Clause */
/* Helpers for commands: arguments, results, log lines, and lists in pages.
 *
 * The arguments of a command agree with its table when it is called (control.h), so
 * nothing here reports an argument.
 *
 * Threads: any.
 */
#include "commands-private.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define MAX_WHAT 700            /* a line names two disks, of 255 bytes each */

struct srv_image *
srv_control_image (void *opaque)
{
  struct srv_control *c = opaque;

  return c->image;
}

int
srv_command_result (int r, const struct fault *f, struct qmp_error *e)
{
  if (r >= 0)
    return 0;
  if (f && f->msg[0])
    qmp_error_set (e, "%s", f->msg);
  else
    qmp_error_set (e, "%s", strerror (-r));
  return r;
}

void
srv_command_log (struct srv_control *c, const struct qmp_caller *caller,
                 int r, const struct qmp_error *e, const char *what, ...)
{
  char text[MAX_WHAT];
  va_list args;

  va_start (args, what);
  vsnprintf (text, sizeof text, what, args);
  va_end (args);
  log_line (c->log, LOG_INFO, "%s: %s (process %ld, user %ld)%s%s",
            c->image_path, text, (long) caller->pid, (long) caller->uid,
            r < 0 ? " was refused: " : "", r < 0 ? e->desc : "");
}

/* --- Arguments -------------------------------------------------------------- */

const char *
srv_arg_string (const json_t *args, const char *name)
{
  const char *s = json_string_value (json_object_get (args, name));

  return s ? s : "";
}

bool
srv_arg_bool (const json_t *args, const char *name, bool otherwise)
{
  const json_t *v = json_object_get (args, name);

  return v ? json_is_true (v) : otherwise;
}

int64_t
srv_arg_int (const json_t *args, const char *name, int64_t otherwise)
{
  const json_t *v = json_object_get (args, name);

  return v ? (int64_t) json_integer_value (v) : otherwise;
}

bool
srv_arg_given (const json_t *args, const char *name)
{
  return json_object_get (args, name) != NULL;
}

/* --- Results ---------------------------------------------------------------- */

json_t *
srv_json_text (const char *s)
{
  json_t *text = json_string (s);
  CLEANUP_FREE char *copy = NULL;

  if (text)
    return text;
  copy = strdup (s);
  if (copy == NULL)
    return NULL;
  for (char *p = copy; *p; p++)
    if ((unsigned char) *p >= 0x80)
      *p = '?';
  return json_string (copy);
}

/* --- Pages ------------------------------------------------------------------ */

/* Returns how many bytes S takes as text at the most: what is not plain ASCII is
 * escaped, in six bytes for each of its bytes at the most. */
static size_t
string_bytes (const char *s)
{
  size_t bytes = 2;

  for (; *s; s++)
    bytes += *s >= 0x20 && *s < 0x7f && *s != '"' && *s != '\\' ? 1 : 6;
  return bytes;
}

static size_t
integer_bytes (json_int_t n)
{
  size_t bytes = 1 + (n < 0);

  for (n /= 10; n != 0; n /= 10)
    bytes++;
  return bytes;
}

/* Returns how many bytes V takes as text at the most, with the comma behind it.  This
 * is faster than printing it. */
static size_t
json_bytes (json_t *v)
{
  size_t bytes = 4, i;
  const char *key;
  json_t *member;

  switch (json_typeof (v)) {
  case JSON_OBJECT:
    json_object_foreach (v, key, member)
      bytes += string_bytes (key) + 2 + json_bytes (member);
    return bytes;
  case JSON_ARRAY:
    json_array_foreach (v, i, member)
      bytes += json_bytes (member);
    return bytes;
  case JSON_STRING: return 2 + string_bytes (json_string_value (v));
  case JSON_INTEGER: return 2 + integer_bytes (json_integer_value (v));
  case JSON_REAL: return 2 + 24;        /* with 17 digits */
  default: return 2 + 5;        /* true, false, null */
  }
}

int
srv_page_add (struct srv_page *p, json_t *item)
{
  size_t bytes;
  int r;

  if (p->list == NULL)
    p->list = json_array ();
  if (p->list == NULL || item == NULL) {
    json_decref (item);
    return -ENOMEM;
  }
  bytes = json_bytes (item);
  r = p->bytes > 0 && p->bytes + bytes > SRV_PAGE_BYTES ? 1
    : json_array_append (p->list, item) < 0 ? -ENOMEM : 0;
  json_decref (item);
  if (r == 0)
    p->bytes += bytes;
  return r;
}
