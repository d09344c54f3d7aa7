/* SPDX-License-Identifier: BSD-3-Clause */
/* Gets what a change of tables lacked, so that it can be tried again.
 *
 * A change is tried under one hold of the image lock, and either made as a whole or not
 * at all.  What it lacks is one of a table in memory, room in the journal or the log
 * store, and space on the host; each takes I/O, and so is got without the lock.
 *
 * Any thread, outside the image lock and inside the gate.  No state.
 */
#include "upkeep.h"

#include <errno.h>

int
dedup_get_ready (struct dedup_upkeep *u, struct qcow2_txn *txn, int why,
                 uint64_t nr_records, bool *searched)
{
  switch (why) {
  case -EAGAIN:
    return qcow2_txn_load (txn);
  case -EBUSY:
    return dedup_make_room (u);
  case -ENOBUFS:
    return dedup_make_large_room (u, nr_records);
  case -ENOSPC:
    if (*searched)
      return -ENOSPC;
    *searched = true;
    return dedup_find_space (u);
  default:
    return why;
  }
}
