/* SPDX-License-Identifier: BSD-3-Clause */
/* Removes Unix sockets of nbdkit's that nothing else removes: one that an
 * earlier server left behind, and the temporary one of this server.
 *
 * nbdkit never removes the socket of -U, and does not start if its path exists.
 * So after a server has ended, cleanly or not, the same command would fail
 * every time.  The plugin calls remove_stale_socket with the image open, before
 * nbdkit creates its socket.
 *
 * A socket is stale if a connection to it is refused, which the kernel does if
 * no process listens.  All else is kept: a socket whose server listens but is
 * too busy to answer, and files of other kinds, for which nbdkit then reports
 * an error.  Left out: if two servers start at the same moment with one path,
 * the second may remove the socket that the first created after the second
 * looked.
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

#define MAX_FD 256             /* nbdkit's sockets have low numbers */
#define TEMPORARY "/tmp/nbdkit"
#define RANDOM_LEN 6
#define SOCKET "/socket"

/* Returns true if PATH is such as nbdkit chooses for -U - and --run. */
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
