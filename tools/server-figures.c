/* SPDX-License-Identifier: BSD-3-Clause */
/* Asks a server for its figures, and finds numbers in the replies.
 *
 * A member that a server does not send, because it is older or does not know it, is 0
 * or empty; nothing that a server sends can make a reader here fail.
 */
#include "clock.h"
#include "disk-line.h"
#include "status.h"
#include "tool.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_DISKS 65536

/* Turns "no such command" into an empty list. */
static int MUST_CHECK
allow_missing (int r, json_t **list, struct fault *f)
{
  if (r != -ENOTSUP)
    return r;
  *f = (struct fault) { 0 };
  *list = json_array ();
  return 0;
}

static json_t *
key_of_disk (const json_t *disk)
{
  return json_deep_copy (json_object_get (disk, "name"));
}

/* Asks for lines on the disks, or for objects, as older servers have no lines. */
static int MUST_CHECK
get_disks (struct control_client *c, bool lines, struct server_figures *s,
           struct fault *f)
{
  int r = lines ? control_list (c, "query-disk-lines", disk_line_key, MAX_DISKS,
                                &s->lines, f) : -ENOTSUP;

  if (r != -ENOTSUP)
    return r;
  *f = (struct fault) { 0 };
  return control_list (c, "query-disk-stats", key_of_disk, MAX_DISKS, &s->disks, f);
}

int
server_figures_get (struct control_client *c, bool lines, struct server_figures *s,
                    struct fault *f)
{
  int r;

  memset (s, 0, sizeof *s);
  r = control_command (c, "query-stats", NULL, &s->stats, f);
  s->taken_ns = clock_now_ns ();
  if (r == 0)
    r = allow_missing (control_command (c, "query-jobs", NULL, &s->jobs, f),
                       &s->jobs, f);
  if (r == 0)
    r = get_disks (c, lines, s, f);
  if (r < 0)
    server_figures_free (s);
  return r;
}

void
server_figures_free (struct server_figures *s)
{
  json_decref (s->stats);
  json_decref (s->jobs);
  json_decref (s->disks);
  json_decref (s->lines);
  memset (s, 0, sizeof *s);
}

/* --- Members -------------------------------------------------------------- */

uint64_t
figure (const json_t *o, const char *key)
{
  const json_int_t v = json_integer_value (json_object_get (o, key));

  return v < 0 ? 0 : (uint64_t) v;
}

double
figure_real (const json_t *o, const char *key)
{
  return json_number_value (json_object_get (o, key));
}

bool
figure_known (const json_t *o, const char *key)
{
  return json_object_get (o, key) != NULL;
}

const char *
figure_text (const json_t *o, const char *key)
{
  const char *s = json_string_value (json_object_get (o, key));

  return s ? s : "";
}

const json_t *
figures_of_type (const json_t *o, const char *type)
{
  const json_t *list = json_object_get (o, "requests"), *v;
  size_t i;

  json_array_foreach (list, i, v)
    if (strcmp (figure_text (v, "type"), type) == 0)
      return v;
  return NULL;
}

void
figure_latency (const json_t *request, struct latency *l)
{
  const json_t *list = json_object_get (request, "latency");

  for (unsigned i = 0; i < LATENCY_BUCKETS; i++) {
    const json_int_t v = json_integer_value (json_array_get (list, i));

    l->v[i] = v < 0 ? 0 : (uint64_t) v;
  }
}

int
control_check_path (const char *subcommand, const char *control, const char *image)
{
  return control == NULL && image && strstr (image, "://")
    ? tool_usage_error (subcommand, "'%.100s' is no file with a socket beside it: "
                        "--control names the socket of its server", image)
    : -1;
}

char *
control_path (const char *control, const char *image)
{
  char *path;

  if (control)
    return strdup (control);
  return asprintf (&path, "%s.control", image) < 0 ? NULL : path;
}
