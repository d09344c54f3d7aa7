/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds holes and data of an NBD export by block status (base:allocation).
 *
 * A hole is what the server calls a hole that reads as zeroes.  A reply tells
 * of one or more extents from the place that was asked for; questions go on
 * until the answer is there or the export ends.  A server may tell of
 * arbitrarily short extents, so the number of questions is limited; after that
 * it counts as one that cannot tell.
 *
 * The last range without a hole is kept, under a lock of its own, as the same
 * is asked again and again.
 */
#include "nbd-private.h"

#include <errno.h>
#include <string.h>
#include <libnbd.h>

#include "checked.h"

#define MAX_QUESTIONS 1000
#define MAX_QUESTION (UINT64_C (1) << 30)     /* bytes that one is about */

/* A search for the first byte that is in a hole, or that is not. */
struct search {
  bool for_hole;
  uint64_t asked;             /* where the question begins */
  uint64_t at;                /* all before it is of the other kind */
  bool found;
};

static bool
is_hole (uint32_t flags)
{
  const uint32_t both = LIBNBD_STATE_HOLE | LIBNBD_STATE_ZERO;

  return (flags & both) == both;
}

/* Looks at the extents of one reply.  libnbd calls this before the command is
 * complete, while the thread that owns the search waits. */
static int
look (void *opaque, const char *context, uint64_t off, uint32_t *entries,
      size_t nr, int *error)
{
  struct search *s = opaque;
  size_t i;

  if (strcmp (context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0 || off != s->asked)
    return 0;
  s->at = off;                  /* the reply before may have been cut short */
  s->found = false;
  for (i = 0; i + 1 < nr && !s->found; i += 2) {
    s->found = is_hole (entries[i + 1]) == s->for_hole;
    if (!s->found)
      s->at += entries[i];
  }
  return 0;
}

/* Asks about the range from S->at on.  -EAGAIN: what was found is not the end
 * yet. */
static int
ask (struct io_nbd *n, struct search *s)
{
  struct search next = { .for_hole = s->for_hole, .asked = s->at,
                         .at = s->at };
  struct nbd_cmd cmd = {
    .type = NBD_EXTENTS, .off = s->at, .extents = look, .opaque = &next,
    .len = MIN_OF (MAX_QUESTION, n->export.size - s->at),
  };

  io_nbd_run (n, &cmd, 1);
  if (cmd.result < 0)
    return cmd.result;
  if (!next.found && next.at <= s->at)
    return -EIO;                /* the server said nothing */
  *s = next;
  return s->found ? 0 : -EAGAIN;
}

/* Searches from S->at, which becomes the place that was found, at most the end
 * of the export. */
static int
search (struct io_nbd *n, struct search *s)
{
  unsigned i;
  int r = -EAGAIN;

  if (!n->export.has_extents)
    return -EOPNOTSUPP;
  s->at = round_down_pow2 (s->at, n->export.min_block);
  for (i = 0; i < MAX_QUESTIONS && r == -EAGAIN; i++)
    r = s->at < n->export.size ? ask (n, s) : 0;
  s->at = MIN_OF (s->at, n->export.size);
  return r;
}

void
io_nbd_forget_dense (struct io_nbd *n)
{
  pthread_mutex_lock (&n->dense.lock);
  n->dense.from = n->dense.to = 0;
  pthread_mutex_unlock (&n->dense.lock);
}

static void
note_dense (struct io_nbd *n, uint64_t from, uint64_t to)
{
  pthread_mutex_lock (&n->dense.lock);
  n->dense.from = from;
  n->dense.to = to;
  pthread_mutex_unlock (&n->dense.lock);
}

static uint64_t
dense_to (struct io_nbd *n, uint64_t host_off)
{
  uint64_t end = host_off;

  pthread_mutex_lock (&n->dense.lock);
  if (host_off >= n->dense.from && host_off < n->dense.to)
    end = n->dense.to;
  pthread_mutex_unlock (&n->dense.lock);
  return end;
}

uint64_t
io_nbd_next_hole (struct io_store *store, uint64_t host_off)
{
  struct io_nbd *n = (struct io_nbd *) store;
  struct search s = { .for_hole = true, .at = host_off };
  const uint64_t known = dense_to (n, host_off);

  if (known > host_off || host_off >= n->export.size)
    return known;
  if (search (n, &s) < 0)
    return UINT64_MAX;
  s.at = MAX_OF (s.at, host_off);
  note_dense (n, host_off, s.at);
  return s.at;
}

int
io_nbd_next_data (struct io_store *store, uint64_t host_off, uint64_t *data)
{
  struct io_nbd *n = (struct io_nbd *) store;
  struct search s = { .at = host_off };
  int r;

  *data = UINT64_MAX;
  if (host_off >= n->export.size)
    return 0;
  r = search (n, &s);
  if (r < 0)
    return -EOPNOTSUPP;
  if (s.at < n->export.size)
    *data = MAX_OF (s.at, host_off);
  return 0;
}
