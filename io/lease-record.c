/* SPDX-License-Identifier: BSD-3-Clause */
/* Encodes and decodes the record of a lease.
 *
 * The record is one sector, which a disk writes whole or not at all.  Its
 * checksum, FNV-1a of 64 bits, finds every change of one byte, as each step of
 * it can be undone.  It protects from bytes that are no record, not from
 * people: whoever can write to the place can write any record.
 *
 * What is decoded is valid: numbers are in range and strings end.  Encoding it
 * again gives the same bytes.  No state. */
#include "lease-record.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "wire.h"
#include "zero.h"

#define VERSION 1

static const uint8_t magic[8] = { 'D', 'D', 'U', 'P', 'L', 'E', 'A', 'S' };

struct wire_record {
  uint8_t magic[8];
  be32 version, state;
  be64 generation, counter;
  be32 term_ms, pid;
  be64 start_time, since, pid_ns;
  uint8_t server[16], boot_id[16];
  uint8_t host[64], name[256];
  uint8_t reserved[88];
  be64 checksum;
};

WIRE_FIELD_AT (struct wire_record, version, 8);
WIRE_FIELD_AT (struct wire_record, state, 12);
WIRE_FIELD_AT (struct wire_record, generation, 16);
WIRE_FIELD_AT (struct wire_record, counter, 24);
WIRE_FIELD_AT (struct wire_record, term_ms, 32);
WIRE_FIELD_AT (struct wire_record, pid, 36);
WIRE_FIELD_AT (struct wire_record, start_time, 40);
WIRE_FIELD_AT (struct wire_record, since, 48);
WIRE_FIELD_AT (struct wire_record, pid_ns, 56);
WIRE_FIELD_AT (struct wire_record, server, 64);
WIRE_FIELD_AT (struct wire_record, boot_id, 80);
WIRE_FIELD_AT (struct wire_record, host, 96);
WIRE_FIELD_AT (struct wire_record, name, 160);
WIRE_FIELD_AT (struct wire_record, reserved, 416);
WIRE_FIELD_AT (struct wire_record, checksum, 504);
_Static_assert (sizeof (struct wire_record) == LEASE_RECORD, "one sector");

static uint64_t
checksum (const uint8_t *p, size_t len)
{
  uint64_t sum = UINT64_C (0xcbf29ce484222325);

  while (len-- > 0)
    sum = (sum ^ *p++) * UINT64_C (0x100000001b3);
  return sum;
}

static uint64_t
checksum_of (const struct wire_record *w)
{
  return checksum ((const uint8_t *) w,
                   offsetof (struct wire_record, checksum));
}

void
lease_record_encode (const struct io_lease_holder *h, uint8_t slot[LEASE_SLOT])
{
  struct wire_record w = {
    .version = be32_make (VERSION),
    .state = be32_make (h->state),
    .generation = be64_make (h->generation),
    .counter = be64_make (h->counter),
    .term_ms = be32_make (h->term_ms),
    .pid = be32_make (h->pid),
    .start_time = be64_make (h->start_time),
    .since = be64_make ((uint64_t) h->since),
    .pid_ns = be64_make (h->pid_ns),
  };

  memcpy (w.magic, magic, sizeof magic);
  memcpy (w.server, h->server, sizeof w.server);
  memcpy (w.boot_id, h->boot_id, sizeof w.boot_id);
  memcpy (w.host, h->host, strnlen (h->host, sizeof w.host));
  memcpy (w.name, h->name, strnlen (h->name, sizeof w.name));
  w.checksum = be64_make (checksum_of (&w));
  memset (slot, 0, LEASE_SLOT);
  memcpy (slot, &w, sizeof w);
}

/* Copies a string of at most SIZE bytes, behind which all must be zero; OUT has
 * room for a NUL more. */
static bool
load_string (const uint8_t *p, size_t size, char *out)
{
  const size_t len = strnlen ((const char *) p, size);

  memcpy (out, p, len);
  out[len] = '\0';
  return all_zero (p + len, size - len);
}

static bool
is_in_range (const struct io_lease_holder *h)
{
  return h->generation >= 1 && h->generation <= LEASE_GENERATION_MAX &&
    h->term_ms >= 1 && h->term_ms <= IO_LEASE_TERM_MAX_S * 1000u;
}

int
lease_record_decode (const uint8_t slot[LEASE_SLOT], struct io_lease_holder *h)
{
  struct wire_record w;

  if (all_zero (slot, LEASE_SLOT))
    return 0;
  memcpy (&w, slot, sizeof w);
  if (memcmp (w.magic, magic, sizeof magic) != 0 ||
      be32_load (w.version) != VERSION ||
      be32_load (w.state) > IO_LEASE_HELD ||
      be64_load (w.checksum) != checksum_of (&w) ||
      !all_zero (w.reserved, sizeof w.reserved) ||
      !all_zero (slot + sizeof w, LEASE_SLOT - sizeof w))
    return -EINVAL;
  *h = (struct io_lease_holder) {
    .state = be32_load (w.state),
    .generation = be64_load (w.generation),
    .counter = be64_load (w.counter),
    .term_ms = be32_load (w.term_ms),
    .pid = be32_load (w.pid),
    .start_time = be64_load (w.start_time),
    .since = (int64_t) be64_load (w.since),
    .pid_ns = be64_load (w.pid_ns),
  };
  memcpy (h->server, w.server, sizeof h->server);
  memcpy (h->boot_id, w.boot_id, sizeof h->boot_id);
  if (!load_string (w.host, sizeof w.host, h->host) ||
      !load_string (w.name, sizeof w.name, h->name) || !is_in_range (h))
    return -EINVAL;
  return 1;
}
