/* SPDX-License-Identifier: BSD-3-Clause */
/* Carries out a plan: does its writes that are not records of the journal.
 *
 * The order is: qcow2_plan_write puts the new tables behind the frontier,
 * where nothing refers to them; the caller makes them durable; only then does
 * a record (law 3) or qcow2_plan_commit_header switch to them.  The latter is a
 * single write of the first cluster, and the header in memory changes only when
 * that write is durable.
 *
 * Runs at open only, single-threaded.  Applying the plan's changes is left to
 * the caller.
 */
#include <errno.h>
#include <string.h>

#include "aligned.h"
#include "image.h"

/* A write of this size is taken to be atomic.  More is written only if the
 * header needs it. */
#define HEADER_WRITE_BYTES 4096

int
qcow2_plan_write (struct qcow2_image *img, struct qcow2_plan *plan)
{
  size_t i;
  int r = 0;

  for (i = 0; i < QCOW2_PLAN_WRITES && r == 0; i++)
    if (plan->write_buf[i])
      r = io_pwrite (img->io, plan->write_buf[i], plan->write_len[i],
                     plan->write_off[i]);
  return r;
}

/* Returns how many bytes of the first cluster have to be written. */
static size_t
header_bytes (const uint8_t *buf, size_t len)
{
  while (len > HEADER_WRITE_BYTES && buf[len - 1] == 0)
    len--;
  return len;
}

static const struct qcow2_header_fields *
new_fields (const struct qcow2_image *img, const struct qcow2_plan *plan)
{
  return plan->new_header ? &plan->changes[0].header : &img->fields;
}

/* Builds the first cluster as the plan leaves it, in *OUT, which the caller
 * frees, also after an error. */
static int
build_header (struct qcow2_image *img, const struct qcow2_plan *plan,
              const uint8_t *ext, uint8_t **out, struct fault *f)
{
  const size_t len = img->header.geo.cluster_size;
  uint8_t *buf = aligned_new (len);                  /* at most 2 MiB */
  struct qcow2_header h;
  int r;

  *out = buf;
  if (buf == NULL)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  r = io_pread (img->io, buf, len, 0);
  if (r < 0)
    return fault_io (f, -r, 0, "reading the header: %s", strerror (-r));
  h = img->header;
  h.geo.autoclear = qcow2_kept_autoclear (img);
  h.geo.virtual_size = qcow2_size_for_header (img);
  return qcow2_header_rebuild (buf, &h, new_fields (img, plan), ext, f);
}

int
qcow2_plan_check_header (struct qcow2_image *img, struct qcow2_plan *plan,
                         const uint8_t *ext, struct fault *f)
{
  CLEANUP_FREE uint8_t *buf = NULL;

  return build_header (img, plan, ext, &buf, f);
}

static int
write_header (struct qcow2_image *img, const struct qcow2_plan *plan,
              const uint8_t *ext, struct fault *f)
{
  const size_t len = img->header.geo.cluster_size;
  CLEANUP_FREE uint8_t *buf = NULL;
  int r = build_header (img, plan, ext, &buf, f);

  if (r < 0)
    return r;
  r = io_pwrite (img->io, buf, header_bytes (buf, len), 0);
  if (r == 0)
    r = io_sync (img->io);
  if (r < 0)
    return fault_io (f, -r, 0, "writing the header: %s", strerror (-r));
  return 0;
}

int
qcow2_plan_commit_header (struct qcow2_image *img, struct qcow2_plan *plan,
                          const uint8_t *ext, struct fault *f)
{
  struct qcow2_header *h = &img->header;
  int r = write_header (img, plan, ext, f);

  if (r < 0)
    return r;
  qcow2_bitmaps_warn (img);
  h->geo.incompatible |= QCOW2_INCOMPAT_RECOVERY;
  h->geo.autoclear = qcow2_kept_autoclear (img);
  memcpy (h->store_ext, ext, sizeof h->store_ext);
  h->has_store_ext = true;
  return 0;
}
