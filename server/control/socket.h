/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares the Unix socket that clients connect to. */
#ifndef DEDUP_CONTROL_SOCKET_H
#define DEDUP_CONTROL_SOCKET_H

#include "control.h"

struct control_socket {
  int fd;
  char *path;
  dev_t dev;                   /* of PATH's inode, as it was made */
  ino_t ino;
};

/* Makes the socket at PATH, which only its owner may connect to, and listens.
 * Returns 0 or -errno with F filled. */
int control_socket_open (struct control_socket *s, const char *path,
                         struct fault *f) MUST_CHECK;

/* Removes PATH if it is still this socket. */
void control_socket_unlink (struct control_socket *s);

/* Unlinks, closes FD if it is not -1, and frees. */
void control_socket_close (struct control_socket *s);

/* Finds who is at the other end of the connection FD.  Returns 0 or -errno. */
int control_socket_peer (int fd, struct qmp_caller *peer) MUST_CHECK;

#endif
