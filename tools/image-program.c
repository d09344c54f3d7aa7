/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds the program qcow2-dedup-image, and runs it in place of this one.
 *
 * It lies beside this program where both were built.  An installed program is in BINDIR,
 * and the other one in IMAGE_PROGRAM_DIR; where a package was unpacked below some other
 * directory, both are below that.
 */
#include "tool.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#define NAME "qcow2-dedup-image"

/* Cuts TAIL off the end of S.  False if S does not end so. */
static bool
cut_off (char *s, const char *tail)
{
  const size_t len = strlen (s), tail_len = strlen (tail);

  if (len < tail_len || strcmp (s + len - tail_len, tail) != 0)
    return false;
  s[len - tail_len] = '\0';
  return true;
}

/* Sets DIR, of PATH_MAX bytes, to the directory of this program; "" if /proc is not
 * there, or does not know it. */
static void
find_own_directory (char *dir)
{
  const ssize_t len = readlink ("/proc/self/exe", dir, PATH_MAX - 1);
  char *slash;

  dir[len < 0 ? 0 : len] = '\0';
  slash = strrchr (dir, '/');
  dir[slash ? slash - dir : 0] = '\0';
}

int
tool_become_image_program (char *argv[])
{
  char dir[PATH_MAX], path[PATH_MAX + sizeof IMAGE_PROGRAM_DIR + sizeof NAME + 1];

  find_own_directory (dir);
  if (dir[0] != '\0') {
    snprintf (path, sizeof path, "%s/" NAME, dir);
    execv (path, argv);
  }
  if (!cut_off (dir, BINDIR))
    dir[0] = '\0';
  snprintf (path, sizeof path, "%s" IMAGE_PROGRAM_DIR "/" NAME, dir);
  execv (path, argv);
  return tool_error (path, "cannot run it: %s", strerror (errno));
}
