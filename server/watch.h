/* SPDX-License-Identifier: BSD-3-Clause */
/* Watches an image that is served: its space, what it stores, and whether it can
 * still be written (watch.c). */
#ifndef DEDUP_WATCH_H
#define DEDUP_WATCH_H

#include <pthread.h>

#include "server-stats.h"

struct srv_image;

/* What the image was like when it was counted last. */
struct srv_watch_mark {
  uint64_t last_change_ns, nr_changes;
  bool work_left;
};

struct srv_watch {
  struct srv_image *m;          /* constant */

  pthread_t thread;
  bool started;                 /* by the thread that starts and closes */

  bool stopping;                /* atomic; set under mutex */
  uint64_t low_bytes;           /* atomic: the setting */

  pthread_mutex_t mutex;
  pthread_cond_t changed;       /* one of these: */

  /* Protected by mutex: */
  bool woken;
  uint64_t nr_asked;            /* counts that somebody waits for */
  uint64_t nr_answered;         /* of them, those that ended */
  int answer;                   /* the result of the last count */
  struct srv_space_stats space; /* without status */
  struct dedup_stats index;
  uint64_t index_at;

  /* The thread's own: */
  bool read_only_told;
  uint64_t next_count_ns;
  uint64_t next_sample_ns;
  bool sample_is_due;           /* of the last count: a job had the store */
  struct dedup_sample sampled;  /* the last one */
  struct srv_watch_mark counted;
};

void srv_watch_init (struct srv_watch *w, struct srv_image *m,
                     uint64_t low_bytes);
void srv_watch_destroy (struct srv_watch *w);
/* Starts the thread.  -errno. */
int srv_watch_start (struct srv_watch *w) MUST_CHECK;
/* Ends the thread, and waits for that.  Does nothing if it was not started. */
void srv_watch_stop (struct srv_watch *w);
/* Makes it look soon.  Any thread. */
void srv_watch_wake (struct srv_watch *w);
/* Copies what it found last. */
void srv_watch_get (struct srv_watch *w, struct srv_stats *s);

#endif
