/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps the list of an image's clients (clients.c). */
#ifndef DEDUP_CLIENTS_H
#define DEDUP_CLIENTS_H

#include <pthread.h>

#include "server-stats.h"

struct srv_clients {
  pthread_mutex_t mutex;
  /* Protected by mutex: */
  struct srv_client *first, *last;      /* in order of ids */
  uint64_t nr, last_id;
  /* Lines of the log on clients that come and go: */
  uint64_t minute_ns;           /* when the first of this minute was written; 0: none yet */
  unsigned told, untold;        /* in this minute; left out since the last that was told */
};

void srv_clients_init (struct srv_clients *l);
/* Frees the list, with clients that nobody freed. */
void srv_clients_destroy (struct srv_clients *l);
uint64_t srv_clients_count (struct srv_clients *l);

#endif
