/* SPDX-License-Identifier: BSD-3-Clause */
/* Decodes and encodes the entries of L2 tables, standard ones and extended ones
 * (with subclusters), and finds the runs that they describe.
 *
 * It promises that a decoded entry looks like a standard one, so that callers
 * need not know of subclusters unless QCOW2_L2_PARTIAL is set.  It works on
 * bytes of a table and the geometry, owns nothing, and knows no image, no
 * cache and no lock.  Whether an offset is inside the file is left to map.c
 * and change.c.
 */
#include <string.h>

#include "image.h"

static uint64_t
load_u64 (const uint8_t *p)
{
  be64 wire;

  memcpy (&wire, p, sizeof wire);
  return be64_load (wire);
}

static void
store_u64 (uint8_t *p, uint64_t v)
{
  be64 wire = be64_make (v);

  memcpy (p, &wire, sizeof wire);
}

/* Returns whether an extended entry is valid.  Bit 0, the zero flag of
 * standard entries, is reserved in extended ones, and no subcluster can be
 * both allocated and read as zero. */
static bool
extended_ok (const struct qcow2_geometry *g, uint64_t entry, uint64_t bitmap)
{
  return !(entry & QCOW2_L2_ZERO) && !(bitmap >> 32 & bitmap) &&
    (qcow2_has_place (g, entry) || !(bitmap & QCOW2_BITMAP_ALLOCATED));
}

uint64_t
qcow2_l2_load (const struct qcow2_geometry *g, const uint8_t *table,
               uint64_t i, uint64_t *bitmap)
{
  const uint8_t *p = table + i * g->l2_entry_size;
  uint64_t entry = load_u64 (p);

  *bitmap = 0;
  if (!qcow2_extended_l2 (g))
    return entry;
  *bitmap = load_u64 (p + sizeof (be64));
  if (entry & QCOW2_L2_COMPRESSED)
    return entry;
  if (!extended_ok (g, entry, *bitmap))
    return entry | QCOW2_L2_INVALID;
  if (*bitmap == QCOW2_BITMAP_ZERO)
    return entry | QCOW2_L2_ZERO;
  if (*bitmap == (qcow2_has_place (g, entry) ? QCOW2_BITMAP_ALLOCATED : 0))
    return entry;
  return entry | QCOW2_L2_PARTIAL;
}

void
qcow2_l2_store (const struct qcow2_geometry *g, uint8_t *table, uint64_t i,
                uint64_t entry)
{
  uint8_t *p = table + i * g->l2_entry_size;
  uint64_t bitmap = 0;

  if (!qcow2_extended_l2 (g)) {
    store_u64 (p, entry);
    return;
  }
  if (entry & QCOW2_L2_COMPRESSED)
    bitmap = 0;
  else if (entry & QCOW2_L2_ZERO)
    bitmap = QCOW2_BITMAP_ZERO;
  else if (qcow2_has_place (g, entry))
    bitmap = QCOW2_BITMAP_ALLOCATED;
  store_u64 (p, entry & QCOW2_L2_COMPRESSED ? entry : entry & ~QCOW2_L2_ZERO);
  store_u64 (p + sizeof (be64), bitmap);
}

uint64_t
qcow2_l2_run (const struct qcow2_geometry *g, const uint8_t *table, uint64_t i,
              uint64_t nr, uint64_t entry)
{
  const uint8_t *p = table + i * g->l2_entry_size;
  uint64_t n = 1;

  if (qcow2_extended_l2 (g) || !qcow2_has_place (g, entry) ||
      entry & (QCOW2_L2_COMPRESSED | QCOW2_L2_ZERO))
    return 1;
  while (n < nr && load_u64 (p + n * sizeof (be64)) ==
         entry + n * g->cluster_size)
    n++;
  return n;
}
