/* SPDX-License-Identifier: BSD-3-Clause */
/* Fuzzes an incarnation: a good one gets patches, with checksums made right; it
 * is loaded, asked for hashes before and after, and checked. */
#include "fuzz.h"

#include "../../dedup/index/table/incarnation-page.h"

#define NR_ENTRIES 48u

static void
hash_of (unsigned i, struct dedup_hash *h)
{
  for (unsigned k = 0; k < sizeof h->b; k++)
    h->b[k] = (uint8_t) (i * 37 + k * 101 + (i >> 3) * k);
}

static void
make_good (struct io_store *io, struct dedup_incarnation_desc *desc)
{
  struct dedup_log_store *ls;
  struct dedup_hash h;
  int r;

  MUST (dedup_log_store_new (4, &ls) == 0);
  for (unsigned i = 0; i < NR_ENTRIES; i++) {
    hash_of (i, &h);
    r = dedup_log_store_insert (ls, &h, i + 10);
    (void) r;
  }
  MUST (dedup_incarnation_write (io, 77, ls, desc, NULL) == 0);
  dedup_log_store_free (ls);
}

static void
ask (struct dedup_incarnation *inc)
{
  struct dedup_hash h;
  uint64_t host_idx;
  int r;

  for (unsigned i = 0; i < 2 * NR_ENTRIES; i++) {
    hash_of (i, &h);
    r = dedup_incarnation_lookup (inc, &h, &host_idx, NULL);
    MUST (r <= 1);
  }
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t len)
{
  struct dedup_incarnation_desc desc = {
    .id = 5, .host_off = 1 << 16, .size_bytes = dedup_incarnation_size (4),
  };
  struct input in = { data, len };
  struct dedup_incarnation *inc;
  struct place head = { .kind = PLACE_INC_HEAD, .head_off = desc.host_off,
                        .filter_bytes = 4096 };
  struct place page = { .kind = PLACE_INC_PAGE };
  struct fault f = { 0 };
  struct io_store *io;
  int r;

  if (len > 4096)
    return -1;
  MUST (io_memory_new (1 << 20, &io) == 0);
  make_good (io, &desc);
  while (in.left > 1) {
    uint64_t at = take (&in, 2) % desc.size_bytes;
    uint8_t byte = (uint8_t) take (&in, 1);

    MUST (io_pwrite (io, &byte, 1, desc.host_off + at) == 0);
  }
  for (uint64_t off = 8192; off < desc.size_bytes; off += 4096) {
    page.host_off = desc.host_off + off;
    fix_checksum (io, &page);
  }
  fix_checksum (io, &head);
  desc.nr_entries += len % 3;
  MUST (dedup_incarnation_open (io, 77, &desc, &inc) == 0);
  ask (inc);
  r = dedup_incarnation_load (inc);
  ask (inc);
  r = dedup_incarnation_check (inc, &f);
  MUST (r == 0 || f.msg[0]);
  dedup_incarnation_put (inc);
  io_close (io);
  return 0;
}
