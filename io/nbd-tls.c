/* SPDX-License-Identifier: BSD-3-Clause */
/* Checks, before a connection over TLS is made, that the server will be verified.
 *
 * Where libnbd finds no certificate of an authority, because the URI names no folder, or
 * one that does not exist, it takes any server without a word, and whoever answers could
 * read and change the image.  So a URI of TLS must have tls-psk-file=, whose file libnbd
 * insists on, or tls-certificates= with a folder that has ca-cert.pem.  Folders in which
 * libnbd would look by itself count only for a URI that may not name any.  What is not
 * checked: over a Unix socket libnbd compares a certificate with no authority at all.
 *
 * It also passes over a certificate of the client's that it cannot read, and the server's
 * refusal does not tell why; so that is looked at, too.
 *
 * This is asked before each connection, as files may go.  What is spelled in another way
 * than libnbd expects does not count as a parameter here: the check may fail then, but
 * never succeed in vain.  No state; any thread.
 */
#include "nbd-tls.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define FOLDER "tls-certificates="
#define PSK_FILE "tls-psk-file="

/* Returns where the parameter at P ends: at "&", or at ";" if no "&" follows. */
static const char *
end_of (const char *p)
{
  const char *end = strchr (p, '&');

  if (end == NULL)
    end = strchr (p, ';');
  return end ? end : p + strlen (p);
}

static unsigned
hex_digit (char c)
{
  return c >= '0' && c <= '9' ? (unsigned) (c - '0')
    : (c | 0x20) >= 'a' && (c | 0x20) <= 'f' ? (unsigned) ((c | 0x20) - 'a' + 10)
    : 16;
}

/* Decodes FROM up to END to PATH, of PATH_MAX bytes.  False if it does not fit. */
static bool
decode (const char *from, const char *end, char *path)
{
  size_t len = 0;

  for (; from < end && len < PATH_MAX - 1; from++) {
    path[len] = *from;
    if (*from == '%' && end - from > 2 && hex_digit (from[1]) < 16 &&
        hex_digit (from[2]) < 16) {
      path[len] = (char) (hex_digit (from[1]) << 4 | hex_digit (from[2]));
      from += 2;
    }
    len++;
  }
  path[len] = '\0';
  return from == end;
}

/* Returns 0 if the file NAME of FOLDER can be read, or its errno. */
static int
unreadable (const char *folder, const char *name)
{
  char path[PATH_MAX + 32];

  snprintf (path, sizeof path, "%s/%s", folder, name);
  return access (path, R_OK) == 0 ? 0 : errno;
}

static int
cannot_read (const char *folder, const char *name, int err, const char *so,
             struct fault *f)
{
  return fault_io (f, EIO, UINT64_MAX, "cannot connect: %.300s/%s: %s%s", folder, name,
                   strerror (err), so);
}

static int
check_folder (const char *folder, struct fault *f)
{
  int ca = unreadable (folder, "ca-cert.pem");
  int cert = unreadable (folder, "client-cert.pem");
  int key = unreadable (folder, "client-key.pem");

  if (ca != 0)
    return cannot_read (folder, "ca-cert.pem", ca,
                        ": the server would not be verified", f);
  if (cert == ENOENT && key == ENOENT)
    return 0;                   /* not each server asks for one */
  if (cert != 0)
    return cannot_read (folder, "client-cert.pem", cert, "", f);
  return key != 0 ? cannot_read (folder, "client-key.pem", key, "", f) : 0;
}

static int
check_parameter (const char *p, const char *end, bool *is_key, struct fault *f)
{
  char path[PATH_MAX];

  if (strncmp (p, PSK_FILE, strlen (PSK_FILE)) == 0)
    *is_key = true;
  if (strncmp (p, FOLDER, strlen (FOLDER)) != 0)
    return 0;
  *is_key = true;
  if (!decode (p + strlen (FOLDER), end, path))
    return fault_io (f, EIO, UINT64_MAX, "cannot connect: " FOLDER ": the path is too "
                     "long");
  return check_folder (path, f);
}

static bool
is_tls (const char *uri)
{
  return strncasecmp (uri, "nbds", 4) == 0;
}

int
io_nbd_tls_check (const char *uri, struct fault *f)
{
  const char *p = strchr (uri, '?');
  bool is_key = false;
  int r = 0;

  if (!is_tls (uri))
    return 0;
  while (r == 0 && p && *p) {
    const char *end = end_of (++p);

    r = check_parameter (p, end, &is_key, f);
    p = end;
  }
  if (r == 0 && !is_key)
    r = fault_io (f, EIO, UINT64_MAX, "cannot connect: the server would not be verified: "
                  "add ?tls-certificates=FOLDER or ?tls-psk-file=FILE to the URI");
  return r;
}

/* Returns 0 if the folder BELOW that of the user has the certificate of an authority, or
 * an errno. */
static int
unreadable_at_home (const char *below)
{
  const char *home = getenv ("HOME");
  CLEANUP_FREE char *folder = NULL;

  if (home == NULL)
    return ENOENT;
  if (asprintf (&folder, "%s%s", home, below) < 0) {
    folder = NULL;
    return ENOMEM;
  }
  return unreadable (folder, "ca-cert.pem");
}

int
io_nbd_tls_check_default (const char *uri, struct fault *f)
{
  static const char root[] = "/etc/pki/libnbd", user[] = "/.pki/libnbd";
  const bool is_root = geteuid () == 0;
  int err;

  if (!is_tls (uri) || strncasecmp (uri, "nbds+unix", 9) == 0)
    return 0;
  err = is_root ? unreadable (root, "ca-cert.pem") : unreadable_at_home (user);
  if (err == 0 || (!is_root && unreadable_at_home ("/.config/pki/libnbd") == 0))
    return 0;
  return cannot_read (is_root ? root : "~/.pki/libnbd", "ca-cert.pem", err,
                      ": the server would not be verified", f);
}
