/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps a set of L2 tables (qcow2-tables.h), one bit for each cluster of the file.
 *
 * Lack of memory is no error: a table that could not be added is passed again when it is
 * met by way of another root, which costs time only.
 */
#include "qcow2-tables.h"

#include "bitset.h"

static struct qcow2_bitset *
bits_of (struct qcow2_tables *t)
{
  return (struct qcow2_bitset *) t;
}

struct qcow2_tables *
qcow2_tables_new (void)
{
  return (struct qcow2_tables *) qcow2_bitset_new ();
}

void
qcow2_tables_free (struct qcow2_tables *t)
{
  qcow2_bitset_free (bits_of (t));
}

bool
qcow2_tables_seen (struct qcow2_tables *t, uint64_t host_idx)
{
  if (t == NULL)
    return false;
  if (qcow2_bitset_test (bits_of (t), host_idx))
    return true;
  return qcow2_bitset_set (bits_of (t), host_idx, 1) > 0;      /* never above 0 */
}

void
qcow2_tables_forget (struct qcow2_tables *t, uint64_t host_idx)
{
  if (t)
    qcow2_bitset_clear (bits_of (t), host_idx, 1);
}
