/* SPDX-License-Identifier: BSD-3-Clause */
/* Fuzzes a lease area.  The input is pieces of slots: a byte with the number
 * of the slot (and, in bit 7, whether its checksum is made right), two with a
 * length, and the bytes.  A valid record must be encoded again to the same
 * bytes; taking the lease must end, with a message if it fails, and must work
 * after it was broken. */
#include "fuzz.h"

#include <errno.h>

#include "checked.h"
#include "lease-record.h"

#define SIZE (UINT64_C (256) << 10)
#define AREA (SIZE - IO_LEASE_BYTES)

static uint64_t now_ns;

static uint64_t
world_now (void *opaque)
{
  return now_ns;
}

static void
world_sleep (void *opaque, uint64_t ns)
{
  now_ns += ns;
}

static void
world_describe (void *opaque, struct io_lease_holder *h)
{
  strcpy (h->host, "fuzz");
}

static bool
world_has_ended (void *opaque, const struct io_lease_holder *h)
{
  return h->pid % 2 == 1;
}

static int
world_random (void *opaque, void *buf, size_t len)
{
  memset (buf, 0x77, len);
  return 0;
}

static const struct io_lease_world world = {
  world_now, world_sleep, world_describe, world_has_ended, world_random, NULL
};

/* FNV-1a over bytes 0 to 503. */
static void
fix (uint8_t *slot)
{
  uint64_t sum = UINT64_C (0xcbf29ce484222325);
  unsigned i;

  for (i = 0; i < 504; i++)
    sum = (sum ^ slot[i]) * UINT64_C (0x100000001b3);
  for (i = 0; i < 8; i++)
    slot[504 + i] = (uint8_t) (sum >> (56 - 8 * i));
}

static void
check_record (const uint8_t *slot)
{
  struct io_lease_holder h;
  uint8_t again[LEASE_SLOT];
  char text[IO_LEASE_TEXT];

  if (lease_record_decode (slot, &h) != 1)
    return;
  MUST (h.generation > 0 && h.generation <= LEASE_GENERATION_MAX);
  MUST (strlen (h.host) < sizeof h.host && strlen (h.name) < sizeof h.name);
  lease_record_encode (&h, again);
  MUST (memcmp (slot, again, LEASE_SLOT) == 0);
  for (const char *s = io_lease_describe (&h, text); *s; s++)
    MUST ((unsigned char) *s >= ' ' && *s != 0x7f);
}

static void
fill_area (struct input *in, uint8_t *area)
{
  while (in->left > 0) {
    const unsigned head = (unsigned) take (in, 1);
    const size_t len = take (in, 2) % (LEASE_SLOT + 1);
    uint8_t *slot = area + head % LEASE_SLOTS * LEASE_SLOT;

    for (size_t i = 0; i < len && in->left > 0; i++)
      slot[i] = (uint8_t) take (in, 1);
    if (head & 0x80)
      fix (slot);
    check_record (slot);
  }
}

static int
try_take (const uint8_t *area, bool breaks)
{
  const struct io_lease_params p = { .name = "x", .world = &world };
  struct io_store *io, *leased;
  struct io_lease_holder h;
  struct fault f = { 0 };
  int r;

  MUST (io_memory_new_device (SIZE, 0, &io) == 0);
  MUST (io_pwrite (io, area, IO_LEASE_BYTES, AREA) == 0);
  r = io_lease_read (io, NULL, &h);
  MUST (r >= 0 || r == -EINVAL);        /* no record, but bytes */
  if (breaks)
    MUST (io_lease_break (io, &p, NULL) == MIN_OF (r, 0));
  MUST (io_lease_probe (io, &p, NULL) == 0);
  r = io_lease_take (io, &p, &leased, &f);
  MUST (r == 0 || f.msg[0]);
  if (r == 0) {
    MUST (io_pwrite (leased, "x", 1, 0) == 0);
    io_close (leased);
  }
  return r;
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t len)
{
  static uint8_t area[IO_LEASE_BYTES];
  struct input in = { data, len };
  int r;

  if (len > IO_LEASE_BYTES)
    return -1;
  now_ns = UINT64_C (1) << 40;
  memset (area, 0, sizeof area);
  fill_area (&in, area);
  r = try_take (area, false);
  MUST (try_take (area, true) == (r == -EINVAL ? r : 0));
  return 0;
}
