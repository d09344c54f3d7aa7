/* SPDX-License-Identifier: BSD-3-Clause */
/* The report of qcow2-dedup info: info.c fills it, info-print.c prints it. */
#ifndef DEDUP_TOOL_INFO_H
#define DEDUP_TOOL_INFO_H

#include "dedup.h"
#include "pool-figures.h"
#include "tool-image.h"

/* The clusters of the active disk, by kind. */
struct usage {
  uint64_t mapped_bytes;      /* of data clusters, shared ones each time */
  uint64_t data_clusters;     /* distinct host clusters with these bytes */
  uint64_t zero_clusters, compressed_clusters;
  uint64_t nr_host;           /* number of bits in SEEN */
  uint8_t *seen;              /* one bit per host cluster counted; owned */
};

struct report {
  const char *path;
  const struct qcow2_geometry *geo;
  struct pool_figures pool;   /* counted if it has disks */
  struct usage usage;         /* of the active disk */
  struct dedup_stats stats;
  struct dedup_live_entries live_entries; /* zero without --verbose or JSON */
  uint64_t stored_bytes, saved_bytes;
  uint64_t actual_size;       /* bytes on the host; undefined for a device */
  bool is_device;
  double ratio;               /* mapped / stored; 0 while nothing is stored */
  bool no_disk;               /* the anchor was applied */
};

void info_print_json (const struct report *rep);
void info_print_human (const struct report *rep, bool verbose);

#endif
