/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares the storage host, and the hosts of servers whose image lies there. */
#ifndef CRASH_REMOTE_H
#define CRASH_REMOTE_H

#include "crash.h"
#include "fake-nbd.h"
#include "lease.h"
#include "nbd-private.h"

#define MAX_STRAYS 64

/* A write or trim that was lost with a connection, and lands later. */
struct stray {
  enum fake_type type;
  uint64_t off;
  uint32_t len;
  uint8_t *data;               /* of a write; owned */
  uint64_t due;                /* lands before this request */
};

/* Of the header of a store file: 0 where there is none. */
struct sessions {
  uint64_t v[2];
};

/* What holds the bytes: a recording, whose syncs are the flushes that it was
 * asked for.  All hosts see the same one. */
struct storage {
  /* Constant while hosts are up: */
  const struct cfg *cfg;

  uint64_t clock_ns;           /* atomic: runs as the clock is read */

  pthread_mutex_t lock;
  /* Protected by lock: */
  struct io_store *rec;        /* of the world that runs; owned by that */
  struct bytes durable;        /* as of the last flush */
  struct bytes older;          /* the image as of some flush; p NULL: there is none */
  struct sessions older_sessions;  /* of the store file then */
  struct bytes first;          /* the store file before the first record */
  struct bytes left;           /* the image that a server left, if the next one had an */
  struct world *left_by;       /* older one; NULL: it had not */
  struct sessions left_sessions;
  size_t synced;               /* records that DURABLE has */
  struct stray strays[MAX_STRAYS];
  size_t nr_strays;
  uint64_t nr_requests;
  struct rng rng;
};

void storage_init (struct storage *s, const struct cfg *cfg, uint64_t seed);
void storage_destroy (struct storage *s);
/* Continues with BYTES, all durable, in a new recording, *REC. */
void storage_begin (struct storage *s, const struct bytes *bytes,
                    struct io_store **rec);
/* Loses what was not flushed: nothing, all, or part of it. */
void storage_lose (struct storage *s);
/* Lets each stray land, or forgets it. */
void storage_settle (struct storage *s);
void storage_copy (struct storage *s, struct bytes *out);

struct sessions media_sessions (const struct bytes *b);
/* Changes B, in which the server NEXT is to find image and store file when that of W has
 * ended.  Returns the world whose image it is; BACK: it is older than what was flushed
 * there (media.c). */
struct world *media_mix (struct storage *s, struct world *w, struct world *next,
                         struct bytes *b, bool *back);

/* A host: an NBD server in front of the storage, with a cache of its own, and what
 * the lease asks it. */
struct host {
  struct storage *storage;
  struct world *world;
  struct fake_nbd server;
  struct io_lease_world lease_world;
  struct log_sink sink;
  struct io_nbd *nbd;          /* of the session; NULL: there is none */
  bool holds;                  /* atomic: it has taken the lease */
  char dir[40], name[16];
  struct rng rng;              /* of random numbers for the lease */
  bool forgets;                /* processes of this host never count as ended */

  /* Protected by the server's lock: */
  unsigned first_conn;         /* older ones were lost */
  unsigned hot, calm;          /* requests of which more are lost, or none */

  uint64_t nr_times;           /* atomic: how often the clock was read */
  uint64_t jumped_at;          /* atomic: when much time passed at once */
  uint64_t hangs_at;           /* atomic: from then on it stops, and another server
                                * takes over; 0: never */
  uint64_t leaves_at;          /* ... it is cut off, from this request on */
  void (*taken_over) (struct host *h);
  bool stopped;                /* atomic: now */
  bool over;                   /* atomic: another server took over */
  bool lost;                   /* atomic: it had to give up */
  bool refused;                /* atomic: something could not be written where a
                                * lost write may land */
};

void host_begin (struct host *h, struct storage *s, struct world *w,
                 const char *name);
void host_end (struct host *h);
/* Connects, and takes the lease. */
int host_open (struct host *h, struct io_store **out, struct fault *f);
/* Returns whether another server took over, or this one lost its lease. */
bool host_has_failed (const struct host *h);
/* Wraps the store of H, and notes what fails (noting.c). */
struct io_store *noting_new (struct host *h, struct io_store *store);

/* Lets the time pass. */
void pass_time (struct storage *s, uint64_t ns);

#endif
