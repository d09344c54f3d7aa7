/* SPDX-License-Identifier: BSD-3-Clause */
/* print-manual TEMPLATE: prints the manual page of the control socket as POD.
 *
 * Copies TEMPLATE, and puts the commands, events and types, as the tables of this room
 * describe them, in place of the line "=for commands".  So the page says what the
 * server checks.  Runs when the program is built, and fails if the tables contradict each
 * other.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"

static int
copy (FILE *from)
{
  char line[512];
  int places = 0;

  while (fgets (line, sizeof line, from))
    if (strcmp (line, "=for commands\n") == 0) {
      qmp_schema_print_pod (srv_schemas, srv_nr_schemas, stdout);
      places++;
    }
    else
      fputs (line, stdout);
  return places == 1 && fflush (stdout) == 0 ? 0 : -1;
}

int
main (int argc, char *argv[])
{
  struct fault f = { 0 };
  FILE *from;
  int r;

  if (argc != 2) {
    fprintf (stderr, "usage: print-manual TEMPLATE\n");
    return EXIT_FAILURE;
  }
  if (qmp_schema_check (srv_schemas, srv_nr_schemas, &f) < 0) {
    fprintf (stderr, "print-manual: %s\n", f.msg);
    return EXIT_FAILURE;
  }
  from = fopen (argv[1], "r");
  if (from == NULL) {
    fprintf (stderr, "print-manual: %s: %s\n", argv[1], strerror (errno));
    return EXIT_FAILURE;
  }
  r = copy (from);
  fclose (from);
  if (r < 0)
    fprintf (stderr, "print-manual: %s: not one line \"=for commands\"\n",
             argv[1]);
  return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
