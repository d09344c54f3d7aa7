/* SPDX-License-Identifier: BSD-3-Clause */
/* Works on ranges of one disk: finds the data in it, and cuts it off.
 *
 * One thread, which also runs the background jobs that become urgent: there is no
 * server that would.
 */
#include "disk.h"

#include <errno.h>
#include <string.h>

#include "aligned.h"
#include "checked.h"

#define EXTENTS 64              /* for one call of qcow2_map: 3 KiB of stack */

int
disk_run_urgent (struct disk_pool *p)
{
  unsigned urgent, job;
  int r = 0;

  dedup_due (p->d, &urgent);
  for (job = 1; urgent >= job && r >= 0; job <<= 1)
    if (urgent & job)
      r = dedup_run (p->d, job);
  return MIN_OF (r, 0);
}

int
disk_next_data (struct qcow2_image *img, unsigned root, uint64_t from,
                uint64_t size, uint64_t *at)
{
  struct qcow2_extent ext[EXTENTS];
  int n, i;

  while (from < size) {
    n = qcow2_map (img, root, from, size - from, ext, EXTENTS);
    if (n < 0)
      return n;
    for (i = 0; i < n; i++)
      if (ext[i].kind == QCOW2_DATA || ext[i].kind == QCOW2_COMPRESSED) {
        *at = ext[i].guest_off;
        return 0;
      }
    from = ext[n - 1].guest_off + ext[n - 1].len;
  }
  *at = size;
  return 0;
}

/* Makes the bytes of the cluster of FROM zero from there on. */
static int
clear_tail (struct disk_pool *p, unsigned root, uint64_t size, uint64_t from)
{
  const uint64_t cluster = qcow2_geometry (dedup_image (p->d))->cluster_size;
  const uint64_t start = round_down_pow2 (from, cluster);
  CLEANUP_FREE uint8_t *buf = aligned_zero_new (cluster);
  uint64_t data;
  int r;

  if (buf == NULL)
    return -ENOMEM;
  if (start == from)
    return 0;
  r = disk_next_data (dedup_image (p->d), root, start,
                      MIN_OF (start + cluster, size), &data);
  if (r < 0 || data >= MIN_OF (start + cluster, size))
    return r;
  r = dedup_read (p->d, root, buf, start, from - start);
  return r < 0 ? r : dedup_write (p->d, root, buf, start / cluster, 1);
}

int
disk_cut_off (struct disk_pool *p, unsigned root, uint64_t size, uint64_t from)
{
  const uint64_t cluster = qcow2_geometry (dedup_image (p->d))->cluster_size;
  const uint64_t end = div_round_up (size, cluster);
  uint64_t at = round_up_pow2 (from, cluster), idx, nr;
  int r = clear_tail (p, root, size, from);

  while (r == 0 && at < size) {
    r = disk_next_data (dedup_image (p->d), root, at, size, &at);
    if (r < 0 || at >= size)
      break;
    idx = at / cluster;
    nr = MIN_OF (end - idx, DEDUP_CHUNK_CLUSTERS);
    r = dedup_unmap (p->d, root, idx, nr, DEDUP_TRIM);
    if (r == 0)
      r = disk_run_urgent (p);
    at = (idx + nr) * cluster;
  }
  return r;
}
