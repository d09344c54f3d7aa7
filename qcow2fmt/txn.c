/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps transactions: the slices of tables that one caller has pinned, and
 * what it misses.
 *
 * A _locked function that needs a table which is not in memory notes it here
 * and returns -EAGAIN; load.c then does the I/O without the lock.  A loaded
 * slice is pinned until the end, so each round gets further and the retry loop
 * ends.  Anchor parts need no pin, because they stay in memory.
 *
 * The first few pins are in a list.  More of them are in a hash table by host
 * offset (linear probing, at most 3/4 full), so that a request over hundreds
 * of slices finds each one in a step.  Neighbouring clusters need the same
 * slices, so the last two that were found, mostly of an L2 table and a
 * refcount block, are tried first.
 *
 * A transaction belongs to one thread; the image's lock protects the pin
 * counts.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "image.h"

#define MIN_PINS 16
#define MAX_FEW (sizeof ((struct qcow2_txn *) 0)->few / sizeof (void *))

void
qcow2_txn_begin (struct qcow2_image *img, struct qcow2_txn *txn)
{
  memset (txn, 0, sizeof *txn);
  txn->img = img;
  txn->missing_kind = QCOW2_MISSING_NONE;
}

static size_t
slot_of (const struct qcow2_pin *pins, size_t max, uint64_t host_off)
{
  size_t i = (host_off >> 9) * UINT64_C (0x9e3779b97f4a7c15) >> 32;

  for (i &= max - 1; pins[i].slice; i = (i + 1) & (max - 1))
    if (pins[i].slice->host_off == host_off)
      break;
  return i;
}

static struct qcow2_slice *
find (const struct qcow2_txn *txn, uint64_t host_off)
{
  if (txn->pins)
    return txn->pins[slot_of (txn->pins, txn->max_pins, host_off)].slice;
  for (size_t i = 0; i < txn->nr_pins; ++i)
    if (txn->few[i]->host_off == host_off)
      return txn->few[i];
  return NULL;
}

struct qcow2_slice *
qcow2_txn_find_locked (struct qcow2_txn *txn, uint64_t host_off)
{
  struct qcow2_slice *t;

  assert (lock_held (&txn->img->lock));
  if (txn->last[0] && txn->last[0]->host_off == host_off)
    return txn->last[0];
  t = txn->last[1];
  if (!t || t->host_off != host_off)
    t = find (txn, host_off);
  if (t) {
    txn->last[1] = txn->last[0];
    txn->last[0] = t;
  }
  return t;
}

static int
grow (struct qcow2_txn *txn)
{
  size_t max = txn->max_pins ? txn->max_pins * 2 : MIN_PINS;
  struct qcow2_pin *pins = calloc (max, sizeof *pins);

  if (!pins)
    return -ENOMEM;
  for (size_t i = 0; i < txn->max_pins; ++i)
    if (txn->pins[i].slice)
      pins[slot_of (pins, max, txn->pins[i].slice->host_off)] = txn->pins[i];
  for (size_t i = 0; !txn->pins && i < txn->nr_pins; ++i)
    pins[slot_of (pins, max, txn->few[i]->host_off)].slice = txn->few[i];
  free (txn->pins);
  txn->pins = pins;
  txn->max_pins = max;
  return 0;
}

int
qcow2_txn_reserve_locked (struct qcow2_txn *txn, size_t nr)
{
  int r = 0;

  assert (lock_held (&txn->img->lock));
  if (txn->nr_pins + nr <= MAX_FEW)
    return 0;
  while (r == 0 && txn->nr_pins + nr > txn->max_pins / 4 * 3)
    r = grow (txn);
  return r;
}

int
qcow2_txn_pin_locked (struct qcow2_txn *txn, struct qcow2_slice *t)
{
  size_t i;
  int r;

  assert (lock_held (&txn->img->lock));
  t->recently_used = true;
  if (qcow2_txn_find_locked (txn, t->host_off))
    return 0;
  r = qcow2_txn_reserve_locked (txn, 1);
  if (r < 0)
    return r;
  if (txn->pins) {
    i = slot_of (txn->pins, txn->max_pins, t->host_off);
    txn->pins[i].slice = t;
  }
  else
    txn->few[txn->nr_pins] = t;
  txn->nr_pins++;
  t->pins++;
  return 0;
}

int
qcow2_txn_missing_locked (struct qcow2_txn *txn, int kind, uint64_t off)
{
  assert (lock_held (&txn->img->lock));
  txn->missing_kind = kind;
  txn->missing_off = off;
  return -EAGAIN;
}

void
qcow2_txn_unpin_locked (struct qcow2_txn *txn)
{
  assert (lock_held (&txn->img->lock));
  for (size_t i = 0; i < txn->max_pins; ++i)
    if (txn->pins[i].slice)
      txn->pins[i].slice->pins--;
  for (size_t i = 0; !txn->pins && i < txn->nr_pins; ++i)
    txn->few[i]->pins--;
  free (txn->pins);
  txn->pins = NULL;
  txn->nr_pins = txn->max_pins = 0;
  txn->last[0] = txn->last[1] = NULL;
}
