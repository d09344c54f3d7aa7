/* SPDX-License-Identifier: BSD-3-Clause */
/* Walks over the L2 tables of all roots and collects compressed entries, each once,
 * window by window of the file (qcow2-packed.h).
 *
 * What is found goes to the end of an array.  When that is full it is sorted, and
 * what is there twice is removed.  If it is more than half full then, the window
 * becomes shorter: it ends with the cluster in its middle, and what lies behind is
 * left to later windows.  So the array is never full for long, unless more different
 * descriptors than it has room for begin in one cluster, which nobody's compressor
 * makes: then the others are left out, and the window says so.
 *
 * Tables are known by their place in the file, in a set of bits, so that a table
 * that a thousand clones share is read once.  Without memory for the bits it is read
 * more often.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bitset.h"
#include "checked.h"
#include "qcow2-packed.h"
#include "usage.h"

#define FIRST_ROOM 1024u
#define STEP_BYTES (UINT64_C (4) << 20)

struct qcow2_packed {
  struct usage_walk w;         /* first, see packed_of */
  size_t max;
  uint64_t end;                /* clusters of the file, or where the last window
                                * ends */
  uint64_t from, to;           /* the window */
  uint64_t next;               /* the first cluster behind it with a descriptor */
  uint64_t width;              /* of the next window */
  uint64_t *v;                 /* owned */
  size_t nr, room;
  bool left_out;
  uint64_t groups;             /* that were met, */
  uint64_t group;              /* and the last of them in this table */
  uint64_t touches;            /* of clusters, by compressed entries that were met */
  bool tolerant;               /* tables that cannot be read are left out */
  bool tell_stays;
  uint64_t stays;              /* QCOW2_PACKED_STAYS or 0: of the table's descriptors */
  bool any;                    /* a compressed entry was met, wherever it leads */
  int failed;                  /* -errno of a callback */
  struct qcow2_bitset *seen;   /* tables that were read for this window */
  unsigned root, nr_roots;
  bool looked;                 /* at root */
  uint64_t l1_next;
  uint64_t bytes;              /* read in this step */
};

static struct qcow2_packed *
packed_of (struct usage_walk *w)
{
  return (struct qcow2_packed *) w;
}

/* --- The array --------------------------------------------------------------- */

static uint64_t
cluster_of (const struct qcow2_image *img, uint64_t descriptor)
{
  uint64_t off, len;

  qcow2_compressed_extent (img, descriptor, &off, &len);
  return off >> img->header.geo.cluster_bits;
}

/* Orders by place, then by length. */
static int
compare (const void *a, const void *b, void *opaque)
{
  const struct qcow2_image *img = opaque;
  uint64_t off_a, off_b, len_a, len_b;

  qcow2_compressed_extent (img, *(const uint64_t *) a, &off_a, &len_a);
  qcow2_compressed_extent (img, *(const uint64_t *) b, &off_b, &len_b);
  if (off_a != off_b)
    return off_a > off_b ? 1 : -1;
  return len_a > len_b ? 1 : len_a < len_b ? -1 : 0;
}

static void
sort (struct qcow2_packed *p)
{
  size_t i, n = 0;

  if (p->nr == 0)
    return;
  qsort_r (p->v, p->nr, sizeof *p->v, compare, p->w.img);
  for (i = 0; i < p->nr; i++)
    if (n == 0 || (p->v[i] ^ p->v[n - 1]) & ~QCOW2_PACKED_STAYS)
      p->v[n++] = p->v[i];
    else
      p->v[n - 1] |= p->v[i];
  p->nr = n;
}

/* Returns how many descriptors of the sorted array begin before cluster TO. */
static size_t
nr_before (const struct qcow2_packed *p, uint64_t to)
{
  size_t lo = 0, hi = p->nr, mid;

  while (lo < hi) {
    mid = (lo + hi) / 2;
    if (cluster_of (p->w.img, p->v[mid]) < to)
      lo = mid + 1;
    else
      hi = mid;
  }
  return lo;
}

/* Ends the window with the cluster in its middle, or behind its first one if all of
 * the first half is there. */
static void
shorten (struct qcow2_packed *p)
{
  const uint64_t middle = cluster_of (p->w.img, p->v[p->nr / 2]);
  const uint64_t to = MAX_OF (middle, p->from + 1);
  const size_t nr = nr_before (p, to);

  if (nr < p->nr)
    p->next = cluster_of (p->w.img, p->v[nr]);
  p->to = to;
  p->nr = nr;
}

/* Makes room for another descriptor. */
static int
make_room (struct qcow2_packed *p)
{
  const size_t room = MIN_OF (p->max, p->room ? 2 * p->room : FIRST_ROOM);
  uint64_t *v;

  if (p->nr < p->room)
    return 0;
  if (p->room < p->max) {
    v = realloc (p->v, room * sizeof *v);
    if (v == NULL)
      return -ENOMEM;
    p->v = v;
    p->room = room;
    return 0;
  }
  sort (p);
  if (p->nr > p->max / 2)
    shorten (p);
  p->left_out |= p->nr == p->max;
  return 0;
}

static void
take_entry (struct usage_walk *w, const struct usage_entry *e)
{
  struct qcow2_packed *p = packed_of (w);

  p->any |= e->packed != 0;
  p->touches += e->packed ? e->nr : 0;
  if (e->packed && e->guest_idx / QCOW2_PACKED_GROUP != p->group) {
    p->group = e->guest_idx / QCOW2_PACKED_GROUP;
    p->groups++;
  }
  if (e->packed == 0 || e->host_idx < p->from || e->host_idx >= p->end)
    return;
  if (p->failed == 0 && e->host_idx < p->to)
    p->failed = make_room (p);
  if (e->host_idx >= p->to)    /* it may be shorter now */
    p->next = MIN_OF (p->next, e->host_idx);
  else if (p->failed == 0 && p->nr < p->max)
    p->v[p->nr++] = e->packed | p->stays;
}

/* --- The walk ---------------------------------------------------------------- */

static bool
was_seen (struct qcow2_packed *p, uint64_t host_idx)
{
  if (qcow2_bitset_test (p->seen, host_idx))
    return true;
  return qcow2_bitset_set (p->seen, host_idx, 1) > 0;   /* never above 0 */
}

/* Finds out whether what the table's entries lead to stays where it is.  Of a root that is
 * being deleted it goes soon, unless another root has the table, too. */
static int
look_at_refcount (struct qcow2_packed *p, const struct usage_table *t)
{
  uint64_t v;
  int r = usage_references (p->w.img, t->host_idx, &v);

  if (r == -EIO && p->tolerant)
    v = 0;
  else if (r < 0)
    return r;
  p->stays = !qcow2_has_few_paths (v) || (v == 1 && p->w.root.doomed) ? QCOW2_PACKED_STAYS
    : 0;
  return 0;
}

static int
take_table (struct usage_walk *w, const struct usage_table *t)
{
  struct qcow2_packed *p = packed_of (w);
  int r;

  if (was_seen (p, t->host_idx))
    return 0;
  r = p->tell_stays ? look_at_refcount (p, t) : 0;
  if (r < 0)
    return r;
  p->bytes += w->img->header.geo.cluster_size;
  p->group = UINT64_MAX;
  r = usage_walk_table (w, t);
  return r < 0 && !(r == -EIO && p->tolerant) ? r : p->failed;
}

static int
begin_window (struct qcow2_packed *p, uint64_t from)
{
  p->from = from;
  p->to = p->end - from > p->width ? from + p->width : p->end;
  p->next = UINT64_MAX;
  p->nr = 0;
  p->left_out = false;
  p->groups = p->touches = 0;
  p->root = 0;
  p->looked = false;
  qcow2_bitset_free (p->seen);
  p->seen = qcow2_bitset_new ();
  p->failed = p->seen ? 0 : -ENOMEM;
  return p->failed;
}

int
qcow2_packed_begin (struct qcow2_image *img, size_t max, bool tolerant,
                    struct qcow2_packed **out)
{
  struct qcow2_packed *p = calloc (1, sizeof *p);
  int r = p ? usage_walk_init (&p->w, img, NULL) : -ENOMEM;

  if (r == 0)
    r = usage_file_clusters (img, &p->end);
  if (r < 0) {
    qcow2_packed_end (p);
    return r;
  }
  p->w.table = take_table;
  p->w.entry = take_entry;
  p->tolerant = tolerant;
  p->max = max ? MAX_OF (max, 4) : QCOW2_PACKED_DEFAULT;
  p->width = UINT64_MAX;
  p->nr_roots = usage_nr_roots (img);
  r = begin_window (p, 0);
  if (r < 0) {
    qcow2_packed_end (p);
    return r;
  }
  *out = p;
  return 0;
}

void
qcow2_packed_tell_stays (struct qcow2_packed *p)
{
  p->tell_stays = true;
}

/* Looks at the root that is next.  A root that is gone has no tables. */
static bool
look (struct qcow2_packed *p)
{
  if (!p->looked && !usage_look (p->w.img, p->root, &p->w.root))
    return false;
  if (!p->looked)
    p->l1_next = 0;
  p->looked = true;
  return true;
}

/* Takes the tables of the next part of a root, or of the next root. */
static int
take_some (struct qcow2_packed *p)
{
  int r = look (p) ? usage_walk_some (&p->w, &p->l1_next) : 0;

  p->bytes += QCOW2_SLICE_BYTES;
  if (r == 1)                  /* it has more tables */
    return 0;
  if (r < 0 && r != -ENOENT && !(r == -EIO && p->tolerant))
    return r;
  p->root++;
  p->looked = false;
  return 0;
}

/* A step that failed has lost entries, so the next one begins the window again. */
int
qcow2_packed_step (struct qcow2_packed *p)
{
  int r = p->failed ? begin_window (p, p->from) : 0;

  p->bytes = 0;
  while (r == 0 && p->root < p->nr_roots && p->bytes < STEP_BYTES)
    r = take_some (p);
  if (r < 0)
    return p->failed = r;
  if (p->root < p->nr_roots)
    return 1;
  sort (p);
  return 0;
}

void
qcow2_packed_get (const struct qcow2_packed *p, struct qcow2_packed_window *w)
{
  *w = (struct qcow2_packed_window) {
    .from = p->from, .to = p->to, .v = p->v, .nr = p->nr,
    .left_out = p->left_out, .groups = p->groups, .touches = p->touches,
  };
}

bool
qcow2_packed_any (const struct qcow2_packed *p)
{
  return p->any;
}

size_t
qcow2_packed_find (const struct qcow2_packed *p, uint64_t descriptor)
{
  size_t lo = 0, hi = p->nr, mid;
  int c;

  while (lo < hi) {
    mid = (lo + hi) / 2;
    c = compare (&p->v[mid], &descriptor, p->w.img);
    if (c == 0)
      return mid;
    if (c < 0)
      lo = mid + 1;
    else
      hi = mid;
  }
  return SIZE_MAX;
}

bool
qcow2_packed_next (struct qcow2_packed *p)
{
  if (p->next >= p->end)
    return false;
  p->width = MAX_OF (1, 2 * (p->to - p->from));
  (void) begin_window (p, p->next);    /* the next step returns its error */
  return true;
}

void
qcow2_packed_seek (struct qcow2_packed *p, uint64_t from, uint64_t to)
{
  p->end = MIN_OF (p->end, to);
  p->width = UINT64_MAX;
  (void) begin_window (p, MIN_OF (from, p->end));
}

void
qcow2_packed_end (struct qcow2_packed *p)
{
  if (p == NULL)
    return;
  usage_walk_free (&p->w);
  qcow2_bitset_free (p->seen);
  free (p->v);
  free (p);
}

/* --- Sums -------------------------------------------------------------------- */

/* Returns the cluster among those that later descriptors may touch, too, which it joins if
 * it is new.  Those before FIRST end: of one with data that stays, what is not live is
 * dead for as long as that stays. */
static struct qcow2_packed_open *
open_cluster (struct qcow2_packed_sum *s, const struct qcow2_geometry *g,
              uint64_t host_idx, uint64_t first)
{
  unsigned i, n = 0;

  for (i = 0; i < s->nr_open; i++)
    if (s->open[i].host_idx >= first)
      s->open[n++] = s->open[i];
    else if (s->open[i].stays)
      s->kept_dead_bytes += g->cluster_size - s->open[i].live_bytes;
  for (i = 0; i < n && s->open[i].host_idx != host_idx; i++)
    ;
  s->nr_open = MAX_OF (n, i + 1);
  assert (s->nr_open <= 3);    /* a descriptor touches three clusters at most */
  if (i == n)
    s->open[i] = (struct qcow2_packed_open) { .host_idx = host_idx };
  return &s->open[i];
}

/* Adds a descriptor that covers [FROM, END) and touches COUNT clusters, and of which what
 * lies before s->end_off was added already. */
static void
add_to_clusters (struct qcow2_packed_sum *s, const struct qcow2_geometry *g,
                 uint64_t from, uint64_t end, uint64_t first, uint64_t count, bool stays)
{
  struct qcow2_packed_open *k;
  uint64_t i, a, b;

  from = MAX_OF (from, s->end_off);
  for (i = first; i < first + count; i++) {
    k = open_cluster (s, g, i, first);
    a = MAX_OF (from, i << g->cluster_bits);
    b = MIN_OF (end, (i + 1) << g->cluster_bits);
    k->live_bytes += b - MIN_OF (a, b);
    k->stays |= stays;
  }
}

void
qcow2_packed_add (struct qcow2_packed_sum *s, const struct qcow2_image *img,
                  const uint64_t *v, size_t nr)
{
  uint64_t off, end, first, count;
  size_t i;

  for (i = 0; i < nr; i++) {
    qcow2_compressed_extent (img, v[i], &off, &end);
    end += off;
    qcow2_entry_clusters (img, v[i], &first, &count);
    add_to_clusters (s, &img->header.geo, off, end, first, count,
                     v[i] & QCOW2_PACKED_STAYS);
    s->descriptors++;
    s->live_bytes += end - MIN_OF (end, MAX_OF (off, s->end_off));
    s->end_off = MAX_OF (end, s->end_off);
    s->clusters += first + count -
      MIN_OF (first + count, MAX_OF (first, s->end_cluster));
    s->end_cluster = MAX_OF (first + count, s->end_cluster);
  }
}

void
qcow2_packed_add_end (struct qcow2_packed_sum *s, const struct qcow2_image *img)
{
  (void) open_cluster (s, &img->header.geo, UINT64_MAX, UINT64_MAX);
}
