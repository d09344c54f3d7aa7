/* SPDX-License-Identifier: BSD-3-Clause */
/* For tests of images with disks: random steps that change the model of
 * pool-image.h, so that roots share tables and clusters in all ways that there
 * are.  `seed` is set by the test, and printed. */
#ifndef POOL_RANDOM_H
#define POOL_RANDOM_H

#include "pool-image.h"
#include "splitmix.h"

#define WRITABLE QCOW2_DISK_WRITABLE

static uint64_t seed;

static inline unsigned
rnd (unsigned n)
{
  return (unsigned) (splitmix64 (&seed) % n);
}

static inline unsigned
some_root (const struct pi *p)
{
  unsigned r;

  do
    r = rnd (PI_ROOTS);
  while (!p->r[r].used);
  return r;
}

/* Returns a compressed entry: in new clusters, or in those of OTHER if that is
 * compressed. */
static inline uint64_t
some_compressed (struct pi *p, uint64_t other)
{
  unsigned c, nr;

  if ((other & QCOW2_L2_COMPRESSED) && rnd (4) != 0)
    c = pi_names (other, &nr);
  else {
    c = pi_new (p);
    pi_new (p);
  }
  return QCOW2_L2_COMPRESSED | (rnd (4) ? UINT64_C (1) << 61 : 0) |
    ((uint64_t) c * PI_CS + rnd (PI_CS));
}

/* Returns an entry: new data, that of another place, compressed, preallocated, or
 * none. */
static inline uint64_t
some_entry (struct pi *p)
{
  const unsigned r = some_root (p), i = rnd (PI_L1), kind = rnd (14);
  unsigned c;

  if (kind < 4) {
    c = pi_new (p);
    p->anchored[c] = rnd (4) != 0;
    return (uint64_t) c * PI_CS;
  }
  if (kind < 9)
    return p->r[r].l1[i] ? p->t[p->r[r].l1[i]]->e[rnd (PI_L2)] : 0;
  if (kind < 12)
    return some_compressed (p, p->r[r].l1[i] ?
                            p->t[p->r[r].l1[i]]->e[rnd (PI_L2)] : 0);
  return kind == 12 ? (uint64_t) pi_new (p) * PI_CS | QCOW2_L2_ZERO : 0;
}

/* Drops root R: paths under debt take one of it along. */
static inline void
drop_root (struct pi *p, unsigned r)
{
  unsigned i, t;

  for (i = 0; i < PI_L1; i++)
    if ((t = p->r[r].l1[i]) != 0) {
      p->r[r].l1[i] = 0;
      p->t[t]->d -= p->t[t]->d > 0;
    }
  p->r[r].used = false;
}

static inline unsigned
nr_used (const struct pi *p)
{
  unsigned r, n = 0;

  for (r = 0; r < PI_ROOTS; r++)
    n += p->r[r].used;
  return n;
}

static inline void
make_disk (struct pi *p)
{
  static const uint32_t flags[] = { WRITABLE, WRITABLE, 0,
                                    WRITABLE | QCOW2_DISK_DOOMED };
  const unsigned source = some_root (p);
  const unsigned r = pi_disk (p, "disk", flags[rnd (4)]);

  snprintf (p->r[r].name, sizeof p->r[r].name, "disk%u", r);
  p->r[r].is_disk = rnd (4) != 0;
  if (!p->r[r].is_disk)
    p->r[r].flags = 0;
  if (rnd (3))
    p->r[r].size = (uint64_t) (1 + rnd (PI_L1 * PI_L2 * 2)) * PI_CS / 2;
  if (rnd (4))
    pi_lend (p, source, r);
}

static inline void
some_step (struct pi *p)
{
  const unsigned kind = rnd (20), r = some_root (p);
  const unsigned t = p->r[r].l1[rnd (PI_L1)];

  if (kind < 15)
    pi_set (p, r, rnd (PI_L1) * PI_L2 + rnd (12), some_entry (p));
  else if (kind < 17 && nr_used (p) < PI_ROOTS)
    make_disk (p);
  else if (kind == 17 && r > 0)
    drop_root (p, r);
  else if (kind >= 18 && t)
    p->t[t]->d = 0;            /* paid */
}

#endif
