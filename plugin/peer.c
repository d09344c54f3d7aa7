/* SPDX-License-Identifier: BSD-3-Clause */
/* Says who is at the other end of the current connection, as nbdkit knows it.
 *
 * A peer on a Unix socket has no address; the kernel knows which process connected,
 * and which user that was.  No name is looked up, since that could wait for a server.
 * With -s nbdkit knows nothing of the peer, and would report an error if it was
 * asked.
 */
#include "peer.h"

#include <arpa/inet.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>

#include <linux/vm_sockets.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

static void
name_ipv4 (const struct sockaddr_in *a, char *buf, size_t len)
{
  char text[INET_ADDRSTRLEN];

  if (inet_ntop (AF_INET, &a->sin_addr, text, sizeof text))
    snprintf (buf, len, "%s:%u", text, ntohs (a->sin_port));
}

static void
name_ipv6 (const struct sockaddr_in6 *a, char *buf, size_t len)
{
  char text[INET6_ADDRSTRLEN];

  if (inet_ntop (AF_INET6, &a->sin6_addr, text, sizeof text))
    snprintf (buf, len, "[%s]:%u", text, ntohs (a->sin6_port));
}

static void
name_unix (char *buf, size_t len)
{
  const int64_t pid = nbdkit_peer_pid (), uid = nbdkit_peer_uid ();

  snprintf (buf, len, "unix:pid=%" PRId64 ",uid=%" PRId64, pid, uid);
}

const char *
peer_name (char *buf, size_t len)
{
  union {
    struct sockaddr any;
    struct sockaddr_in ipv4;
    struct sockaddr_in6 ipv6;
    struct sockaddr_vm vm;
    struct sockaddr_storage storage;
  } a = { 0 };
  socklen_t size = sizeof a;

  snprintf (buf, len, "unknown");
  if (nbdkit_peer_name (&a.any, &size) < 0)
    return buf;
  if (a.any.sa_family == AF_INET)
    name_ipv4 (&a.ipv4, buf, len);
  else if (a.any.sa_family == AF_INET6)
    name_ipv6 (&a.ipv6, buf, len);
  else if (a.any.sa_family == AF_UNIX)
    name_unix (buf, len);
  else if (a.any.sa_family == AF_VSOCK)
    snprintf (buf, len, "vsock:%u:%u", a.vm.svm_cid, a.vm.svm_port);
  return buf;
}
