/* SPDX-License-Identifier: BSD-3-Clause */
/* For tests of images with disks: a plain model of roots, L2 tables that they
 * share, and debts; and a writer that makes an image of it, byte by byte, without
 * the code that is tested.
 *
 * Clusters have 512 bytes, L2 tables 64 entries, refcount blocks 128 refcounts of
 * 32 bits.  Cluster 0 is the header, 1 the refcount table, then come the
 * refcount blocks; the model gives out clusters from PI_FIRST on.  Refcounts are
 * computed from the model when the image is written, by the law of
 * docs/on-disk.md section 11: a table has d << 16 | n, and a data cluster one
 * for each counted path to each entry that names it, and one for the anchor. */
#ifndef POOL_IMAGE_H
#define POOL_IMAGE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "image.h"

#define PI_CS 512u
#define PI_L2 64u              /* entries of an L2 table */
#define PI_L1 4u               /* entries of the L1 table of a root */
#define PI_DISK ((uint64_t) PI_L1 * PI_L2 * PI_CS)
#define PI_MAX 2048u           /* clusters of the file, at most */
#define PI_BLOCK 128u          /* refcounts of a block */
#define PI_FIRST (2 + PI_MAX / PI_BLOCK)
#define PI_ROOTS 16u

struct pi_table {
  unsigned d;                  /* debt */
  uint64_t e[PI_L2];           /* L2 entries, without COPIED */
};

struct pi_root {
  bool used;
  bool is_disk;                /* else a snapshot that QEMU made; root 0 is the
                                * active disk */
  uint32_t flags;              /* QCOW2_DISK_* */
  char name[16];
  uint64_t size;
  unsigned l1[PI_L1];          /* clusters of the tables; 0: none */
  unsigned l1_at;              /* cluster, once it is written */
};

struct pi {
  unsigned next;
  struct pi_table *t[PI_MAX];  /* by cluster; NULL: no table */
  bool anchored[PI_MAX];
  struct pi_root r[PI_ROOTS];
  uint64_t ref[PI_MAX];        /* as they were written */
};

static inline unsigned
pi_new (struct pi *p)
{
  assert_true (p->next < PI_MAX);
  return p->next++;
}

static inline void
pi_begin (struct pi *p)
{
  memset (p, 0, sizeof *p);
  p->next = PI_FIRST;
  p->r[0] = (struct pi_root) { .used = true, .name = "active",
                               .size = PI_DISK };
}

static inline void
pi_end (struct pi *p)
{
  unsigned c;

  for (c = 0; c < PI_MAX; c++)
    free (p->t[c]);
}

static inline unsigned
pi_disk (struct pi *p, const char *name, uint32_t flags)
{
  unsigned r = 0;

  while (p->r[r].used)
    assert_true (++r < PI_ROOTS);
  p->r[r] = (struct pi_root) { .used = true, .is_disk = true, .flags = flags,
                               .size = PI_DISK };
  snprintf (p->r[r].name, sizeof p->r[r].name, "%s", name);
  return r;
}

static inline unsigned
pi_new_table (struct pi *p)
{
  unsigned c = pi_new (p);

  p->t[c] = calloc (1, sizeof *p->t[c]);
  assert_non_null (p->t[c]);
  return c;
}

static inline unsigned
pi_paths (const struct pi *p, unsigned table)
{
  unsigned r, i, n = 0;

  for (r = 0; r < PI_ROOTS; r++)
    for (i = 0; p->r[r].used && i < PI_L1; i++)
      n += p->r[r].l1[i] == table;
  return n;
}

/* Makes root R a clone of SOURCE: its tables are lent. */
static inline void
pi_lend (struct pi *p, unsigned source, unsigned r)
{
  unsigned i;

  for (i = 0; i < PI_L1; i++) {
    p->r[r].l1[i] = p->r[source].l1[i];
    if (p->r[r].l1[i])
      p->t[p->r[r].l1[i]]->d++;
  }
}

/* Returns a table of its own for entry I of the L1 table of R.  */
static inline unsigned
pi_own (struct pi *p, unsigned r, unsigned i)
{
  unsigned old = p->r[r].l1[i], c;

  if (old && pi_paths (p, old) == 1)
    return old;
  c = pi_new_table (p);
  if (old) {
    memcpy (p->t[c]->e, p->t[old]->e, sizeof p->t[c]->e);
    p->t[old]->d -= p->t[old]->d > 0;
  }
  p->r[r].l1[i] = c;
  return c;
}

static inline void
pi_set (struct pi *p, unsigned r, unsigned guest_idx, uint64_t entry)
{
  p->t[pi_own (p, r, guest_idx / PI_L2)]->e[guest_idx % PI_L2] = entry;
}

/* Returns which clusters an entry names: *NR from the result on. */
static inline unsigned
pi_names (uint64_t entry, unsigned *nr)
{
  /* With clusters of 512 bytes the offset of compressed ones has 61 bits, and one
   * bit says how many sectors there are besides the first. */
  if (entry & QCOW2_L2_COMPRESSED) {
    *nr = 1 + (entry >> 61 & 1);
    return (unsigned) ((entry & ((UINT64_C (1) << 61) - 1)) / PI_CS);
  }
  *nr = (entry & QCOW2_OFFSET_MASK) != 0;
  return (unsigned) ((entry & QCOW2_OFFSET_MASK) / PI_CS);
}

/* Adds TIMES to the count of every cluster that a table names. */
static inline void
pi_add (const struct pi_table *t, int64_t times, uint64_t *ref)
{
  unsigned i, k, c, nr;

  for (i = 0; i < PI_L2; i++) {
    c = pi_names (t->e[i], &nr);
    for (k = 0; k < nr; k++)
      ref[c + k] += (uint64_t) times;
  }
}

/* --- Writing ------------------------------------------------------------- */

static inline void
pi_put (struct io_store *io, uint64_t off, unsigned len, uint64_t v)
{
  uint8_t b[8];
  unsigned i;

  for (i = len; i-- > 0; v >>= 8)
    b[i] = (uint8_t) v;
  assert_int_equal (io_pwrite (io, b, len, off), 0);
}

static inline uint64_t
pi_get (struct io_store *io, uint64_t off, unsigned len)
{
  uint8_t b[8];
  uint64_t v = 0;
  unsigned i;

  assert_int_equal (io_pread (io, b, len, off), 0);
  for (i = 0; i < len; i++)
    v = v << 8 | b[i];
  return v;
}

static inline uint64_t
pi_refcount_at (unsigned c)
{
  return (uint64_t) (2 + c / PI_BLOCK) * PI_CS + c % PI_BLOCK * 4;
}

static inline uint64_t
pi_write_entry (struct pi *p, struct io_store *io, uint64_t at, unsigned r)
{
  const struct pi_root *s = &p->r[r];
  const unsigned extra = s->is_disk ? 88 : 24, len = strlen (s->name);
  char id[16];

  snprintf (id, sizeof id, "%u", r);
  pi_put (io, at, 8, (uint64_t) s->l1_at * PI_CS);
  pi_put (io, at + 8, 4, PI_L1);
  pi_put (io, at + 12, 2, strlen (id));
  pi_put (io, at + 14, 2, len);
  pi_put (io, at + 36, 4, extra);
  pi_put (io, at + 48, 8, s->size);
  pi_put (io, at + 56, 8, UINT64_MAX);
  if (s->is_disk) {
    pi_put (io, at + 64, 8, UINT64_C (0x444455504449534b));   /* DDUPDISK */
    pi_put (io, at + 72, 4, 1);
    pi_put (io, at + 76, 4, s->flags);
    pi_put (io, at + 80, 8, r);                               /* uuid */
  }
  at += 40 + extra;
  assert_int_equal (io_pwrite (io, id, strlen (id), at), 0);
  assert_int_equal (io_pwrite (io, s->name, len, at + strlen (id)), 0);
  return (at + strlen (id) + len + 7) / 8 * 8;
}

/* Writes the anchor's tables; its L1 table is at cluster L1_AT, and one L2 table
 * for each 64 clusters behind it. */
static inline void
pi_write_anchor (struct pi *p, struct io_store *io, unsigned l1_at)
{
  unsigned i, c;

  for (i = 0; i < PI_MAX / PI_L2; i++) {
    pi_put (io, (uint64_t) l1_at * PI_CS + i * 8, 8,
            (uint64_t) (l1_at + 1 + i) * PI_CS);
    for (c = i * PI_L2; c < (i + 1) * PI_L2; c++)
      pi_put (io, (uint64_t) (l1_at + 1 + i) * PI_CS + c % PI_L2 * 8, 8,
              p->anchored[c] ? (uint64_t) c * PI_CS : 0);
  }
}

static inline uint64_t
pi_write_anchor_entry (struct io_store *io, uint64_t at, unsigned l1_at)
{
  static const char name[] = QCOW2_ANCHOR_NAME QCOW2_ANCHOR_NAME;
  const unsigned len = sizeof QCOW2_ANCHOR_NAME - 1;

  pi_put (io, at, 8, (uint64_t) l1_at * PI_CS);
  pi_put (io, at + 8, 4, PI_MAX / PI_L2);
  pi_put (io, at + 12, 2, len);
  pi_put (io, at + 14, 2, len);
  pi_put (io, at + 36, 4, 16);
  pi_put (io, at + 48, 8, (uint64_t) PI_MAX * PI_CS - 1);
  assert_int_equal (io_pwrite (io, name, 2 * len, at + 56), 0);
  return (at + 56 + 2 * len + 7) / 8 * 8;
}

static inline void
pi_write_header (struct io_store *io, uint64_t l1_off, unsigned nr_snapshots,
                 uint64_t snapshots_off, uint64_t incompatible)
{
  unsigned i;

  pi_put (io, 0, 4, 0x514649fb);
  pi_put (io, 4, 4, 3);
  pi_put (io, 20, 4, 9);
  pi_put (io, 24, 8, PI_DISK);
  pi_put (io, 36, 4, PI_L1);
  pi_put (io, 40, 8, l1_off);
  pi_put (io, 48, 8, PI_CS);
  pi_put (io, 56, 4, 1);
  pi_put (io, 60, 4, nr_snapshots);
  pi_put (io, 64, 8, snapshots_off);
  pi_put (io, 72, 8, incompatible);
  pi_put (io, 96, 4, 5);
  pi_put (io, 100, 4, 104);
  for (i = 0; i < PI_MAX / PI_BLOCK; i++)
    pi_put (io, PI_CS + i * 8, 8, (uint64_t) (2 + i) * PI_CS);
}

/* Returns whether the active disk names a table: COPIED has to be right there. */
static inline bool
pi_is_active (const struct pi *p, unsigned table)
{
  unsigned i;

  for (i = 0; i < PI_L1; i++)
    if (p->r[0].l1[i] == table)
      return true;
  return false;
}

static inline void
pi_write_table (struct pi *p, struct io_store *io, unsigned c)
{
  unsigned i, first, nr;
  uint64_t e;

  for (i = 0; i < PI_L2; i++) {
    e = p->t[c]->e[i];
    first = pi_names (e, &nr);
    if (nr && !(e & QCOW2_L2_COMPRESSED) && pi_is_active (p, c) &&
        p->ref[first] == 1)
      e |= QCOW2_L2_COPIED;
    pi_put (io, (uint64_t) c * PI_CS + i * 8, 8, e);
  }
}

static inline void
pi_count (struct pi *p)
{
  unsigned c, n;

  memset (p->ref, 0, sizeof p->ref);
  for (c = 0; c < PI_MAX; c++)
    if (p->t[c] && (n = pi_paths (p, c)) > 0) {
      assert_true (p->t[c]->d < n);
      p->ref[c] += (uint64_t) p->t[c]->d << 16 | n;
      pi_add (p->t[c], n - p->t[c]->d, p->ref);
    }
  for (c = 0; c < PI_MAX; c++)
    p->ref[c] += p->anchored[c];
  for (c = 0; c < PI_FIRST; c++)
    p->ref[c]++;
}

static inline void
pi_write_l1 (struct pi *p, struct io_store *io, unsigned r)
{
  unsigned i, c;

  for (i = 0; i < PI_L1; i++) {
    c = p->r[r].l1[i];
    pi_put (io, (uint64_t) p->r[r].l1_at * PI_CS + i * 8, 8,
            (uint64_t) c * PI_CS |
            (c && r == 0 && p->ref[c] == 1 ? QCOW2_L2_COPIED : 0));
  }
}

static inline unsigned
pi_write_roots (struct pi *p, struct io_store *io, uint64_t at)
{
  unsigned r, nr = 0;

  for (r = 0; r < PI_ROOTS; r++)
    if (p->r[r].used) {
      p->ref[p->r[r].l1_at = pi_new (p)] = 1;
      pi_write_l1 (p, io, r);
      if (r > 0) {
        at = pi_write_entry (p, io, at, r);
        nr++;
      }
    }
  p->ref[pi_new (p)] = 1;
  pi_write_anchor_entry (io, at, p->next - 1);
  for (r = 0; r < PI_MAX / PI_L2; r++)
    p->ref[pi_new (p)] = 1;
  pi_write_anchor (p, io, p->next - 1 - PI_MAX / PI_L2);
  return nr + 1;
}

/* Returns how many clusters the snapshot table takes: an entry is padded to 8
 * bytes, and ids are numbers below 100. */
static inline unsigned
pi_table_clusters (const struct pi *p)
{
  size_t len = 56 + 2 * (sizeof QCOW2_ANCHOR_NAME - 1);
  unsigned r;

  for (r = 1; r < PI_ROOTS; r++)
    if (p->r[r].used)
      len += (40 + (p->r[r].is_disk ? 88 : 24) + (r < 10 ? 1 : 2) +
              strlen (p->r[r].name) + 7) / 8 * 8;
  return (unsigned) ((len + PI_CS - 1) / PI_CS);
}

/* Writes the model as an image into IO, an empty store, with these incompatible
 * features.  The model can't be written twice. */
static inline void
pi_write (struct pi *p, struct io_store *io, uint64_t incompatible)
{
  const unsigned nr_table = pi_table_clusters (p);
  unsigned c, at, nr;

  pi_count (p);
  at = p->next;
  for (c = 0; c < nr_table; c++)
    p->ref[pi_new (p)] = 1;
  nr = pi_write_roots (p, io, (uint64_t) at * PI_CS);
  pi_write_header (io, (uint64_t) p->r[0].l1_at * PI_CS, nr,
                   (uint64_t) at * PI_CS, incompatible);
  for (c = 0; c < PI_MAX; c++)
    if (p->t[c] && pi_paths (p, c) > 0)
      pi_write_table (p, io, c);
  for (c = 0; c < PI_MAX; c++)
    if (p->ref[c])
      pi_put (io, pi_refcount_at (c), 4, p->ref[c]);
  assert_int_equal (io_truncate (io, (uint64_t) p->next * PI_CS), 0);
}

#endif
