/* SPDX-License-Identifier: BSD-3-Clause */
/* Removes the Unix socket that an earlier server left behind.
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
