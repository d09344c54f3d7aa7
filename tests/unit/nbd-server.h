/* SPDX-License-Identifier: BSD-3-Clause */
/* Runs NBD servers for tests of the NBD store.
 *
 * The test listens on a Unix socket and passes it on, as systemd does, so that
 * clients may connect before the server has started.  A server ends with the
 * test (--exit-with-parent).
 */
#ifndef DEDUP_NBD_SERVER_H
#define DEDUP_NBD_SERVER_H

#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

struct nbd_server {
  char dir[64];
  char socket[100];
  char uri[200];
  pid_t pid;
};

/* Listens on the socket of S, which gets the descriptor 3.  The socket has its
 * name only when it listens.  The process ends with the test. */
static inline void
nbd_server_listen (const struct nbd_server *s)
{
  struct sockaddr_un a = { .sun_family = AF_UNIX };
  int fd = socket (AF_UNIX, SOCK_STREAM, 0);

  prctl (PR_SET_PDEATHSIG, SIGKILL);
  snprintf (a.sun_path, sizeof a.sun_path, "%s/new", s->dir);
  if (fd == -1 || bind (fd, (struct sockaddr *) &a, sizeof a) == -1 ||
      listen (fd, 64) == -1 || dup2 (fd, 3) == -1 ||
      rename (a.sun_path, s->socket) == -1) {
    perror (s->socket);
    _exit (127);
  }
  if (fd != 3)
    close (fd);
}

/* Makes a directory and the URI of the export. */
static inline void
nbd_server_init (struct nbd_server *s)
{
  const char *tmp = getenv ("TMPDIR");

  snprintf (s->dir, sizeof s->dir, "%.40s/test-nbd-XXXXXX",
            tmp ? tmp : "/tmp");
  assert_non_null (mkdtemp (s->dir));
  snprintf (s->socket, sizeof s->socket, "%s/socket", s->dir);
  snprintf (s->uri, sizeof s->uri, "nbd+unix:///?socket=%s", s->socket);
  s->pid = -1;
}

/* Waits until somebody listens, five seconds at the most. */
static inline void
nbd_server_wait (const struct nbd_server *s)
{
  unsigned i;

  for (i = 0; i < 5000 && access (s->socket, F_OK) == -1; i++)
    usleep (1000);
}

/* Runs the words of LINE as nbdkit's arguments. */
static inline void
nbd_server_start (struct nbd_server *s, const char *line)
{
  char shell[4096], pid[16];

  unlink (s->socket);
  s->pid = fork ();
  assert_int_not_equal (s->pid, -1);
  if (s->pid == 0) {
    nbd_server_listen (s);
    snprintf (pid, sizeof pid, "%d", (int) getpid ());
    setenv ("LISTEN_FDS", "1", 1);
    setenv ("LISTEN_PID", pid, 1);
    setenv ("LC_ALL", "C", 1);
    snprintf (shell, sizeof shell,
              "exec nbdkit -f --exit-with-parent %s", line);
    execl ("/bin/sh", "sh", "-c", shell, NULL);
    _exit (127);
  }
  nbd_server_wait (s);
}

static inline void
nbd_server_kill (struct nbd_server *s)
{
  if (s->pid == -1)
    return;
  kill (s->pid, SIGKILL);
  waitpid (s->pid, NULL, 0);
  s->pid = -1;
}

static inline void
nbd_server_end (struct nbd_server *s)
{
  char shell[128];

  nbd_server_kill (s);
  snprintf (shell, sizeof shell, "rm -rf '%s'", s->dir);
  assert_int_equal (system (shell), 0);
}

#endif
