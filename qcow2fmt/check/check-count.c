/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps, for each host cluster, how many references the checker has found and
 * of what kind they are.
 *
 * There is one array of counters and one of marks.  Their length follows from
 * the size of the file, so nothing that the file contains can make them longer.
 * Counters are as wide as the image's refcounts, up to 32 bits; they stop at
 * the largest refcount that the image can store, and one more reference than
 * that is reported.  One thread, no lock; comparing with the stored refcounts
 * is left to check-refcounts.c.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "aligned.h"
#include "checked.h"
#include "check.h"

/* check_each_entry reads this many entries at once. */
#define CHUNK_ENTRIES 4096

/* At least this many clusters are counted, if the file has them: 48 MiB of
 * counters and marks with refcounts of up to 16 bits. */
#define MIN_COUNTED (UINT64_C (1) << 24)

/* Sets the number of clusters to count: one more than the file has, because,
 * as for QEMU, a table may pass the end of the file by less than a cluster.
 * Of a device or a file that is much longer than the refcounted part, only a
 * part is counted; a reference to the rest is wrong, and is reported as past
 * the end. */
static int
count_clusters (struct check *c, struct fault *f)
{
  int64_t size = io_size (c->img->io);
  uint64_t nr;

  if (size < 0)
    return fault_io (f, (int) -size, UINT64_MAX, "cannot get the file's size");
  c->file_size = (uint64_t) size;
  nr = div_round_up (c->file_size, c->geo->cluster_size) + 1;
  if (!c->rebuilding)           /* else no refcount can be relied on */
    nr = MIN_OF (nr, MAX_OF (2 * qcow2_host_frontier (c->img), MIN_COUNTED));
  c->file_size = MIN_OF (c->file_size, nr << c->geo->cluster_bits);
  if (nr > CHECK_MAX_CLUSTERS)
    return fault_unsupported (f, "too large to check: more than %" PRIu64
                              " clusters", CHECK_MAX_CLUSTERS);
  c->nr = nr;
  return 0;
}

static int
allocate_for_disks (struct check *c)
{
  c->block_idx = UINT64_MAX;
  c->block = aligned_new (c->geo->cluster_size);
  c->walked = calloc (c->img->snapshots.nr + 1, sizeof *c->walked);
  return c->block && c->walked ? 0 : -ENOMEM;
}

static int
allocate (struct check *c)
{
  c->count_max = (uint32_t) MIN_OF (c->geo->refcount_max, UINT32_MAX);
  if (c->count_max <= UINT16_MAX)
    c->count16 = calloc (c->nr, sizeof *c->count16);
  else
    c->count32 = calloc (c->nr, sizeof *c->count32);
  c->marks = calloc (c->nr, 1);
  c->table = aligned_new (c->geo->cluster_size);
  if ((!c->count16 && !c->count32) || !c->marks || !c->table)
    return -ENOMEM;
  return c->has_disks ? allocate_for_disks (c) : 0;
}

int
check_count_init (struct check *c, struct fault *f)
{
  int r = count_clusters (c, f);

  if (r < 0)
    return r;
  c->has_disks = check_has_disks (c);
  if (allocate (c) < 0)
    return fault_set (f, FAULT_IO, ENOMEM, UINT64_MAX, "not enough memory to "
                      "count the references to %" PRIu64 " clusters", c->nr);
  return 0;
}

void
check_count_free (struct check *c)
{
  free (c->count16);
  free (c->count32);
  free (c->marks);
  free (c->table);
  free (c->block);
  free (c->walked);
}

uint64_t
check_count_get (const struct check *c, uint64_t host_idx)
{
  return c->count16 ? c->count16[host_idx] : c->count32[host_idx];
}

static void
count_one (struct check *c, uint64_t host_idx, uint32_t weight)
{
  const uint64_t room = c->count_max - check_count_get (c, host_idx);

  if (weight > room) {
    check_corrupt (c, "cluster at 0x%" PRIx64 ": more references than a "
                   "refcount of %u bits can count",
                   host_idx * c->geo->cluster_size, c->geo->refcount_bits);
    weight = (uint32_t) room;
  }
  if (c->count16)
    c->count16[host_idx] += weight;
  else
    c->count32[host_idx] += weight;
}

const char *
check_site_text (const struct check_site *site, char *buf, size_t size)
{
  buf[0] = '\0';
  if (site->root)
    snprintf (buf, size, " of %s, guest offset 0x%" PRIx64, site->root,
              site->guest_off);
  return buf;
}

/* Returns whether the range starts inside the file and passes its end by less
 * than a cluster. */
static bool
inside_file (const struct check *c, uint64_t host_off, uint64_t len)
{
  uint64_t end;

  return host_off < c->file_size && add_u64 (host_off, len, &end) &&
    (end <= c->file_size || end - c->file_size < c->geo->cluster_size);
}

bool
check_count_range (struct check *c, const struct check_site *site,
                   uint64_t host_off, uint64_t len, uint8_t mark)
{
  char where[CHECK_SITE_TEXT];
  uint64_t i, last;

  if (len == 0)
    return true;
  if (!inside_file (c, host_off, len)) {
    check_corrupt (c, "%s%s: its offset, 0x%" PRIx64 ", is past the end of "
                   "the file", site->what,
                   check_site_text (site, where, sizeof where), host_off);
    return false;
  }
  last = (host_off + len - 1) / c->geo->cluster_size;
  for (i = host_off / c->geo->cluster_size; i <= last; i++) {
    count_one (c, i, MAX_OF (site->weight, 1));
    c->marks[i] |= mark;
  }
  return true;
}

bool
check_count_table (struct check *c, const struct check_site *site,
                   uint64_t host_off, uint64_t len, uint8_t mark)
{
  char where[CHECK_SITE_TEXT];

  if (host_off % c->geo->cluster_size != 0) {
    check_corrupt (c, "%s%s: its offset, 0x%" PRIx64 ", is not cluster "
                   "aligned", site->what,
                   check_site_text (site, where, sizeof where), host_off);
    return false;
  }
  return check_count_range (c, site, host_off, len, mark);
}

void
check_each_entry (struct check *c, const char *what, uint64_t host_off,
                  uint64_t nr,
                  void (*cb) (struct check *c, void *opaque, uint64_t i,
                              uint64_t entry),
                  void *opaque)
{
  be64 chunk[CHUNK_ENTRIES];
  uint64_t i, j, n;
  int r;

  for (i = 0; i < nr; i += n) {
    n = MIN_OF (nr - i, CHUNK_ENTRIES);
    r = io_pread (c->img->io, chunk, n * sizeof chunk[0],
                  host_off + i * sizeof chunk[0]);
    if (r < 0) {
      check_error (c, -r, "%s at 0x%" PRIx64 ": cannot read: %s", what,
                   host_off + i * sizeof chunk[0], strerror (-r));
      continue;
    }
    for (j = 0; j < n; j++)
      if (be64_load (chunk[j]) != 0)
        cb (c, opaque, i + j, be64_load (chunk[j]));
  }
}
