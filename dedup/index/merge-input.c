/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads the entries of several runs as one sequence in hash order, with a heap
 * of cursors; of equal hashes only the youngest entry is returned.
 *
 * An entry out of order, which this program never writes, is skipped: the
 * sequence is in order and in range whatever the pages hold.
 *
 * One thread.  Each run takes 256 KiB of memory, which are read at once.
 */
#include "merge.h"

#include <errno.h>

struct input {
  const struct merge_source *source;
  size_t rank;                   /* 0: the youngest */
  size_t next;                   /* segment */
  struct dedup_cursor *cursor;
  uint64_t word0;                /* of hash */
  const struct dedup_hash *hash;
  uint64_t value;
  bool begun;
  struct dedup_hash last;
};

struct merge_inputs {
  uint32_t from, to;
  size_t nr_heap;
  struct input **heap;           /* the lowest hash first */
  struct dedup_hash current;
  size_t nr;
  struct input v[];
};

/* Moves I to its next entry.  Returns 1, or 0 behind the end of the range. */
static int
advance (struct merge_inputs *in, struct input *i)
{
  uint64_t ordinal;
  int r = 0;

  for (;;) {
    if (i->cursor)
      r = dedup_cursor_next (i->cursor, &i->hash, &i->value, &ordinal);
    if (r == 1 && i->begun && memcmp (&i->last, i->hash, sizeof i->last) >= 0)
      continue;
    if (r != 0)
      break;
    dedup_cursor_free (i->cursor);
    i->cursor = NULL;
    if (i->next == i->source->nr)
      return 0;
    r = dedup_cursor_open (i->source->v[i->next++], in->from, &i->cursor);
    if (r < 0)
      return r;
  }
  if (r < 0)
    return r;
  i->begun = true;
  i->last = *i->hash;
  i->word0 = dedup_hash_word (i->hash, 0);
  return i->word0 >> 32 <= in->to;
}

/* Returns true if A comes before B: it has the lower hash, or the same hash and
 * is younger. */
static bool
comes_before (const struct input *a, const struct input *b)
{
  int c;

  if (a->word0 != b->word0)
    return a->word0 < b->word0;
  c = memcmp (a->hash, b->hash, sizeof *a->hash);
  return c != 0 ? c < 0 : a->rank < b->rank;
}

static void
sift_down (struct merge_inputs *in, size_t i)
{
  struct input *x = in->heap[i];
  size_t child;

  while ((child = 2 * i + 1) < in->nr_heap) {
    if (child + 1 < in->nr_heap &&
        comes_before (in->heap[child + 1], in->heap[child]))
      child++;
    if (comes_before (x, in->heap[child]))
      break;
    in->heap[i] = in->heap[child];
    i = child;
  }
  in->heap[i] = x;
}

/* Moves the input with the lowest hash to its next entry, and repairs the
 * heap. */
static int
advance_first (struct merge_inputs *in)
{
  int r = advance (in, in->heap[0]);

  if (r < 0)
    return r;
  if (r == 0)
    in->heap[0] = in->heap[--in->nr_heap];
  if (in->nr_heap > 0)
    sift_down (in, 0);
  return 0;
}

int
merge_inputs_open (const struct merge_plan *p, struct merge_inputs **out)
{
  struct merge_inputs *in;
  size_t i;
  int r;

  in = calloc (1, sizeof *in + p->nr_sources * sizeof in->v[0]);
  if (in == NULL)
    return -ENOMEM;
  *out = in;
  in->heap = calloc (p->nr_sources + 1, sizeof *in->heap);
  if (in->heap == NULL)
    return -ENOMEM;
  in->from = p->out.lo;
  in->to = p->out.hi;
  in->nr = p->nr_sources;
  for (i = 0; i < in->nr; i++) {
    in->v[i].source = &p->sources[i];
    in->v[i].rank = i;
    r = advance (in, &in->v[i]);
    if (r < 0)
      return r;
    if (r == 1)
      in->heap[in->nr_heap++] = &in->v[i];
  }
  for (i = in->nr_heap / 2; i-- > 0; )
    sift_down (in, i);
  return 0;
}

int
merge_inputs_next (struct merge_inputs *in, const struct dedup_hash **hash,
                   uint64_t *value, bool *oldest)
{
  int r;

  if (in->nr_heap == 0)
    return 0;
  in->current = *in->heap[0]->hash;
  *hash = &in->current;
  *value = in->heap[0]->value;
  *oldest = in->heap[0]->rank + 1 == in->nr;
  do
    r = advance_first (in);
  while (r == 0 && in->nr_heap > 0 &&
         dedup_hash_equal (in->heap[0]->hash, &in->current));
  return r < 0 ? r : 1;
}

void
merge_inputs_close (struct merge_inputs *in)
{
  size_t i;

  if (in == NULL)
    return;
  for (i = 0; i < in->nr; i++)
    dedup_cursor_free (in->v[i].cursor);
  free (in->heap);
  free (in);
}
