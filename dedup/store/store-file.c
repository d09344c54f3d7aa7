/* SPDX-License-Identifier: BSD-3-Clause */
/* Owns the store file, a second file for incarnations and segments of runs
 * (docs/on-disk.md section 9).
 *
 * Promises: it can be lost, old, cut off, full or broken at any time, and that
 * costs entries of the index and no more; a file that is not a store file, or
 * is another image's, is never written to; and no area is written before the
 * durable configuration says that the file is this session's.
 *
 * The areas in use are those that the configuration lists, those that were
 * dropped from it and have readers, and those being written; all are in
 * FILE->areas, which is in memory only.
 *
 * Maintenance only, but for reads and writes of pages, which joined-files.c
 * passes on.
 */
#include "area.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/random.h>
#include <unistd.h>

#include "config-check.h"
#include "joined-files.h"
#include "mutation.h"
#include "wire.h"
#include "zero.h"

#define FILE_MAGIC UINT64_C (0x4444555053544f52)      /* "DDUPSTOR" */

#define FILE_VERSION 1

#define MAX_EMPTY 4096           /* more zeroes may be the start of data */

struct wire_file {
  be64 magic;
  be32 version;
  be32 zero;
  be64 store_id;
  be64 session;
  be64 session_before;
  be64 checksum;
  uint8_t rest[16];
};

WIRE_FIELD_AT (struct wire_file, version, 8);
WIRE_FIELD_AT (struct wire_file, store_id, 16);
WIRE_FIELD_AT (struct wire_file, session, 24);
WIRE_FIELD_AT (struct wire_file, session_before, 32);
WIRE_FIELD_AT (struct wire_file, checksum, 40);
_Static_assert (sizeof (struct wire_file) == 64, "store file");

struct dedup_store_file {
  struct dedup_joined_files files;   /* this file and the image */
  bool belongs;                  /* to the configuration as it is in memory */
  bool begun;                    /* it is this session's */
  size_t nr_areas;
  struct qcow2_area *areas;      /* at offsets of this file */
};

struct io_store *
dedup_index_io (struct dedup_store *s)
{
  return s->store_file ? &s->store_file->files.store : s->b->io;
}

/* --- The header --------------------------------------------------------- */

enum found {
  FOUND_NONE,                    /* nothing but zeroes */
  FOUND_FOREIGN,                 /* no store file */
  FOUND_LATER,                   /* one of a later version */
  FOUND_DAMAGED,                 /* one whose header has a wrong checksum */
  FOUND_OURS,                    /* one of this version, of any image */
};

static uint64_t
header_checksum (struct wire_file w)
{
  w.checksum = be64_make (0);
  return dedup_checksum (&w, sizeof w);
}

/* Reads the header, and tells in *FOUND what IO holds. */
static int
read_header (struct io_store *io, struct wire_file *w, enum found *found)
{
  uint8_t start[MAX_EMPTY];
  const int64_t size = io_size (io);
  int r;

  if (size < 0)
    return (int) size;
  r = io_pread (io, start, sizeof start, 0);
  if (r < 0)
    return r;
  memcpy (w, start, sizeof *w);
  if (be64_load (w->magic) != FILE_MAGIC)
    *found = size <= MAX_EMPTY && all_zero (start, sizeof start)
      ? FOUND_NONE : FOUND_FOREIGN;
  else if (be64_load (w->checksum) != header_checksum (*w))
    *found = FOUND_DAMAGED;
  else
    *found = be32_load (w->version) == FILE_VERSION ? FOUND_OURS : FOUND_LATER;
  return 0;
}

/* Writes a header with the number of a session, and of the one before it if its
 * areas count as well (0: they do not), and makes it durable. */
static int
write_header (struct dedup_store_file *sf, uint64_t store_id,
              uint64_t session, uint64_t before)
{
  struct wire_file w;
  int r;

  memset (&w, 0, sizeof w);
  w.magic = be64_make (FILE_MAGIC);
  w.version = be32_make (FILE_VERSION);
  w.store_id = be64_make (store_id);
  w.session = be64_make (session);
  w.session_before = be64_make (before);
  w.checksum = be64_make (header_checksum (w));
  r = io_pwrite (sf->files.file, &w, sizeof w, 0);
  if (r == 0)
    r = io_sync (sf->files.file);
  if (r < 0)
    dedup_joined_files_failed (&sf->files, "writing", r);
  return r;
}

/* --- Open --------------------------------------------------------------- */

/* Makes an empty file.  It belongs to no image yet, so that it does no harm if
 * the process is killed now. */
static int
make_store_file (const char *path, struct io_store **out, struct fault *f)
{
  struct io_birth *b;
  int r = io_birth_begin (path, 0, &b, out, f);

  if (r < 0)
    return r;
  r = io_birth_finish (b, f);
  if (r < 0) {
    io_close (*out);
    *out = NULL;
  }
  return r;
}

int
dedup_store_file_open_at (const char *path, bool writable,
                          struct io_store **out, bool *created,
                          struct fault *f)
{
  const enum io_file_lock lock = writable ? IO_LOCK_WRITE : IO_LOCK_READ;
  struct fault why = { 0 };
  int r = -EEXIST;

  *out = NULL;
  *created = false;
  if (access (path, F_OK) < 0 && errno == ENOENT) {
    if (!writable)
      return 0;
    r = make_store_file (path, out, &why);
    *created = r == 0;
  }
  if (r == -EEXIST)             /* it was there, or another process made it */
    r = io_file_open (path, writable ? IO_FILE_WRITE : 0, lock, out, &why);
  return r == 0 ? 0
    : fault_set (f, why.kind, -r, UINT64_MAX, "store=%.200s: %.250s", path,
                 why.msg[0] ? why.msg : strerror (-r));
}

/* Checks that the file may be used for the store STORE_ID (0: its id is not
 * known, so no store file is its).  FAULT_USAGE: it may not; *FOUND and *W tell
 * what is there else. */
static int
check_header (const struct dedup_store_file_place *p, uint64_t store_id,
              struct wire_file *w, enum found *found, struct fault *f)
{
  int r = read_header (p->io, w, found);

  if (r < 0)
    return fault_io (f, -r, UINT64_MAX, "store=%.200s: cannot be read: %s",
                     p->path, strerror (-r));
  if (*found == FOUND_FOREIGN)
    return fault_usage (f, "store=%.200s: it is not a store file: name another "
                        "one, or remove it if you do not need it",
                        p->path);
  if (*found == FOUND_LATER)
    return fault_usage (f, "store=%.200s: this version does not know version %"
                        PRIu32 " of store files", p->path,
                        be32_load (w->version));
  if (*found == FOUND_OURS && be64_load (w->store_id) != store_id)
    return fault_usage (f, "store=%.200s: it belongs to another image, or to "
                        "an index that this image had before: name another "
                        "file", p->path);
  return 0;
}

/* Writes a header with a wrong checksum: with a damaged header the file counts
 * as new, whatever its size. */
static int
disown (const struct dedup_store_file_place *p, struct fault *f)
{
  struct wire_file w;
  int r;

  memset (&w, 0, sizeof w);
  w.magic = be64_make (FILE_MAGIC);
  r = io_pwrite (p->io, &w, sizeof w, 0);
  if (r == 0)
    r = io_sync (p->io);
  return r < 0 ? fault_io (f, -r, UINT64_MAX, "store=%.200s: cannot be "
                           "written: %s", p->path, strerror (-r)) : 0;
}

int
dedup_store_file_take_over (const struct dedup_store_file_place *p,
                            uint64_t void_id, struct fault *f)
{
  struct wire_file w;
  enum found found;
  int r;

  if (p->io == NULL)
    return 0;
  r = check_header (p, void_id, &w, &found, f);
  return r == 0 && found == FOUND_OURS ? disown (p, f) : r;
}

/* Takes the areas in the store file off the configuration in memory.  Returns
 * the number of index entries that are lost with them. */
static uint64_t
forget_areas (struct dedup_config *c)
{
  uint64_t lost = 0;
  size_t i, nr;

  for (i = nr = 0; i < c->index.nr_incarnations; i++)
    if (dedup_in_store_file (c->index.incarnations[i].host_off))
      lost += c->index.incarnations[i].nr_entries;
    else
      c->index.incarnations[nr++] = c->index.incarnations[i];
  c->index.nr_incarnations = (uint32_t) nr;
  for (i = nr = 0; i < c->index.nr_segments; i++)
    if (dedup_in_store_file (c->index.segments[i].host_off))
      lost += c->index.segments[i].nr_entries;
    else
      c->index.segments[nr++] = c->index.segments[i];
  c->index.nr_segments = (uint32_t) nr;
  for (i = nr = 0; i < c->index.nr_limbo; i++)
    if (!dedup_in_store_file (c->index.limbo[i].host_off))
      c->index.limbo[nr++] = c->index.limbo[i];
  c->index.nr_limbo = (uint32_t) nr;
  c->store_session = 0;
  if (lost > 0) {
    dedup_config_entries_lost (c);
    dedup_manifest_settle (&c->index);
  }
  return lost;
}

static int
note_area (struct dedup_store_file *sf, uint64_t off, uint64_t size)
{
  struct qcow2_area *v;

  v = realloc (sf->areas, (sf->nr_areas + 1) * sizeof *v);
  if (v == NULL)
    return -ENOMEM;
  sf->areas = v;
  v[sf->nr_areas++] = (struct qcow2_area) { off, size };
  return 0;
}

static int
note_listed (struct dedup_store_file *sf, uint64_t host_off, uint64_t size)
{
  return dedup_in_store_file (host_off)
    ? note_area (sf, dedup_store_file_off (host_off), size) : 0;
}

/* Notes the areas in the store file that the configuration lists. */
static int
note_all_listed (struct dedup_store_file *sf,
                 const struct dedup_index_manifest *m)
{
  size_t i;
  int r = 0;

  for (i = 0; i < m->nr_incarnations && r == 0; i++)
    r = note_listed (sf, m->incarnations[i].host_off,
                     m->incarnations[i].size_bytes);
  for (i = 0; i < m->nr_segments && r == 0; i++)
    r = note_listed (sf, m->segments[i].host_off, m->segments[i].size_bytes);
  for (i = 0; i < m->nr_limbo && r == 0; i++)
    r = note_listed (sf, m->limbo[i].host_off, m->limbo[i].size_bytes);
  return r;
}

static int
new_store_file (const struct dedup_base *b,
                const struct dedup_store_file_place *p,
                struct dedup_store_file **out)
{
  struct dedup_store_file *sf = calloc (1, sizeof *sf);

  if (sf == NULL)
    return -ENOMEM;
  *out = sf;
  return dedup_joined_files_init (&sf->files, b->io, b->path, p->io, p->path,
                                  b->log);
}

static void
log_lost (const struct dedup_base *b, const char *path, const char *why,
          uint64_t lost)
{
  log_line (b->log, LOG_ERROR, "%s: store=%s: %s: %" PRIu64 " entries of the "
            "index are %s", b->path, path, why, lost,
            b->writable ? "lost" : "not used");
}

/* Forgets what the configuration lists in the store file, because FOUND is not
 * the file that it lists, and logs how many entries that costs. */
static void
forget_content (struct dedup_store *s, enum found found)
{
  const uint64_t lost = forget_areas (s->config);

  if (lost > 0)
    log_lost (s->b, s->store_file->files.path,
              found == FOUND_NONE ? "it is new" :
              found == FOUND_DAMAGED ? "its header is damaged" :
              "it is older or newer than the image", lost);
}

static int
attach (struct dedup_store *s, const struct dedup_store_file_place *p,
        struct fault *f)
{
  const uint64_t session = s->config->store_session;
  struct wire_file w;
  enum found found;
  int r;

  r = check_header (p, s->config->store_id, &w, &found, f);
  if (r < 0)
    return r;
  r = new_store_file (s->b, p, &s->store_file);
  if (r < 0)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  s->store_file->belongs = found == FOUND_OURS && session != 0 &&
    (be64_load (w.session) == session ||
     be64_load (w.session_before) == session ||
     mutation (MUTATION_STORE_FILE_ANY_SESSION));
  if (!s->store_file->belongs)
    forget_content (s, found);
  r = note_all_listed (s->store_file, &s->config->index);
  return r < 0 ? fault_io (f, ENOMEM, UINT64_MAX, "out of memory") : 0;
}

int
dedup_store_file_attach (struct dedup_store *s,
                         const struct dedup_store_file_place *p,
                         struct fault *f)
{
  uint64_t lost;

  if (p->io != NULL)
    return attach (s, p, f);
  lost = forget_areas (s->config);
  if (lost > 0)
    log_line (s->b->log, LOG_ERROR, "%s: %" PRIu64 " entries of its index are "
              "in a store file, which is not there or was not given (store=): "
              "%s", s->b->path, lost, s->b->writable ? "they are lost" :
              "they are not used");
  return 0;
}

void
dedup_store_file_free (struct dedup_store_file *sf)
{
  if (sf == NULL)
    return;
  free (sf->areas);
  dedup_joined_files_destroy (&sf->files);
  free (sf);
}

/* --- The session -------------------------------------------------------- */

/* Makes the store file this session's, in an order that leaves file and
 * durable configuration true to each other after a crash at any point: the
 * file gets the new number beside that of the session before, the
 * configuration gets the new one, and then the file drops the old one. */
static int
begin_session (struct dedup_store *s)
{
  struct dedup_store_file *sf = s->store_file;
  struct dedup_config *c = s->config;
  uint64_t session, before;
  int r = dedup_config_settle (s);   /* so that BEFORE is the durable one's */

  if (r < 0)
    return r;
  before = sf->belongs ? c->store_session : 0;
  do
    if (getrandom (&session, sizeof session, 0) != sizeof session)
      return -EIO;
  while (session == 0 || session == before);
  r = write_header (sf, c->store_id, session, before);
  if (r < 0)
    return r;
  c->store_session = session;
  r = dedup_config_commit (s);
  if (r == 0)
    r = write_header (sf, c->store_id, session, 0);
  /* After -ENOSPC from one of them the file still has both numbers. */
  sf->belongs = r == 0 || r == -ENOSPC;
  sf->begun = r == 0;
  return r;
}

bool
dedup_store_file_ready (struct dedup_store *s)
{
  struct dedup_store_file *sf = s->store_file;

  if (sf == NULL || !dedup_joined_files_usable (&sf->files))
    return false;
  return sf->begun || begin_session (s) == 0;
}

bool
dedup_store_file_lost (struct dedup_store *s, uint64_t host_off)
{
  return dedup_in_store_file (host_off) &&
    !dedup_joined_files_usable (&s->store_file->files);
}

/* --- Areas -------------------------------------------------------------- */

/* Returns the first free place for SIZE bytes, from offset FIRST on. */
static uint64_t
find_place (const struct dedup_store_file *sf, uint64_t size, uint64_t first)
{
  uint64_t at = first;
  size_t i;

  for (i = 0; i < sf->nr_areas; i++) {
    const struct qcow2_area *a = &sf->areas[i];

    if (at < a->host_off + a->size && a->host_off < at + size) {
      at = a->host_off + a->size;
      i = SIZE_MAX;                      /* look at all of them again */
    }
  }
  return at;
}

/* Allocates an area in the store file, from its second cluster on: the first
 * one is the header's. */
static int
alloc_in_file (struct dedup_store_file *sf, uint64_t cluster_size,
               uint64_t size, uint64_t *host_off)
{
  const uint64_t off = find_place (sf, size, cluster_size);
  int r;

  if (off + size > MAX_HOST_OFF)
    return -EFBIG;
  r = dedup_area_allocate_space (sf->files.file, off, size);
  if (r == 0)
    r = note_area (sf, off, size);
  if (r == -ENOSPC)
    dedup_joined_files_failed (&sf->files, "writing", r);
  if (r < 0)
    return r;
  *host_off = off | DEDUP_IN_STORE_FILE;
  dedup_joined_files_had_space (&sf->files);
  return 0;
}

int
dedup_index_area_alloc (struct dedup_store *s, uint64_t size,
                        uint64_t *host_off)
{
  int r;

  if (dedup_store_file_ready (s) &&
      alloc_in_file (s->store_file, s->b->cluster_size, size, host_off) == 0)
    return 0;
  /* Making the file this session's may have failed for good. */
  r = dedup_gate_failed (&s->gate);
  if (r == 0)
    r = dedup_area_alloc (s, size, host_off);
  if (s->store_file)                     /* the next area tries it again */
    dedup_joined_files_retry (&s->store_file->files);
  return r;
}

/* Frees a whole area of the store file, or the end of one. */
static void
free_in_file (struct dedup_store_file *sf, uint64_t off, uint64_t size)
{
  size_t i;

  for (i = 0; i < sf->nr_areas; i++) {
    struct qcow2_area *a = &sf->areas[i];

    if (off < a->host_off || off + size != a->host_off + a->size)
      continue;
    a->size -= size;
    if (a->size == 0)
      *a = sf->areas[--sf->nr_areas];
    if (io_discard (sf->files.file, off, size) < 0)
      break;              /* the host keeps the space, for the next area */
  }
}

int
dedup_index_area_free (struct dedup_store *s, uint64_t host_off, uint64_t size)
{
  if (!dedup_in_store_file (host_off))
    return dedup_area_free (s, host_off, size);
  free_in_file (s->store_file, dedup_store_file_off (host_off), size);
  return 0;
}

int
dedup_index_sync (struct dedup_store *s, uint64_t host_off)
{
  return dedup_in_store_file (host_off)
    ? dedup_joined_files_sync_file (&s->store_file->files) : dedup_sync (s);
}
