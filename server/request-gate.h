/* SPDX-License-Identifier: BSD-3-Clause */
/* Counts the requests to a disk that are under way, and keeps new ones out: for
 * a moment, while the disk's size changes, or for ever, when its contents are
 * about to end (request-gate.c).
 */
#ifndef DEDUP_REQUEST_GATE_H
#define DEDUP_REQUEST_GATE_H

#include <pthread.h>
#include <stdint.h>

#include "cleanup.h"

enum srv_gate_state {
  SRV_GATE_OPEN,
  SRV_GATE_PAUSED,              /* requests wait; OPEN follows */
  SRV_GATE_SHUT,                /* requests fail; the last state */
};

struct srv_gate {
  /* Atomic: */
  uint64_t nr_inside;           /* requests between enter and leave */
  int state;                    /* enum srv_gate_state; set under mutex */

  pthread_mutex_t mutex;
  pthread_cond_t changed;       /* nr_inside fell to 0, or the state changed */
};

void srv_gate_init (struct srv_gate *g);
void srv_gate_destroy (struct srv_gate *g);

/* Enclose each request.  srv_gate_enter waits while the gate is paused, and
 * returns -ESHUTDOWN if it is shut; then srv_gate_leave must not be called. */
int srv_gate_enter (struct srv_gate *g) MUST_CHECK;
void srv_gate_leave (struct srv_gate *g);

/* Keep new requests out: after a pause they wait, after a shut they fail.  Called by
 * one thread at a time, which is in no request. */
void srv_gate_pause (struct srv_gate *g);
void srv_gate_shut (struct srv_gate *g);
/* Waits until no request is inside, after one of these two calls. */
void srv_gate_drain (struct srv_gate *g);
/* Ends a pause. */
void srv_gate_resume (struct srv_gate *g);

#endif
