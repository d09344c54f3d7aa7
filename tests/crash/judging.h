/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares the state being judged, which judge.c and rot.c share. */
#ifndef CRASH_JUDGING_H
#define CRASH_JUDGING_H

#include "crash.h"

struct dedup_pool;

struct judging {
  const struct world *w;
  struct io_store *disk;
  const struct state *st;
  unsigned flags;
  struct verdict *v;
  struct counts *n;
  struct rng rng;
  uint64_t *got;               /* what the state holds */
};

/* Has the store file, if there is one, what it should? */
bool store_file_is_whole (const struct judging *j);
/* Has the image samples, and all that were durable? */
bool samples_are_right (struct judging *j, struct dedup_pool *d);
/* Note what is wrong (the first counts); false. */
bool bad (struct judging *j, const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 2, 3)));
/* The ids that D holds. */
bool read_ids (struct judging *j, struct dedup_pool *d, uint64_t *ids,
               const char *when);
/* D, or the image IO, holds WANT. */
bool holds (struct judging *j, struct dedup_pool *d, const uint64_t *want,
            const char *when);
bool holds_read_only (struct judging *j, struct io_store *io,
                      const uint64_t *want, const char *when);
/* The check finds nothing in IO; STORE_TOO: and a store that is whole. */
bool checks_clean (struct judging *j, struct io_store *io, bool store_too);

/* --- rot.c ----------------------------------------------------------------- */

/* The closed image IO holds IDS.  Another program unmaps clusters, and the
 * configuration rots, or an older one of IN's recording comes back. */
bool survives_config_rot (struct judging *j, const struct world *in,
                          struct io_store *io, uint64_t *ids);
/* A byte of the journal rots in the crashed image J->disk. */
bool survives_journal_rot (struct judging *j);

#endif
