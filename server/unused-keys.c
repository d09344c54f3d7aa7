/* SPDX-License-Identifier: BSD-3-Clause */
/* Logs which parameters have no effect, because of what the image is.
 *
 * size= and cluster-size= are for an image that is created.  A service passes
 * them at every start, so they are not an error later.  But if the image has
 * other values, whoever passed them expects an effect that they do not have,
 * and a line tells the values of the image.  Parameters that have effect each
 * time an image is opened need no such line, and hash= is refused if it differs
 * from the store's.
 */
#include <inttypes.h>
#include <stdio.h>

#include "checked.h"
#include "io.h"
#include "unused-keys.h"

/* Writes BYTES to BUF as the value of a key, such as 20G. */
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

/* A size that is rounded up to whole sectors of 512 bytes has had its effect,
 * as an image is created so. */
static void
log_size (const struct srv_image_params *p, const struct srv_disk *d)
{
  const uint64_t size = (uint64_t) p->create_size;
  char asked[32], has[32];

  if (p->create_size < 0 || size == srv_disk_size (d) ||
      round_up_pow2 (size, 512) == srv_disk_size (d))
    return;
  log_line (p->log, LOG_INFO, "%s: size=%s is not used: the image exists and "
            "has a size of %s (qemu-img resize changes it)", p->path,
            size_value (size, asked),
            size_value (srv_disk_size (d), has));
}

static void
log_cluster_size (const struct srv_image_params *p, const struct srv_disk *d)
{
  const uint64_t cluster_size = srv_disk_preferred_block (d);
  char asked[32], has[32];

  if (!p->cluster_size_given || p->cluster_size == cluster_size)
    return;
  log_line (p->log, LOG_INFO, "%s: cluster-size=%s is not used: the image "
            "exists and has clusters of %s (qemu-img convert makes a copy with "
            "others)", p->path, size_value (p->cluster_size, asked),
            size_value (cluster_size, has));
}

void
srv_log_unused_keys (const struct srv_image_params *p, const struct srv_disk *d)
{
  log_size (p, d);
  log_cluster_size (p, d);
  if (p->index_existing && p->read_only)
    log_line (p->log, LOG_INFO, "%s: index-existing=on is not used: the image "
              "is opened read-only", p->path);
  if (p->compress && p->read_only)
    log_line (p->log, LOG_INFO, "%s: compress=%s is not used: the image is opened "
              "read-only", p->path, p->compress);
  if (p->compress_idle && p->read_only)
    log_line (p->log, LOG_INFO, "%s: compress-when=idle is not used: the image is opened "
              "read-only", p->path);
  if (p->defragment && p->read_only)
    log_line (p->log, LOG_INFO, "%s: defragment=idle is not used: the image is "
              "opened read-only", p->path);
  if (p->compact && p->read_only)
    log_line (p->log, LOG_INFO, "%s: compact=auto is not used: the image is opened "
              "read-only", p->path);
}

static void
log_no_uri (const struct srv_image_params *p, const char *key)
{
  log_line (p->log, LOG_INFO, "%s: %s is not used: the image is not on an NBD export "
            "(uri=)", p->path, key);
}

void
srv_log_unused_uri_keys (const struct srv_image_params *p)
{
  if (io_is_uri (p->path))
    return;
  if (p->reconnect_delay != IO_RECONNECT_DELAY)
    log_no_uri (p, "reconnect-delay=");
  if (p->connections != 0)
    log_no_uri (p, "connections=");
  if (p->fenced)
    log_no_uri (p, "fenced=on");
}
