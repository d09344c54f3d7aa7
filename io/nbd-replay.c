/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes again what a lost connection may have lost.
 *
 * Runs on the link's thread, while nobody else may send.  The log says what to
 * write (nbd-log.c): ranges that do not overlap, so that many commands are
 * under way at once, in any order.
 */
#include "nbd-private.h"

#include "checked.h"
#include "mutation.h"

#define AT_ONCE 512

int
io_nbd_replay (struct io_nbd *n, size_t *nr)
{
  struct nbd_replay p = { 0 };
  size_t i;
  int r, r2;

  if (mutation (MUTATION_NBD_NO_RESEND))
    return 0;
  r = io_nbd_log_begin_replay (n, &p);
  for (i = 0; r == 0 && i < p.nr; i += AT_ONCE)
    io_nbd_run (n, p.cmds + i, MIN_OF (AT_ONCE, p.nr - i));
  *nr = p.nr;
  r2 = io_nbd_log_end_replay (n, &p);
  return r < 0 ? r : r2;
}
