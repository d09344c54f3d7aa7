/* SPDX-License-Identifier: BSD-3-Clause */
/* Implements the gate through which the requests to a disk pass.
 *
 * A request adds itself to the count first and looks at the state then; whoever
 * changes the state sets it first and looks at the count then.  All four are
 * sequentially consistent, so at least one of the two sees the other: no request
 * is inside when srv_gate_drain has returned.  A request that finds the gate
 * closed takes itself off the count again.
 *
 * Threads: any.  While the gate is open, a request touches one counter and takes
 * no mutex.  What one thread writes between srv_gate_drain and srv_gate_resume is
 * seen by each later request.
 */
#include "request-gate.h"

#include <assert.h>
#include <errno.h>

void
srv_gate_init (struct srv_gate *g)
{
  g->nr_inside = 0;
  g->state = SRV_GATE_OPEN;
  pthread_mutex_init (&g->mutex, NULL);
  pthread_cond_init (&g->changed, NULL);
}

void
srv_gate_destroy (struct srv_gate *g)
{
  assert (__atomic_load_n (&g->nr_inside, __ATOMIC_SEQ_CST) == 0);
  pthread_cond_destroy (&g->changed);
  pthread_mutex_destroy (&g->mutex);
}

static int
state_of (const struct srv_gate *g)
{
  return __atomic_load_n (&g->state, __ATOMIC_SEQ_CST);
}

static void
wait_for_end_of_pause (struct srv_gate *g)
{
  pthread_mutex_lock (&g->mutex);
  while (state_of (g) == SRV_GATE_PAUSED)
    pthread_cond_wait (&g->changed, &g->mutex);
  pthread_mutex_unlock (&g->mutex);
}

int
srv_gate_enter (struct srv_gate *g)
{
  int state;

  for (;;) {
    __atomic_add_fetch (&g->nr_inside, 1, __ATOMIC_SEQ_CST);
    state = state_of (g);
    if (state == SRV_GATE_OPEN)
      return 0;
    srv_gate_leave (g);
    if (state == SRV_GATE_SHUT)
      return -ESHUTDOWN;
    wait_for_end_of_pause (g);
  }
}

void
srv_gate_leave (struct srv_gate *g)
{
  if (__atomic_sub_fetch (&g->nr_inside, 1, __ATOMIC_SEQ_CST) > 0 ||
      state_of (g) == SRV_GATE_OPEN)
    return;
  pthread_mutex_lock (&g->mutex);
  pthread_cond_broadcast (&g->changed);
  pthread_mutex_unlock (&g->mutex);
}

static void
set_state (struct srv_gate *g, enum srv_gate_state from,
           enum srv_gate_state to)
{
  pthread_mutex_lock (&g->mutex);
  assert (g->state == (int) from);
  __atomic_store_n (&g->state, to, __ATOMIC_SEQ_CST);
  pthread_cond_broadcast (&g->changed);
  pthread_mutex_unlock (&g->mutex);
}

void
srv_gate_pause (struct srv_gate *g)
{
  set_state (g, SRV_GATE_OPEN, SRV_GATE_PAUSED);
}

void
srv_gate_shut (struct srv_gate *g)
{
  set_state (g, SRV_GATE_OPEN, SRV_GATE_SHUT);
}

void
srv_gate_resume (struct srv_gate *g)
{
  set_state (g, SRV_GATE_PAUSED, SRV_GATE_OPEN);
}

void
srv_gate_drain (struct srv_gate *g)
{
  pthread_mutex_lock (&g->mutex);
  while (__atomic_load_n (&g->nr_inside, __ATOMIC_SEQ_CST) > 0)
    pthread_cond_wait (&g->changed, &g->mutex);
  pthread_mutex_unlock (&g->mutex);
}
