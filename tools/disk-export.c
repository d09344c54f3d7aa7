/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-dedup disk export: writes a disk or snapshot to a raw or qcow2 file.
 *
 * The pool is opened read-only, so several exports may run at the same time.  Only
 * data that is mapped is read, and units of zeroes become holes.  The file appears
 * when it is complete (disk-target.c).  One thread.
 */
#include "disk.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <string.h>

#include "aligned.h"
#include "checked.h"
#include "zero.h"

#define PIECE_BYTES (2u << 20)  /* of one read; a multiple of each unit */

struct export {
  struct disk_pool *p;
  struct dedup_disk_info info;
  struct disk_target *target;
  const char *format;
  uint8_t *buf;                 /* a piece; owned */
  uint64_t written_bytes;
};

/* Takes the format from the end of the file's name, unless it is given. */
static const char *
format_of (const struct disk_args *a)
{
  static const char suffix[] = ".qcow2";
  const size_t len = strlen (a->operands[1]), n = sizeof suffix - 1;

  if (a->format)
    return a->format;
  return len > n && strcmp (a->operands[1] + len - n, suffix) == 0 ? "qcow2"
    : "raw";
}

/* --- Copy ---------------------------------------------------------------- */

static bool
is_written (const struct export *e, size_t off, size_t unit)
{
  return disk_target_is_dense (e->target) || !all_zero (e->buf + off, unit);
}

/* Writes the units of a piece that are not zero, in runs. */
static int
write_piece (struct export *e, uint64_t at, size_t len)
{
  const size_t unit = disk_target_unit (e->target);
  size_t off, end;
  int r = 0;

  for (off = 0; off < len && r == 0; off = end) {
    end = off + unit;
    if (!is_written (e, off, unit))
      continue;
    while (end < len && is_written (e, end, unit))
      end += unit;
    r = disk_target_write (e->target, e->buf + off, at + off, end - off);
    e->written_bytes += end - off;
  }
  return r;
}

/* Sets *AT to where the next piece begins, to the size or more if there is none. */
static int
next_piece (struct export *e, uint64_t *at)
{
  int r;

  if (disk_target_is_dense (e->target))
    return 0;
  r = disk_next_data (dedup_image (e->p->d), e->info.root, *at, e->info.size,
                      at);
  if (r == 0 && *at < e->info.size)     /* the end need not be a unit's */
    *at = round_down_pow2 (*at, disk_target_unit (e->target));
  return r;
}

/* Reads the piece at AT, with zeroes behind the end of the disk. */
static int
read_piece (struct export *e, uint64_t at, size_t *len)
{
  const size_t here = MIN_OF (PIECE_BYTES, e->info.size - at);

  *len = round_up_pow2 (here, disk_target_unit (e->target));
  memset (e->buf + here, 0, *len - here);
  return dedup_read (e->p->d, e->info.root, e->buf, at, here);
}

/* Copies all of the disk.  -EINTR: a signal came.  *READ_FAILED: the pool caused
 * the error, and not the file. */
static int
copy (struct export *e, bool *read_failed)
{
  struct tool_progress progress = { .what = "Exporting",
                                    .always = e->p->args->progress };
  uint64_t at = 0;
  size_t len = 0;
  int r = 0;

  for (; r == 0; at += len) {
    tool_progress_step (&progress, at, e->info.size);
    r = tool_interrupted () ? -EINTR : 0;
    if (r == 0 && (r = next_piece (e, &at)) == 0 && at >= e->info.size)
      break;
    if (r == 0)
      r = read_piece (e, at, &len);
    *read_failed = r < 0 && r != -EINTR;
    if (r == 0)
      r = write_piece (e, at, len);
  }
  if (r == 0)
    tool_progress_step (&progress, e->info.size, e->info.size);
  tool_progress_clear (&progress);
  return r;
}

/* --- Result -------------------------------------------------------------- */

static void
print_json (const struct export *e)
{
  const struct disk_args *a = e->p->args;
  json_t *o = json_object ();

  disk_json_set_string (o, "filename", a->path);
  disk_json_set_string (o, "disk", a->operands[0]);
  disk_json_set_string (o, "target", a->operands[1]);
  disk_json_set_string (o, "format", e->format);
  disk_json_set (o, "virtual-size", e->info.size);
  disk_json_set (o, "written-bytes", e->written_bytes);
  disk_json_print (o);
}

static int
report (const struct export *e)
{
  const struct disk_args *a = e->p->args;
  char size[32], written[32];

  if (a->json)
    print_json (e);
  else
    printf ("%s: a disk of %s, as %s: %s written\n", a->operands[1],
            tool_human (e->info.size, size), e->format,
            tool_human (e->written_bytes, written));
  return TOOL_OK;
}

static int
copy_failed (const struct export *e, int r, bool read_failed)
{
  const struct disk_args *a = e->p->args;

  if (r == -EINTR) {
    tool_error (a->operands[1], "interrupted; nothing was left");
    return TOOL_INTERRUPTED;
  }
  return tool_error (read_failed ? a->path : a->operands[1],
                     "the export stopped: %s", strerror (-r));
}

/* --- Command ------------------------------------------------------------- */

static int
export_to_target (struct export *e)
{
  struct fault f = { 0 };
  bool read_failed = false;
  int r;

  tool_catch_signals ();
  r = copy (e, &read_failed);
  if (r < 0) {
    disk_target_cancel (e->target);
    return copy_failed (e, r, read_failed);
  }
  r = disk_target_finish (e->target, &f);
  return r < 0 ? tool_fault (e->p->args->operands[1], r, &f) : report (e);
}

static int
export_disk (struct export *e)
{
  const struct disk_args *a = e->p->args;
  struct fault f = { 0 };
  int r;

  e->buf = aligned_new (PIECE_BYTES);
  if (e->buf == NULL)
    return tool_error (a->path, "out of memory");
  if (e->info.size == 0 || e->info.size > INT64_MAX - PIECE_BYTES)
    return tool_error (a->path, "\"%s\" has %" PRIu64 " bytes, which cannot be "
                       "exported", a->operands[0], e->info.size);
  r = disk_target_new (a->operands[1], e->format, e->info.size, a->force,
                       &e->target, &f);
  return r < 0 ? tool_fault (a->operands[1], r, &f) : export_to_target (e);
}

static int
export (struct disk_pool *p)
{
  struct export e = { .p = p, .format = format_of (p->args) };
  struct fault f = { 0 };
  int r = disk_find (p, p->args->operands[0], &e.info, &f);
  int code = r < 0 ? disk_fault (p, r, &f) : export_disk (&e);

  free (e.buf);
  free (e.info.name);
  return code;
}

int
disk_export (const struct disk_args *a)
{
  return disk_with_pool (a, false, export);
}
