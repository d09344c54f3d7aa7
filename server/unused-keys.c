/* SPDX-License-Identifier: BSD-3-Clause */
/* Says which parameters have no effect on an image that exists.
 *
 * size= and cluster-size= are for an image that is created.  A service gives
 * them at every start, so they are no error later; but where the image has
 * other values, whoever gave them expects something that does not happen, and
 * one line says what the image has.  Parameters that an image is opened with
 * each time need no such line, and hash= is refused where it differs
 * (dedup/open.c).
 */
#include <inttypes.h>
#include <stdio.h>

#include "checked.h"
#include "internal.h"

/* BYTES as one would write it for a key, such as 20G. */
static const char *
size_value (uint64_t bytes, char buf[32])
{
  static const char suffixes[] = "\0kMGTPE";
  unsigned i = 0;

  while (bytes > 0 && bytes % 1024 == 0 && i < 6) {
    bytes /= 1024;
    i++;
  }
  snprintf (buf, 32, "%" PRIu64 "%.1s", bytes, &suffixes[i]);
  return buf;
}

/* A new image has whole sectors of 512 bytes. */
static void
say_size (const struct srv_export *e, const struct srv_params *p)
{
  const uint64_t size = (uint64_t) p->create_size;
  char asked[32], has[32];

  if (p->create_size < 0 || size == e->size_bytes ||
      round_up_pow2 (size, 512) == e->size_bytes)
    return;
  log_line (e->log, LOG_INFO, "%s: size=%s is not used: the image exists and "
            "has a size of %s (qemu-img resize changes it)", e->path,
            size_value (size, asked),
            size_value (e->size_bytes, has));
}

static void
say_cluster_size (const struct srv_export *e, const struct srv_params *p)
{
  const uint64_t cluster_size = UINT64_C (1) << e->cluster_bits;
  char asked[32], has[32];

  if (!p->cluster_size_given || p->cluster_size == cluster_size)
    return;
  log_line (e->log, LOG_INFO, "%s: cluster-size=%s is not used: the image "
            "exists and has clusters of %s (qemu-img convert makes a copy with "
            "others)", e->path, size_value (p->cluster_size, asked),
            size_value (cluster_size, has));
}

void
srv_say_unused_keys (const struct srv_export *e, const struct srv_params *p)
{
  say_size (e, p);
  say_cluster_size (e, p);
  if (p->index_existing && p->read_only)
    log_line (e->log, LOG_INFO, "%s: index-existing=on is not used: the image "
              "is opened read-only", e->path);
}
