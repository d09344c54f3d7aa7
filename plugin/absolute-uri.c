/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes the paths in the URI of an NBD export absolute: the values of the parameters
 * socket=, tls-certificates= and tls-psk-file= (nbd_connect_uri(3)).
 *
 * nbdkit changes to the root directory when it goes into the background.  A connection
 * that is lost later must be made again through the same files.
 *
 * The URI is not parsed but copied, with the current directory put before such a value
 * that does not begin with a slash; libnbd says what is wrong with any other part.
 * Threads: called before there are others.
 */
#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "absolute-uri.h"

/* Returns the length of the name and "=" if PARAM begins with a parameter that names a
 * file, else 0. */
static size_t
file_parameter (const char *param)
{
  static const char *const names[] = { "socket=", "tls-certificates=",
                                       "tls-psk-file=" };
  size_t i;

  for (i = 0; i < sizeof names / sizeof names[0]; i++)
    if (strncmp (param, names[i], strlen (names[i])) == 0)
      return strlen (names[i]);
  return 0;
}

/* Returns whether VALUE is a path that begins in the current directory.  An empty one is
 * left as it is. */
static bool
is_relative (const char *value)
{
  return strcspn (value, "&;/") > 0 && strncasecmp (value, "%2f", 3) != 0;
}

/* Writes the current directory and a slash as a part of a URI.  -1: errno tells why not. */
static int
put_directory (FILE *to)
{
  CLEANUP_FREE char *dir = getcwd (NULL, 0);
  const char *p;

  if (dir == NULL)
    return -1;
  for (p = dir; *p; p++)
    if (isascii (*p) && (isalnum (*p) || strchr ("/._~-", *p)))
      putc (*p, to);
    else
      fprintf (to, "%%%02X", (unsigned char) *p);
  putc ('/', to);
  return 0;
}

/* Writes the parameter that PARAM begins with, and the separator before it.  Returns its
 * end, or NULL with errno. */
static const char *
put_parameter (FILE *to, const char *param)
{
  size_t len;

  putc (*param++, to);                  /* '?', '&' or ';' */
  len = file_parameter (param);
  fwrite (param, 1, len, to);
  param += len;
  if (len > 0 && is_relative (param) && put_directory (to) < 0)
    return NULL;
  len = strcspn (param, "&;");
  fwrite (param, 1, len, to);
  return param + len;
}

static int
put_absolute (FILE *to, const char *uri)
{
  const size_t before = strcspn (uri, "?");
  const char *p = uri + before;

  fwrite (uri, 1, before, to);
  while (p && *p)
    p = put_parameter (to, p);
  return p ? 0 : -1;
}

char *
absolute_uri (const char *uri)
{
  char *out = NULL;
  size_t len;
  FILE *to = open_memstream (&out, &len);
  int r, saved;

  if (to == NULL)
    return NULL;
  r = put_absolute (to, uri);
  saved = errno;
  if (fclose (to) == 0 && r == 0)
    return out;
  free (out);
  errno = r < 0 ? saved : ENOMEM;
  return NULL;
}
