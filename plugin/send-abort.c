/* SPDX-License-Identifier: BSD-3-Clause */
/* Recognizes one abort of nbdkit 1.32's, by the message of its assertion.
 *
 * nbdkit 1.32 aborts when a client hangs up to which it still has to send
 * several replies: raw_send_socket asserts that there is a socket.  (1.42
 * returns an error instead.)  The state of this plugin is valid then, and the
 * image can be closed (stop.c).  After any other abort it must not be touched.
 *
 * The C library keeps the message of an assertion, and of its own checks such
 * as those of malloc, for debuggers: the pointer __abort_msg leads to a length
 * and the text.  If there is no such symbol, no abort is recognized.
 */
#include <dlfcn.h>
#include <string.h>

#include "send-abort.h"

struct message {
  unsigned size;
  char text[];
};

static struct message *const *message;

void
send_abort_init (void)
{
  message = dlvsym (RTLD_DEFAULT, "__abort_msg", "GLIBC_PRIVATE");
}

bool
send_abort_is_it (void)
{
  return message && *message &&
    strstr ((*message)->text, ": raw_send_socket: Assertion `sock >= 0'");
}
