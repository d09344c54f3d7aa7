/* SPDX-License-Identifier: BSD-3-Clause */
/* Serves the test's table of commands on a socket, until the command "quit":
 *
 * qmp-server PATH PACKAGE MAJOR.MINOR.MICRO
 *
 * The greeting has package and version. It prints "ready" when clients can
 * connect, and its log to standard error. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "fake-commands.h"

static void
log_to_stderr (void *opaque, enum log_level level, const char *line)
{
  fprintf (stderr, "%s\n", line);
}

static void
quit (void *opaque)
{
  const int *fds = opaque;

  if (write (fds[1], "q", 1) != 1)
    abort ();
}

static void
wait_for_quit (const int *fds)
{
  char c;

  if (read (fds[0], &c, 1) != 1)
    abort ();
}

int
main (int argc, char **argv)
{
  static const struct log_sink log = { .write = log_to_stderr };
  static const struct qmp_schema *const schemas[] = { &fake_schema };
  int fds[2];
  struct fake_world world = { .quit = quit, .opaque = fds };
  struct qmp_params p = {
    .path = argv[1], .schemas = schemas, .nr_schemas = 1, .opaque = &world,
    .package = argv[2], .log = &log,
  };
  struct fault f = { 0 };

  if (argc != 4 || pipe (fds) < 0 ||
      sscanf (argv[3], "%u.%u.%u", &p.major, &p.minor, &p.micro) != 3)
    return 2;
  if (qmp_server_open (&p, &world.server, &f) < 0) {
    fprintf (stderr, "%s\n", f.msg);
    return 1;
  }
  if (qmp_server_start (world.server) < 0)
    return 1;
  puts ("ready");
  fflush (stdout);
  wait_for_quit (fds);
  qmp_server_stop (world.server, "SHUTDOWN", NULL);
  qmp_server_free (world.server);
  return 0;
}
