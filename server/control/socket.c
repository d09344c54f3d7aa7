/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes the control socket.
 *
 * Its mode is 0600 from the moment on at which it has a name.  A socket that a
 * server left behind is replaced: one to which a connection is refused, as no
 * process listens.  All else is kept, and is an error.
 *
 * Servers that start at one moment with one path, as those of one image do, take turns by
 * a lock (flock) on the directory, from the look until they listen.  Otherwise one could
 * remove the socket that another one has made since the look, and the server of the image
 * would have none.  Left out: a directory that cannot be read has no such lock, nor one on
 * a file system without locks.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "clock.h"
#include "socket.h"

#define BACKLOG 128

/* How long to wait for the lock.  Who has it needs some system calls. */
#define LOCK_WAIT_NS UINT64_C (10000000000)
#define LOCK_RETRY_US 1000

static int
address (const char *path, struct sockaddr_un *addr, struct fault *f)
{
  memset (addr, 0, sizeof *addr);
  addr->sun_family = AF_UNIX;
  if (strlen (path) >= sizeof addr->sun_path)
    return fault_usage (f, "the path of the control socket is longer than %zu "
                        "bytes: %s", sizeof addr->sun_path - 1, path);
  strcpy (addr->sun_path, path);
  return 0;
}

static int
new_socket (struct fault *f)
{
  int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

  return fd >= 0 ? fd : fault_io (f, errno, UINT64_MAX, "socket: %s",
                                  strerror (errno));
}

/* Returns 0 if nobody listens on the socket at ADDR. */
static int
check_nobody_listens (const struct sockaddr_un *addr, struct fault *f)
{
  int fd = new_socket (f), r = 0;

  if (fd < 0)
    return fd;
  if (connect (fd, (const struct sockaddr *) addr, sizeof *addr) == 0 ||
      errno != ECONNREFUSED)
    r = fault_set (f, FAULT_BUSY, EADDRINUSE, UINT64_MAX, "another server "
                   "has the control socket %s", addr->sun_path);
  close (fd);
  return r;
}

static int
remove_stale (const struct sockaddr_un *addr, struct fault *f)
{
  struct stat st;
  int r;

  if (lstat (addr->sun_path, &st) < 0)
    return 0;                  /* bind reports other errors better */
  if (!S_ISSOCK (st.st_mode))
    return fault_usage (f, "%s, the path of the control socket, is a file of "
                        "another kind", addr->sun_path);
  r = check_nobody_listens (addr, f);
  if (r == 0 && unlink (addr->sun_path) < 0)
    r = fault_io (f, errno, UINT64_MAX, "cannot remove the stale control "
                  "socket %s: %s", addr->sun_path, strerror (errno));
  return r;
}

/* Opens the directory of PATH, and takes its lock, which closing it gives back.  -1: it
 * cannot be locked. */
static int
lock_directory (const char *path)
{
  const char *slash = strrchr (path, '/');
  CLEANUP_FREE char *dir = slash == NULL ? strdup (".") :
    strndup (path, (size_t) (slash - path) + 1);
  const uint64_t end = clock_now_ns () + LOCK_WAIT_NS;
  int fd = dir ? open (dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

  while (fd >= 0 && flock (fd, LOCK_EX | LOCK_NB) < 0) {
    if (errno == EWOULDBLOCK && clock_now_ns () < end) {
      usleep (LOCK_RETRY_US);
      continue;
    }
    close (fd);
    return -1;
  }
  return fd;
}

/* Linux takes the mode of the inode that bind makes from the socket. */
static int
bind_and_listen (int fd, const struct sockaddr_un *addr, struct fault *f)
{
  if (fchmod (fd, 0600) == 0 &&
      bind (fd, (const struct sockaddr *) addr, sizeof *addr) == 0 &&
      chmod (addr->sun_path, 0600) == 0 && listen (fd, BACKLOG) == 0)
    return 0;
  return fault_io (f, errno, UINT64_MAX, "cannot make the control socket %s: "
                   "%s", addr->sun_path, strerror (errno));
}

static int
remember (struct control_socket *s, const char *path, struct fault *f)
{
  struct stat st;

  s->path = strdup (path);
  if (s->path == NULL || lstat (path, &st) < 0)
    return fault_io (f, errno, UINT64_MAX, "%s: %s", path, strerror (errno));
  s->dev = st.st_dev;
  s->ino = st.st_ino;
  return 0;
}

/* Makes the socket S at PATH, whose address is ADDR. */
static int
make_socket (struct control_socket *s, const char *path,
             const struct sockaddr_un *addr, struct fault *f)
{
  int r = remove_stale (addr, f);

  if (r < 0)
    return r;
  r = s->fd = new_socket (f);
  if (r >= 0)
    r = bind_and_listen (s->fd, addr, f);
  if (r == 0)
    r = remember (s, path, f);
  if (r < 0)
    control_socket_close (s);
  return r;
}

int
control_socket_open (struct control_socket *s, const char *path,
                     struct fault *f)
{
  struct sockaddr_un addr;
  int r, lock;

  s->path = NULL;
  s->fd = -1;
  if ((r = address (path, &addr, f)) < 0)
    return r;
  lock = lock_directory (path);
  r = make_socket (s, path, &addr, f);
  if (lock >= 0)
    close (lock);
  return r;
}

void
control_socket_unlink (struct control_socket *s)
{
  struct stat st;

  if (s->path != NULL && lstat (s->path, &st) == 0 &&
      st.st_dev == s->dev && st.st_ino == s->ino)
    (void) unlink (s->path);
}

void
control_socket_close (struct control_socket *s)
{
  control_socket_unlink (s);
  if (s->fd >= 0)
    close (s->fd);
  free (s->path);
  s->path = NULL;
  s->fd = -1;
}

int
control_socket_peer (int fd, struct qmp_caller *peer)
{
  struct ucred cred;
  socklen_t len = sizeof cred;

  if (getsockopt (fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
    return -errno;
  peer->pid = cred.pid;
  peer->uid = cred.uid;
  return 0;
}
