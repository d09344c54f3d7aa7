/* SPDX-License-Identifier: BSD-3-Clause */
/* One server's part in the protocol of a lease (docs/on-disk.md section 13.2).
 * Private to io/. */
#ifndef DEDUP_LEASE_PROTOCOL_H
#define DEDUP_LEASE_PROTOCOL_H

#include "lease.h"
#include "lease-record.h"
#include "lock.h"

#define LEASE_RENEW_PART 6      /* the lease is renewed so often in a term */

struct lease {
  /* Constant after lease_init: */
  struct io_store *area;
  uint64_t area_off;
  const struct io_lease_world *world;
  const struct log_sink *log;
  const char *path;
  uint64_t term_ns;

  /* Atomic: the time at which this server stops; 0: it has no lease. */
  uint64_t until_ns;
  bool lost;                   /* for ever */
  bool busy;                   /* a thread renews it or gets it again */
  bool troubled;               /* a line says that it cannot be renewed */

  /* Protected by lock: */
  struct lock lock;
  struct io_lease_holder self; /* the record that was written last */
  uint64_t first_generation;   /* with which it took the lease; 0: not yet */
  unsigned slot;               /* of the last record that was written whole */
  uint64_t renew_ns;           /* when it is to be renewed */
  unsigned writing[LEASE_SLOTS];      /* writes that are under way */
};

/* What was read of the area. */
struct lease_view {
  uint8_t bytes[IO_LEASE_BYTES];
  int result[LEASE_SLOTS];     /* of lease_record_decode */
  struct io_lease_holder h[LEASE_SLOTS];
  int newest;                  /* slot of the newest record, or -1 */
};

void lease_init (struct lease *l, struct io_store *area, uint64_t area_off,
                 const struct io_lease_params *p);
void lease_destroy (struct lease *l);

/* Reads the area. */
int lease_look (struct io_store *area, uint64_t area_off,
                struct lease_view *v) MUST_CHECK;

/* Returns whether the area holds bytes, but no record. */
bool lease_has_foreign_bytes (const struct lease_view *v);

/* Fills F with a message for such an area; returns -EINVAL. */
int lease_refuse_bytes (const struct lease *l, struct fault *f);

/* Takes the lease; FORCE: without waiting for another holder. */
int lease_take (struct lease *l, bool force, struct fault *f) MUST_CHECK;

/* Returns 0 if the lease lasts, after getting it again where needed.  Fast if
 * it does.  -ESTALE: it is lost for ever. */
int lease_check (struct lease *l) MUST_CHECK;

/* Renews the lease, or gets it again. */
int lease_renew (struct lease *l) MUST_CHECK;

/* Renews it if that is due, and no other thread does. */
void lease_renew_if_due (struct lease *l);

/* As lease_renew, but waits for no other thread (io_lease_may_resume). */
int lease_resume (struct lease *l) MUST_CHECK;

/* From now on the record names this process. */
void lease_name_process (struct lease *l);

/* Gives the lease back, if it lasts. */
void lease_release (struct lease *l);

/* Writes a record that says that the lease is free, over what V saw. */
int lease_break (struct lease *l, const struct lease_view *v) MUST_CHECK;

/* Waits until the newest record of V changes, or FOR_NS have passed without, before a read
 * that shows it unchanged: the reply to an older one may have taken all that time.
 * Returns 1 if it changed (V has the new one), 0 if not, or -errno. */
int lease_watch (struct lease *l, struct lease_view *v,
                 uint64_t for_ns) MUST_CHECK;

/* The longest term of all records in V, in ns; LEAST: at least that. */
uint64_t lease_longest_term (const struct lease_view *v, uint64_t least);

#endif
