/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps the youngest entries in one array of slots, four to a bucket, each
 * with a whole hash and its value.  Source: SILT (SOSP 2011) section 4.1 for
 * the cuckoo table, except that whole hashes are kept: so the other bucket of
 * an entry that is moved follows from its hash, and no lookup has to read
 * anything else to be sure.
 *
 * No entry is ever lost: an insertion that finds no place after DEDUP_MAX_KICKS
 * moves puts everything back.  An entry is in one of its two buckets, once;
 * incarnation-write.c relies on that when it writes the slots as they are.
 *
 * 16 bits of each hash, which choose neither bucket, are kept apart as tags: a
 * word for each bucket.  These words fit in a CPU's cache where the slots do
 * not, and nearly every search that finds nothing ends there.
 *
 * Not thread safe.  A frozen log store no longer changes, so several threads
 * may read it.  Left out: removing entries.  A tombstone replaces an entry, as
 * it must also hide entries of older tables.
 */
#include "log-store.h"

#include <assert.h>
#include <errno.h>

#include "index-limits.h"
#include "large-pages.h"

struct slot {
  struct dedup_hash hash;
  uint64_t value;              /* never 0 */
};

_Static_assert (DEDUP_BUCKET_SLOTS == 4, "tags of a bucket are one word");
_Static_assert (sizeof (struct slot) + sizeof (uint64_t) / DEDUP_BUCKET_SLOTS
                == DEDUP_SLOT_BYTES, "what a slot and its tag take");

struct dedup_log_store {
  unsigned order;
  size_t nr_slots, count, deleted;
  uint64_t random;                /* chooses victims; never 0 */
  struct slot *slots;
  uint64_t *tags;                 /* of a bucket: 16 bits a slot, 0: empty */
  struct dedup_log_copy *copies;  /* that are being made */
};

#define FIRST_RANDOM UINT64_C (0x9e3779b97f4a7c15)

/* --- Tags ---------------------------------------------------------------- */

#define TAG_BITS 16
#define EACH_TAG UINT64_C (0x0001000100010001)

/* Returns the 16 bits that are kept apart; never 0, which means empty. */
static uint64_t
tag_of (const struct dedup_hash *hash)
{
  const uint64_t tag = dedup_hash_word (hash, 2) & 0xffff;

  return tag ? tag : 1;
}

/* Returns the highest bit of each of the four tags in TAGS that equals TAG. */
static uint64_t
tags_equal (uint64_t tags, uint64_t tag)
{
  const uint64_t low = EACH_TAG * 0x7fff;
  const uint64_t x = tags ^ EACH_TAG * tag;

  return ~(((x & low) + low) | x | low);
}

/* Returns the position in its bucket of the slot of the lowest bit that is
 * set. */
static unsigned
position_of (uint64_t bits)
{
  return (unsigned) __builtin_ctzll (bits) / TAG_BITS;
}

static void
set_tag (struct dedup_log_store *ls, const struct slot *s)
{
  const size_t i = (size_t) (s - ls->slots);
  const unsigned shift = i % DEDUP_BUCKET_SLOTS * TAG_BITS;
  uint64_t *t = &ls->tags[i / DEDUP_BUCKET_SLOTS];

  *t = (*t & ~(UINT64_C (0xffff) << shift)) | tag_of (&s->hash) << shift;
}

/* --- The table ----------------------------------------------------------- */

int
dedup_log_store_new (unsigned order, struct dedup_log_store **out)
{
  struct dedup_log_store *ls;

  if (order < DEDUP_MIN_ORDER || order > DEDUP_MAX_ORDER)
    return -EINVAL;
  ls = calloc (1, sizeof *ls);
  if (ls == NULL)
    return -ENOMEM;
  ls->order = order;
  ls->nr_slots = (size_t) DEDUP_BUCKET_SLOTS << order;
  ls->random = FIRST_RANDOM;
  ls->slots = calloc (ls->nr_slots, sizeof *ls->slots);
  ls->tags = calloc (ls->nr_slots / DEDUP_BUCKET_SLOTS, sizeof *ls->tags);
  if (ls->slots == NULL || ls->tags == NULL) {
    dedup_log_store_free (ls);
    return -ENOMEM;
  }
  large_pages_advise (ls->slots, ls->nr_slots * sizeof *ls->slots);
  *out = ls;
  return 0;
}

void
dedup_log_store_free (struct dedup_log_store *ls)
{
  if (ls == NULL)
    return;
  assert (ls->copies == NULL);
  free (ls->slots);
  free (ls->tags);
  free (ls);
}

void
dedup_log_store_clear (struct dedup_log_store *ls)
{
  assert (ls->copies == NULL);
  ls->count = ls->deleted = 0;
  ls->random = FIRST_RANDOM;
  memset (ls->tags, 0, ls->nr_slots / DEDUP_BUCKET_SLOTS * sizeof *ls->tags);
}

void
dedup_buckets (const struct dedup_hash *hash, unsigned order,
               uint64_t bucket[2])
{
  const uint64_t mask = (UINT64_C (1) << order) - 1;

  bucket[0] = dedup_hash_word (hash, 0) & mask;
  bucket[1] = dedup_hash_word (hash, 1) & mask;
  if (bucket[0] == bucket[1])
    bucket[1] ^= 1;
}

static struct slot *
bucket_slots (const struct dedup_log_store *ls, uint64_t bucket)
{
  return ls->slots + bucket * DEDUP_BUCKET_SLOTS;
}

/* Returns the slot that has HASH, or NULL. */
static struct slot *
find (const struct dedup_log_store *ls, const struct dedup_hash *hash,
      const uint64_t bucket[2])
{
  const uint64_t tag = tag_of (hash);
  unsigned i;

  for (i = 0; i < 2; ++i) {
    uint64_t m = tags_equal (ls->tags[bucket[i]], tag);

    for (; m != 0; m &= m - 1) {
      struct slot *s = bucket_slots (ls, bucket[i]) + position_of (m);

      if (dedup_hash_equal (&s->hash, hash))
        return s;
    }
  }
  return NULL;
}

void
dedup_log_store_prefetch (const struct dedup_log_store *ls,
                          const struct dedup_hash *hash)
{
  uint64_t bucket[2];
  unsigned i;

  dedup_buckets (hash, ls->order, bucket);
  for (i = 0; i < 2; ++i)
    __builtin_prefetch (&ls->tags[bucket[i]]);
  /* Most entries are in their first bucket. */
  for (i = 0; i < 3; ++i)        /* 160 bytes: three or four lines */
    __builtin_prefetch ((const char *) bucket_slots (ls, bucket[0]) + 64 * i, 1);
}

/* Returns an empty slot of BUCKET, or NULL. */
static struct slot *
find_free (const struct dedup_log_store *ls, uint64_t bucket)
{
  const uint64_t m = tags_equal (ls->tags[bucket], 0);

  return m ? bucket_slots (ls, bucket) + position_of (m) : NULL;
}

/* Returns a random position in a bucket, by xorshift64.  Which entry is moved
 * does not matter, as long as a chain of moves is not a circle.  The state is
 * this log store's own, so that runs can be repeated. */
static unsigned
random_position (struct dedup_log_store *ls)
{
  ls->random ^= ls->random << 13;
  ls->random ^= ls->random >> 7;
  ls->random ^= ls->random << 17;
  return (ls->random >> 32) % DEDUP_BUCKET_SLOTS;
}

static uint64_t
other_bucket (const struct dedup_log_store *ls, const struct slot *s,
              uint64_t bucket)
{
  uint64_t b[2];

  dedup_buckets (&s->hash, ls->order, b);
  assert (bucket == b[0] || bucket == b[1]);
  return bucket == b[0] ? b[1] : b[0];
}

/* --- Copies ---------------------------------------------------------------- */

/* Slots of a part: 5 KiB. */
#define PART_SLOTS 128u

size_t
dedup_log_copy_parts (const struct dedup_log_store *ls)
{
  return ls ? (ls->nr_slots + PART_SLOTS - 1) / PART_SLOTS : 0;
}

static void
copy_part (struct dedup_log_copy *c, size_t part)
{
  const size_t end = (part + 1) * PART_SLOTS;
  struct dedup_entry e;
  size_t i;

  if (c->copied[part])
    return;
  c->copied[part] = 1;
  for (i = part * PART_SLOTS; i < end && i < c->ls->nr_slots; i++)
    if (dedup_log_store_slot (c->ls, i, &e.hash, &e.value))
      c->take (c->opaque, &e);
}

/* Lets all copies have what is in slot S, which is about to change. */
static inline void
before_change (struct dedup_log_store *ls, const struct slot *s)
{
  struct dedup_log_copy *c;

  for (c = ls->copies; c != NULL; c = c->other)
    copy_part (c, (size_t) (s - ls->slots) / PART_SLOTS);
}

void
dedup_log_copy_start (struct dedup_log_copy *c, struct dedup_log_store *ls)
{
  c->ls = ls;
  c->next = 0;
  c->other = ls->copies;
  ls->copies = c;
}

void
dedup_log_copy_stop (struct dedup_log_copy *c)
{
  struct dedup_log_copy **p;

  if (c->ls == NULL)
    return;
  for (p = &c->ls->copies; *p != c; p = &(*p)->other)
    ;
  *p = c->other;
  c->ls = NULL;
}

bool
dedup_log_copy_some (struct dedup_log_copy *c, size_t max)
{
  const size_t nr = dedup_log_copy_parts (c->ls);

  for (; c->next < nr && max > 0; c->next++, max--)
    copy_part (c, c->next);
  if (c->next < nr)
    return true;
  dedup_log_copy_stop (c);
  return false;
}

bool
dedup_log_store_let_copy (struct dedup_log_store *ls, size_t max)
{
  if (ls->copies != NULL)
    (void) dedup_log_copy_some (ls->copies, max);
  return ls->copies != NULL;
}

/* --- Changes --------------------------------------------------------------- */

static void
put (struct dedup_log_store *ls, struct slot *s, const struct slot *new)
{
  before_change (ls, s);
  *s = *new;
  set_tag (ls, s);
}

/* Exchanges the entries of S and *NEW. */
static void
exchange (struct dedup_log_store *ls, struct slot *s, struct slot *new)
{
  const struct slot old = *s;

  put (ls, s, new);
  *new = old;
}

/* Inserts NEW, both of whose buckets are full: puts it in the place of an
 * entry of BUCKET, moves that to its other bucket, and so on until there is a
 * free slot. -ENOSPC: none was found; then the path tells how to put all
 * entries back. */
static int
insert_by_kicks (struct dedup_log_store *ls, struct slot new, uint64_t bucket)
{
  struct slot *path[DEDUP_MAX_KICKS];
  struct slot *s;
  size_t n;

  for (n = 0; n < DEDUP_MAX_KICKS; ++n) {
    path[n] = bucket_slots (ls, bucket) + random_position (ls);
    exchange (ls, path[n], &new);       /* NEW is now the entry to be moved */
    bucket = other_bucket (ls, &new, bucket);
    s = find_free (ls, bucket);
    if (s) {
      put (ls, s, &new);
      return 0;
    }
  }
  while (n > 0)
    exchange (ls, path[--n], &new);
  return -ENOSPC;
}

static int
insert_new (struct dedup_log_store *ls, const struct slot *new,
            const uint64_t bucket[2])
{
  struct slot *s;

  if (ls->count >= dedup_log_store_capacity (ls))
    return -ENOSPC;
  s = find_free (ls, bucket[0]);
  if (s == NULL)
    s = find_free (ls, bucket[1]);
  if (s == NULL)
    return insert_by_kicks (ls, *new, bucket[random_position (ls) % 2]);
  put (ls, s, new);
  return 0;
}

int
dedup_log_store_insert (struct dedup_log_store *ls,
                        const struct dedup_hash *hash, uint64_t value)
{
  const struct slot new = { *hash, value };
  uint64_t bucket[2];
  struct slot *s;
  int r;

  if (value == 0)              /* a damaged log may have such a value */
    return -EINVAL;
  dedup_buckets (hash, ls->order, bucket);
  s = find (ls, hash, bucket);
  if (s) {
    before_change (ls, s);
    ls->deleted -= s->value == DEDUP_DELETED;
    s->value = value;
  }
  else {
    r = insert_new (ls, &new, bucket);
    if (r < 0)
      return r;
    ls->count++;
  }
  ls->deleted += value == DEDUP_DELETED;
  return 0;
}

bool
dedup_log_store_lookup (const struct dedup_log_store *ls,
                        const struct dedup_hash *hash, uint64_t *value)
{
  uint64_t bucket[2];
  const struct slot *s;

  dedup_buckets (hash, ls->order, bucket);
  s = find (ls, hash, bucket);
  if (s == NULL)
    return false;
  *value = s->value;
  return true;
}

size_t
dedup_log_store_count (const struct dedup_log_store *ls)
{
  return ls->count;
}

size_t
dedup_log_store_deleted (const struct dedup_log_store *ls)
{
  return ls->deleted;
}

size_t
dedup_log_store_capacity (const struct dedup_log_store *ls)
{
  return ls->nr_slots * 93 / 100;
}

unsigned
dedup_log_store_order (const struct dedup_log_store *ls)
{
  return ls->order;
}

size_t
dedup_log_store_memory (const struct dedup_log_store *ls)
{
  return sizeof *ls + ls->nr_slots * DEDUP_SLOT_BYTES;
}

bool
dedup_log_store_slot (const struct dedup_log_store *ls, size_t slot,
                      struct dedup_hash *hash, uint64_t *value)
{
  const struct slot *s;

  assert (slot < ls->nr_slots);
  if ((ls->tags[slot / DEDUP_BUCKET_SLOTS] >>
       slot % DEDUP_BUCKET_SLOTS * TAG_BITS & 0xffff) == 0)
    return false;
  s = &ls->slots[slot];
  *hash = s->hash;
  *value = s->value;
  return true;
}
