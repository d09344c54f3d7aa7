/* SPDX-License-Identifier: BSD-3-Clause */
/* Catches the signals by which users end a subcommand that takes long.
 *
 * The first signal only sets a flag, at which the subcommand's loop ends, so that
 * it closes its files as usual.  The second one ends the program at once, and the
 * image is recovered when it is opened next.  The flag is this file's only
 * variable, as a signal handler has no arguments to find it by.
 */
#include "tool.h"

#include <signal.h>

static volatile sig_atomic_t interrupted;

static void
interrupt_cb (int sig)
{
  interrupted = 1;
}

void
tool_catch_signals (void)
{
  struct sigaction sa = { .sa_handler = interrupt_cb,
                          .sa_flags = (int) SA_RESETHAND | SA_RESTART };

  sigaction (SIGINT, &sa, NULL);
  sigaction (SIGTERM, &sa, NULL);
  signal (SIGXFSZ, SIG_IGN);    /* writes fail with EFBIG instead */
}

bool
tool_interrupted (void)
{
  return interrupted != 0;
}
