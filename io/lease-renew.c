/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes the records of a server that has, or had, the lease, and renews it.
 *
 * Promises that no record is written to a slot that a late write of this server may
 * still reach, that a renewal counts from before the read that found no rival (R1), and
 * that one which returns after the end of the lease does not count.
 *
 * Writes that reach the area after they returned, or failed, are those of lost
 * connections (io_tainted).  A server does not use such a slot again, and servers that
 * follow each other use different slots.
 *
 * Threads: any.  No lock is held during I/O. */
#include "lease-steps.h"

#include <errno.h>
#include <string.h>

#include "checked.h"

static uint64_t
slot_off (const struct lease *l, unsigned slot)
{
  return l->area_off + (uint64_t) slot * LEASE_SLOT;
}

struct io_lease_holder
lease_self (struct lease *l)
{
  LOCK_FOR_SCOPE (&l->lock);

  return l->self;
}

/* Records of later servers have no lower generation than this: one that took
 * the lease later saw at least what this server saw when it first took it.
 * Its later generations may have been hidden by a slow claim (R5). */
uint64_t
lease_first_generation (struct lease *l)
{
  LOCK_FOR_SCOPE (&l->lock);

  return l->first_generation;
}

static unsigned
slot_of (struct lease *l)
{
  LOCK_FOR_SCOPE (&l->lock);

  return l->slot;
}

/* --- Writing -------------------------------------------------------------- */

static void
count_writing (struct lease *l, unsigned slot, int n)
{
  lock_acquire (&l->lock);
  l->writing[slot] += (unsigned) n;
  lock_release (&l->lock);
}

int
lease_write_slot (struct lease *l, unsigned slot, const uint8_t *bytes)
{
  const struct iovec iov = { .iov_base = (void *) bytes, .iov_len = LEASE_SLOT };
  int r;

  count_writing (l, slot, 1);
  r = io_pwritev_sync (l->area, &iov, 1, slot_off (l, slot));
  count_writing (l, slot, -1);
  return r;
}

int
lease_write_record (struct lease *l, unsigned slot, const struct io_lease_holder *h)
{
  uint8_t bytes[LEASE_SLOT];

  lease_record_encode (h, bytes);
  return lease_write_slot (l, slot, bytes);
}

bool
lease_is_unsettled (struct lease *l, unsigned slot)
{
  bool writing;

  lock_acquire (&l->lock);
  writing = l->writing[slot] > 0;
  lock_release (&l->lock);
  return writing || io_tainted (l->area, slot_off (l, slot), LEASE_SLOT);
}

/* The same slot or, where late writes may reach that, one that is 2, 4, ... further.  A
 * later server begins 1, 3, ... further (R5). */
int
lease_choose_slot (struct lease *l)
{
  const unsigned first = slot_of (l);
  unsigned i, slot;

  for (i = 0; i < LEASE_SLOTS; i += 2) {
    slot = (first + i) % LEASE_SLOTS;
    if (!lease_is_unsettled (l, slot))
      return (int) slot;
  }
  return lease_lose (l, NULL, "late writes may reach every place of its record");
}

/* --- The end -------------------------------------------------------------- */

bool
lease_end_for_ever (struct lease *l)
{
  LOCK_FOR_SCOPE (&l->lock);

  lease_set_until (l, 0);
  return !__atomic_exchange_n (&l->lost, true, __ATOMIC_ACQ_REL);
}

int
lease_lose (struct lease *l, const struct io_lease_holder *h, const char *why)
{
  char text[IO_LEASE_TEXT];

  if (!lease_end_for_ever (l))
    return -ESTALE;
  if (h && h->state == IO_LEASE_FREE)
    why = "somebody made it free";
  if (h && h->state != IO_LEASE_FREE)
    log_line (l->log, LOG_ERROR, "%s: the lease was lost to the server on %s; "
              "nothing is read or written any more", l->path,
              io_lease_describe (h, text));
  else
    log_line (l->log, LOG_ERROR, "%s: the lease was lost: %s; nothing is read "
              "or written any more", l->path, why);
  return -ESTALE;
}

/* --- Renewing ------------------------------------------------------------- */

struct io_lease_holder
lease_next_record (struct lease *l, int state)
{
  struct io_lease_holder h;

  lock_acquire (&l->lock);
  l->self.counter++;
  l->self.state = state;
  h = l->self;
  lock_release (&l->lock);
  return h;
}

/* Notes that H is in SLOT: the lease lasts for a term from START on, which was
 * before the read that found it unchanged (R1).  -ETIME: it had ended. */
static int
extend (struct lease *l, const struct io_lease_holder *h, unsigned slot,
        uint64_t start)
{
  const uint64_t end = lease_end (l, start);
  const uint64_t done = lease_now (l);
  LOCK_FOR_SCOPE (&l->lock);

  if (done >= lease_until (l))       /* also if it is lost */
    return -ETIME;
  lease_set_until (l, MAX_OF (end, lease_until (l)));
  if (h->generation == l->self.generation && h->counter == l->self.counter)
    l->slot = slot;
  return 0;
}

static void
set_renew (struct lease *l, uint64_t ns)
{
  __atomic_store_n (&l->renew_ns, ns, __ATOMIC_RELAXED);
}

int
lease_renew_after (struct lease *l, const struct lease_view *v, uint64_t start)
{
  const struct io_lease_holder *h = lease_rival (l, v, lease_first_generation (l));
  struct io_lease_holder mine;
  int r, slot;

  if (h != NULL)
    return lease_lose (l, h, NULL);
  if (lease_now (l) >= lease_until (l))
    return -ETIME;
  slot = lease_choose_slot (l);
  if (slot < 0)
    return slot;
  mine = lease_next_record (l, IO_LEASE_HELD);
  r = lease_write_record (l, (unsigned) slot, &mine);
  if (r == 0)
    r = extend (l, &mine, (unsigned) slot, start);
  if (r == 0)
    set_renew (l, start + l->term_ns / LEASE_RENEW_PART);
  return r;
}

int
lease_renew_with (struct lease *l, struct lease_view *v)
{
  const uint64_t start = lease_now (l);
  int r;

  set_renew (l, start + l->term_ns / LEASE_RENEW_PART / 2);   /* if it fails */
  r = lease_look (l->area, l->area_off, v);
  return r < 0 ? r : lease_renew_after (l, v, start);
}
