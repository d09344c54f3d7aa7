/* SPDX-License-Identifier: BSD-3-Clause */
/* Detects sequential readers of a disk, and tells what to read ahead of them.
 *
 * A sequential reader makes requests of SRV_READ_AHEAD_MIN bytes or more, each
 * beginning near the end of another one, in any order in which several in
 * flight arrive.  Smaller requests are not looked at, so that random readers
 * have no overhead.
 */
#ifndef DEDUP_READ_AHEAD_H
#define DEDUP_READ_AHEAD_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define SRV_READ_AHEAD_MIN (UINT32_C (16) << 10)
#define SRV_READ_AHEAD_MAX (UINT64_C (4) << 20)   /* bytes, for each reader */
#define SRV_READ_AHEAD_STREAMS 8
#define SRV_READ_AHEAD_UNIT (UINT64_C (1) << 20)

struct srv_stream {           /* a reader */
  uint64_t next;              /* the highest end of its requests */
  uint64_t ahead;             /* nothing below this is to be announced */
  unsigned score;             /* number of requests that continued it */
  uint64_t used;              /* clock of its last request; 0: not in use */
  uint64_t passed;            /* units below this were told of, or not read */
  uint64_t bytes;             /* that it read since then */
};

struct srv_read_ahead {         /* of one disk */
  pthread_mutex_t mutex;

  /* Protected by mutex: */
  uint64_t clock;             /* counts requests */
  struct srv_stream v[SRV_READ_AHEAD_STREAMS];
};

void srv_read_ahead_init (struct srv_read_ahead *ra);
void srv_read_ahead_destroy (struct srv_read_ahead *ra);

/* What follows from a request: two ranges of the disk, in bytes, each of them empty
 * if it ends where it begins. */
struct srv_ahead {
  uint64_t from, to;          /* to be announced */
  uint64_t passed_from, passed_to;   /* whole units of SRV_READ_AHEAD_UNIT that
                                      * the reader has read most of by now; each
                                      * is told of once */
};

/* Notes a request to a disk of END bytes, and returns what follows from it. */
struct srv_ahead srv_read_ahead_note (struct srv_read_ahead *ra,
                                      uint64_t guest_off, uint32_t len,
                                      uint64_t end);
/* Tells that all of A was in memory already, so that the next few windows are
 * not announced. */
void srv_read_ahead_rest (struct srv_read_ahead *ra,
                          const struct srv_ahead *a);

#endif
