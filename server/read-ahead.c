/* SPDX-License-Identifier: BSD-3-Clause */
/* Detects sequential readers of a disk, and decides what to read ahead of them.
 *
 * The host reads ahead by itself where clusters are contiguous in the image
 * file.  Where they are not, because they were rewritten or are shared, only
 * the tables tell which clusters come next, so the caller passes the range to
 * dedup_will_need, which looks them up and tells the host.  Each range is
 * announced once, half a window at a time: at most SRV_READ_AHEAD_MAX bytes are
 * on their way that a reader has not asked for.  While all of a window is in
 * memory already, only one window in eight is looked at.
 *
 * Threads: any; the mutex is held for a few comparisons.
 */
#include "read-ahead.h"

#include <string.h>

#include "checked.h"

#define SURE 4                  /* requests in sequence make a reader */
#define MAX_SLACK (UINT64_C (16) << 20)         /* bytes */
#define REST_WINDOWS 8
/* Bytes that a reader may leave behind without an answer whether it has passed
 * them: more than requests in flight can be out of order, and little enough
 * that what one request has to look at is bounded. */
#define MAX_BEHIND (UINT64_C (64) << 20)

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

/* Returns the reader that a request continues; if there is none, the least
 * recently used one, made to begin with the request.  Requests of a reader may
 * be out of order by up to 16 times their length. */
static struct srv_stream *
find_stream (struct srv_read_ahead *ra, uint64_t guest_off, uint32_t len)
{
  const uint64_t slack = MIN_OF (MAX_SLACK, UINT64_C (16) * len);
  struct srv_stream *oldest = &ra->v[0], *s;

  for (s = ra->v; s < ra->v + SRV_READ_AHEAD_STREAMS; s++) {
    if (s->used && distance (s->next, guest_off) <= slack)
      return s;
    if (s->used < oldest->used)
      oldest = s;
  }
  *oldest = (struct srv_stream) { .next = guest_off, .ahead = guest_off,
                                  .passed = round_up_pow2
                                    (guest_off, SRV_READ_AHEAD_UNIT) };
  return oldest;
}

/* Returns how many bytes are to be read ahead of reader S, whose requests have
 * LEN bytes: more with each request, as it becomes likelier that there will be
 * others. */
static uint64_t
window (const struct srv_stream *s, uint32_t len)
{
  return MIN_OF (SRV_READ_AHEAD_MAX, UINT64_C (2) * s->score * len);
}

/* Notes in A which units reader S has passed with a request of LEN bytes at
 * GUEST_OFF, if it has read three quarters of what lies between by now: requests in
 * flight arrive in any order, and a reader that leaves much out is not told of.
 * What is further behind than MAX_BEHIND was left out for good. */
static void
note_passed (struct srv_stream *s, uint64_t guest_off, uint32_t len,
             struct srv_ahead *a)
{
  const uint64_t to = round_down_pow2 (s->next, SRV_READ_AHEAD_UNIT);

  s->bytes += len;
  if (s->score < SURE)          /* it may have begun before */
    s->passed = MIN_OF (s->passed, round_up_pow2 (guest_off,
                                                  SRV_READ_AHEAD_UNIT));
  if (s->score < SURE || to <= s->passed)
    return;
  if (s->bytes < (s->next - s->passed) / 4 * 3) {
    if (to - s->passed > MAX_BEHIND) {
      s->passed = to;
      s->bytes = 0;
    }
    return;
  }
  a->passed_from = s->passed;
  a->passed_to = to;
  s->bytes -= MIN_OF (s->bytes, to - s->passed);
  s->bytes = MIN_OF (s->bytes, SRV_READ_AHEAD_UNIT);
  s->passed = to;
}

struct srv_ahead
srv_read_ahead_note (struct srv_read_ahead *ra, uint64_t guest_off,
                     uint32_t len, uint64_t end)
{
  struct srv_ahead a = { 0 };
  struct srv_stream *s;

  if (len < SRV_READ_AHEAD_MIN)
    return a;
  pthread_mutex_lock (&ra->mutex);
  s = find_stream (ra, guest_off, len);
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
  note_passed (s, guest_off, len, &a);
  pthread_mutex_unlock (&ra->mutex);
  return a;
}

void
srv_read_ahead_rest (struct srv_read_ahead *ra, const struct srv_ahead *a)
{
  struct srv_stream *s;

  pthread_mutex_lock (&ra->mutex);
  for (s = ra->v; s < ra->v + SRV_READ_AHEAD_STREAMS; s++)
    if (s->used && s->ahead == a->to)
      s->ahead += REST_WINDOWS * SRV_READ_AHEAD_MAX;
  pthread_mutex_unlock (&ra->mutex);
}
