/* SPDX-License-Identifier: BSD-3-Clause */
/* Scrubs compressed data: expands it, and compares it with the hash that the index has
 * for its descriptor (docs/on-disk.md 12.2).
 *
 * Which compressed data there is, only the L2 tables know.  So they are read for each
 * window, and the data of a part of it is read from the medium, in the order of the
 * file, expanded and hashed.  Then the index is walked for the values that are
 * descriptors.
 *
 * What looks bad is read once more, and is bad if all of this holds:
 *
 *   - a disk or snapshot has the descriptor.  Else nobody reads the data, and its
 *     bytes may be anything;
 *   - no cluster that it touches got new data since the window began;
 *   - it does not expand; or all clusters that it touches are anchored, the index is
 *     complete, it names the descriptor for a hash when it is asked for that hash, and
 *     the bytes have none of the hashes for which it does so.
 *
 * Ranks do not matter here: an entry of a former life of the clusters counts like the
 * present one.  So such data passes as good if it has the bytes of a former life.
 *
 * Host clusters that cannot be read were found when the window was read.  Nothing is
 * said of them here.
 *
 * One thread, without locks.
 */
#include "aligned.h"
#include "scrub-private.h"
#include "value.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Pieces that are expanded in one step, and bytes between two of them that are read
 * along. */
#define PIECES 128u
#define SMALL_GAP (UINT64_C (64) << 10)
/* Suspects that are read in one step. */
#define PER_STEP 16

/* --- What there is ----------------------------------------------------------- */

void
scrub_packed_free (struct dedup_scrub *sc)
{
  struct scrub_packed *k = &sc->packed;

  qcow2_packed_end (k->walk);
  free (k->prints);
  free (k->ranks);
}

static int
begin_walk (struct dedup_scrub *sc)
{
  const size_t max = sc->p.max_packed ? sc->p.max_packed : MAX_PACKED;
  int r = qcow2_packed_begin (sc->b->img, max, true, &sc->packed.walk);

  if (r == 0)
    qcow2_packed_seek (sc->packed.walk, sc->from, sc->from + sc->nr);
  sc->packed.complete = false;
  return r;
}

/* Makes room for the prints of the part. */
static int
make_room (struct scrub_packed *k)
{
  if (k->w.nr > k->room) {
    free (k->prints);
    free (k->ranks);
    k->prints = calloc (k->w.nr, sizeof *k->prints);
    k->ranks = calloc (k->w.nr, 1);
    k->room = k->prints && k->ranks ? k->w.nr : 0;
    return k->room ? 0 : -ENOMEM;
  }
  memset (k->prints, 0, k->w.nr * sizeof *k->prints);
  memset (k->ranks, 0, k->w.nr);
  return 0;
}

/* Ends the walk of the window. */
static int
end_walk (struct scrub_packed *k)
{
  qcow2_packed_end (k->walk);
  k->walk = NULL;
  return 0;
}

int
scrub_find (struct dedup_scrub *sc)
{
  struct scrub_packed *k = &sc->packed;
  int r = 0;

  k->w.nr = k->at = 0;
  if (k->none)
    return 0;
  if (k->walk == NULL)
    r = begin_walk (sc);
  else if (k->complete && !qcow2_packed_next (k->walk))
    return end_walk (k);
  k->complete = false;
  if (r == 0)
    r = qcow2_packed_step (k->walk);
  if (r != 0)
    return r;
  k->none = !qcow2_packed_any (k->walk);
  qcow2_packed_get (k->walk, &k->w);
  r = k->w.nr > 0 ? make_room (k) : 1;  /* 1: the next call looks behind it */
  if (r < 0)
    k->w.nr = 0;
  k->complete = r >= 0;
  return r;
}

/* --- Bytes ------------------------------------------------------------------- */

static void
extent_of (const struct dedup_scrub *sc, uint64_t descriptor, uint64_t *off,
           uint64_t *end)
{
  qcow2_compressed_extent (sc->b->img, descriptor, off, end);
  *end += *off;
}

struct pieces {
  size_t first, nr;            /* of the part */
  uint64_t from, to;           /* bytes of the file, for reads of the medium */
};

/* Returns the pieces that are read together. */
static struct pieces
next_pieces (const struct dedup_scrub *sc)
{
  const struct scrub_packed *k = &sc->packed;
  struct pieces p = { .first = k->at };
  uint64_t off, end, last = 0;

  for (; p.nr < PIECES && k->at + p.nr < k->w.nr; p.nr++) {
    extent_of (sc, k->w.v[k->at + p.nr], &off, &end);
    if (p.nr == 0)
      p.from = off;
    else if (off > last + SMALL_GAP || end > p.from + BATCH_BYTES)
      break;
    last = MAX_OF (last, end);
  }
  p.from -= p.from % IO_MEDIUM_ALIGN;
  p.to = round_up_pow2 (last, IO_MEDIUM_ALIGN);
  return p;
}

/* Returns the print of a cluster's worth of BYTES. */
static int
print_of (const struct dedup_scrub *sc, const uint8_t *bytes, uint32_t *p)
{
  struct dedup_hash h;
  int r;

  *p = PRINT_OTHER;
  if (!sc->s->has_store)
    return 0;
  r = dedup_hash_compute (&sc->b->hasher, bytes, sc->b->cluster_size, &h);
  if (r == 0)
    *p = scrub_print (&h);
  return r;
}

/* Expands piece I of the part, whose bytes are those of the file from FROM on, to
 * BYTES. */
static int
expand_piece (struct dedup_scrub *sc, size_t i, const uint8_t *in,
              uint64_t from, uint8_t *bytes)
{
  struct scrub_packed *k = &sc->packed;
  uint64_t off, end;
  int r;

  extent_of (sc, k->w.v[i], &off, &end);
  r = qcow2_compressed_expand (sc->b->img, in + (off - from), end - off, bytes);
  if (r == -ENOMEM)
    return r;
  if (r == 0)
    return print_of (sc, bytes, &k->prints[i]);
  k->prints[i] = PRINT_UNREADABLE;
  return 0;
}

/* Reads and expands some pieces; one by one if they cannot be read.  One that cannot be
 * read alone is done. */
static int
expand_pieces (struct dedup_scrub *sc, const struct pieces *p, uint8_t *bytes)
{
  CLEANUP_FREE uint8_t *in = aligned_alloc (IO_MEDIUM_ALIGN, p->to - p->from);
  struct pieces one;
  size_t i;
  int r;

  if (in == NULL)
    return -ENOMEM;
  r = io_pread_medium (sc->b->io, in, p->to - p->from, p->from);
  if (r < 0 && (r == -ENOMEM || p->nr == 1)) {
    sc->packed.prints[p->first] = PRINT_DONE;
    return r == -ENOMEM ? r : 0;
  }
  for (i = p->first; i < p->first + p->nr; i++) {
    if (r == 0 && expand_piece (sc, i, in, p->from, bytes) < 0)
      return -ENOMEM;
    if (r == 0)
      continue;
    one = (struct pieces) { .first = i, .nr = 1 };
    extent_of (sc, sc->packed.w.v[i], &one.from, &one.to);
    one.from -= one.from % IO_MEDIUM_ALIGN;
    one.to = round_up_pow2 (one.to, IO_MEDIUM_ALIGN);
    if (expand_pieces (sc, &one, bytes) < 0)
      return -ENOMEM;
  }
  return 0;
}

int
scrub_expand (struct dedup_scrub *sc)
{
  CLEANUP_FREE uint8_t *bytes = aligned_new (sc->b->cluster_size);
  const struct pieces p = next_pieces (sc);
  int r = bytes ? expand_pieces (sc, &p, bytes) : -ENOMEM;

  if (r < 0)
    return r;
  scrub_count (sc, &sc->figures.bytes_read, p.to - p.from);
  sc->packed.at += p.nr;
  return sc->packed.at < sc->packed.w.nr;
}

/* --- The index --------------------------------------------------------------- */

/* Descriptors, and no other values. */
#define FIRST_DESCRIPTOR (UINT64_C (1) << 62)
#define LAST_DESCRIPTOR (UINT64_C (1) << 63)

static void
match_entry (struct dedup_scrub *sc, const struct dedup_walked *e)
{
  struct scrub_packed *k = &sc->packed;
  const size_t i = qcow2_packed_find (k->walk, e->entry.value);

  if (i == SIZE_MAX || k->prints[i] < PRINT_FIRST || k->ranks[i] == RANK_UNKNOWN)
    return;
  if (dedup_is_unknown_mark (&e->entry.hash, e->entry.value))
    k->ranks[i] = RANK_UNKNOWN;
  else if (scrub_print (&e->entry.hash) == k->prints[i])
    k->prints[i] = PRINT_GOOD;
  else
    k->ranks[i] = 1;
}

static bool
is_complete (struct dedup_scrub *sc)
{
  LOCK_FOR_SCOPE (sc->b->lock);
  return !sc->lossy && sc->s->has_store &&
    dedup_index_complete_locked (sc->s->index);
}

static bool
is_suspect (const struct scrub_packed *k, size_t i)
{
  return k->prints[i] == PRINT_UNREADABLE ||
    (k->prints[i] >= PRINT_FIRST && k->ranks[i] == 1);
}

/* Counts what the walk has found. */
static void
count_matched (struct dedup_scrub *sc)
{
  struct scrub_packed *k = &sc->packed;
  const bool complete = is_complete (sc);
  uint64_t good = 0, unknown = 0, doubtful = 0;
  size_t i;

  for (i = 0; i < k->w.nr; i++) {
    good += k->prints[i] == PRINT_GOOD;
    if (k->prints[i] == PRINT_GOOD || k->prints[i] == PRINT_DONE ||
        k->prints[i] == PRINT_UNREADABLE || (is_suspect (k, i) && complete))
      continue;
    doubtful += is_suspect (k, i);
    unknown += !is_suspect (k, i);
    k->prints[i] = PRINT_DONE;
  }
  scrub_count (sc, &sc->figures.packed_good, good);
  scrub_count (sc, &sc->figures.packed_unknown, unknown);
  scrub_count (sc, &sc->figures.doubtful, doubtful);
}

int
scrub_match (struct dedup_scrub *sc)
{
  int r = sc->s->has_store ?
    scrub_walk_some (sc, FIRST_DESCRIPTOR, LAST_DESCRIPTOR, match_entry) : 0;

  if (r == 0)
    count_matched (sc);
  sc->packed.at = 0;
  return r;
}

/* --- Suspects ---------------------------------------------------------------- */

int
scrub_choose (struct dedup_scrub *sc)
{
  struct scrub_packed *k = &sc->packed;
  struct suspect *s;
  uint64_t count;

  sc->nr_suspects = sc->next_suspect = 0;
  memset (sc->located, 0, sizeof sc->located);
  for (; k->at < k->w.nr && sc->nr_suspects < MAX_SUSPECTS; k->at++) {
    if (!is_suspect (k, k->at))
      continue;
    s = &sc->suspects[sc->nr_suspects++];
    *s = (struct suspect) { .packed = k->w.v[k->at], .at = k->at };
    qcow2_entry_clusters (sc->b->img, s->packed, &s->host_idx, &count);
  }
  return 0;
}

static void
expect_entry (struct dedup_scrub *sc, const struct dedup_walked *e)
{
  const size_t i = qcow2_packed_find (sc->packed.walk, e->entry.value);
  struct suspect *s = i == SIZE_MAX ? NULL : scrub_find_suspect (sc, i);

  if (s != NULL)
    scrub_add_hash (s, &e->entry);
}

int
scrub_expect_packed (struct dedup_scrub *sc)
{
  return sc->s->has_store ?
    scrub_walk_some (sc, FIRST_DESCRIPTOR, LAST_DESCRIPTOR, expect_entry) : 0;
}

/* --- Proof ------------------------------------------------------------------- */

/* Leaves those hashes of a suspect for which the index still leads to it: a younger
 * entry or a tombstone may say otherwise. */
static void
forget_hidden (struct dedup_scrub *sc, struct suspect *s)
{
  struct suspect one = { .nr = 1 };
  unsigned i, n = 0;

  for (i = 0; i < MIN_OF (s->nr, MAX_HASHES); i++) {
    one.hashes[0] = s->hashes[i];
    if (scrub_is_named (sc, &one, s->packed))
      s->hashes[n++] = s->hashes[i];
  }
  if (s->nr <= MAX_HASHES)
    s->nr = n;
}

/* Reads the suspect again and judges it. */
static int
read_again (struct dedup_scrub *sc, struct suspect *s, uint8_t *in,
            uint8_t *bytes, enum verdict *v)
{
  const struct dedup_base *b = sc->b;
  uint64_t off, len;
  struct dedup_hash h;
  int r;

  qcow2_compressed_extent (b->img, s->packed, &off, &len);
  *v = IS_UNKNOWN;
  r = io_pread_medium (b->io, in, len, off);
  if (r < 0)
    return r == -ENOMEM ? r : 0;
  r = qcow2_compressed_expand (b->img, in, len, bytes);
  s->torn = r < 0;
  if (r < 0) {
    *v = IS_BAD;
    return r == -ENOMEM ? r : 0;
  }
  if (!sc->s->has_store)
    return 0;
  r = dedup_hash_compute (&b->hasher, bytes, b->cluster_size, &h);
  if (r == 0)
    *v = scrub_compare (s, sc->packed.prints[s->at], &h);
  return r;
}

struct final {
  struct dedup_scrub *sc;
  struct suspect *s;
  enum verdict read;           /* what the bytes said: IS_BAD or IS_DOUBTFUL */
  enum verdict v;              /* result */
};

/* Looks at the clusters that a suspect touches; a qcow2_step.  Clusters that another
 * program has filled, and that nobody has indexed, are not anchored: the index says
 * nothing of them. */
static int
decide_locked (struct qcow2_txn *txn, void *opaque)
{
  struct final *x = opaque;
  struct dedup_scrub *sc = x->sc;
  uint64_t first, count, k, refcount;
  bool anchored, changed = false;
  int r = 0;

  assert (lock_held (sc->b->lock));
  x->s->anchored = true;
  qcow2_entry_clusters (sc->b->img, x->s->packed, &first, &count);
  for (k = first; k < first + count; k++) {
    r = qcow2_get_refcount_locked (txn, k, &refcount, &anchored);
    if (r < 0 && r != -EIO)
      return r;
    changed |= print_load (sc, k - sc->from) == PRINT_CHANGED;
    x->s->anchored &= r == 0 && anchored && refcount >= 2 &&
      !qcow2_guarded_locked (sc->b->img, k, 1);
  }
  x->v = changed || (!x->s->torn && !x->s->anchored) ? IS_UNKNOWN : x->read;
  if (x->v == IS_BAD && !x->s->torn &&
      (sc->lossy || !dedup_index_complete_locked (sc->s->index)))
    x->v = IS_DOUBTFUL;
  return 0;
}

static int
prove_one (struct dedup_scrub *sc, struct suspect *s, uint8_t *in,
           uint8_t *bytes)
{
  struct dedup_scrub_figures *f = &sc->figures;
  struct final x = { .sc = sc, .s = s };
  int r;

  if (sc->s->has_store)
    forget_hidden (sc, s);
  r = read_again (sc, s, in, bytes, &x.read);
  x.v = x.read;
  if (r == 0 && (x.read == IS_BAD || x.read == IS_DOUBTFUL))
    r = qcow2_txn_run (sc->b->img, decide_locked, &x);
  if (r < 0)
    return r;
  sc->packed.prints[s->at] = PRINT_DONE;
  s->bad = x.v == IS_BAD;
  if (!s->bad)
    scrub_count (sc, x.v == IS_GOOD ? &f->packed_good : x.v == IS_DOUBTFUL ?
                 &f->doubtful : &f->packed_unknown, 1);
  return 0;
}

int
scrub_prove (struct dedup_scrub *sc)
{
  CLEANUP_FREE uint8_t *bytes = aligned_new (sc->b->cluster_size);
  CLEANUP_FREE uint8_t *in =
    aligned_alloc (IO_MEDIUM_ALIGN, round_up_pow2 (UINT64_C (3) * sc->b->cluster_size,
                                                   IO_MEDIUM_ALIGN));
  unsigned n;
  int r = bytes && in ? 0 : -ENOMEM;

  for (n = 0; n < PER_STEP && r == 0 && sc->next_suspect < sc->nr_suspects;
       n++)
    if ((r = prove_one (sc, &sc->suspects[sc->next_suspect], in, bytes)) == 0)
      sc->next_suspect++;
  return r < 0 ? r : sc->next_suspect < sc->nr_suspects;
}

/* --- What is bad -------------------------------------------------------------- */

/* Enters the clusters that bad data touches in the set of bad clusters, which get no
 * new links.  They cannot be healed in place, and no scrub finds them good: the set
 * has them until they are freed. */
static void
enter (struct dedup_scrub *sc, const struct suspect *s)
{
  struct dedup_bad *bad = &sc->s->bad;
  struct dedup_bad_cluster c = { .flags = 0 };
  uint64_t first, count, k;
  LOCK_FOR_SCOPE (sc->b->lock);

  qcow2_entry_clusters (sc->b->img, s->packed, &first, &count);
  for (k = first; k < first + count; k++) {
    c.host_idx = k;
    if (print_load (sc, k - sc->from) != PRINT_CHANGED &&
        !dedup_bad_find_locked (bad, k))
      (void) dedup_bad_add_locked (bad, &c);
  }
}

int
scrub_locate_packed (struct dedup_scrub *sc)
{
  struct dedup_scrub_figures *f = &sc->figures;
  int r = scrub_locate (sc);
  size_t i;

  for (i = 0; i < sc->nr_suspects && r == 0; i++) {
    const struct suspect *s = &sc->suspects[i];

    if (!s->bad)
      continue;
    scrub_count (sc, sc->located[i] ? &f->different : &f->changed, 1);
    if (!sc->located[i])
      continue;
    scrub_log_bad (sc, s);
    if (s->anchored && sc->s->has_store)
      enter (sc, s);
  }
  return r;
}
