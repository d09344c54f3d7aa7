/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads suspects a second time and decides which are bad.
 *
 * A suspect is bad if it still cannot be read, or has a hash that the index does
 * not expect there, and if it certainly had the same data since its window began:
 * it is in use, and its print does not say that it got new data.  That is looked
 * at after it was read, in the hold of the image lock that enters it in the set
 * of bad clusters.  So when the set has a cluster, the data that it lost is what
 * its entry says.
 *
 * A difference proves nothing if the index is not complete: then an exact index
 * must name the cluster for that hash at this moment, or an earlier scrub must have
 * found it bad, and been sure.
 *
 * One thread, without locks.
 */
#include "scrub-private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Suspects that are read in one step, and lines in the log for each scrub. */
#define PER_STEP 16
#define MAX_LINES 100

/* --- What the bytes say ------------------------------------------------------ */

enum verdict
scrub_compare (const struct suspect *s, uint32_t p,
               const struct dedup_hash *h)
{
  if (s->marked)
    return IS_UNKNOWN;
  if (scrub_has_hash (s, h))
    return IS_GOOD;
  if (s->nr == 0)
    return s->known ? IS_BAD : IS_UNKNOWN;
  /* Where not all hashes are kept, it is known that none has the first print. */
  return s->nr <= MAX_HASHES || scrub_print (h) == p ? IS_BAD : IS_DOUBTFUL;
}

/* Reads the suspect and judges it. */
static int
read_again (struct dedup_scrub *sc, struct suspect *s, uint8_t *bytes,
            enum verdict *v)
{
  const struct dedup_base *b = sc->b;
  struct dedup_hash h;
  int r = io_pread_medium (b->io, bytes, b->cluster_size,
                           s->host_idx << b->cluster_bits);

  if (r == -ENOMEM)
    return r;
  s->unreadable = r < 0;
  *v = s->unreadable ? IS_BAD : IS_UNKNOWN;
  if (s->unreadable || !sc->s->has_store)
    return 0;
  r = dedup_hash_compute (&b->hasher, bytes, b->cluster_size, &h);
  if (r == 0)
    *v = scrub_compare (s, print_load (sc, s->host_idx - sc->from), &h);
  return r;
}

/* --- Whether that is certain ------------------------------------------------- */

bool
scrub_is_named (struct dedup_scrub *sc, const struct suspect *s,
                uint64_t value)
{
  struct dedup_index *x = sc->s->index;
  struct dedup_index_view *view;
  bool named = false;
  size_t i;

  for (i = 0; i < MIN_OF (s->nr, MAX_HASHES) && !named; i++) {
    struct dedup_probe p = { .hash = s->hashes[i] };

    lock_acquire (sc->b->lock);
    p.found = dedup_index_lookup_locked (x, &p.hash, &p.value);
    view = dedup_index_view_locked (x);
    lock_release (sc->b->lock);
    if (p.found == DEDUP_PROBE)
      dedup_index_probe (view, &p, 1);
    dedup_index_view_put (x, view);
    named = p.found == DEDUP_HIT && p.value == value;
  }
  return named;
}

struct final {
  struct dedup_scrub *sc;
  struct suspect *s;
  bool named;                   /* the index names it for one of its hashes */
  enum verdict read;            /* what the bytes said: IS_BAD or IS_DOUBTFUL */
  enum verdict v;               /* result */
};

/* Returns whether the hashes of the suspect are certainly those of its data. */
static bool
is_sure_locked (const struct final *x)
{
  struct dedup_scrub *sc = x->sc;

  assert (lock_held (sc->b->lock));
  return x->s->known ||
    (dedup_index_complete_locked (sc->s->index) && !sc->lossy) ||
    (dedup_index_exact_locked (sc->s->index) && x->named);
}

/* Enters a bad cluster of data in the set. */
static void
enter_locked (struct final *x)
{
  struct suspect *s = x->s;
  struct dedup_bad_cluster c = { .host_idx = s->host_idx,
                                 .flags = DEDUP_BAD_SURE };

  assert (lock_held (x->sc->b->lock));
  if (s->unreadable)
    c.flags |= DEDUP_BAD_UNREADABLE;
  if (s->healable) {
    c.flags |= DEDUP_BAD_HASH;
    c.hash = s->hashes[0];
  }
  (void) dedup_bad_add_locked (&x->sc->s->bad, &c);
}

/* Decides on a suspect that looks bad or doubtful; a qcow2_step.  A cluster that is freed
 * between two looks, and used again, has PRINT_CHANGED. */
static int
decide_locked (struct qcow2_txn *txn, void *opaque)
{
  struct final *x = opaque;
  struct dedup_scrub *sc = x->sc;
  struct suspect *s = x->s;
  uint64_t refcount;
  bool anchored, data, sure;
  int r;

  assert (lock_held (sc->b->lock));
  r = qcow2_get_refcount_locked (txn, s->host_idx, &refcount, &anchored);
  if (r < 0 && r != -EIO)
    return r;
  data = r == 0 && anchored && refcount >= 2 && sc->s->has_store;
  x->v = IS_UNKNOWN;
  if ((r == 0 && refcount == 0) || (!data && !s->unreadable) ||
      print_load (sc, s->host_idx - sc->from) == PRINT_CHANGED)
    return 0;
  if (x->read == IS_DOUBTFUL) {
    x->v = IS_DOUBTFUL;
    return 0;
  }
  sure = data && is_sure_locked (x);
  s->healable = sure && s->nr == 1 && !s->marked;
  x->v = sure || s->unreadable ? IS_BAD : IS_DOUBTFUL;
  if (data && x->v == IS_BAD)
    enter_locked (x);
  return 0;
}

/* --- The suspects ------------------------------------------------------------ */

void
scrub_log_bad (struct dedup_scrub *sc, const struct suspect *s)
{
  const uint64_t lines = sc->figures.different + sc->figures.unreadable;
  const struct dedup_base *b = sc->b;
  uint64_t off = s->host_idx << b->cluster_bits, len;

  if (s->packed)
    qcow2_compressed_extent (b->img, s->packed, &off, &len);
  if (lines <= MAX_LINES)
    log_line (b->log, LOG_ERROR, "%s: scrub: the %s at 0x%llx %s%s",
              b->path, s->packed ? "compressed data" : "cluster",
              (unsigned long long) off, s->unreadable ? "cannot be read" :
              s->torn ? "does not expand" : "has other bytes than were stored",
              lines == MAX_LINES ? "; more of these are not logged" : "");
}

static void
note (struct dedup_scrub *sc, struct suspect *s, enum verdict v)
{
  const uint64_t i = s->host_idx - sc->from;
  const uint32_t p = print_load (sc, i);
  struct dedup_scrub_figures *f = &sc->figures;

  if (p != PRINT_CHANGED)
    (void) print_set (sc, i, p, v == IS_GOOD ? PRINT_GOOD : PRINT_DONE);
  switch (v) {
  case IS_GOOD: scrub_count (sc, &f->good, 1); break;
  case IS_UNKNOWN:
    scrub_count (sc, p == PRINT_CHANGED ? &f->changed : &f->unknown, 1);
    break;
  case IS_DOUBTFUL: scrub_count (sc, &f->doubtful, 1); break;
  case IS_BAD:
    s->bad = true;
    scrub_count (sc, s->unreadable ? &f->unreadable : &f->different, 1);
    scrub_log_bad (sc, s);
    break;
  }
}

static int
verify_one (struct dedup_scrub *sc, struct suspect *s, uint8_t *bytes)
{
  struct final x = { .sc = sc, .s = s };
  int r = read_again (sc, s, bytes, &x.read);

  if (r < 0)
    return r;
  x.v = x.read;
  if (x.read == IS_BAD || x.read == IS_DOUBTFUL) {
    x.named = sc->s->has_store && scrub_is_named (sc, s, s->host_idx);
    r = qcow2_txn_run (sc->b->img, decide_locked, &x);
    if (r < 0)
      return r;
  }
  note (sc, s, x.v);
  return 0;
}

int
scrub_verify (struct dedup_scrub *sc)
{
  CLEANUP_FREE uint8_t *bytes =
    aligned_alloc (IO_MEDIUM_ALIGN, round_up_pow2 (sc->b->cluster_size,
                                                   IO_MEDIUM_ALIGN));
  unsigned n;
  int r = bytes ? 0 : -ENOMEM;

  for (n = 0; n < PER_STEP && r == 0 && sc->next_suspect < sc->nr_suspects;
       n++)
    if ((r = verify_one (sc, &sc->suspects[sc->next_suspect], bytes)) == 0)
      sc->next_suspect++;
  return r < 0 ? r : sc->next_suspect < sc->nr_suspects;
}
