/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files of the configuration offer each other. */
#ifndef DEDUP_CONFIG_CHECK_H
#define DEDUP_CONFIG_CHECK_H

#include "config.h"

/* Wrong bytes, at no place that the decoder knows. */
#define wrong(f, ...) fault_corrupt ((f), UINT64_MAX, __VA_ARGS__)

#define MAX_HOST_OFF (UINT64_C (1) << 56)   /* L2 entries hold no more */
#define MAX_CLUSTER (UINT64_C (2) << 20)    /* of qcow2 */

static inline bool
all_zero (const uint8_t *b, size_t len)
{
  size_t i;

  for (i = 0; i < len; ++i)
    if (b[i] != 0)
      return false;
  return true;
}

/* Every check that needs no more than the cluster size.  nr_areas,
 * nr_incarnations, nr_limbo and nr_segments are within dedup-limits.h, nr_areas above 0. */
int dedup_config_check (const struct dedup_config *c, uint64_t cluster_size,
                        struct fault *f) MUST_CHECK;

/* C passed dedup_config_check: do its areas end at or below FILE_END, and
 * outside the configuration area, which is inside the file? */
int dedup_config_check_file (const struct dedup_config *c,
                             const struct dedup_ext *ext, uint64_t file_end,
                             struct fault *f) MUST_CHECK;

#endif
