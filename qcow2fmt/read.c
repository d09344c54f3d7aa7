/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads guest bytes: maps a range, then reads the extents.
 *
 * A run of contiguous host clusters is one part of a scattered read
 * (io_read_many), directly into the caller's buffer: so a request whose
 * clusters lie apart waits once, not for each of them.  Compressed clusters
 * are read together, too, and expanded there (compressed.c).  Only one that is
 * read in part needs a buffer of its own.  The lock is held by
 * the map alone, never during a read: the extents stay valid because the
 * caller keeps the range from being rewritten, a cluster is never
 * rewritten in place, and what is moved stays until its readers have ended
 * (readers.c).  qcow2_will_need has no such caller, and needs none:
 * advice on a cluster that moved meanwhile is only useless.  Any thread may
 * call it.
 */
#include <errno.h>
#include <string.h>

#include "aligned.h"
#include "image.h"

/* Limits the extents of one call of the map: as many as a MiB in clusters of 4
 * KiB can have.  They take 24 KiB of stack in all. */
#define EXTENTS_PER_MAP 256

/* Returns whether the extent is a whole compressed cluster: more of it will hardly be
 * asked for soon, so nothing of it is kept. */
static bool
is_whole (const struct qcow2_image *img, const struct qcow2_extent *e)
{
  return e->kind == QCOW2_COMPRESSED && e->len == img->header.geo.cluster_size;
}

/* Reads the compressed clusters that are whole. */
static int
read_whole (struct qcow2_image *img, const struct qcow2_extent *ext, int nr,
            uint8_t *buf)
{
  struct qcow2_compressed_part v[EXTENTS_PER_MAP];
  size_t n = 0;
  int i;

  for (i = 0; i < nr; buf += ext[i++].len)
    if (is_whole (img, &ext[i]))
      v[n++] = (struct qcow2_compressed_part) { .entry = ext[i].entry, .out = buf };
  return qcow2_compressed_read_many (img, v, n);
}

/* Reads an extent that is neither plain data of this image nor a whole compressed
 * cluster. */
static int
read_other (struct qcow2_image *img, const struct qcow2_extent *e,
            uint8_t *buf)
{
  if (e->kind == QCOW2_COMPRESSED)
    return qcow2_expanded_read (img, e->entry, buf,
                                e->guest_off % img->header.geo.cluster_size,
                                e->len);
  if (e->kind == QCOW2_UNALLOCATED && img->backing)
    return img->backing->read (img->backing, buf, e->guest_off, e->len);
  if (e->kind == QCOW2_UNALLOCATED && img->header.geo.has_backing)
    return -EIO;                /* QCOW2_FILES_IGNORE */
  memset (buf, 0, e->len);
  return 0;
}

/* Returns whether plain data can be read: an external data file may not have
 * been opened. */
static bool
has_data (const struct qcow2_image *img)
{
  return !qcow2_has_data_file (&img->header.geo) || img->data != NULL;
}

/* Collects in V the host ranges of the extents of KIND (QCOW2_DATA or
 * QCOW2_COMPRESSED), for a read to BUF if that is not NULL.  Returns how many
 * there are. */
static size_t
collect (const struct qcow2_image *img, const struct qcow2_extent *ext, int nr,
         enum qcow2_kind kind, uint8_t *buf, struct io_part *v)
{
  uint64_t len;
  size_t n = 0;
  int i;

  for (i = 0; i < nr; i++) {
    if (ext[i].kind == kind) {
      v[n] = (struct io_part) { .buf = buf, .len = ext[i].len,
                                .host_off = ext[i].host_off };
      if (kind == QCOW2_COMPRESSED) {
        qcow2_compressed_extent (img, ext[i].entry, &v[n].host_off, &len);
        v[n].len = len;
      }
      n++;
    }
    if (buf)
      buf += ext[i].len;
  }
  return n;
}

/* Begins to read the extents of KIND, which will be read soon.  Returns whether
 * the host was asked for anything. */
static bool
announce (struct qcow2_image *img, const struct qcow2_extent *ext, int nr,
          enum qcow2_kind kind, struct io_part *v, bool around)
{
  size_t n = collect (img, ext, nr, kind, NULL, v);

  if (n == 0 || !has_data (img))
    return false;
  return io_will_need (kind == QCOW2_DATA ? qcow2_data_io (img) : img->io, v,
                       n, around);
}

static int
read_extents (struct qcow2_image *img, const struct qcow2_extent *ext, int nr,
              uint8_t *buf)
{
  struct io_part v[EXTENTS_PER_MAP];
  size_t n;
  int i, r = 0;

  for (i = 0; i < nr && ext[i].kind != QCOW2_COMPRESSED; i++)
    ;
  if (i + 1 < nr)
    announce (img, ext, nr, QCOW2_COMPRESSED, v, false);
  n = collect (img, ext, nr, QCOW2_DATA, buf, v);
  if (n > 0)
    r = has_data (img) ? io_read_many (qcow2_data_io (img), v, n)
      : -EIO;                   /* the data file was not opened */
  if (r == 0)
    r = read_whole (img, ext, nr, buf);
  for (i = 0; i < nr && r == 0; buf += ext[i++].len)
    if (ext[i].kind != QCOW2_DATA && !is_whole (img, &ext[i]))
      r = read_other (img, &ext[i], buf);
  return r;
}

int
qcow2_read (struct qcow2_image *img, unsigned root, void *buf,
            uint64_t guest_off, size_t len)
{
  struct qcow2_extent ext[EXTENTS_PER_MAP];
  uint8_t *p = buf;
  uint64_t covered;
  int nr, r;

  for (; len > 0; len -= covered) {
    const unsigned reader = qcow2_reader_begin (img);

    nr = qcow2_map (img, root, guest_off, len, ext, EXTENTS_PER_MAP);
    r = nr < 0 ? nr : read_extents (img, ext, nr, p);
    qcow2_reader_end (img, reader);
    if (r < 0)
      return r;
    covered = ext[nr - 1].guest_off + ext[nr - 1].len - guest_off;
    p += covered;
    guest_off += covered;
  }
  return 0;
}

bool
qcow2_will_need (struct qcow2_image *img, unsigned root, uint64_t guest_off,
                 uint64_t len, bool around)
{
  struct qcow2_extent ext[EXTENTS_PER_MAP];
  struct io_part v[EXTENTS_PER_MAP];
  uint64_t covered;
  bool missing = false;
  int nr;

  for (; len > 0; len -= covered) {
    nr = qcow2_map (img, root, guest_off, len, ext, EXTENTS_PER_MAP);
    if (nr <= 0)
      break;
    missing |= announce (img, ext, nr, QCOW2_DATA, v, around);
    missing |= announce (img, ext, nr, QCOW2_COMPRESSED, v, around);
    covered = ext[nr - 1].guest_off + ext[nr - 1].len - guest_off;
    guest_off += covered;
  }
  return missing;
}
