/* SPDX-License-Identifier: BSD-3-Clause */
/* The control socket of the server: the key control=, and what commands ask of the
 * process.
 *
 * The socket is created before the image is opened, so that an error changes nothing, and
 * before nbdkit goes into the background, so that it is reported on the terminal.
 * Clients that connect wait until the image is served.
 *
 * Threads: admin_stop runs on the thread that stops the server (stop.c), all others on
 * nbdkit's main thread.
 */
#include <string.h>
#include <stdlib.h>
#include <sys/un.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "admin.h"
#include "commands.h"
#include "report.h"
#include "stop.h"

static char *path;              /* absolute; NULL: no control socket */
static struct srv_control *control;

int
admin_config (const char *key, const char *value)
{
  const size_t max = sizeof ((struct sockaddr_un *) NULL)->sun_path - 1;

  if (*value == '\0') {
    report_error ("%s=%s: must name a Unix socket", key, value);
    return -1;
  }
  free (path);
  path = nbdkit_absolute_path (value);
  if (path == NULL)
    return -1;
  if (strlen (path) > max) {
    report_error ("%s=%s: is too long for a Unix socket: its absolute path has %zu "
                  "bytes, and may have %zu", key, value, strlen (path), max);
    return -1;
  }
  return 0;
}

static void
quit_cb (void *opaque)
{
  stop_request ();
}

static void
set_log_level_cb (void *opaque, enum log_level level)
{
  report_set_level (level);
}

int
admin_open (const char *image_path)
{
  struct srv_control_params p = {
    .path = path, .image_path = image_path,
    .log = &report_sink,
    .quit = quit_cb,
    .set_log_level = set_log_level_cb, .log_level = LOG_INFO,
  };
  struct fault f = { 0 };
  int r;

  if (path == NULL)
    return 0;
  r = srv_control_open (&p, &control, &f);
  if (r < 0) {
    report_error ("control=%s: %s", path, f.msg[0] ? f.msg : strerror (-r));
    return -1;
  }
  return 0;
}

void
admin_attach (struct srv_image *image)
{
  if (control)
    srv_control_attach (control, image);
}

int
admin_start (void)
{
  return control ? srv_control_start (control) : 0;
}

void
admin_stop (void)
{
  srv_control_stop (control);
}

void
admin_free (void)
{
  srv_control_free (control);
  control = NULL;
}
