/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps flat tables in memory: the active L1, the anchor's L1 and the refcount
 * table, each contiguous in the file, and whole and in host byte order in
 * memory.
 *
 * Changes are tracked per page of 512 entries, so that a writeback writes 4096
 * bytes for one changed entry and not up to 32 MiB.  Moving a table marks all
 * of it as changed, because this file cannot know whether anything was written
 * at the new place.
 *
 * It has no lock of its own: the image's lock protects a table once the image
 * is open.  Checking what the entries mean is left to the callers.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "image.h"

uint64_t
qcow2_flat_pages (const struct qcow2_flat *t)
{
  return div_round_up (t->nr, QCOW2_FLAT_PAGE_ENTRIES);
}

static int
allocate (struct qcow2_flat *t, uint64_t host_off, uint64_t nr)
{
  memset (t, 0, sizeof *t);
  t->host_off = host_off;
  t->nr = nr;
  t->v = calloc (nr + 1, sizeof *t->v);
  t->dirty = calloc (qcow2_flat_pages (t) + 1, 1);
  if (t->v && t->dirty)
    return 0;
  qcow2_flat_free (t);
  return -ENOMEM;
}

int
qcow2_flat_load (struct io_store *io, struct qcow2_flat *t,
                 uint64_t host_off, uint64_t nr)
{
  be64 wire;
  int r = allocate (t, host_off, nr);

  if (r < 0 || nr == 0)
    return r;
  r = io_pread (io, t->v, nr * sizeof *t->v, host_off);
  if (r < 0) {
    qcow2_flat_free (t);
    return r;
  }
  for (uint64_t i = 0; i < nr; ++i) {
    memcpy (&wire, &t->v[i], sizeof wire);
    t->v[i] = be64_load (wire);
  }
  return 0;
}

int
qcow2_flat_copy (const struct qcow2_flat *t, uint64_t host_off, uint64_t nr,
                 struct qcow2_flat *out)
{
  int r = allocate (out, host_off, nr);

  if (r < 0)
    return r;
  if (t->nr > 0)
    memcpy (out->v, t->v, MIN_OF (nr, t->nr) * sizeof *t->v);
  out->nr_dirty = qcow2_flat_pages (out);
  memset (out->dirty, 1, out->nr_dirty);
  return 0;
}

void
qcow2_flat_dirty_page (struct qcow2_flat *t, uint64_t page)
{
  if (page >= qcow2_flat_pages (t) || t->dirty[page])
    return;
  t->dirty[page] = 1;
  t->nr_dirty++;
}

void
qcow2_flat_set (struct qcow2_flat *t, uint64_t i, uint64_t value)
{
  assert (i < t->nr);
  t->v[i] = value;
  qcow2_flat_dirty_page (t, i / QCOW2_FLAT_PAGE_ENTRIES);
}

size_t
qcow2_flat_take_page (struct qcow2_flat *t, uint64_t page, uint8_t *out)
{
  uint64_t first = page * QCOW2_FLAT_PAGE_ENTRIES;
  uint64_t n = MIN_OF (t->nr - first, QCOW2_FLAT_PAGE_ENTRIES);
  be64 wire;

  for (uint64_t i = 0; i < n; ++i) {
    wire = be64_make (t->v[first + i]);
    memcpy (out + i * sizeof wire, &wire, sizeof wire);
  }
  if (t->dirty[page]) {
    t->dirty[page] = 0;
    t->nr_dirty--;
  }
  return n * sizeof wire;
}

void
qcow2_flat_free (struct qcow2_flat *t)
{
  free (t->v);
  free (t->dirty);
  memset (t, 0, sizeof *t);
}
