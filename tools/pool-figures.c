/* SPDX-License-Identifier: BSD-3-Clause */
/* Counts what a pool stores and saves, and prints it for people and as JSON: the
 * same lines and fields in info and in disk info.
 *
 * The counting is that of qcow2fmt/, and exact while nobody changes the image.  One
 * thread.
 */
#include "pool-figures.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>

#include "tool-image.h"

static int
count_disks (struct dedup_pool *d, struct pool_figures *p)
{
  struct dedup_disk_info *v;
  size_t nr, i;
  int r = dedup_disk_list (d, &v, &nr);

  if (r < 0)
    return r;
  for (i = 0; i < nr; i++) {
    *(v[i].writable ? &p->nr_disks : &p->nr_snapshots) += 1;
    p->has_disks |= v[i].is_disk;
  }
  dedup_disk_list_free (v, nr);
  return 0;
}

bool
pool_figures_pending (struct dedup_pool *d)
{
  struct dedup_stats s;

  dedup_get_stats (d, &s);
  return s.closed_with_work || dedup_disks_pending (d);
}

int
pool_figures_count (struct dedup_pool *d, bool always, struct pool_figures *p)
{
  const struct qcow2_usage_params params = { .max_packed = POOL_FIGURES_PACKED };
  int r;

  *p = (struct pool_figures) {
    .pending = pool_figures_pending (d),
    .cluster_size = qcow2_geometry (dedup_image (d))->cluster_size,
  };
  r = count_disks (d, p);
  return r < 0 || (!p->has_disks && !always) ? r
    : qcow2_pool_usage (dedup_image (d), &params, &p->u);
}

void
pool_figures_print_compression (const struct pool_figures *p)
{
  const uint64_t unpacked = qcow2_usage_unpacked (&p->u, p->cluster_size);
  char human[32], dead[32], kept[32];

  if (p->u.packed == 0)
    return;
  printf ("%-15s%s, ratio %.2f\n", "deduplicated:",
          tool_human (unpacked, human),
          qcow2_usage_quotient (p->u.disk_bytes, unpacked));
  printf ("%-15s%s, ratio %.2f; %s of it dead\n", "compressed:",
          tool_human (p->u.stored_bytes, human),
          qcow2_usage_quotient (unpacked, p->u.stored_bytes),
          tool_human (qcow2_usage_dead (&p->u), dead));
  if (p->u.packed_kept_dead_bytes)
    printf ("%-15s%s of the dead lie beside data that no compaction moves: %s\n", "",
            tool_human (p->u.packed_kept_dead_bytes, kept), pool_figures_why_kept (p));
}

const char *
pool_figures_why_kept (const struct pool_figures *p)
{
  return p->pending
    ? "it is being deleted, or more than 2,048 disks and snapshots have it"
    : "more than 2,048 disks and snapshots have it";
}

void
pool_figures_print (const struct pool_figures *p)
{
  char human[32];

  printf ("%-15s%s, mapped in all disks\n", "logical:",
          tool_human (p->u.disk_bytes, human));
  pool_figures_print_compression (p);
  printf ("%-15s%s\n", "stored:", tool_human (p->u.stored_bytes, human));
  if (p->u.stored_bytes > 0)
    printf ("%-15s%.2f\n", "ratio:", qcow2_usage_ratio (&p->u));
  else
    printf ("%-15snone, because nothing is stored\n", "ratio:");
  if (p->pending)
    printf ("%-15syes, stock programs refuse the image: qcow2-dedup recover ends "
            "that\n", "pending:");
}

static void
set (json_t *o, const char *key, uint64_t v)
{
  json_object_set_new (o, key, json_integer ((json_int_t) v));
}

void
pool_figures_set_compression (json_t *o, const struct pool_figures *p)
{
  const uint64_t unpacked = qcow2_usage_unpacked (&p->u, p->cluster_size);
  json_t *c;

  if (p->u.packed == 0)
    return;
  c = json_object ();
  set (c, "pieces", p->u.packed);
  set (c, "deduplicated-bytes", unpacked);
  set (c, "stored-bytes", p->u.stored_bytes);
  set (c, "packed-bytes", p->u.packed_bytes);
  set (c, "dead-bytes", qcow2_usage_dead (&p->u));
  set (c, "shared-dead-bytes", p->u.packed_kept_dead_bytes);
  json_object_set_new (c, "dedup-ratio", json_real (
    qcow2_usage_quotient (p->u.disk_bytes, unpacked)));
  json_object_set_new (c, "compression-ratio", json_real (
    qcow2_usage_quotient (unpacked, p->u.stored_bytes)));
  json_object_set_new (o, "compression", c);
}

void
pool_figures_set (json_t *o, const struct pool_figures *p)
{
  set (o, "disks", p->nr_disks);
  set (o, "snapshots", p->nr_snapshots);
  set (o, "logical-bytes", p->u.disk_bytes);
  set (o, "logical-bytes-with-snapshots", p->u.root_bytes);
  set (o, "stored-bytes", p->u.stored_bytes);
  json_object_set_new (o, "ratio", json_real (qcow2_usage_ratio (&p->u)));
  pool_figures_set_compression (o, p);
  json_object_set_new (o, "pending", json_boolean (p->pending));
}
