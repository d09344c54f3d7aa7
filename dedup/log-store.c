/* SPDX-License-Identifier: BSD-3-Clause */
/* The log store: one array of slots, four to a bucket, each with a whole
 * hash and its value.  Source: SILT (SOSP 2011) section 4.1 for the cuckoo
 * table, except that whole hashes are kept: an entry that is kicked out
 * knows its other bucket, and no lookup needs the journal to be sure.
 *
 * It promises that an entry is never lost: an insertion that finds no place
 * after DEDUP_MAX_KICKS puts everything back.  An entry is in one of its two
 * buckets and nowhere else, at most once; incarnation.c relies on it when it
 * writes the slots out as they stand.
 *
 * Not thread safe.  A frozen log store no longer changes, so it may be read
 * from several threads.  Entries can't be removed: a tombstone replaces them,
 * which must also hide what older incarnations say.
 */
#include "log-store.h"

#include <assert.h>
#include <errno.h>

#include "dedup-limits.h"
#include "large-pages.h"

struct slot {
  struct dedup_hash hash;
  uint64_t host_idx;              /* 0: empty, no data cluster has index 0 */
};

_Static_assert (sizeof (struct slot) == 40, "dedup-limits.h counts on 40 bytes");

struct dedup_log_store {
  unsigned order;
  size_t nr_slots, count, deleted;
  uint64_t random;                /* chooses victims; never 0 */
  struct slot *slots;
};

#define FIRST_RANDOM UINT64_C (0x9e3779b97f4a7c15)

int
dedup_log_store_new (unsigned order, struct dedup_log_store **out)
{
  CLEANUP_FREE struct dedup_log_store *ls = NULL;

  if (order < DEDUP_MIN_ORDER || order > DEDUP_MAX_ORDER)
    return -EINVAL;
  ls = calloc (1, sizeof *ls);
  if (ls == NULL)
    return -ENOMEM;
  ls->order = order;
  ls->nr_slots = (size_t) DEDUP_BUCKET_SLOTS << order;
  ls->random = FIRST_RANDOM;
  ls->slots = calloc (ls->nr_slots, sizeof *ls->slots);
  if (ls->slots == NULL)
    return -ENOMEM;
  large_pages_advise (ls->slots, ls->nr_slots * sizeof *ls->slots);
  *out = ls;
  ls = NULL;
  return 0;
}

void
dedup_log_store_free (struct dedup_log_store *ls)
{
  if (ls == NULL)
    return;
  free (ls->slots);
  free (ls);
}

void
dedup_log_store_clear (struct dedup_log_store *ls)
{
  ls->count = ls->deleted = 0;
  ls->random = FIRST_RANDOM;
  memset (ls->slots, 0, ls->nr_slots * sizeof *ls->slots);
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

/* Nearly every comparison ends in the first word; which byte order it is
 * taken in does not matter. */
static inline bool
slot_is (const struct slot *s, const struct dedup_hash *hash, uint64_t word0)
{
  uint64_t w;

  memcpy (&w, s->hash.b, sizeof w);
  return w == word0 && s->host_idx != 0 && dedup_hash_equal (&s->hash, hash);
}

static struct slot *
find (const struct dedup_log_store *ls, const struct dedup_hash *hash,
      const uint64_t bucket[2])
{
  uint64_t word0;
  unsigned i, j;

  memcpy (&word0, hash->b, sizeof word0);
  for (i = 0; i < 2; ++i) {
    struct slot *s = bucket_slots (ls, bucket[i]);

    for (j = 0; j < DEDUP_BUCKET_SLOTS; ++j)
      if (slot_is (&s[j], hash, word0))
        return &s[j];
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
  for (i = 0; i < 2; ++i) {     /* 160 bytes: three or four lines */
    const char *p = (const char *) bucket_slots (ls, bucket[i]);

    __builtin_prefetch (p);
    __builtin_prefetch (p + 64);
    __builtin_prefetch (p + 128);
  }
}

static struct slot *
find_free (const struct dedup_log_store *ls, uint64_t bucket)
{
  struct slot *s = bucket_slots (ls, bucket);
  unsigned j;

  for (j = 0; j < DEDUP_BUCKET_SLOTS; ++j)
    if (s[j].host_idx == 0)
      return &s[j];
  return NULL;
}

/* xorshift64: which victim does not matter, only that a chain of kicks does
 * not go round in a circle.  Its own state keeps runs repeatable. */
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

static void
swap_slots (struct slot *a, struct slot *b)
{
  const struct slot t = *a;

  *a = *b;
  *b = t;
}

/* Both buckets of NEW are full: put it in the place of an entry of BUCKET,
 * which goes to its other bucket, and so on until there is a free slot.  The
 * path is the undo log. */
static int
insert_by_kicks (struct dedup_log_store *ls, struct slot new, uint64_t bucket)
{
  struct slot *path[DEDUP_MAX_KICKS];
  struct slot *s;
  size_t n;

  for (n = 0; n < DEDUP_MAX_KICKS; ++n) {
    path[n] = bucket_slots (ls, bucket) + random_position (ls);
    swap_slots (path[n], &new);         /* NEW is the homeless one now */
    bucket = other_bucket (ls, &new, bucket);
    s = find_free (ls, bucket);
    if (s) {
      *s = new;
      return 0;
    }
  }
  while (n > 0)
    swap_slots (path[--n], &new);
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
  *s = *new;
  return 0;
}

int
dedup_log_store_insert (struct dedup_log_store *ls,
                        const struct dedup_hash *hash, uint64_t host_idx)
{
  const struct slot new = { *hash, host_idx };
  uint64_t bucket[2];
  struct slot *s;
  int r;

  if (host_idx == 0)              /* a journal may say so */
    return -EINVAL;
  dedup_buckets (hash, ls->order, bucket);
  s = find (ls, hash, bucket);
  if (s) {
    ls->deleted -= s->host_idx == DEDUP_DELETED;
    s->host_idx = host_idx;
  }
  else {
    r = insert_new (ls, &new, bucket);
    if (r < 0)
      return r;
    ls->count++;
  }
  ls->deleted += host_idx == DEDUP_DELETED;
  return 0;
}

bool
dedup_log_store_lookup (const struct dedup_log_store *ls,
                        const struct dedup_hash *hash, uint64_t *host_idx)
{
  uint64_t bucket[2];
  const struct slot *s;

  dedup_buckets (hash, ls->order, bucket);
  s = find (ls, hash, bucket);
  if (s == NULL)
    return false;
  *host_idx = s->host_idx;
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
  return sizeof *ls + ls->nr_slots * sizeof *ls->slots;
}

bool
dedup_log_store_slot (const struct dedup_log_store *ls, size_t slot,
                      struct dedup_hash *hash, uint64_t *host_idx)
{
  const struct slot *s;

  assert (slot < ls->nr_slots);
  s = &ls->slots[slot];
  if (s->host_idx == 0)
    return false;
  *hash = s->hash;
  *host_idx = s->host_idx;
  return true;
}
