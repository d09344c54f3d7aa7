/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps a mark for each region of a disk in which a client has written something.
 *
 * The marks are the bits of a hash table without chains, so their memory does not depend
 * on the size and the number of disks.  Where two regions share a bit, one may be looked
 * at in vain.  Regions of one disk that follow each other have different bits, up to a
 * million of them.
 *
 * A write marks its region when its data is linked.  So whoever takes the mark and then
 * looks at the region finds the data, and a write that comes later marks it again.
 *
 * Any thread; all is atomic.
 */
#include "fresh.h"

#include "checked.h"

#include <stdlib.h>
#include <string.h>

#define MARKS (UINT64_C (1) << 20)      /* 128 KiB */
#define WORDS (MARKS / 64)

struct dedup_marks {
  uint64_t words[WORDS];
};

struct dedup_fresh {            /* atomic */
  bool due;                     /* something was marked since marks were taken */
  bool was_read;                /* by a client, since dedup_fresh_was_read */
  struct dedup_marks marks;
};

static uint64_t
mark_of (unsigned root, uint64_t region)
{
  return (region + root * UINT64_C (0x9e3779b1)) % MARKS;
}

struct dedup_fresh *
dedup_fresh_new (void)
{
  struct dedup_fresh *fresh = malloc (sizeof *fresh);

  if (fresh == NULL)
    return NULL;
  fresh->due = true;
  fresh->was_read = false;
  memset (&fresh->marks, 0xff, sizeof fresh->marks);
  return fresh;
}

/* A store of what is there already would take the cache line from other writers. */
static void
set_flag (bool *flag)
{
  if (!__atomic_load_n (flag, __ATOMIC_RELAXED))
    __atomic_store_n (flag, true, __ATOMIC_RELAXED);
}

static void
set_mark (struct dedup_fresh *fresh, uint64_t mark)
{
  uint64_t *word = &fresh->marks.words[mark / 64];
  const uint64_t bit = UINT64_C (1) << mark % 64;

  if (!(__atomic_load_n (word, __ATOMIC_ACQUIRE) & bit))
    __atomic_fetch_or (word, bit, __ATOMIC_RELEASE);
}

void
dedup_fresh_note (struct dedup_fresh *fresh, unsigned root, uint64_t guest_idx,
                  uint64_t nr)
{
  uint64_t region;

  if (fresh == NULL)
    return;
  for (region = guest_idx / DEDUP_REGION; region <= (guest_idx + nr - 1) / DEDUP_REGION;
       region++)
    set_mark (fresh, mark_of (root, region));
  set_flag (&fresh->due);
}

void
dedup_fresh_copy (struct dedup_fresh *fresh, unsigned source, unsigned root, uint64_t nr)
{
  const uint64_t end = MIN_OF (div_round_up (nr, DEDUP_REGION), MARKS);
  uint64_t region;

  for (region = 0; fresh && region < end; region++)
    if (dedup_marks_have (&fresh->marks, source, region))
      set_mark (fresh, mark_of (root, region));
}

bool
dedup_fresh_is_due (struct dedup_fresh *fresh)
{
  return fresh && __atomic_load_n (&fresh->due, __ATOMIC_RELAXED);
}

struct dedup_marks *
dedup_fresh_take (struct dedup_fresh *fresh)
{
  struct dedup_marks *m = malloc (sizeof *m);
  size_t i;

  if (m == NULL)
    return NULL;
  __atomic_store_n (&fresh->due, false, __ATOMIC_SEQ_CST);
  for (i = 0; i < WORDS; i++)
    m->words[i] = __atomic_exchange_n (&fresh->marks.words[i], 0, __ATOMIC_ACQ_REL);
  return m;
}

void
dedup_fresh_put_back (struct dedup_fresh *fresh, const struct dedup_marks *m)
{
  size_t i;

  for (i = 0; i < WORDS; i++)
    __atomic_fetch_or (&fresh->marks.words[i], m->words[i], __ATOMIC_RELEASE);
}

bool
dedup_marks_have (const struct dedup_marks *m, unsigned root, uint64_t region)
{
  const uint64_t mark = mark_of (root, region);

  return __atomic_load_n (&m->words[mark / 64], __ATOMIC_ACQUIRE) >> mark % 64 & 1;
}

void
dedup_fresh_note_read (struct dedup_fresh *fresh)
{
  if (fresh)
    set_flag (&fresh->was_read);
}

bool
dedup_fresh_was_read (struct dedup_fresh *fresh)
{
  return fresh && __atomic_exchange_n (&fresh->was_read, false, __ATOMIC_RELAXED);
}
