/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-dedup disk import: makes a disk from a raw or qcow2 file.
 *
 * The disk is created first, empty; then the data of the file is written to it in
 * pieces, each compared with what is there: of a new disk, zeroes, so that none are
 * stored.  What was written is flushed every FLUSH_BYTES.  An import that is
 * interrupted leaves the disk with a part of the data.  Nothing in the image marks
 * it: --resume compares the whole file with the disk, and writes what differs,
 * which is right wherever the import ended, and whatever happened to the disk
 * since.  One thread.
 */
#include "disk.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <string.h>

#include "aligned.h"
#include "checked.h"

/* A loss of power costs an import the work since the last flush. */
#define FLUSH_BYTES (UINT64_C (64) << 20)

struct import {
  struct disk_pool *p;
  struct disk_source source;
  unsigned root;
  uint64_t size;               /* of the disk */
  uint64_t cluster;            /* of the pool */
  size_t piece;                /* bytes that are copied at once */
  bool compare;                /* the disk may hold data */
  uint8_t *new, *old;          /* a piece each; owned */
  uint64_t read_bytes, written_bytes, unflushed;
  bool complete;
};

/* --- Copy ---------------------------------------------------------------- */

/* Finds the next piece that may differ: where the file or the disk has data.  *AT
 * is the size or more if there is none. */
static int
next_piece (struct import *m, uint64_t from, uint64_t *at)
{
  uint64_t there = m->size;
  int r = disk_source_next (&m->source, from, at);

  if (r == 0 && m->compare)
    r = disk_next_data (dedup_image (m->p->d), m->root, from, m->size, &there);
  *at = MIN_OF (*at, there);
  if (r == 0 && *at < m->size)          /* the end need not be a cluster's */
    *at = round_down_pow2 (*at, m->cluster);
  return r;
}

/* Reads LEN bytes of the file, and of the disk if it may hold data. */
static int
read_both (struct import *m, uint64_t at, size_t len)
{
  const size_t here = MIN_OF (len, m->size - at);
  int r = disk_source_read (&m->source, m->new, at, len);

  m->read_bytes += here;
  if (r < 0 || !m->compare)
    return r;
  memset (m->old + here, 0, len - here);
  return dedup_read (m->p->d, m->root, m->old, at, here);
}

static bool
differs (const struct import *m, size_t off)
{
  return memcmp (m->new + off, m->old + off, m->cluster) != 0;
}

/* Writes the clusters of a piece that differ, in runs. */
static int
write_piece (struct import *m, uint64_t at, size_t len)
{
  size_t off, end;
  int r = 0;

  for (off = 0; off < len && r == 0; off = end) {
    end = off + m->cluster;
    if (!differs (m, off))
      continue;
    while (end < len && differs (m, end))
      end += m->cluster;
    r = dedup_write (m->p->d, m->root, m->new + off, (at + off) / m->cluster,
                     (end - off) / m->cluster);
    m->written_bytes += end - off;
    m->unflushed += end - off;
  }
  return r;
}

static int
keep_up (struct import *m)
{
  int r = disk_run_urgent (m->p);

  if (r < 0 || m->unflushed < FLUSH_BYTES)
    return r;
  m->unflushed = 0;
  return dedup_flush (m->p->d);
}

/* Copies the piece at AT.  Sets *END to where it ends. */
static int
copy_piece (struct import *m, uint64_t at, uint64_t *end)
{
  const size_t len = MIN_OF (m->piece, round_up_pow2 (m->size - at,
                                                      m->cluster));
  int r = read_both (m, at, len);

  if (r == 0)
    r = write_piece (m, at, len);
  *end = at + len;
  return r < 0 ? r : keep_up (m);
}

static int
copy (struct import *m)
{
  struct tool_progress progress = { .what = "Importing",
                                    .always = m->p->args->progress };
  uint64_t at = 0;
  int r = 0;

  while (r == 0 && at < m->size && !tool_interrupted ()) {
    tool_progress_step (&progress, at, m->size);
    r = next_piece (m, at, &at);
    if (r == 0 && at < m->size)
      r = copy_piece (m, at, &at);
  }
  m->complete = r == 0 && at >= m->size;
  if (m->complete)
    tool_progress_step (&progress, m->size, m->size);
  tool_progress_clear (&progress);
  return r == 0 ? dedup_flush (m->p->d) : r;
}

/* --- Disk ---------------------------------------------------------------- */

/* Makes an existing disk one that can be written over. */
static int
take_existing (struct import *m, const struct dedup_disk_info *info,
               struct fault *f)
{
  const struct disk_args *a = m->p->args;
  int r = 0;

  if (!a->resume && !a->force)
    return fault_set (f, FAULT_USAGE, EEXIST, UINT64_MAX, "there is a disk or "
                      "snapshot \"%s\" already: --resume continues an import "
                      "that was interrupted, --force writes over the disk",
                      info->name);
  if (!info->is_disk || !info->writable)
    return fault_usage (f, "\"%s\" is a snapshot, which cannot be changed",
                        info->name);
  if (info->size != m->size && !a->force)
    return fault_usage (f, "\"%s\" has %" PRIu64 " bytes and not %" PRIu64 ", so "
                        "it is not from an import of this file", info->name,
                        info->size, m->size);
  m->root = info->root;
  m->compare = true;
  if (info->size > m->size)
    r = disk_cut_off (m->p, info->root, info->size, m->size);
  if (r == 0 && info->size != m->size)
    r = dedup_disk_resize (m->p->d, info->root, m->size, f);
  return r;
}

static int
find_or_create (struct import *m, struct fault *f)
{
  const char *name = m->p->args->operands[0];
  struct dedup_disk_info info = { 0 };
  unsigned root;
  int r;

  if (dedup_disk_find (m->p->d, name, &root, NULL) < 0)
    return dedup_disk_create (m->p->d, name, m->size, &m->root, f);
  r = disk_find (m->p, name, &info, f);
  if (r == 0)
    r = take_existing (m, &info, f);
  free (info.name);
  return r;
}

static int
allocate (struct import *m)
{
  m->cluster = qcow2_geometry (dedup_image (m->p->d))->cluster_size;
  m->piece = MIN_OF (DEDUP_CHUNK_BYTES, DEDUP_CHUNK_CLUSTERS * m->cluster);
  m->new = aligned_new (m->piece);
  m->old = aligned_zero_new (m->piece);
  return m->new && m->old ? 0 : -ENOMEM;
}

/* --- Result -------------------------------------------------------------- */

static void
print_json (const struct import *m, const struct dedup_stats *s)
{
  const struct disk_args *a = m->p->args;
  json_t *o = json_object ();

  disk_json_set_string (o, "filename", a->path);
  disk_json_set_string (o, "disk", a->operands[0]);
  disk_json_set_string (o, "source", a->operands[1]);
  json_object_set_new (o, "complete", json_boolean (m->complete));
  disk_json_set (o, "virtual-size", m->size);
  disk_json_set (o, "read-bytes", m->read_bytes);
  disk_json_set (o, "written-bytes", m->written_bytes);
  disk_json_set (o, "stored-bytes", s->stored * m->cluster);
  disk_json_set (o, "shared-bytes", s->linked * m->cluster);
  disk_json_print (o);
}

static void
print_human (const struct import *m, const struct dedup_stats *s)
{
  char size[32], written[32], stored[32], shared[32];

  printf ("%s: %s imported, a disk of %s: %s written, of which %s are new and %s "
          "are shared\n", m->p->args->path, m->p->args->operands[0],
          tool_human (m->size, size), tool_human (m->written_bytes, written),
          tool_human (s->stored * m->cluster, stored),
          tool_human (s->linked * m->cluster, shared));
}

static int
report (const struct import *m, int r)
{
  struct dedup_stats s;

  dedup_get_stats (m->p->d, &s);
  if (m->p->args->json)
    print_json (m, &s);
  else if (m->complete && r == 0)
    print_human (m, &s);
  if (r < 0)
    return tool_error (m->p->args->path, "the import of %s stopped: %s; the same "
                       "command with --resume continues it",
                       m->p->args->operands[0], strerror (-r));
  if (m->complete)
    return TOOL_OK;
  tool_error (m->p->args->path, "the import of %s was interrupted; the same "
              "command with --resume continues it", m->p->args->operands[0]);
  return TOOL_INTERRUPTED;
}

/* --- Command ------------------------------------------------------------- */

static int
import_source (struct disk_pool *p, struct import *m)
{
  struct fault f = { 0 };
  int r = allocate (m);

  if (r == 0)
    r = find_or_create (m, &f);
  if (r < 0)
    return disk_fault (p, r, &f);
  tool_catch_signals ();
  return report (m, copy (m));
}

static int
import (struct disk_pool *p)
{
  const struct disk_args *a = p->args;
  struct import m = { .p = p };
  struct fault f = { 0 };
  int code;

  if (disk_source_open (a->operands[1], a->format, &m.source, &f) < 0)
    return tool_fault (a->operands[1], -f.err, &f);
  m.size = a->size ? a->size : m.source.size;
  if (m.size < m.source.size)
    code = tool_error (a->operands[1], "has %" PRIu64 " bytes, more than --size",
                       m.source.size);
  else
    code = import_source (p, &m);
  free (m.new);
  free (m.old);
  disk_source_close (&m.source);
  return code;
}

/* Checks names and the file before the pool is opened, which would change it. */
int
disk_import (const struct disk_args *a)
{
  struct disk_source source;
  struct fault f = { 0 };
  int r;

  if (a->resume && a->force)
    return tool_usage_error (a->command, "--resume and --force cannot be given "
                             "together");
  r = dedup_disk_check_name (a->operands[0], false, &f);
  if (r < 0)
    return tool_fault (a->path, r, &f);
  r = disk_source_open (a->operands[1], a->format, &source, &f);
  if (r < 0)
    return tool_fault (a->operands[1], r, &f);
  disk_source_close (&source);
  return disk_with_pool (a, true, import);
}
