/* SPDX-License-Identifier: BSD-3-Clause */
/* What qcow2-dedup info counts (info.c) and prints (info-print.c). */
#ifndef DEDUP_TOOL_INFO_H
#define DEDUP_TOOL_INFO_H

#include "dedup.h"
#include "tool.h"

struct usage {
  uint64_t mapped_bytes, data_clusters;
  uint64_t zero_clusters, compressed_clusters;
  uint64_t nr_host;           /* host clusters that have a bit */
  uint8_t *seen;              /* owned */
};

struct report {
  const char *path;
  const struct qcow2_geometry *geo;
  struct usage usage;
  struct dedup_stats stats;
  struct dedup_census census; /* empty unless --verbose or JSON */
  uint64_t stored_bytes, saved_bytes;
  uint64_t actual_size;       /* on the host; of no meaning for a device */
  bool is_device;
  double ratio;               /* mapped / stored; 0 while nothing is stored */
  bool no_disk;               /* the anchor was applied */
};

void info_print_json (const struct report *rep);
void info_print_human (const struct report *rep, bool verbose);

#endif
