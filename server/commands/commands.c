/* SPDX-License-Identifier: BSD-3-Clause */
/* Opens, starts and stops the control socket of an image.
 *
 * Owns the server of the wire, and is the listener of the image.  Events come on any
 * thread until the image is closed, which is after the socket is gone; the server of
 * the wire drops them then, and is freed last.
 *
 * Threads: open, start, stop and free on one at a time.
 */
#include "commands-private.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct srv_control *
new_control (const struct srv_control_params *p)
{
  struct srv_control *c = calloc (1, sizeof *c);

  if (c == NULL)
    return NULL;
  c->path = strdup (p->path);
  c->image_path = strdup (p->image_path);
  c->log = p->log;
  c->quit = p->quit;
  c->set_log_level = p->set_log_level;
  c->log_level = p->log_level;
  c->opaque = p->opaque;
  if (c->path && c->image_path)
    return c;
  srv_control_free (c);
  return NULL;
}

static int MUST_CHECK
open_server (struct srv_control *c, struct fault *f)
{
  struct qmp_params p = {
    .path = c->path,
    .schemas = srv_schemas, .nr_schemas = srv_nr_schemas,
    .opaque = c,
    .package = "nbdkit-dedup-" PACKAGE_VERSION,
    .log = c->log,
  };

  if (sscanf (PACKAGE_VERSION, "%u.%u.%u", &p.major, &p.minor, &p.micro) < 1)
    p.major = 0;
  return qmp_server_open (&p, &c->server, f);
}

int
srv_control_open (const struct srv_control_params *p, struct srv_control **out,
                  struct fault *f)
{
  struct srv_control *c = new_control (p);
  int r;

  if (c == NULL)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  r = open_server (c, f);
  if (r < 0) {
    srv_control_free (c);
    return r;
  }
  *out = c;
  return 0;
}

void
srv_control_attach (struct srv_control *c, struct srv_image *image)
{
  c->image = image;
  srv_image_set_listener (image, srv_announce, c);
}

int
srv_control_start (struct srv_control *c)
{
  return qmp_server_start (c->server);
}

void
srv_control_stop (struct srv_control *c)
{
  bool quitting;

  if (c == NULL)
    return;
  quitting = __atomic_load_n (&c->quitting, __ATOMIC_RELAXED);
  qmp_server_stop (c->server, "SHUTDOWN",
                   json_pack ("{s:b, s:s}", "guest", 0, "reason",
                              quitting ? "host-qmp-quit" : "host-signal"));
}

void
srv_control_free (struct srv_control *c)
{
  if (c == NULL)
    return;
  qmp_server_free (c->server);
  free (c->path);
  free (c->image_path);
  free (c);
}
