/* SPDX-License-Identifier: BSD-3-Clause */
/* Fuzzes a configuration slot and the header extension.  The checksum is made
 * right first.  A valid slot must be encoded again to the same bytes. */
#include "fuzz.h"

#include "config-check.h"

static void
put_sum (uint8_t *slot, uint64_t sum)
{
  for (int i = 0; i < 8; i++)
    slot[104 + i] = (uint8_t) (sum >> (56 - 8 * i));
}

static void
fix (uint8_t *slot)
{
  uint32_t len = (uint32_t) slot[12] << 24 | slot[13] << 16 | slot[14] << 8 |
    slot[15];

  if (len < 128 || len > DEDUP_CONFIG_SLOT)
    return;
  put_sum (slot, 0);
  put_sum (slot, dedup_checksum (slot, len));
}

/* Both at 1 MiB of a file of 4 MiB: file_end and overlaps are looked at. */
static void
read_both (const uint8_t *slot, const struct dedup_ext *ext,
           uint64_t cluster_size, struct dedup_config *c)
{
  struct fault f = { 0 };
  struct io_store *io;
  int r;

  MUST (io_memory_new (4 << 20, &io) == 0);
  MUST (io_pwrite (io, slot, DEDUP_CONFIG_SLOT, 1 << 20) == 0);
  MUST (io_pwrite (io, slot, DEDUP_CONFIG_SLOT, (1 << 20) + 65536) == 0);
  r = dedup_config_read (io, ext, cluster_size, c, &f);
  MUST (r == 0 || f.msg[0]);
  io_close (io);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t len)
{
  static uint8_t slot[DEDUP_CONFIG_SLOT], again[DEDUP_CONFIG_SLOT];
  static struct dedup_config c;
  struct input in = { data, len };
  uint64_t cluster_size = UINT64_C (512) << take (&in, 1) % 13;
  struct dedup_ext ext = { .config_off = 1 << 20, .config_size = 1 << 17 };
  uint8_t wire[DEDUP_EXT_SIZE];
  struct fault f = { 0 };

  if (len > DEDUP_CONFIG_SLOT)
    return -1;
  if (take (&in, 1) & 1) {
    for (unsigned i = 0; i < sizeof wire; i++)
      wire[i] = (uint8_t) take (&in, 1);
    if (dedup_ext_decode (wire, &ext) < 0)
      return 0;
  }
  memset (slot, 0, sizeof slot);
  memcpy (slot, in.p, in.left);
  fix (slot);
  read_both (slot, &ext, cluster_size, &c);
  if (dedup_config_decode (slot, cluster_size, &c, &f) < 0)
    return 0;
  MUST (dedup_config_check (&c, cluster_size, &f) == 0);
  MUST (dedup_config_encode (&c, again) <= DEDUP_CONFIG_SLOT);
  MUST (dedup_config_decode (again, cluster_size, &c, &f) == 0);
  return 0;
}
