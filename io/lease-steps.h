/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares the steps of which the protocol of a lease is made.  Private to io/.
 *
 * lease-area.c reads the area and says what it shows.  lease-renew.c writes records of
 * this server, and renews.  lease-take.c claims and watches.  lease-protocol.c, above
 * them, decides which of these is due.  Comments cite docs/on-disk.md section 13.3 as
 * (R1). */
#ifndef DEDUP_LEASE_STEPS_H
#define DEDUP_LEASE_STEPS_H

#include "lease-protocol.h"

#define LEASE_MS UINT64_C (1000000)

/* A holder stops such a part of a term before the term's end. */
#define LEASE_MARGIN_PART 6

/* --- The state --------------------------------------------------------------- */

static inline uint64_t
lease_now (const struct lease *l)
{
  return l->world->now_ns (l->world->opaque);
}

static inline void
lease_rest (const struct lease *l, uint64_t ns)
{
  l->world->sleep_ns (l->world->opaque, ns);
}

static inline uint64_t
lease_until (const struct lease *l)
{
  return __atomic_load_n (&l->until_ns, __ATOMIC_ACQUIRE);
}

static inline void
lease_set_until (struct lease *l, uint64_t ns)
{
  __atomic_store_n (&l->until_ns, ns, __ATOMIC_RELEASE);
}

static inline bool
lease_is_lost (const struct lease *l)
{
  return __atomic_load_n (&l->lost, __ATOMIC_ACQUIRE);
}

/* Returns when a holder stops that read at START what no rival had changed. */
static inline uint64_t
lease_end (const struct lease *l, uint64_t start)
{
  return start + l->term_ns - l->term_ns / LEASE_MARGIN_PART;
}

/* --- lease-area.c ------------------------------------------------------------ */

static inline const struct io_lease_holder *
lease_newest (const struct lease_view *v)
{
  return v->newest < 0 ? NULL : &v->h[v->newest];
}

/* Returns a new view, from malloc, or NULL. */
struct lease_view *lease_view_new (void);

bool lease_is_newer (const struct io_lease_holder *a, const struct io_lease_holder *b);
bool lease_is_mine (const struct lease *l, const struct io_lease_holder *h);

/* Returns a record of another server that is not older than GENERATION, or NULL. */
const struct io_lease_holder *lease_rival (const struct lease *l,
                                           const struct lease_view *v,
                                           uint64_t generation);

/* Returns whether slot I may hide a newer record than the newest that is seen. */
bool lease_may_hide (const struct lease *l, const struct lease_view *v, unsigned i);

/* Returns whether nobody can hold the lease, so that it may be claimed without a watch.
 * AGAIN: this server has had the lease, and there is no rival. */
bool lease_is_free (const struct lease *l, const struct lease_view *v, bool again);

/* Returns the slot of a new holder. */
unsigned lease_next_slot (const struct lease_view *v);

/* Returns whether the slots that held no record in OLD hold the same bytes in V: a record
 * that is being written is none for a moment. */
bool lease_rest_is_unchanged (const struct lease_view *v, const struct lease_view *old);

/* --- lease-renew.c ----------------------------------------------------------- */

/* Writes a slot, durably. */
int lease_write_slot (struct lease *l, unsigned slot, const uint8_t *bytes) MUST_CHECK;
int lease_write_record (struct lease *l, unsigned slot,
                        const struct io_lease_holder *h) MUST_CHECK;

/* Returns whether a write of this server may still reach the slot. */
bool lease_is_unsettled (struct lease *l, unsigned slot);

/* Returns a slot for the next record of a server that has had the lease.  -ESTALE: there
 * is none. */
int lease_choose_slot (struct lease *l) MUST_CHECK;

/* Returns the record that was written last. */
struct io_lease_holder lease_self (struct lease *l);

/* Makes the next record of this generation. */
struct io_lease_holder lease_next_record (struct lease *l, int state);

/* Returns the generation with which this server took the lease first. */
uint64_t lease_first_generation (struct lease *l);

/* Ends the lease for ever.  Returns whether it was not lost before. */
bool lease_end_for_ever (struct lease *l);

/* Logs once that the lease is lost, to H or (NULL) because of WHY; returns -ESTALE. */
int lease_lose (struct lease *l, const struct io_lease_holder *h, const char *why);

/* Writes the next record after V, read from START on, showed no rival.  -ETIME: the lease
 * has ended; -ESTALE: it is lost. */
int lease_renew_after (struct lease *l, const struct lease_view *v,
                       uint64_t start) MUST_CHECK;

/* The same after reading V. */
int lease_renew_with (struct lease *l, struct lease_view *v) MUST_CHECK;

/* --- lease-take.c ------------------------------------------------------------ */

/* Takes the lease: for the first time, or AGAIN after its time was over.  FORCE: without
 * waiting for another holder.  Returns 0 or -errno; F is for the first time. */
int lease_get (struct lease *l, bool again, bool force, struct fault *f) MUST_CHECK;

/* Returns how often to look at an area that is watched. */
uint64_t lease_poll_ns (uint64_t term_ns);

#endif
