/* SPDX-License-Identifier: BSD-3-Clause */
/* What an administrator asks of an image that is served: what it is, a flush, a
 * checkpoint, the interval of commits.
 *
 * A flush and a checkpoint are the same as those of clients and of the loop, and may
 * run beside them (dedup.h); they wait for the maintenance that is under way.
 *
 * Threads: any.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "image-internal.h"

/* Writes why clients cannot write to BUF, or "" if they can. */
static void
explain (const struct srv_image *m, const struct dedup_now *now, char *buf,
         size_t len)
{
  if (now->failed_by)
    snprintf (buf, len, "%s (%s)", now->failed_what, strerror (now->failed_by));
  else if (m->writable)
    buf[0] = '\0';
  else if (m->read_only_because)
    snprintf (buf, len, "it was opened with %s", m->read_only_because);
  else
    snprintf (buf, len, "the image is marked corrupt");
}

void
srv_image_info (struct srv_image *m, struct srv_image_info *i)
{
  struct dedup_now now;

  dedup_get_now (m->pool, &now);
  *i = (struct srv_image_info) {
    .virtual_size = srv_disk_size (m->exports.active),
    .cluster_size = srv_disk_preferred_block (m->exports.active),
    .writable = m->writable, .failed = now.failed_by != 0,
  };
  explain (m, &now, i->read_only_reason, sizeof i->read_only_reason);
}

uint64_t
srv_image_allocated_bytes (struct srv_image *m)
{
  struct stat st;

  return stat (m->path, &st) == 0 ? (uint64_t) st.st_blocks * 512 : UINT64_MAX;
}

int
srv_image_flush (struct srv_image *m)
{
  int r;

  if (!m->writable)
    return 0;
  r = dedup_flush (m->pool);
  srv_space_note (&m->space, r);
  return r;
}

int
srv_image_checkpoint (struct srv_image *m, struct fault *f)
{
  struct dedup_stats s;
  int r;

  if (!m->writable)
    return fault_set (f, FAULT_USAGE, EROFS, UINT64_MAX, "the image is open for "
                      "reading only");
  dedup_get_stats (m->pool, &s);
  r = srv_image_flush (m);
  if (r == 0 && s.has_store)    /* else a flush writes the tables */
    r = dedup_run (m->pool, DEDUP_JOB_CHECKPOINT);
  srv_space_note (&m->space, r);
  return r < 0 ? fault_io (f, -r, UINT64_MAX, "the checkpoint failed: %s",
                           strerror (-r)) : 0;
}

void
srv_image_set_commit_interval (struct srv_image *m, unsigned ms)
{
  __atomic_store_n (&m->commit_interval_ms, ms, __ATOMIC_RELAXED);
  if (m->loop)
    srv_loop_set_commit_interval (m->loop, ms);
}

unsigned
srv_image_commit_interval (const struct srv_image *m)
{
  return __atomic_load_n (&m->commit_interval_ms, __ATOMIC_RELAXED);
}
