/* SPDX-License-Identifier: BSD-3-Clause */
/* Notices sequential readers and says what is to be read ahead of them.
 *
 * A reader of requests of READ_AHEAD_MIN bytes or more, each near where the one
 * before ended, in whatever order several in flight arrive.  Smaller requests
 * are not looked at, so random readers pay nothing.
 */
#ifndef DEDUP_READ_AHEAD_H
#define DEDUP_READ_AHEAD_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define SRV_READ_AHEAD_MIN (UINT32_C (16) << 10)
#define SRV_READ_AHEAD_MAX (UINT64_C (4) << 20)   /* bytes, of one reader */
#define SRV_READ_AHEAD_STREAMS 8

struct srv_stream {           /* a reader */
  unsigned root;
  uint64_t next;              /* the furthest that it has read */
  uint64_t ahead;             /* announced up to here, or not to be */
  unsigned score;             /* requests that went on from the one before */
  uint64_t used;              /* when; 0: never */
};

struct srv_read_ahead {
  pthread_mutex_t mutex;

  /* Protected by mutex: */
  uint64_t clock;             /* counts requests */
  struct srv_stream v[SRV_READ_AHEAD_STREAMS];
};

void srv_read_ahead_init (struct srv_read_ahead *ra);
void srv_read_ahead_destroy (struct srv_read_ahead *ra);

/* A range of the guest that is to be announced; empty if FROM == TO. */
struct srv_ahead {
  unsigned root;
  uint64_t from, to;
};

/* Notes a request of ROOT, whose size is END. */
struct srv_ahead srv_read_ahead_note (struct srv_read_ahead *ra, unsigned root,
                                      uint64_t guest_off, uint32_t len,
                                      uint64_t end);
/* All of A was in memory: look again only after some windows. */
void srv_read_ahead_rest (struct srv_read_ahead *ra,
                          const struct srv_ahead *a);

#endif
