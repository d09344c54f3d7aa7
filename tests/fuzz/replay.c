/* SPDX-License-Identifier: BSD-3-Clause */
/* Has main for a fuzzer without libFuzzer: it runs each file, or each file of
 * each directory, of the command line, and prints how many.  A file that
 * crashes is the last one named on stderr.
 */
#include <dirent.h>
#include <stdio.h>
#include <sys/stat.h>

#include "fuzz.h"

static unsigned long nr_run;

static int
run_file (const char *path)
{
  FILE *f = fopen (path, "rb");
  uint8_t *buf = NULL;
  size_t len = 0, n;

  if (f == NULL) {
    perror (path);
    return -1;
  }
  do {
    buf = realloc (buf, len + 65536);
    MUST (buf);
    n = fread (buf + len, 1, 65536, f);
    len += n;
  } while (n > 0);
  fclose (f);
  fprintf (stderr, "%s\n", path);
  LLVMFuzzerTestOneInput (buf, len);
  free (buf);
  nr_run++;
  return 0;
}

static int
run_path (const char *path)
{
  struct stat st;
  struct dirent **names;
  char file[4096];
  int nr, i, r = 0;

  if (stat (path, &st) == 0 && !S_ISDIR (st.st_mode))
    return run_file (path);
  nr = scandir (path, &names, NULL, alphasort);
  if (nr < 0) {
    perror (path);
    return -1;
  }
  for (i = 0; i < nr; i++) {
    snprintf (file, sizeof file, "%s/%s", path, names[i]->d_name);
    if (names[i]->d_name[0] != '.' && run_file (file) < 0)
      r = -1;
    free (names[i]);
  }
  free (names);
  return r;
}

int
main (int argc, char *argv[])
{
  int i, r = 0;

  for (i = 1; i < argc; i++)
    if (run_path (argv[i]) < 0)
      r = 1;
  printf ("%lu inputs\n", nr_run);
  return nr_run > 0 ? r : 1;
}
