/* SPDX-License-Identifier: BSD-3-Clause */
/* Removes Unix sockets of nbdkit's that nobody else removes: the one that an
 * earlier server left behind, and the temporary one of this server.
 *
 * nbdkit never removes the socket of -U, and does not start while there is one:
 * after a server has ended, cleanly or not, its command would fail for ever.
 * The plugin calls this with the image open, before nbdkit makes its socket.
 *
 * A socket is left behind if a connection to it is refused: the kernel does
 * that when no process listens.  Everything else stays: a socket that is
 * listened to, though its server be too busy to answer, and files of other
 * kinds, about which nbdkit then complains.  Left out: of two servers that
 * start at the same moment with one socket name, the second may remove the
 * socket that the first has made since the second looked.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "stale-socket.h"

static bool
nobody_listens (const struct sockaddr_un *addr)
{
  int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  bool refused = false;

  if (fd >= 0) {
    refused = connect (fd, (const struct sockaddr *) addr, sizeof *addr) < 0 &&
      errno == ECONNREFUSED;
    close (fd);
  }
  return refused;
}

bool
remove_stale_socket (const char *path)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  struct stat st;

  if (strlen (path) >= sizeof addr.sun_path)
    return false;
  strcpy (addr.sun_path, path);
  return lstat (path, &st) == 0 && S_ISSOCK (st.st_mode) &&
    nobody_listens (&addr) && unlink (path) == 0;
}

/* --- Temporary sockets ---------------------------------------------------- */

#define MAX_FD 256             /* nbdkit opens its sockets first */
#define TEMPORARY "/tmp/nbdkit"
#define RANDOM_LEN 6
#define SOCKET "/socket"

/* Is it what nbdkit makes for -U - and --run? */
static bool
is_temporary (const char *path)
{
  const size_t before = strlen (TEMPORARY) + RANDOM_LEN;

  return strlen (path) == before + strlen (SOCKET) &&
    strncmp (path, TEMPORARY, strlen (TEMPORARY)) == 0 &&
    strcspn (path + strlen (TEMPORARY), "/") == RANDOM_LEN &&
    strcmp (path + before, SOCKET) == 0;
}

static bool
listens (int fd)
{
  int yes = 0;
  socklen_t len = sizeof yes;

  return getsockopt (fd, SOL_SOCKET, SO_ACCEPTCONN, &yes, &len) == 0 && yes;
}

void
remove_temporary_socket (void)
{
  for (int fd = 0; fd < MAX_FD; fd++) {
    struct sockaddr_un addr = { 0 };
    socklen_t len = sizeof addr - 1;
    char *path = addr.sun_path;

    if (getsockname (fd, (struct sockaddr *) &addr, &len) < 0 ||
        addr.sun_family != AF_UNIX || !listens (fd) || !is_temporary (path))
      continue;
    (void) unlink (path);
    path[strlen (path) - strlen (SOCKET)] = '\0';
    (void) rmdir (path);
  }
}
