/* SPDX-License-Identifier: BSD-3-Clause */
/* Takes a lease: watches the area where somebody may hold it, and claims it.
 *
 * Promises that of all servers which claim a lease at the same time at most one has it,
 * however slow their reads and writes are (R2).
 *
 * Keeps what it has seen in a struct taking, of the calling thread. */
#include "lease-steps.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"

/* From the read that finds the lease free to the end of the write that claims
 * it: at most CLAIM_NS, else it is not claimed.  From there to the read that
 * confirms it: at least SETTLE_NS (R2). */
#define CLAIM_NS (400 * LEASE_MS)
#define SETTLE_NS (500 * LEASE_MS)

/* The same in parts of a term, where the area had a claim already: that of a server which
 * found the place too slow for the above (R2). */
#define SLOW_CLAIM_PART 12
#define SLOW_SETTLE_PART 9

#define POLL_MIN_NS (20 * LEASE_MS)
#define POLL_MAX_NS (1000 * LEASE_MS)

/* How often a claim may fail, and a watch may see bytes change, before a server
 * gives up: more than one rival each time is unlikely. */
#define MAX_CLAIMS 3
#define MAX_WATCHES 8

/* What a server that wants the lease has seen so far. */
struct taking {
  struct lease *l;
  bool again;                  /* it had the lease before */
  bool force;
  struct lease_view *v;        /* read last */
  struct lease_view *seen;     /* watched since SEEN_NS */
  bool watching;
  bool must_watch;             /* its claim may have covered another's record */
  uint64_t seen_ns, for_ns;
  unsigned claims, watches;
  bool told;
  struct fault *f;
};

/* --- Refusals ------------------------------------------------------------- */

static int
refuse (struct taking *t, const struct io_lease_holder *h)
{
  char text[IO_LEASE_TEXT];

  if (t->again)
    return lease_lose (t->l, h, NULL);
  return fault_set (t->f, FAULT_BUSY, EBUSY, UINT64_MAX,
                    "is in use by the server on %s",
                    io_lease_describe (h, text));
}

static int
give_up (struct taking *t, const char *why)
{
  (void) fault_set (t->f, FAULT_BUSY, EBUSY, UINT64_MAX, "its lease could not be "
                    "taken%s: %s", t->again ? " again" : "", why);
  return t->again ? -EIO : -EBUSY;
}

/* --- Claiming ------------------------------------------------------------- */

/* How much time a claim may take, and must wait. */
struct pace {
  uint64_t claim_ns, settle_ns;
};

static bool
has_claim (const struct lease_view *v)
{
  unsigned i;

  for (i = 0; i < LEASE_SLOTS; i++)
    if (v->result[i] == 1 && v->h[i].state == IO_LEASE_CLAIMED)
      return true;
  return false;
}

/* Returns the pace of all servers that claim a lease after they saw V.  A server with a
 * longer term than all records waits for longer, but claims as fast as the others: they
 * do not know of it. */
static struct pace
pace_of (const struct lease *l, const struct lease_view *v)
{
  const uint64_t known = lease_longest_term (v, 0);

  if (!has_claim (v))
    return (struct pace) { CLAIM_NS, SETTLE_NS };
  return (struct pace) {
    MAX_OF (CLAIM_NS, MIN_OF (known, l->term_ns) / SLOW_CLAIM_PART),
    MAX_OF (SETTLE_NS, MAX_OF (known, l->term_ns) / SLOW_SETTLE_PART),
  };
}

static bool
is_confirmed (struct lease *l, bool again, const struct lease_view *v,
              const struct lease_view *old, const struct io_lease_holder *h,
              unsigned slot)
{
  return v->result[slot] == 1 && lease_is_mine (l, &v->h[slot]) &&
    v->h[slot].generation == h->generation &&
    lease_rival (l, v, again ? lease_first_generation (l) : h->generation) == NULL &&
    lease_rest_is_unchanged (v, old);
}

static void
begin_generation (struct lease *l, const struct io_lease_holder *h,
                  unsigned slot, uint64_t start)
{
  LOCK_FOR_SCOPE (&l->lock);

  if (lease_is_lost (l))
    return;
  l->self = *h;
  if (l->first_generation == 0)
    l->first_generation = h->generation;
  l->slot = slot;
  lease_set_until (l, lease_end (l, start));
}

/* Returns whether a slot has an older claim of this server, which was too slow.  It hides
 * nothing from this server, which has watched for a term since, but a later one would
 * have to watch it. */
static bool
is_own_old_claim (const struct lease *l, const struct lease_view *v, unsigned i)
{
  return v->result[i] == 1 && v->h[i].state == IO_LEASE_CLAIMED &&
    lease_is_mine (l, &v->h[i]) && i != l->slot;
}

/* Empties the slots that may hide records, so that the next server need not
 * wait because of them.  A claim of another server is not confirmed then.  Returns 1 if
 * there were any, 0, or -errno. */
static int
empty_rest (struct lease *l, const struct lease_view *v)
{
  static const uint8_t zero[LEASE_SLOT];
  unsigned i;
  int r = 0, any = 0;

  for (i = 0; i < LEASE_SLOTS && r == 0; i++)
    if ((lease_may_hide (l, v, i) || is_own_old_claim (l, v, i)) &&
        !lease_is_unsettled (l, i)) {
      r = lease_write_slot (l, i, zero);
      any = 1;
    }
  return r < 0 ? r : any;
}

/* Uses the claim H in SLOT, whose base was read from START on.  V, read from READ_AT on,
 * confirms it, and is the first half of a renewal.  Returns as claim. */
static int
use (struct lease *l, const struct io_lease_holder *h, unsigned slot, uint64_t start,
     struct lease_view *v, uint64_t read_at)
{
  int r;

  begin_generation (l, h, slot, start);
  r = empty_rest (l, v);
  if (r >= 0)
    r = r > 0 ? lease_renew_with (l, v) : lease_renew_after (l, v, read_at);
  return r == -ETIME ? 0 : r < 0 ? r : 1;
}

/* Claims the lease, which OLD, read from START on, shows to be free; V is
 * overwritten.  Returns 1 if this server has it, 0 if it was too slow or
 * another one claimed it too, or -errno. */
static int
claim (struct lease *l, bool again, const struct lease_view *old,
       struct lease_view *v, uint64_t start)
{
  const struct io_lease_holder *last = lease_newest (old);
  const struct pace pace = pace_of (l, old);
  const int slot = again ? lease_choose_slot (l) : (int) lease_next_slot (old);
  struct io_lease_holder h;
  uint64_t read_at;
  int r;

  if (slot < 0)
    return slot;
  h = lease_self (l);
  h.state = IO_LEASE_CLAIMED;
  h.generation = last ? last->generation + 1 : 1;
  h.counter = 0;
  r = lease_write_record (l, (unsigned) slot, &h);
  if (r < 0)
    return r;
  if (lease_now (l) - start > pace.claim_ns)
    return 0;
  lease_rest (l, pace.settle_ns);
  read_at = lease_now (l);
  r = lease_look (l->area, l->area_off, v);
  if (r < 0 || !is_confirmed (l, again, v, old, &h, (unsigned) slot))
    return MIN_OF (r, 0);
  return use (l, &h, (unsigned) slot, start, v, read_at);
}

/* --- Watching ------------------------------------------------------------- */

uint64_t
lease_poll_ns (uint64_t term_ns)
{
  return MIN_OF (MAX_OF (term_ns / 60, POLL_MIN_NS), POLL_MAX_NS);
}

static void
begin_watch (struct taking *t)
{
  struct lease_view *v = t->seen;

  t->seen = t->v;
  t->v = v;
  t->watching = true;
  t->seen_ns = lease_now (t->l);
  t->for_ns = lease_longest_term (t->seen, t->l->term_ns);
  t->watches++;
}

/* Says once why it takes so long: not before a holder that works would have
 * been noticed. */
static void
tell (struct taking *t, uint64_t start)
{
  const struct io_lease_holder *h = lease_newest (t->seen);
  char text[IO_LEASE_TEXT];

  if (t->told || start < t->seen_ns + t->for_ns / 4)
    return;
  t->told = true;
  log_line (t->l->log, LOG_INFO, "%s: waiting up to %" PRIu64 " s to see "
            "whether the lease is in use by the server on %s", t->l->path,
            t->for_ns / (1000 * LEASE_MS), h ? io_lease_describe (h, text) : "?");
}

/* Looks at what was read, from START on, of a lease that may be held.  Returns
 * 1 if it did not change for a term, 0 if it has to be read again, or -errno.
 */
static int
watch (struct taking *t, uint64_t start)
{
  const struct io_lease_holder *h = lease_newest (t->v);
  const bool same = t->watching && memcmp (t->v->bytes, t->seen->bytes,
                                           sizeof t->v->bytes) == 0;

  if (same && start >= t->seen_ns + t->for_ns)
    return 1;
  if (t->watching && !same && h && h->state != IO_LEASE_FREE &&
      !lease_is_mine (t->l, h))
    return refuse (t, h);
  if (!same && t->watches >= MAX_WATCHES)
    return give_up (t, "its bytes change all the time");
  if (!same)
    begin_watch (t);
  tell (t, start);
  lease_rest (t->l, lease_poll_ns (t->for_ns));
  return 0;
}

/* --- Taking --------------------------------------------------------------- */

static bool
may_claim (const struct taking *t)
{
  return t->force || (!t->must_watch && lease_is_free (t->l, t->v, t->again));
}

/* Reads the area once, and claims the lease if that is possible.  Returns 1 if
 * this server has it, 0 to be called again, or -errno. */
static int
take_step (struct taking *t)
{
  struct lease *l = t->l;
  const uint64_t start = lease_now (l);
  const struct io_lease_holder *h;
  int r = lease_look (l->area, l->area_off, t->v);

  if (r < 0)
    return fault_io (t->f, -r, l->area_off, "its lease cannot be read: %s",
                     strerror (-r));
  if (lease_has_foreign_bytes (t->v))
    return t->again ? lease_lose (l, NULL, "its area was written over")
      : lease_refuse_bytes (l, t->f);
  if (t->again && lease_now (l) < lease_until (l))
    return 1;                   /* lease_resume was faster */
  if (t->again && (h = lease_rival (l, t->v, lease_first_generation (l))) != NULL)
    return refuse (t, h);
  if (lease_newest (t->v) && lease_newest (t->v)->generation >= LEASE_GENERATION_MAX)
    return give_up (t, "its record has the last generation that is possible");
  if (!may_claim (t) && (r = watch (t, start)) <= 0)
    return r;
  if (r == 1 && t->again)
    return lease_lose (l, NULL, "others wrote to its area");
  t->watching = t->must_watch = false;
  if (t->claims++ >= MAX_CLAIMS)
    return give_up (t, "the place answers too slowly, or others take it");
  r = claim (l, t->again, t->v, t->seen, start);
  if (r < 0)
    return fault_io (t->f, -r, l->area_off, "its lease cannot be written: %s",
                     strerror (-r));
  t->must_watch = !t->again;
  return r;
}

int
lease_get (struct lease *l, bool again, bool force, struct fault *f)
{
  struct taking t = { .l = l, .again = again, .force = force, .f = f,
                      .v = lease_view_new (), .seen = lease_view_new () };
  int r = t.v && t.seen ? 0 : -ENOMEM;

  while (r == 0)
    r = lease_is_lost (l) ? -ESTALE : take_step (&t);
  free (t.v);
  free (t.seen);
  return MIN_OF (r, 0);
}
