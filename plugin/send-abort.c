/* SPDX-License-Identifier: BSD-3-Clause */
/* nbdkit 1.32 aborts when a client hangs up that is due several answers: its
 * raw_send_socket asserts that the socket is still there.  (1.42 has an error
 * instead.)  Nothing of this plugin is wrong then, and the image can be closed
 * (stop.c); after any other abort it must not be touched.
 *
 * The C library keeps the message of an assertion, or of its own checks such as
 * those of malloc, for debuggers: a pointer, __abort_msg, to a length and the
 * text.  Where there is no such symbol, no abort is told apart.
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
