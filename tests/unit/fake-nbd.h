/* SPDX-License-Identifier: BSD-3-Clause */
/* A small NBD server in the test's own process, whose every reply the test
 * chooses.
 *
 * It keeps its export in memory, twice: as clients see it, and as it was at the
 * last flush.  A crash ends all connections and goes back to the latter, as a
 * server with a write cache does that is killed.  It serves any number of
 * connections, each with a thread, by simple replies.
 */
#ifndef DEDUP_FAKE_NBD_H
#define DEDUP_FAKE_NBD_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum fake_type { FAKE_READ, FAKE_WRITE, FAKE_DISC, FAKE_FLUSH, FAKE_TRIM };

struct fake_request {
  unsigned idx;               /* counts from 0, over all connections */
  enum fake_type type;
  uint64_t off;
  uint32_t len;
  bool fua;
  unsigned conn;              /* of which connection: counts from 1 */
};

/* What happens to a request: one of these, or an errno of NBD as its reply. */
enum fake_fate {
  FAKE_DO = 0,
  FAKE_CUT = -1,              /* all connections end, and it is not done */
  FAKE_DO_AND_CUT = -2,       /* it is done, but nobody hears of it */
  FAKE_CRASH = -3,            /* and what was not flushed is lost */
  FAKE_DO_AND_CRASH = -4,
  FAKE_SILENCE = -5,          /* there is no reply; it is not done */
  FAKE_LATE = -6,             /* after 50 ms */
  FAKE_STRAY = -7,            /* like FAKE_CUT, but fake_land does it later */
};

struct fake_nbd {
  /* Set by the test before fake_start: */
  char socket[100];
  uint64_t size;
  uint16_t flags;             /* of the export, 0: all that it can do */
  uint32_t min_block;         /* 0: not told */
  /* Decides on each request, one at a time; NULL: FAKE_DO. */
  int (*fate) (void *opaque, const struct fake_request *r);
  void *opaque;
  /* Does a request in place of all that, on bytes of the test's own.  Returns
   * FAKE_DO, FAKE_CUT, FAKE_SILENCE or an errno of NBD.  May be NULL. */
  int (*act) (void *opaque, const struct fake_request *r, uint8_t *data);

  /* Protected by lock: */
  pthread_mutex_t lock;
  uint8_t *now, *flushed;
  unsigned nr_requests, nr_connections;
  struct fake_conn *conns;
  struct fake_request stray;
  uint8_t *stray_bytes;

  int listener, ender[2];
  pthread_t thread;
};

#define FAKE_READ_ONLY 2
#define FAKE_MULTI_CONN 256
#define FAKE_FUA 8
#define FAKE_ALL (1 | 4 | FAKE_FUA | 32 | FAKE_MULTI_CONN)

/* Makes the bytes, all zero, without serving them; none if there is an act. */
void fake_init (struct fake_nbd *s);
void fake_start (struct fake_nbd *s);
/* Only listens, with the descriptor listener, and accepts nobody. */
void fake_listen (struct fake_nbd *s);
/* Ends all connections and listens no more; the bytes stay. */
void fake_stop (struct fake_nbd *s);
/* Loses what was not flushed. */
void fake_lose (struct fake_nbd *s);
/* Ends all connections; new ones are accepted. */
void fake_cut (struct fake_nbd *s);
/* Ends connection IDX, which counts from 1. */
void fake_cut_one (struct fake_nbd *s, unsigned idx);
/* Does the last stray write or trim now. */
void fake_land (struct fake_nbd *s);
void fake_destroy (struct fake_nbd *s);

#endif
