/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares what the files of the configuration share: the checks of its fields,
 * and helpers for decoding. */
#ifndef DEDUP_CONFIG_CHECK_H
#define DEDUP_CONFIG_CHECK_H

#include "config.h"

/* Reports bytes that contradict the format; the decoder does not know their
 * offset in the file. */
#define wrong(f, ...) fault_corrupt ((f), UINT64_MAX, __VA_ARGS__)

#define MAX_HOST_OFF (UINT64_C (1) << 56)   /* L2 entries hold no more */
#define MAX_CLUSTER (UINT64_C (2) << 20)    /* of qcow2 */

/* Makes every check that needs no more than the cluster size.  The counts
 * nr_areas, nr_incarnations, nr_limbo and nr_segments must be within
 * dedup-limits.h, and nr_areas above 0.  -EINVAL. */
int dedup_config_check (const struct dedup_config *c, uint64_t cluster_size,
                        struct fault *f) MUST_CHECK;

/* Checks that the areas of C, which has passed dedup_config_check, end at or
 * below FILE_END and lie outside the configuration area, which is inside the
 * file.  Areas in the store file are not looked at.  -EINVAL. */
int dedup_config_check_file (const struct dedup_config *c,
                             const struct dedup_ext *ext, uint64_t file_end,
                             struct fault *f) MUST_CHECK;

#endif
