/* SPDX-License-Identifier: BSD-3-Clause */
/* Estimates how much memory the page cache may still take: MemAvailable of the
 * machine, or the smallest limit of the control groups (of version 1 or 2) that
 * this process is in, if that is less.  The pages that a process reads count as
 * its group's.
 *
 * A service whose /proc has processes only (systemd's ProcSubset=pid) sees no
 * MemAvailable.  Then the free memory of all memory nodes and their pages of
 * files are added up instead.
 *
 * The functions have no state and may be called from any thread.  What a group
 * uses already is left out: only its limit counts.
 */
#include "free-memory.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "checked.h"

static FILE *
open_below (const char *root, const char *path)
{
  char name[PATH_MAX];

  if (snprintf (name, sizeof name, "%s%s", root, path) >= (int) sizeof name)
    return NULL;
  return fopen (name, "re");
}

/* Finds "NAME: 123 kB" in LINE and returns the value in bytes, or 0. */
static uint64_t
bytes_in_line (const char *line, const char *name)
{
  const char *value = strstr (line, name);
  uint64_t kib;

  if (value == NULL || sscanf (value + strlen (name), ": %" SCNu64 " kB", &kib)
      != 1)
    return 0;
  return kib << 10;
}

/* Returns the sum of the values that F has for NAMES, which end with NULL.
 * Closes F. */
static uint64_t
sum_of_lines (FILE *f, const char *const *names)
{
  char line[256];
  uint64_t sum = 0;

  while (fgets (line, sizeof line, f))
    for (size_t i = 0; names[i]; i++)
      sum += bytes_in_line (line, names[i]);
  fclose (f);
  return sum;
}

/* The most memory nodes that are looked at: nodes may be missing, so counting
 * cannot stop at the first gap.  A node past the limit counts as full. */
#define MAX_NODES 64

static uint64_t
available_of_nodes (const char *root)
{
  static const char *const names[] = { "MemFree", "Active(file)",
                                       "Inactive(file)", NULL };
  char path[64];
  uint64_t sum = 0;
  FILE *f;

  for (unsigned node = 0; node < MAX_NODES; node++) {
    snprintf (path, sizeof path, "/sys/devices/system/node/node%u/meminfo",
              node);
    f = open_below (root, path);
    if (f)
      sum += sum_of_lines (f, names);
  }
  return sum;
}

static uint64_t
available (const char *root)
{
  static const char *const names[] = { "MemAvailable", NULL };
  FILE *f = open_below (root, "/proc/meminfo");

  return f ? sum_of_lines (f, names) : available_of_nodes (root);
}

/* Returns the number in the file PATH; UINT64_MAX if there is none ("max", or
 * no such file). */
static uint64_t
read_limit (const char *root, const char *path)
{
  FILE *f = open_below (root, path);
  uint64_t n;

  if (f == NULL)
    return UINT64_MAX;
  if (fscanf (f, "%" SCNu64, &n) != 1)
    n = UINT64_MAX;
  fclose (f);
  return n;
}

/* Returns the smallest value of the limit FILE for GROUP and the groups above
 * it, in the hierarchy mounted at TOP.  GROUP begins with a slash, and is
 * shortened on the way. */
static uint64_t
least_limit (const char *root, const char *top, char *group, const char *file)
{
  uint64_t least = UINT64_MAX, limit;
  char path[PATH_MAX];
  char *slash;

  do {
    slash = strrchr (group, '/');
    if (snprintf (path, sizeof path, "%s%s/%s", top, group, file) <
        (int) sizeof path) {
      limit = read_limit (root, path);
      least = MIN_OF (least, limit);
    }
    if (slash)
      *slash = '\0';
  } while (slash);
  return least;
}

/* Returns the limit of the group in LINE of /proc/self/cgroup, which is
 * "ID:CONTROLLERS:GROUP". */
static uint64_t
limit_of_line (const char *root, char *line)
{
  char *controllers = strchr (line, ':'), *group;
  uint64_t high, max;
  char copy[PATH_MAX];

  if (controllers == NULL)
    return UINT64_MAX;
  *controllers++ = '\0';
  group = strchr (controllers, ':');
  if (group == NULL || group[1] != '/')
    return UINT64_MAX;
  *group++ = '\0';
  group[strcspn (group, "\n")] = '\0';
  if (strcmp (controllers, "memory") == 0)
    return least_limit (root, "/sys/fs/cgroup/memory", group,
                        "memory.limit_in_bytes");
  if (controllers[0] != '\0')
    return UINT64_MAX;
  snprintf (copy, sizeof copy, "%s", group);
  high = least_limit (root, "/sys/fs/cgroup", copy, "memory.high");
  max = least_limit (root, "/sys/fs/cgroup", group, "memory.max");
  return MIN_OF (high, max);
}

uint64_t
io_free_memory (const char *root)
{
  FILE *f = open_below (root, "/proc/self/cgroup");
  uint64_t least = available (root), limit;
  char line[PATH_MAX];

  if (f == NULL)
    return least;
  while (fgets (line, sizeof line, f)) {
    limit = limit_of_line (root, line);
    least = MIN_OF (least, limit);
  }
  fclose (f);
  return least;
}
