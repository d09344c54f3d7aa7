/* SPDX-License-Identifier: BSD-3-Clause */
/* Opens and reads the backing chain, which has the content of clusters that an
 * image does not allocate.
 *
 * Opens the file below an image, for reading only, with QEMU's read lock.  A
 * backing file is raw or qcow2, as the header says; if the header names no
 * format, the file is probed as QEMU does.  Whether a file may be opened at
 * all, and where it is, is decided by host-file.c; a qcow2 file is opened as
 * an image by open.c.
 *
 * Reads recurse, at most QCOW2_MAX_BACKING_DEPTH deep.  Nothing here changes
 * after open, so any thread may read without a lock; each image below has its
 * own lock, and none is held while another is taken.
 */
#include <errno.h>
#include <string.h>

#include "checked.h"
#include "header-format.h"
#include "image.h"

#define EXTENTS_PER_MAP 16     /* a level of the recursion: 640 bytes */

/* --- Open ----------------------------------------------------------- */

/* These are the first bytes by which QEMU recognizes formats other than raw. */
static const struct {
  const char *format;
  unsigned at, len;
  const char *bytes;
} other_formats[] = {
  { "vmdk", 0, 4, "KDMV" }, { "vmdk", 0, 4, "COWD" },
  { "vmdk", 0, 21, "# Disk DescriptorFile" },
  { "vdi", 64, 4, "\x7f\x10\xda\xbe" },
  { "vhdx", 0, 8, "vhdxfile" }, { "vpc", 0, 8, "conectix" },
  { "qed", 0, 4, "QED\0" }, { "luks", 0, 6, "LUKS\xba\xbe" },
  { "parallels", 0, 16, "WithoutFreeSpace" },
  { "parallels", 0, 16, "WithouFreSpacExt" },
  { "bochs", 0, 22, "Bochs Virtual HD Image" },
};

/* Finds the format by the first bytes, as QEMU does, where the header names
 * none. */
static int
probe (struct io_store *io, bool *is_qcow2, struct fault *f)
{
  char head[128];
  be32 magic;
  int r;

  r = io_pread (io, head, sizeof head, 0);
  if (r < 0)
    return fault_io (f, -r, 0, "reading the header: %s", strerror (-r));
  memcpy (&magic, head, sizeof magic);
  *is_qcow2 = be32_load (magic) == QCOW2_MAGIC;
  for (size_t i = 0; i < sizeof other_formats / sizeof other_formats[0]; i++)
    if (memcmp (head + other_formats[i].at, other_formats[i].bytes,
                other_formats[i].len) == 0)
      return fault_unsupported (f, "looks like %s: give its format with "
                                "qemu-img rebase -u -F",
                                other_formats[i].format);
  return 0;
}

static int
choose_format (struct io_store *io, const char *format, bool *is_qcow2,
               struct fault *f)
{
  if (format[0] == '\0')
    return probe (io, is_qcow2, f);
  *is_qcow2 = strcmp (format, "qcow2") == 0;
  if (!*is_qcow2 && strcmp (format, "raw") != 0)
    return fault_unsupported (f, "backing format %s is not supported",
                              format);
  return 0;
}

static int
open_raw (struct qcow2_backing *b, struct fault *f)
{
  int64_t size = io_size (b->io);

  if (size < 0)
    return fault_io (f, -size, UINT64_MAX, "its size cannot be read: %s",
                     strerror (-size));
  b->size = size;
  return 0;
}

static int
backing_read (const struct qcow2_backing *b, void *buf, uint64_t guest_off,
              size_t len)
{
  uint64_t left = guest_off < b->size ? b->size - guest_off : 0;
  size_t here = MIN_OF (left, len);

  memset ((uint8_t *) buf + here, 0, len - here);
  if (here == 0)
    return 0;
  if (b->img)
    return qcow2_read (b->img, QCOW2_ROOT_ACTIVE, buf, guest_off, here);
  return io_pread (b->io, buf, here, guest_off);
}

int
qcow2_backing_open (struct qcow2_image *img, char **path, bool *is_qcow2,
                    struct fault *f)
{
  struct qcow2_backing *b = calloc (1, sizeof *b);
  int r;

  if (b == NULL)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  img->backing = b;
  b->read = backing_read;
  r = qcow2_host_file_open (img, img->header.backing_name, 0, IO_LOCK_READ,
                            path, &b->io, f);
  if (r < 0)
    return fault_io (f, -r, UINT64_MAX, "%s", strerror (-r));
  r = choose_format (b->io, img->header.backing_format, is_qcow2, f);
  return r < 0 || *is_qcow2 ? r : open_raw (b, f);
}

/* --- Use ------------------------------------------------------------ */

/* Sets *KIND to what a guest reads from extent E of IMG through the whole chain
 * (QCOW2_ZERO or QCOW2_DATA).  May cut the extent. */
static int
resolve_extent (struct qcow2_image *img, struct qcow2_extent *e,
                enum qcow2_kind *kind)
{
  int r = 0;

  *kind = e->kind == QCOW2_COMPRESSED ? QCOW2_DATA : e->kind;
  if (e->kind == QCOW2_UNALLOCATED) {
    r = qcow2_backing_status (img, e->guest_off, &e->len, kind);
    if (*kind == QCOW2_UNALLOCATED)
      *kind = QCOW2_ZERO;
  }
  return r;
}

/* Finds the run of one kind that starts at GUEST_OFF of IMG. */
static int
image_status (struct qcow2_image *img, uint64_t guest_off, uint64_t *len,
              enum qcow2_kind *kind)
{
  struct qcow2_extent ext[EXTENTS_PER_MAP];
  enum qcow2_kind next;
  uint64_t run = 0, whole;
  int nr, i, r;

  nr = qcow2_map (img, QCOW2_ROOT_ACTIVE, guest_off, *len, ext,
                  EXTENTS_PER_MAP);
  if (nr < 0)
    return nr;
  for (i = 0; i < nr; i++) {
    whole = ext[i].len;
    r = resolve_extent (img, &ext[i], &next);
    if (r < 0)
      return r;
    if (i > 0 && next != *kind)
      break;
    *kind = next;
    run += ext[i].len;
    if (ext[i].len < whole)
      break;
  }
  *len = run;
  return 0;
}

int
qcow2_backing_status (struct qcow2_image *img, uint64_t guest_off,
                      uint64_t *len, enum qcow2_kind *kind)
{
  const struct qcow2_backing *b = img->backing;

  *kind = QCOW2_UNALLOCATED;
  if (b == NULL)
    return img->header.geo.has_backing ? -EIO : 0;
  *kind = QCOW2_ZERO;
  if (guest_off >= b->size)
    return 0;
  *len = MIN_OF (*len, b->size - guest_off);
  if (b->img)
    return image_status (b->img, guest_off, len, kind);
  *kind = QCOW2_DATA;
  return 0;
}
