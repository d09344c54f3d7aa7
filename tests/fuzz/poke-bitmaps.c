/* SPDX-License-Identifier: BSD-3-Clause */
/* Decodes persistent bitmaps from the specification alone.  One that QEMU would
 * load (all its fields are as they must be), that is enabled and not in use, is
 * relied on by whoever makes a backup: then it must know what changed.  One
 * that QEMU would not load harms nobody.
 *
 * Reads past the end of the store give zeroes, so nothing here fails.
 */
#include "poke-bitmaps.h"

#include <string.h>

#define EXTENSION 0x23852875u
#define IN_USE 1u
#define ENABLED 2u
#define KNOWN_FLAGS 7u
#define HEADER 512u            /* cluster 0 of the images that have bitmaps */
#define MAX 8u                 /* bitmaps looked at */

struct bitmap {
  uint64_t table_off, table_entries;
  uint32_t flags;
  unsigned bits;               /* of the granularity */
  bool loads;
};

struct image {
  struct io_store *io;
  uint64_t cluster, file_size;
  struct bitmap v[MAX];
  unsigned nr;
  bool claimed, wrong;
};

static uint64_t
get (struct io_store *io, uint64_t off, unsigned width)
{
  uint8_t b[8] = { 0 };
  uint64_t v = 0;

  if (off > INT64_MAX - 8 || io_pread (io, b, width, off) < 0)
    return 0;
  for (unsigned i = 0; i < width; i++)
    v = v << 8 | b[i];
  return v;
}

/* Where the extension's fields are, or 0. */
static uint64_t
find_extension (struct io_store *io)
{
  uint64_t at = get (io, 100, 4), len;

  for (; at >= 104 && at < HEADER - 32; at += 8 + (len + 7) / 8 * 8) {
    const uint64_t type = get (io, at, 4);

    len = get (io, at + 4, 4);
    if (type == 0 || type == EXTENSION)
      return type && len == 24 ? at + 8 : 0;
  }
  return 0;
}

static bool
in_file (const struct image *x, uint64_t off, uint64_t len)
{
  return off > 0 && off % x->cluster == 0 && off < x->file_size &&
    len <= x->file_size - off;
}

/* Returns its length in the directory. */
static uint64_t
decode (struct image *x, uint64_t at, struct bitmap *b)
{
  const uint64_t size = get (x->io, 24, 8), extra = get (x->io, at + 20, 4);
  uint64_t granules, wanted;

  *b = (struct bitmap) {
    .table_off = get (x->io, at, 8), .table_entries = get (x->io, at + 8, 4),
    .flags = (uint32_t) get (x->io, at + 12, 4),
    .bits = (unsigned) get (x->io, at + 17, 1),
  };
  if (b->bits >= 9 && b->bits <= 31) {
    granules = (size + (UINT64_C (1) << b->bits) - 1) >> b->bits;
    wanted = (granules + x->cluster * 8 - 1) / (x->cluster * 8);
    b->loads = b->table_entries == wanted && get (x->io, at + 16, 1) == 1 &&
      (b->flags & ~KNOWN_FLAGS) == 0 && extra == 0 &&
      in_file (x, b->table_off, b->table_entries * 8);
  }
  return (24 + extra + get (x->io, at + 18, 2) + 7) / 8 * 8;
}

static void
load (struct image *x, struct io_store *io)
{
  uint64_t ext = find_extension (io), at, end, nr;
  int64_t size = io_size (io);

  memset (x, 0, sizeof *x);
  x->io = io;
  x->file_size = size > 0 ? (uint64_t) size : 0;
  x->cluster = HEADER;
  x->claimed = get (io, 20, 4) == 9 && (get (io, 88, 8) & 1);
  if (!x->claimed)
    return;
  nr = ext ? get (io, ext, 4) : 0;
  at = get (io, ext + 16, 8);
  end = at + get (io, ext + 8, 8);
  x->wrong = nr == 0 || end < at || !in_file (x, at, end - at);
  if (x->wrong || nr > MAX)
    return;
  for (; x->nr < nr && at + 24 <= end; x->nr++)
    at += decode (x, at, &x->v[x->nr]);
  x->wrong = x->nr < nr;
}

struct bitmaps
bitmaps_look (struct io_store *io)
{
  struct bitmaps r = { 0 };
  struct image x;

  load (&x, io);
  r.nr = x.nr;
  r.claimed = x.claimed;
  r.wrong = x.wrong;
  for (unsigned i = 0; i < x.nr; i++) {
    r.in_use |= (x.v[i].flags & IN_USE) << i;
    if ((x.v[i].flags & ENABLED) && !x.v[i].loads)
      r.odd |= 1u << i;
  }
  return r;
}

/* Does B know granule I?  What QEMU would not load knows all. */
static bool
knows (const struct image *x, const struct bitmap *b, uint64_t i)
{
  uint64_t per = x->cluster * 8;
  uint64_t entry = get (x->io, b->table_off + i / per * 8, 8);

  if (entry <= 1)
    return entry == 1;
  if (!in_file (x, entry, x->cluster))
    return true;
  return get (x->io, entry + i % per / 8, 1) >> i % 8 & 1;
}

uint64_t
bitmaps_miss (struct io_store *io, const uint64_t *before,
              const uint64_t *after, uint64_t nr, uint64_t size)
{
  struct image x;
  uint64_t missed = 0;

  load (&x, io);
  for (unsigned k = 0; k < x.nr; k++) {
    const struct bitmap *b = &x.v[k];

    if (!b->loads || (b->flags & (IN_USE | ENABLED)) != ENABLED)
      continue;
    for (uint64_t i = 0; i < nr; i++)
      if (before[i] && after[i] && before[i] != after[i] &&
          !knows (&x, b, i * size >> b->bits))
        missed++;
  }
  return missed;
}
