/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes every allocation of memory by the engine fail, once and from then on,
 * in the workloads of test-every-io-fails.  An allocation counts while a call
 * of the engine runs.
 */
#include "fault-malloc.h"
#include "fault-world.h"

#include <errno.h>

static bool
fails_as_planned (size_t size)
{
  struct world *w = fault_running;

  return w != NULL && fault_ask (w, FAULT_MALLOC, 0) != 0;
}

int
main (void)
{
  static const int enomem[] = { ENOMEM, 0 };
  size_t i;

  scale_init ();
  fault_malloc_fails = fails_as_planned;
  if (play_one ())
    return 0;
  for (i = 0; i < nr_fault_shapes; i++)
    play_all (&fault_shapes[i], FAULT_MALLOC, enomem);
  return 0;
}
