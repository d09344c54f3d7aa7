/* SPDX-License-Identifier: BSD-3-Clause */
/* Judges persistent bitmaps of what is left, decoded here from the
 * specification alone: one that is enabled and not in use must have a bit for
 * each cluster that differs from when the bitmap was made.
 */
#include "fault-world.h"

#include <string.h>

#include "wire.h"

#define EXTENSION_BITMAPS 0x23852875u
#define IN_USE 1u
#define ENABLED 2u

struct reader {
  struct world *w;
  struct io_store *io;
  const char *which;
};

static uint64_t
get (const struct reader *r, uint64_t off, unsigned width)
{
  uint8_t b[8];
  uint64_t v = 0;

  if (io_pread (r->io, b, width, off) < 0)
    die (r->w, "%s: the test itself: reading a bitmap", r->which);
  for (unsigned i = 0; i < width; i++)
    v = v << 8 | b[i];
  return v;
}

/* The extension's fields, or 0. */
static uint64_t
find_extension (const struct reader *r)
{
  uint64_t at = get (r, 100, 4), type;

  while ((type = get (r, at, 4)) != 0) {
    if (type == EXTENSION_BITMAPS)
      return at + 8;
    at += 8 + (get (r, at + 4, 4) + 7) / 8 * 8;
  }
  return 0;
}

/* Bit I of the bitmap with this table. */
static bool
is_set (const struct reader *r, uint64_t table_off, uint64_t i)
{
  uint64_t entry = get (r, table_off + i / (CLUSTER * 8) * 8, 8);

  if (entry < CLUSTER)
    return entry & 1;           /* all ones, or all zeroes */
  i %= CLUSTER * 8;
  return get (r, entry + i / 8, 1) >> i % 8 & 1;
}

static void
judge_entry (const struct reader *r, uint64_t at, const uint64_t got[NR])
{
  uint64_t table = get (r, at, 8), flags = get (r, at + 12, 4), off;
  unsigned bits = (unsigned) get (r, at + 17, 1);

  if ((flags & IN_USE) || !(flags & ENABLED))
    return;
  for (uint64_t i = 0; i < NR; i++)
    for (off = 0; off < CLUSTER; off += UINT64_C (1) << bits)
      if (got[i] != r->w->first_ids[i] &&
          !is_set (r, table, (i * CLUSTER + off) >> bits))
        die (r->w, "%s: a bitmap does not know cluster %d", r->which,
             (int) i);
}

void
judge_bitmaps (struct world *w, struct io_store *io, const uint64_t got[NR],
               const char *which)
{
  struct reader r = { w, io, which };
  uint64_t ext, at, nr;

  if (!w->shape->bitmaps || !(get (&r, 88, 8) & 1))
    return;
  ext = find_extension (&r);
  if (ext == 0)
    die (w, "%s: the bitmaps' extension is gone", which);
  nr = get (&r, ext, 4);
  at = get (&r, ext + 16, 8);
  for (; nr > 0; nr--) {
    judge_entry (&r, at, got);
    at += (24 + get (&r, at + 20, 4) + get (&r, at + 18, 2) + 7) / 8 * 8;
  }
}
