/* SPDX-License-Identifier: BSD-3-Clause */
/* Fuzzes a whole image: one of those of base.c, with patches anywhere in its
 * tables and its store, checksums made right where asked for; it is opened,
 * worked on, closed or killed, and opened again.
 *
 * A patch says which place, where in it, how wide, and what.  The last is a
 * number, the offset of another place (so that things overlap), the old value
 * plus something, or one bit of it flipped.
 */
#include "fuzz.h"

#define MAX_PATCHES 6u

static void
load (struct io_store *io, uint64_t off, unsigned width, uint64_t *v)
{
  uint8_t b[8];

  MUST (io_pread (io, b, width, off) == 0);
  *v = 0;
  for (unsigned i = 0; i < width; i++)
    *v = *v << 8 | b[i];
}

static void
store (struct io_store *io, uint64_t off, unsigned width, uint64_t v)
{
  uint8_t b[8];

  for (unsigned i = 0; i < width; i++)
    b[i] = (uint8_t) (v >> 8 * (width - 1 - i));
  MUST (io_pwrite (io, b, width, off) == 0);
}

static uint64_t
new_value (const struct base *b, struct input *in, uint64_t old)
{
  unsigned how = (unsigned) take (in, 1);
  uint64_t v = take (in, 2);

  switch (how % 6) {
  case 0: return take (in, 8);
  case 1: return b->places[v % b->nr_places].host_off |
      (how & 64 ? UINT64_C (1) << 63 : 0);
  case 2: return old + (uint64_t) (int64_t) (int16_t) v;
  case 3: return old ^ UINT64_C (1) << v % 64;
  case 4: return v % 3 == 0 ? 0 : v % 3 == 1 ? 1 : UINT64_MAX;
  default: return (v % 4096) << b->cluster_bits |
      (how & 64 ? UINT64_C (1) << 63 : 0);
  }
}

static void
patch (struct io_store *io, const struct base *b, struct input *in)
{
  const struct place *p = &b->places[take (in, 2) % b->nr_places];
  unsigned how = (unsigned) take (in, 1);
  unsigned width = 1u << how % 4;
  uint64_t off = take (in, 2) % (p->len ? p->len : 1), old;

  off = p->host_off + off / width * width;
  load (io, off, width, &old);
  store (io, off, width, new_value (b, in, old));
  if (how & 16)
    fix_checksum (io, p);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t len)
{
  struct input in = { data, len };
  unsigned mode = (unsigned) take (&in, 1), nr;
  const struct base *b = get_base (mode % 16 == 0 ? BASE_PLAIN
                                   : mode % 16 == 8 ? BASE_BOTH
                                   : mode % 16 == 4 ? BASE_BITMAPS
                                   : mode % 16 == 2 ? BASE_EXTENDED
                                   : mode % 16 == 6 ? BASE_DATA_FILE
                                   : mode % 16 == 10 ? BASE_POOL
                                   : mode & 1 ? BASE_CLEAN : BASE_CRASHED);
  struct io_store *io;

  if (len > 4096)
    return -1;
  io = store_of (b->bytes, b->len);
  for (nr = (unsigned) take (&in, 1) % (MAX_PATCHES + 1); nr > 0; nr--)
    patch (io, b, &in);
  if (mode & 128)
    look_at_image (io);
  work_on_disk (io, &in, !(mode & 64));
  io_close (io);
  return 0;
}
