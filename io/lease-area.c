/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads a lease area, and says what it shows: whose record is the newest, which others
 * compete with it, and what may be hidden.
 *
 * Bytes that are no record are somebody else's data where no slot has a record; beside a
 * record they are one that was torn while it was written.
 *
 * Writes nothing and keeps no state.  Results: 0 or -errno.  Threads: any.
 */
#include "lease-steps.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"

struct lease_view *
lease_view_new (void)
{
  return aligned_alloc (IO_MEDIUM_ALIGN,
                        round_up_pow2 (sizeof (struct lease_view),
                                       IO_MEDIUM_ALIGN));
}

bool
lease_is_newer (const struct io_lease_holder *a, const struct io_lease_holder *b)
{
  return a->generation != b->generation ? a->generation > b->generation
    : a->counter > b->counter;
}

/* Reads from the medium: another host may have written what this one has in its
 * cache. */
int
lease_look (struct io_store *area, uint64_t area_off, struct lease_view *v)
{
  int r = io_pread_medium (area, v->bytes, sizeof v->bytes, area_off);
  unsigned i;

  v->newest = -1;
  for (i = 0; i < LEASE_SLOTS && r == 0; i++) {
    v->result[i] = lease_record_decode (v->bytes + i * LEASE_SLOT, &v->h[i]);
    if (v->result[i] == 1 &&
        (v->newest < 0 || lease_is_newer (&v->h[i], &v->h[v->newest])))
      v->newest = (int) i;
  }
  return r;
}

bool
lease_has_foreign_bytes (const struct lease_view *v)
{
  unsigned i;

  for (i = 0; i < LEASE_SLOTS && v->newest < 0; i++)
    if (v->result[i] < 0)
      return true;
  return false;
}

int
lease_refuse_bytes (const struct lease *l, struct fault *f)
{
  if (l->area_off == 0)
    return fault_set (f, FAULT_UNSUPPORTED, EINVAL, 0,
                      "its lease file holds something else");
  return fault_set (f, FAULT_UNSUPPORTED, EINVAL, l->area_off,
                    "its last 64 KiB, where a lease has to be, hold something "
                    "else: it must be 64 KiB larger, or zero there if nothing "
                    "needs them");
}

uint64_t
lease_longest_term (const struct lease_view *v, uint64_t least)
{
  unsigned i;

  for (i = 0; i < LEASE_SLOTS; i++)
    if (v->result[i] == 1)
      least = MAX_OF (least, v->h[i].term_ms * LEASE_MS);
  return least;
}

bool
lease_is_mine (const struct lease *l, const struct io_lease_holder *h)
{
  return memcmp (h->server, l->self.server, sizeof h->server) == 0;
}

const struct io_lease_holder *
lease_rival (const struct lease *l, const struct lease_view *v,
             uint64_t generation)
{
  unsigned i;

  for (i = 0; i < LEASE_SLOTS; i++)
    if (v->result[i] == 1 && v->h[i].generation >= generation &&
        !lease_is_mine (l, &v->h[i]))
      return &v->h[i];
  return NULL;
}

/* Returns whether slot I may hide a newer record than the newest that is seen:
 * it holds no record, or a claim, which may have been written late over
 * another record (R4). */
bool
lease_may_hide (const struct lease *l, const struct lease_view *v, unsigned i)
{
  return v->result[i] < 0 ||
    (v->result[i] == 1 && v->h[i].state == IO_LEASE_CLAIMED &&
     !lease_is_mine (l, &v->h[i]));
}

/* Returns whether the newest record is known, and of one server. */
static bool
is_unambiguous (const struct lease *l, const struct lease_view *v)
{
  const struct io_lease_holder *h = lease_newest (v);
  unsigned i;

  for (i = 0; i < LEASE_SLOTS; i++)
    if (lease_may_hide (l, v, i) ||
        (v->result[i] == 1 && v->h[i].generation == h->generation &&
         memcmp (v->h[i].server, h->server, sizeof h->server) != 0))
      return false;
  return true;
}

/* Returns whether nobody can hold the lease, so that it may be claimed without
 * a watch.  AGAIN: this server has had the lease, and there is no rival: if
 * the newest record is its own, nobody took it since (R5). */
bool
lease_is_free (const struct lease *l, const struct lease_view *v, bool again)
{
  const struct io_lease_holder *h = lease_newest (v);

  if (!is_unambiguous (l, v))
    return false;
  if (h == NULL || h->state == IO_LEASE_FREE)
    return true;
  if (lease_is_mine (l, h))
    return again;
  return l->world->has_ended (l->world->opaque, h);
}


/* Returns the slot of a new holder: the one behind the newest record.  If a
 * claim or no record is there, it may hide a holder whose late writes go there,
 * and the next slot is taken. */
unsigned
lease_next_slot (const struct lease_view *v)
{
  unsigned slot = (unsigned) (v->newest + 1) % LEASE_SLOTS, i;

  for (i = 1; i < LEASE_SLOTS; i++) {
    if (v->result[slot] == 0 ||
        (v->result[slot] == 1 && v->h[slot].state != IO_LEASE_CLAIMED))
      break;
    slot = (slot + 1) % LEASE_SLOTS;
  }
  return slot;
}

bool
lease_rest_is_unchanged (const struct lease_view *v, const struct lease_view *old)
{
  unsigned i;

  for (i = 0; i < LEASE_SLOTS; i++)
    if (v->result[i] < 0 &&
        memcmp (v->bytes + i * LEASE_SLOT, old->bytes + i * LEASE_SLOT,
                LEASE_SLOT) != 0)
      return false;
  return true;
}
