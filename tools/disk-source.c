/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads a file that is imported: a raw file, a block device, or a qcow2 image.
 *
 * Holes are found, not read.  A qcow2 image is read by this program's own reader,
 * which writes nothing; its active disk is what is imported.  Images that name
 * further files of the host, a backing file or a data file, are refused, as the
 * names were chosen by the image's author; so are other formats, each by a line
 * that says which program converts it.  Without a format from the user the first
 * bytes decide: a disk that begins like one of these formats is imported with
 * --format=raw.  One thread.
 */
#include "disk.h"

#include <errno.h>
#include <string.h>

#include "checked.h"

/* The first bytes of formats that are not imported.  A raw disk begins with none
 * of them unless somebody means it. */
static const struct {
  const char *name;
  unsigned at, len;
  const char *bytes;
} others[] = {
  { "vmdk", 0, 4, "KDMV" }, { "vmdk", 0, 4, "COWD" },
  { "vmdk", 0, 21, "# Disk DescriptorFile" },
  { "vdi", 64, 4, "\x7f\x10\xda\xbe" },
  { "vhdx", 0, 8, "vhdxfile" }, { "vpc", 0, 8, "conectix" },
  { "qed", 0, 4, "QED\0" },
  { "parallels", 0, 16, "WithoutFreeSpace" },
  { "parallels", 0, 16, "WithouFreSpacExt" },
};

static const struct {
  const char *program;
  unsigned len;
  const char *bytes;
} compressed[] = {
  { "gzip", 3, "\x1f\x8b\x08" }, { "xz", 6, "\xfd" "7zXZ\0" },
  { "zstd", 4, "\x28\xb5\x2f\xfd" }, { "bzip2", 3, "BZh" },
};

static int
probe (struct io_store *io, bool *is_qcow2, struct fault *f)
{
  char head[128];
  size_t i;
  int r = io_pread (io, head, sizeof head, 0);

  if (r < 0)
    return fault_io (f, -r, 0, "cannot be read: %s", strerror (-r));
  for (i = 0; i < sizeof others / sizeof others[0]; i++)
    if (memcmp (head + others[i].at, others[i].bytes, others[i].len) == 0)
      return fault_unsupported (f, "is a %s image: convert it with qemu-img "
                                "convert -O raw, or copy it with nbdcopy to the "
                                "disk while it is served; --format=raw takes "
                                "it as it is", others[i].name);
  for (i = 0; i < sizeof compressed / sizeof compressed[0]; i++)
    if (memcmp (head, compressed[i].bytes, compressed[i].len) == 0)
      return fault_unsupported (f, "is compressed by %s: unpack it first; "
                                "--format=raw takes it as it is",
                                compressed[i].program);
  *is_qcow2 = memcmp (head, "QFI\xfb", 4) == 0;
  return 0;
}

static int
open_qcow2 (const char *path, struct disk_source *s, struct fault *f)
{
  const struct qcow2_open_params p = {
    .path = path, .cache_bytes = TOOL_CACHE_BYTES,
    .host_files = QCOW2_FILES_IGNORE, .log = &tool_log_errors,
  };
  const struct qcow2_geometry *g;
  int r = qcow2_open (s->io, &p, &s->img, f);

  if (r < 0)
    return r;
  g = qcow2_geometry (s->img);
  s->size = g->virtual_size;
  if (qcow2_anchor_was_applied (s->img))
    return fault_corrupt (f, UINT64_MAX, DEDUP_ANCHOR_APPLIED);
  if (g->has_backing || g->has_data_file)
    return fault_unsupported (f, "has a %s file: make one file of them with "
                              "qemu-img convert -O qcow2, and import that",
                              g->has_backing ? "backing" : "data");
  return 0;
}

static int
open_raw (struct disk_source *s, struct fault *f)
{
  int64_t size = io_size (s->io);

  if (size < 0)
    return fault_io (f, (int) -size, UINT64_MAX, "its size cannot be read: %s",
                     strerror ((int) -size));
  if (size == 0)
    return fault_usage (f, "is empty");
  if (size > INT64_MAX - 511)
    return fault_usage (f, "is too large");
  s->size = round_up_pow2 ((uint64_t) size, 512);
  return 0;
}

int
disk_source_open (const char *path, const char *format, struct disk_source *s,
                  struct fault *f)
{
  bool is_qcow2 = format && strcmp (format, "qcow2") == 0;
  int r;

  *s = (struct disk_source) { .io = NULL };
  r = io_place_open (path, 0, IO_LOCK_READ, &s->io, f);
  if (r == 0 && format == NULL)
    r = probe (s->io, &is_qcow2, f);
  if (r == 0)
    r = is_qcow2 ? open_qcow2 (path, s, f) : open_raw (s, f);
  if (r < 0)
    disk_source_close (s);
  return r;
}

void
disk_source_close (struct disk_source *s)
{
  qcow2_close (s->img);
  io_close (s->io);
  *s = (struct disk_source) { .io = NULL };
}

int
disk_source_next (struct disk_source *s, uint64_t from, uint64_t *at)
{
  int r;

  if (s->img)
    return disk_next_data (s->img, QCOW2_ROOT_ACTIVE, from, s->size, at);
  r = io_next_data (s->io, from, at);
  if (r == -EOPNOTSUPP) {
    *at = from;                 /* all of it may be data */
    r = 0;
  }
  return r;
}

int
disk_source_read (struct disk_source *s, void *buf, uint64_t from, size_t len)
{
  const uint64_t left = from < s->size ? s->size - from : 0;
  const size_t here = MIN_OF (left, len);

  if (s->img == NULL)
    return io_pread (s->io, buf, len, from);
  memset ((uint8_t *) buf + here, 0, len - here);
  return here == 0 ? 0
    : qcow2_read (s->img, QCOW2_ROOT_ACTIVE, buf, from, here);
}
