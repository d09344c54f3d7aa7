/* SPDX-License-Identifier: BSD-3-Clause */
/* Stores images as bytes, and makes crash states of them.
 *
 * A copy-on-write store costs as much as is changed in it, so a state over an
 * image of some MiB is made in microseconds.  Its base must not change while it
 * lives.  It has no lock: one thread at a time.
 *
 * A state takes the log of a recording up to some record.  All records before
 * the last sync are there; each record after that is kept, lost or torn (part
 * of its sectors), in any order where they overlap.  A failed sync promises
 * nothing, and later ones do not promise what it left open.
 *
 * A write of up to 4096 bytes at offset 0 is never torn (docs/on-disk.md
 * section 6 says so).
 */
#include "crash.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"

#define PAGE 4096u

/* --- flat images ------------------------------------------------------------ */

static size_t
padded (uint64_t size)
{
  return (size_t) round_up_pow2 (size, PAGE);
}

static int
read_all (struct io_store *io, uint8_t **p, size_t *size)
{
  int64_t n = io_size (io);

  if (n < 0)
    return (int) n;
  *size = (size_t) n;
  *p = calloc (1, padded (*size) + PAGE);
  return io_pread (io, *p, *size, 0);
}

int
bytes_of_store_file (struct io_store *io, struct bytes *b)
{
  return read_all (store_file_of (io), &b->p2, &b->size2);
}

int
bytes_of_store (struct io_store *io, struct bytes *b)
{
  int r;

  memset (b, 0, sizeof *b);
  r = read_all (io, &b->p, &b->size);
  if (r == 0 && pair_file (io, 1) != NULL)
    r = bytes_of_store_file (io, b);
  b->block = io_block_size (io);
  return r;
}

void
bytes_copy (const struct bytes *from, struct bytes *to)
{
  *to = *from;
  to->p = calloc (1, padded (from->size) + PAGE);
  if (from->p)
    memcpy (to->p, from->p, from->size);
  to->p2 = calloc (1, padded (from->size2) + PAGE);
  if (from->p2)
    memcpy (to->p2, from->p2, from->size2);
}

void
bytes_free (struct bytes *b)
{
  free (b->p);
  free (b->p2);
}

struct io_store *
store_of_bytes (const struct bytes *b)
{
  struct io_store *io;

  if (io_memory_new (b->size, &io) < 0 ||
      io_pwrite (io, b->p, b->size, 0) < 0)
    abort ();
  return io;
}

static void
resize (uint8_t **p, size_t *old_size, uint64_t size)
{
  size_t old = *p ? padded (*old_size) + PAGE : 0, new = padded (size) + PAGE;

  if (new > old) {
    *p = realloc (*p, new);
    memset (*p + old, 0, new - old);
  }
  if (size < *old_size)
    memset (*p + size, 0, *old_size - size);
  *old_size = (size_t) size;
}

void
bytes_play (const struct world *w, size_t from, size_t to, struct bytes *b)
{
  size_t i;

  for (i = from; i < to; i++) {
    const struct io_record *r = &w->log[i];
    uint8_t **p = file_of (r) ? &b->p2 : &b->p;
    size_t *size = file_of (r) ? &b->size2 : &b->size;
    uint64_t off = r->host_off & ~IN_STORE_FILE, end = off + r->len;
    unsigned file;

    if (is_sync (r, &file))
      continue;
    switch (r->call) {
    case IO_PWRITE:
      if (end > *size)
        resize (p, size, end);
      memcpy (*p + off, r->data, r->len);
      break;
    case IO_DISCARD:
      if (off < *size)
        memset (*p + off, 0, MIN_OF (end, *size) - off);
      break;
    case IO_TRUNCATE:
      resize (p, size, off);
      break;
    default:
      break;
    }
  }
}

/* --- the copy-on-write store --------------------------------------------------- */

struct cow {
  struct io_store store;
  const uint8_t *flat;         /* or a parent, or nothing */
  size_t flat_size;
  struct cow *parent;
  uint8_t **pages;
  size_t nr_pages;             /* length of the array */
  uint64_t size;
  uint64_t changes;
};

static const uint8_t zero_page[PAGE];

static const uint8_t *
page_of (const struct cow *c, size_t i)
{
  for (; c; c = c->parent) {
    if (i < c->nr_pages && c->pages[i])
      return c->pages[i];
    if (c->flat)
      return i * PAGE < c->flat_size ? c->flat + i * PAGE : zero_page;
  }
  return zero_page;
}

static uint8_t *
own_page (struct cow *c, size_t i)
{
  size_t nr;

  if (i >= c->nr_pages) {
    nr = MAX_OF (i + 1, c->nr_pages * 2);
    c->pages = realloc (c->pages, nr * sizeof *c->pages);
    memset (c->pages + c->nr_pages, 0,
            (nr - c->nr_pages) * sizeof *c->pages);
    c->nr_pages = nr;
  }
  if (!c->pages[i]) {
    const uint8_t *old = page_of (c, i);

    c->pages[i] = malloc (PAGE);
    memcpy (c->pages[i], old, PAGE);
  }
  return c->pages[i];
}

static void
put (struct cow *c, const uint8_t *p, uint64_t off, uint64_t len)
{
  uint64_t n;

  for (; len > 0; off += n, len -= n) {
    n = MIN_OF (len, PAGE - off % PAGE);
    if (p) {
      memcpy (own_page (c, off / PAGE) + off % PAGE, p, n);
      p += n;
    }
    else if (page_of (c, off / PAGE) != zero_page)
      memset (own_page (c, off / PAGE) + off % PAGE, 0, n);
  }
}

static int
cow_preadv (struct io_store *s, const struct iovec *iov, int iovcnt,
            uint64_t off)
{
  struct cow *c = (struct cow *) s;
  size_t done, n;
  int i;

  for (i = 0; i < iovcnt; i++)
    for (done = 0; done < iov[i].iov_len; done += n, off += n) {
      n = MIN_OF (iov[i].iov_len - done, PAGE - off % PAGE);
      memcpy ((uint8_t *) iov[i].iov_base + done,
              page_of (c, off / PAGE) + off % PAGE, n);
    }
  return 0;
}

static int
cow_pwritev (struct io_store *s, const struct iovec *iov, int iovcnt,
             uint64_t off)
{
  struct cow *c = (struct cow *) s;
  int i;

  for (i = 0; i < iovcnt; i++) {
    put (c, iov[i].iov_base, off, iov[i].iov_len);
    off += iov[i].iov_len;
  }
  c->size = MAX_OF (c->size, off);
  c->changes++;
  return 0;
}

static int
cow_sync (struct io_store *s)
{
  ((struct cow *) s)->changes++;
  return 0;
}

static int
cow_discard (struct io_store *s, uint64_t off, uint64_t len)
{
  struct cow *c = (struct cow *) s;

  if (off < c->size)
    put (c, NULL, off, MIN_OF (len, c->size - off));
  c->changes++;
  return 0;
}

static int
cow_allocate (struct io_store *s, uint64_t off, uint64_t len)
{
  struct cow *c = (struct cow *) s;

  c->size = MAX_OF (c->size, off + len);
  c->changes++;
  return 0;
}

static int
cow_truncate (struct io_store *s, uint64_t size)
{
  struct cow *c = (struct cow *) s;

  if (size < c->size)
    put (c, NULL, size, c->size - size);
  c->size = size;
  c->changes++;
  return 0;
}

static int64_t
cow_size (struct io_store *s)
{
  return (int64_t) ((struct cow *) s)->size;
}

static void
cow_close (struct io_store *s)
{
  struct cow *c = (struct cow *) s;
  size_t i;

  for (i = 0; i < c->nr_pages; i++)
    free (c->pages[i]);
  free (c->pages);
  free (c);
}

static const struct io_ops cow_ops = {
  .preadv = cow_preadv, .pwritev = cow_pwritev, .sync = cow_sync,
  .discard = cow_discard, .allocate = cow_allocate,
  .truncate = cow_truncate, .size = cow_size, .close = cow_close,
};

static struct io_store *
one_cow (const uint8_t *flat, size_t size, struct io_store *parent)
{
  struct cow *c = calloc (1, sizeof *c);

  c->store.ops = &cow_ops;
  c->flat = flat;
  c->flat_size = size;
  c->parent = (struct cow *) parent;
  c->size = parent ? c->parent->size : size;
  return &c->store;
}

static struct cow *
cow_of (struct io_store *pair, unsigned file)
{
  return (struct cow *) pair_file (pair, file);
}

struct io_store *
cow_new (const struct bytes *flat, struct io_store *parent)
{
  assert ((flat == NULL) != (parent == NULL));
  if (flat)
    return pair_new (one_cow (flat->p, flat->size, NULL),
                     one_cow (flat->p2, flat->size2, NULL), flat->block);
  return pair_new (one_cow (NULL, 0, &cow_of (parent, 0)->store),
                   one_cow (NULL, 0, &cow_of (parent, 1)->store),
                   io_block_size (parent));
}

uint64_t
cow_changes (struct io_store *s)
{
  return cow_of (s, 0)->changes + cow_of (s, 1)->changes;
}

/* --- states ------------------------------------------------------------------------ */

/* The last sync of FILE before POS; all records of it from before are sure. */
static size_t
last_sync (const struct world *w, size_t pos, unsigned file)
{
  unsigned of;

  while (pos > 0 && (!is_sync (&w->log[pos - 1], &of) || of != file))
    pos--;
  return pos;
}

size_t
state_window (const struct world *w, size_t pos)
{
  size_t i = last_sync (w, pos, 0), k;

  if (w->cfg.store_file) {
    k = last_sync (w, pos, 1);
    while (k < i && !file_of (&w->log[k]))
      k++;
    i = MIN_OF (i, k);
  }
  /* What a failed sync left open stays open for ever. */
  if (w->fault_to != NEVER && pos > w->fault_from)
    i = MIN_OF (i, w->fault_from);
  return i;
}

/* Is record I sure to be there, SYNCED being the last syncs of both files? */
static bool
is_sure (const struct world *w, size_t i, const size_t synced[2])
{
  return i < synced[file_of (&w->log[i])] &&
    (w->fault_to == NEVER || i < w->fault_from || i >= w->fault_to);
}

static enum fate
random_fate (struct rng *r, unsigned lose, bool tear)
{
  if (rnd (r, 8) < lose)
    return FATE_LOST;
  if (tear && chance (r, 3))
    return chance (r, 2) ? FATE_TORN_512 : FATE_TORN_4096;
  return FATE_KEPT;
}

/* Nothing lost, everything, the last few, or what chance wills. */
void
state_random (const struct world *w, size_t pos, uint64_t seed,
              struct state *st)
{
  struct rng r = rng_of (seed, 77);
  size_t sure[2] = { last_sync (w, pos, 0), last_sync (w, pos, 1) }, i, k;
  unsigned kind = (unsigned) rnd (&r, 6), lose;
  bool tear = chance (&r, 2), reorder = chance (&r, 2);

  memset (st, 0, sizeof *st);
  st->pos = pos;
  st->from = state_window (w, pos);
  st->nr = pos - st->from;
  st->seed = seed;
  st->fate = calloc (st->nr + 1, 1);
  st->order = calloc (st->nr + 1, sizeof *st->order);
  lose = kind == 0 ? 0 : kind == 1 ? 8 : 1 + (unsigned) rnd (&r, 7);
  for (i = 0; i < st->nr; i++) {
    st->order[i] = (uint32_t) i;
    if (!is_sure (w, st->from + i, sure))
      st->fate[i] = random_fate (&r, lose, tear && kind > 1);
  }
  /* What a later sync made sure lies above what a failed one left open, or a
   * sync of the other file. */
  reorder = reorder && kind > 1 && w->fault_to == NEVER &&
    st->from >= sure[0] && (!w->cfg.store_file || st->from >= sure[1]);
  if (w->cfg.store_file && chance (&r, 4)) {
    st->store_fate = (enum store_fate) rnd (&r, NR_STORE_FATES);
    st->store_pos = rnd (&r, pos + 1);
  }
  for (i = 1; reorder && i < st->nr; i++) {
    uint32_t t = st->order[i];

    k = rnd (&r, i + 1);
    st->order[i] = st->order[k];
    st->order[k] = t;
  }
}

void
state_free (struct state *st)
{
  free (st->fate);
  free (st->order);
}

void
state_copy (const struct state *a, struct state *out)
{
  *out = *a;
  out->fate = calloc (a->nr + 1, 1);
  out->order = calloc (a->nr + 1, sizeof *out->order);
  memcpy (out->fate, a->fate, a->nr);
  memcpy (out->order, a->order, a->nr * sizeof *out->order);
}

/* OFF: as in the record. */
static void
apply_part (const struct io_record *r, uint64_t off, uint64_t len,
            struct io_store *pair)
{
  struct cow *to = cow_of (pair, file_of (r));
  const uint8_t *data = r->data + (off - r->host_off);
  uint64_t end;

  off &= ~IN_STORE_FILE;
  end = off + len;
  switch (r->call) {
  case IO_PWRITE:
    put (to, data, off, len);
    to->size = MAX_OF (to->size, end);
    break;
  case IO_DISCARD:
    if (off < to->size)
      put (to, NULL, off, MIN_OF (len, to->size - off));
    break;
  case IO_TRUNCATE:
    /* Allocations that grew the file: none is recorded that cut it off. */
    to->size = MAX_OF (to->size, off);
    break;
  default:
    break;
  }
}

#define SECTOR 512u

/* Returns whether the bytes before the record's in its block may be ruined.  Not by fields
 * that are changed in place, which the program takes to be atomic: those of eight bytes,
 * and those of the header.  In blocks of more than a sector only by compressed data, which
 * begins with the magic number of zstd: tables are written in parts of a sector here, and
 * of 4096 bytes elsewhere. */
static bool
may_ruin (const struct io_record *r, uint64_t off, unsigned block)
{
  static const uint8_t zstd[4] = { 0x28, 0xb5, 0x2f, 0xfd };

  return r->call == IO_PWRITE && off % block > 0 && r->len > 8 && off >= block &&
    (block == SECTOR || memcmp (r->data, zstd, sizeof zstd) == 0);
}

/* A write that begins within a block ruins the bytes before it in that block, as a disk
 * whose power fails while it writes the block may. */
static void
ruin_first_block (const struct io_record *r, unsigned block, struct rng *rng,
                  struct io_store *to)
{
  uint8_t ruined[IO_MAX_BLOCK];
  const uint64_t off = r->host_off & ~IN_STORE_FILE, n = off % block;

  if (!may_ruin (r, off, block) || chance (rng, 2))
    return;
  memset (ruined, 0xdb, n);
  put (cow_of (to, file_of (r)), ruined, off - n, n);
}

/* Of each aligned piece of UNIT bytes, chance says whether it is there. */
static void
apply_torn (const struct io_record *r, unsigned block, uint64_t unit, struct rng rng,
            struct io_store *to)
{
  uint64_t off = r->host_off, end = r->host_off + r->len, n;

  ruin_first_block (r, block, &rng, to);
  for (; off < end; off += n) {
    n = MIN_OF (end - off, unit - off % unit);
    if (chance (&rng, 2))
      apply_part (r, off, n, to);
  }
}

static bool
can_tear (const struct io_record *r)
{
  return (r->call == IO_PWRITE || r->call == IO_DISCARD) &&
    ((r->host_off & ~IN_STORE_FILE) > 0 || r->len > 4096);
}

/* The store file as it was when the log was shorter.  Whatever BELOW it is
 * stays, where that holds records of the log already. */
static void
apply_older (const struct world *w, size_t pos, struct cow *c)
{
  struct bytes b = { 0 };
  size_t i;

  for (i = 0; i < pos; i++)
    if (file_of (&w->log[i]))
      bytes_play (w, i, i + 1, &b);
  put (c, NULL, 0, c->size);
  put (c, b.p2, 0, b.size2);
  c->size = b.size2;
  bytes_free (&b);
}

static void
apply_store_fate (const struct world *w, const struct state *st,
                  struct cow *c)
{
  static const uint8_t spoilt[8] = { 0xbd, 1, 2, 3, 4, 5, 6, 7 };

  switch (st->store_fate) {
  case STORE_LOST:
    put (c, NULL, 0, c->size);
    c->size = 0;
    break;
  case STORE_CUT:
    put (c, NULL, c->size / 2, c->size - c->size / 2);
    c->size /= 2;
    break;
  case STORE_OLDER:
    apply_older (w, st->store_pos, c);
    break;
  case STORE_HEADER:
    if (c->size > 0)
      put (c, spoilt, 16, sizeof spoilt);
    break;
  default:
    break;
  }
}

void
state_apply (const struct world *w, const struct state *st,
             struct io_store *to)
{
  const unsigned block = MAX_OF (w->cfg.block, SECTOR);
  size_t i, k;
  unsigned file;

  for (k = 0; k < st->nr; k++) {
    const struct io_record *r = &w->log[st->from + (i = st->order[k])];
    enum fate fate = st->fate[i];

    if (fate == FATE_LOST || is_sync (r, &file))
      continue;
    if (fate == FATE_KEPT || !can_tear (r))
      apply_part (r, r->host_off, r->len, to);
    else
      apply_torn (r, block, MAX_OF (fate == FATE_TORN_512 ? SECTOR : 4096, block),
                  rng_of (st->seed, 1000 + st->from + i), to);
  }
  apply_store_fate (w, st, cow_of (to, 1));
  cow_of (to, 0)->changes = cow_of (to, 1)->changes = 0;
}
