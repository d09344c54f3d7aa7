/* SPDX-License-Identifier: BSD-3-Clause */
/* Sequential readers: see read-ahead.h.
 *
 * The host reads ahead by itself where clusters follow each other in the image
 * file.  Where they do not, because they were rewritten or are shared, only the
 * tables know what comes next; so the tables are asked here, and the host is
 * told (dedup_will_need).  Half a window is announced at a time, and a range
 * once: a reader has at most SRV_READ_AHEAD_MAX bytes on their way that it has
 * not asked for.  While all of that is in memory anyway, one window of eight is
 * looked at.
 *
 * Any thread; the mutex is held for some comparisons.
 */
#include "read-ahead.h"

#include <string.h>

#include "checked.h"

#define SURE 4                  /* requests in sequence before anything is done */
#define MAX_SLACK (UINT64_C (16) << 20)
#define REST_WINDOWS 8

void
srv_read_ahead_init (struct srv_read_ahead *ra)
{
  memset (ra, 0, sizeof *ra);
  pthread_mutex_init (&ra->mutex, NULL);
}

void
srv_read_ahead_destroy (struct srv_read_ahead *ra)
{
  pthread_mutex_destroy (&ra->mutex);
}

static uint64_t
distance (uint64_t a, uint64_t b)
{
  return a > b ? a - b : b - a;
}

/* The reader that a request continues, or the one that was used longest ago,
 * made to begin with it. */
static struct srv_stream *
find_stream (struct srv_read_ahead *ra, unsigned root, uint64_t guest_off,
             uint32_t len)
{
  const uint64_t slack = MIN_OF (MAX_SLACK, UINT64_C (16) * len);
  struct srv_stream *oldest = &ra->v[0], *s;

  for (s = ra->v; s < ra->v + SRV_READ_AHEAD_STREAMS; s++) {
    if (s->used && s->root == root && distance (s->next, guest_off) <= slack)
      return s;
    if (s->used < oldest->used)
      oldest = s;
  }
  *oldest = (struct srv_stream) { .root = root, .next = guest_off,
                                  .ahead = guest_off };
  return oldest;
}

/* How far reader S is to be read ahead of, with requests of LEN bytes: more
 * with each, as it becomes likely that it goes on. */
static uint64_t
window (const struct srv_stream *s, uint32_t len)
{
  return MIN_OF (SRV_READ_AHEAD_MAX, UINT64_C (2) * s->score * len);
}

struct srv_ahead
srv_read_ahead_note (struct srv_read_ahead *ra, unsigned root,
                     uint64_t guest_off, uint32_t len, uint64_t end)
{
  struct srv_ahead a = { .root = root };
  struct srv_stream *s;

  if (len < SRV_READ_AHEAD_MIN)
    return a;
  pthread_mutex_lock (&ra->mutex);
  s = find_stream (ra, root, guest_off, len);
  s->used = ++ra->clock;
  if (guest_off + len > s->next) {
    s->next = guest_off + len;
    s->score += s->score < UINT32_MAX;
    if (s->score >= SURE && s->ahead < s->next + window (s, len) / 2) {
      a.from = MIN_OF (end, MAX_OF (s->ahead, s->next));
      a.to = MIN_OF (end, s->next + window (s, len));
      s->ahead = a.to;
    }
  }
  pthread_mutex_unlock (&ra->mutex);
  return a;
}

void
srv_read_ahead_rest (struct srv_read_ahead *ra, const struct srv_ahead *a)
{
  struct srv_stream *s;

  pthread_mutex_lock (&ra->mutex);
  for (s = ra->v; s < ra->v + SRV_READ_AHEAD_STREAMS; s++)
    if (s->used && s->root == a->root && s->ahead == a->to)
      s->ahead += REST_WINDOWS * SRV_READ_AHEAD_MAX;
  pthread_mutex_unlock (&ra->mutex);
}
