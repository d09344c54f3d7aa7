/* SPDX-License-Identifier: BSD-3-Clause */
/* Checks the names of disks and of their snapshots.
 *
 * A name that passes can be an export of NBD, a word in a line of a log, and an argument of
 * a command, and is never taken for a snapshot's or a path: it is UTF-8 that is as short as
 * it can be, without control characters, '/' and '@'.  Only new names are checked: what
 * other programs called their snapshots stays as it is.
 *
 * Functions of their arguments: any thread may call them.
 */
#include <errno.h>
#include <string.h>

#include "disks.h"
#include "utf8.h"

/* Checks the LEN bytes of a part of a name. */
static int
check_part (const char *name, size_t len, const char *what, struct fault *f)
{
  const unsigned char *p = (const unsigned char *) name;
  unsigned n;

  if (len == 0)
    return fault_usage (f, "the name of a %s cannot be empty", what);
  if (len > DEDUP_MAX_DISK_NAME)
    return fault_usage (f, "the name of a %s has %u bytes at the most", what,
                        DEDUP_MAX_DISK_NAME);
  for (size_t i = 0; i < len; i += n) {
    n = utf8_length (p + i);
    if (n == 0 || i + n > len)
      return fault_usage (f, "the name of the %s is not valid UTF-8", what);
    if (utf8_is_control (p + i))
      return fault_usage (f, "the name of the %s has a control character",
                          what);
    if (p[i] == '/' || p[i] == '@')
      return fault_usage (f, "\"%s\": the name of a %s cannot contain '%c'",
                          name, what, p[i]);
  }
  return 0;
}

int
dedup_disk_check_name (const char *name, bool is_snapshot, struct fault *f)
{
  const char *at = is_snapshot ? strchr (name, '@') : NULL;
  int r;

  if (!is_snapshot)
    return check_part (name, strlen (name), "disk", f);
  if (at == NULL)
    return fault_usage (f, "\"%s\": the name of a snapshot has the form "
                        "DISK@SNAPSHOT", name);
  r = check_part (name, (size_t) (at - name), "disk", f);
  return r < 0 ? r : check_part (at + 1, strlen (at + 1), "snapshot", f);
}
