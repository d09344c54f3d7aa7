/* SPDX-License-Identifier: BSD-3-Clause */
/* Plays the workloads on a host that is full from the k-th write on, whatever
 * is written: journal, configuration, tables, header, index or data.  The host
 * may take part of a write, and every second write.  Some operations later
 * there is space again, and then all calls must succeed without another open;
 * or the process dies before.
 *
 * Breaks if: one ENOSPC stops the disk for good; a client sees another error
 * than ENOSPC, or one after there is space again; data that is read is not what
 * was written; a flush calls something durable that a power cut takes; or an
 * image is left that does not recover, close or check clean.
 *
 * Scale and cases: as with every-io-fails.
 */
#include "fault-world.h"

int
main (void)
{
  size_t i;

  scale_init ();
  if (play_one ())
    return 0;
  for (i = 0; i < nr_fault_shapes; i++)
    play_lifted (&fault_shapes[i]);
  return 0;
}
