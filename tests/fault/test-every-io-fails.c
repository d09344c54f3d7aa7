/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes every call of the engine to its byte store fail, once and from then on,
 * in workloads that between them freeze, pack, drop incarnations, checkpoint,
 * recover, adopt and create.
 *
 * By default it runs a quick sample; FAULT_SCALE=20 takes more, FAULT_SCALE=all
 * every call there is.  FAULT_CASE replays what a failure printed.  Short
 * transfers never get this far: io/file.c deals with them, and has tests of its
 * own.
 */
#include "fault-world.h"

#include <errno.h>

static const int eio[] = { EIO, 0 };
static const int both[] = { EIO, ENOSPC, 0 };
static const int may_lack[] = { EIO, ENOSPC, EOPNOTSUPP, 0 };

int
main (void)
{
  size_t i;

  scale_init ();
  if (play_one ())
    return 0;
  for (i = 0; i < nr_fault_shapes; i++) {
    play_all (&fault_shapes[i], IO_PREAD, eio);
    play_all (&fault_shapes[i], IO_PWRITE, both);
    play_all (&fault_shapes[i], IO_SYNC, both);
    play_all (&fault_shapes[i], IO_DISCARD, may_lack);
    play_all (&fault_shapes[i], IO_ALLOCATE, may_lack);
    play_all (&fault_shapes[i], IO_TRUNCATE, both);
  }
  return 0;
}
