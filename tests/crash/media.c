/* SPDX-License-Identifier: BSD-3-Clause */
/* Mixes an image behind NBD with a store file on the server's host: each lies on a medium
 * of its own, which loses power, gets lost or goes back by itself.
 *
 * A server that follows another one finds, beside the image, the store file as it is,
 * without some of what was not synced, as it was some time before, or none; or it is
 * another image's, which must be refused and left as it is.  Or the image is an older one,
 * as of any flush of the server before, as from a snapshot of the storage.  The server
 * after that finds the image again that was left for it, so that two copies of an image
 * were served with one store file.
 *
 * Whatever of these comes, no data may be lost or wrong; only entries of the index may.
 * Locks: none; no server runs.
 */
#include "remote.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "checked.h"
#include "config.h"
#include "pool.h"
#include "wire.h"

enum find { IMAGE_BACK, KEPT, POWER_LOST, LOST, OLDER, FOREIGN, NR_FINDS };

/* Of the store file's header (docs/on-disk.md section 9). */
#define HEADER_BYTES 64u
#define STORE_ID_AT 16u
#define SESSIONS_AT 24u         /* that of the file, and the one before */
#define CHECKSUM_AT 40u

static void
forget_file (struct bytes *b)
{
  free (b->p2);
  b->p2 = NULL;
  b->size2 = 0;
}

/* Makes the file of B what the first TO records left of it, without some of those that no
 * sync covers. */
static void
play_file (struct storage *s, struct world *w, size_t to, struct bytes *b)
{
  size_t synced = to, i;
  unsigned file;

  while (synced > 0 && (!is_sync (&w->log[synced - 1], &file) || file == 0))
    synced--;
  forget_file (b);
  b->size2 = s->first.size2;
  b->p2 = calloc (1, round_up_pow2 (b->size2, 4096) + 4096);
  if (b->size2 > 0)
    memcpy (b->p2, s->first.p2, b->size2);
  for (i = 0; i < to; i++)
    if (file_of (&w->log[i]) && (i < synced || chance (&s->rng, 2)))
      bytes_play (w, i, i + 1, b);
}

/* Gives the file the id of another store.  Returns false if it is none. */
static bool
make_foreign (struct bytes *b)
{
  const uint8_t zero[8] = { 0 };
  be64 sum;

  if (b->size2 < HEADER_BYTES || memcmp (b->p2, "DDUPSTOR", 8) != 0)
    return false;
  b->p2[STORE_ID_AT] ^= 0x55;
  memcpy (b->p2 + CHECKSUM_AT, zero, sizeof zero);
  sum = be64_make (XXH3_64bits (b->p2, HEADER_BYTES));
  memcpy (b->p2 + CHECKSUM_AT, &sum, sizeof sum);
  return true;
}

/* Checks that neither the image nor the file of B is changed, or served. */
static void
check_refused (struct world *w, const struct bytes *b)
{
  struct io_store *io = cow_new (b, NULL);
  struct dedup_pool *d;
  struct fault f;
  int writable;

  for (writable = 0; writable < 2; writable++)
    if (open_disk (w, io, writable, &d, &f) == 0) {
      dedup_free (d);
      world_error (w, "a store file of another image is used");
    }
    else if (strstr (f.msg, "store") == NULL)
      world_error (w, "a store file of another image: %s", f.msg);
  if (cow_changes (io) > 0)
    world_error (w, "a store file of another image is refused, and changed");
  io_close (io);
}

/* --- Sessions ----------------------------------------------------------- */

struct sessions
media_sessions (const struct bytes *b)
{
  struct sessions s = { 0 };

  if (b->size2 >= HEADER_BYTES)
    memcpy (s.v, b->p2 + SESSIONS_AT, sizeof s.v);
  return s;
}

/* Returns whether a file with sessions NOW may be used by an image beside which it had
 * those of THEN: the image names one of these. */
static bool
may_belong (const struct sessions *then, const struct sessions *now)
{
  unsigned i, k;

  for (i = 0; i < 2; i++)
    for (k = 0; k < 2; k++)
      if (then->v[i] != 0 && then->v[i] == now->v[k])
        return true;
  return false;
}

/* Checks that a file of another time gives nothing to the index. */
static void
check_unused (struct world *w, const struct bytes *b)
{
  struct io_store *io = cow_new (b, NULL);
  const struct dedup_index_manifest *m;
  struct dedup_pool *d;
  struct fault f;
  size_t i;

  if (open_disk (w, io, false, &d, &f) == 0) {
    m = &d->store.config->index;
    for (i = 0; i < m->nr_segments; i++)
      if (dedup_in_store_file (m->segments[i].host_off))
        world_error (w, "a store file is used that is older or newer than the image");
    dedup_free (d);
  }
  io_close (io);
}

/* --- Mixing ------------------------------------------------------------- */

static void
swap_images (struct bytes *a, struct bytes *b)
{
  uint8_t *p = a->p;
  const size_t size = a->size;

  a->p = b->p;
  a->size = b->size;
  b->p = p;
  b->size = size;
}

static void
mix (struct storage *s, struct world *w, enum find find, struct bytes *b)
{
  const size_t nr = io_recording_log (w->rec, &w->log);

  switch (find) {
  case IMAGE_BACK: swap_images (b, &s->older); break;
  case KEPT: case NR_FINDS: break;
  case POWER_LOST: play_file (s, w, nr, b); break;
  case LOST: forget_file (b); break;
  case OLDER: play_file (s, w, rnd (&s->rng, nr + 1), b); break;
  case FOREIGN:
    if (make_foreign (b))
      check_refused (w, b);
    forget_file (b);
    break;
  }
}

struct world *
media_mix (struct storage *s, struct world *w, struct world *next, struct bytes *b,
           bool *back)
{
  struct world *of = s->left_by;
  struct sessions then = of ? s->left_sessions : media_sessions (b), now;
  enum find find = chance (&s->rng, 2) ? IMAGE_BACK
    : (enum find) rnd (&s->rng, NR_FINDS);

  if (of)
    swap_images (b, &s->left);  /* forward again */
  else if (find == IMAGE_BACK && s->older.p == NULL)
    find = KEPT;
  else
    mix (s, w, find, b);
  s->left_by = NULL;
  bytes_free (&s->left);
  s->left = (struct bytes) { 0 };
  *back = !of && find == IMAGE_BACK;
  if (*back) {
    s->left_by = w;
    s->left_sessions = then;
    swap_images (&s->left, &s->older);
    then = s->older_sessions;
  }
  now = media_sessions (b);
  if (!may_belong (&then, &now))
    check_unused (w, b);
  next->index_lost = w->index_lost || of || (find != KEPT && find != POWER_LOST);
  if (of || find != KEPT)
    COUNT (mixed);
  return of ? of : w;
}
