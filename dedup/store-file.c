/* SPDX-License-Identifier: BSD-3-Clause */
/* The store file: a second file for incarnations and segments of runs
 * (docs/on-disk.md section 9).
 *
 * Promises: it can be lost, old, cut off, full or broken at any time, and that
 * costs entries of the index and no more; a file that is not ours, or another
 * image's, is never written to; and nothing is written before the
 * configuration says that the file is this session's.
 *
 * The areas in use are those that the configuration lists, those that were
 * dropped from it and have readers, and those being written; all are in
 * FILE->areas, which is in memory only.
 *
 * Maintenance only, but for reads and writes of pages.
 */
#include "disk.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/random.h>
#include <unistd.h>

#include "config-check.h"
#include "wire.h"

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
  struct io_store store;         /* offsets of both files: dedup_index_io */
  struct io_store *image;
  struct io_store *io;           /* the caller's */
  const struct log_sink *log;
  char *path, *image_path;
  bool belongs;                  /* to the configuration as it is in memory */
  bool begun;                    /* it is this session's */
  bool failed;                   /* atomic: a write or sync of it did */
  bool full;                     /* atomic: the next area goes to the image */
  bool said_full;                /* atomic */
  size_t nr_areas;
  struct qcow2_area *areas;
};

static uint64_t
in_file (uint64_t host_off)
{
  return host_off & ~DEDUP_IN_STORE_FILE;
}

/* --- Both files as one ---------------------------------------------------- */

/* Nothing is lost: this area is written elsewhere. */
static void
note_full (struct dedup_store_file *sf)
{
  __atomic_store_n (&sf->full, true, __ATOMIC_RELAXED);
  if (!__atomic_exchange_n (&sf->said_full, true, __ATOMIC_RELAXED))
    log_line (sf->log, LOG_ERROR, "%s: store=%s: no space left there: the "
              "index grows in the image", sf->image_path, sf->path);
}

static void
note_failure (struct dedup_store_file *sf, const char *what, int r)
{
  if (r == -ENOSPC)
    note_full (sf);
  else if (!__atomic_exchange_n (&sf->failed, true, __ATOMIC_RELAXED))
    log_line (sf->log, LOG_ERROR, "%s: store=%s: %s: %s: the index grows in "
              "the image until it is opened again", sf->image_path, sf->path,
              what, strerror (-r));
}

static int
both_preadv (struct io_store *s, const struct iovec *iov, int iovcnt,
             uint64_t host_off)
{
  struct dedup_store_file *sf = (struct dedup_store_file *) s;

  return dedup_in_store_file (host_off)
    ? io_preadv (sf->io, iov, iovcnt, in_file (host_off))
    : io_preadv (sf->image, iov, iovcnt, host_off);
}

static int
both_pwritev (struct io_store *s, const struct iovec *iov, int iovcnt,
              uint64_t host_off)
{
  struct dedup_store_file *sf = (struct dedup_store_file *) s;
  int r;

  if (!dedup_in_store_file (host_off))
    return io_pwritev (sf->image, iov, iovcnt, host_off);
  r = io_pwritev (sf->io, iov, iovcnt, in_file (host_off));
  if (r < 0)
    note_failure (sf, "writing", r);
  return r;
}

static uint64_t
both_next_hole (struct io_store *s, uint64_t host_off)
{
  struct dedup_store_file *sf = (struct dedup_store_file *) s;
  uint64_t hole;

  if (!dedup_in_store_file (host_off))
    return io_next_hole (sf->image, host_off);
  hole = io_next_hole (sf->io, in_file (host_off));
  return hole == UINT64_MAX ? hole : hole | DEDUP_IN_STORE_FILE;
}

static void
both_write_out (struct io_store *s, uint64_t host_off, uint64_t len)
{
  struct dedup_store_file *sf = (struct dedup_store_file *) s;

  if (dedup_in_store_file (host_off))
    io_write_out (sf->io, in_file (host_off), len);
  else
    io_write_out (sf->image, host_off, len);
}

static const struct io_ops both_ops = {
  .preadv = both_preadv, .pwritev = both_pwritev, .next_hole = both_next_hole,
  .write_out = both_write_out,
};

struct io_store *
dedup_index_io (struct dedup_disk *d)
{
  return d->store_file ? &d->store_file->store : d->io;
}

/* --- The header ----------------------------------------------------------- */

enum found { FOUND_NONE, FOUND_FOREIGN, FOUND_LATER, FOUND_DAMAGED, FOUND_OURS };

static uint64_t
header_checksum (struct wire_file w)
{
  w.checksum = be64_make (0);
  return dedup_checksum (&w, sizeof w);
}

/* What is in IO? */
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

static int
write_header (struct dedup_disk *d, uint64_t session, uint64_t before)
{
  struct dedup_store_file *sf = d->store_file;
  struct wire_file w;
  int r;

  memset (&w, 0, sizeof w);
  w.magic = be64_make (FILE_MAGIC);
  w.version = be32_make (FILE_VERSION);
  w.store_id = be64_make (d->config->store_id);
  w.session = be64_make (session);
  w.session_before = be64_make (before);
  w.checksum = be64_make (header_checksum (w));
  r = io_pwrite (sf->io, &w, sizeof w, 0);
  if (r == 0)
    r = io_sync (sf->io);
  if (r < 0)
    note_failure (sf, "writing", r);
  return r;
}

/* --- Open ----------------------------------------------------------------- */

/* An empty file, which belongs to nobody yet, so that one which a killed process
 * leaves does no harm. */
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
dedup_store_file_open (const char *path, bool writable, struct io_store **out,
                       bool *created, struct fault *f)
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
  if (r == -EEXIST)             /* perhaps since just now */
    r = io_file_open (path, writable ? IO_FILE_WRITE : 0, lock, out, &why);
  return r == 0 ? 0
    : fault_set (f, why.kind, -r, UINT64_MAX, "store=%.200s: %.250s", path,
                 why.msg[0] ? why.msg : strerror (-r));
}

/* May it be used for a store with this id (0: none that is known)? */
static int
check_header (const struct dedup_open_params *p, uint64_t store_id,
              struct wire_file *w, enum found *found, struct fault *f)
{
  int r = read_header (p->store, w, found);

  if (r < 0)
    return fault_io (f, -r, UINT64_MAX, "store=%.200s: cannot be read: %s",
                     p->store_path, strerror (-r));
  if (*found == FOUND_FOREIGN)
    return fault_usage (f, "store=%.200s: it is not a store file: name another "
                        "one, or remove it if you do not need it",
                        p->store_path);
  if (*found == FOUND_LATER)
    return fault_usage (f, "store=%.200s: this version does not know version %"
                        PRIu32 " of store files", p->store_path,
                        be32_load (w->version));
  if (*found == FOUND_OURS && be64_load (w->store_id) != store_id)
    return fault_usage (f, "store=%.200s: it belongs to another image, or to "
                        "an index that this image had before: name another "
                        "file", p->store_path);
  return 0;
}

/* A header that says that it is damaged: the file is taken as if it were new,
 * whatever its size. */
static int
disown (const struct dedup_open_params *p, struct fault *f)
{
  struct wire_file w;
  int r;

  memset (&w, 0, sizeof w);
  w.magic = be64_make (FILE_MAGIC);
  r = io_pwrite (p->store, &w, sizeof w, 0);
  if (r == 0)
    r = io_sync (p->store);
  return r < 0 ? fault_io (f, -r, UINT64_MAX, "store=%.200s: cannot be "
                           "written: %s", p->store_path, strerror (-r)) : 0;
}

int
dedup_store_file_take_over (const struct dedup_open_params *p,
                            uint64_t void_id, struct fault *f)
{
  struct wire_file w;
  enum found found;
  int r;

  if (p->store == NULL)
    return 0;
  r = check_header (p, void_id, &w, &found, f);
  return r == 0 && found == FOUND_OURS ? disown (p, f) : r;
}

/* Take all that lies in the store file off the list in memory; returns the
 * number of entries that are lost with it. */
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
    c->flags &= ~DEDUP_CONFIG_EXACT;     /* tombstones are lost with them */
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
    ? note_area (sf, in_file (host_off), size) : 0;
}

static int
note_all_listed (struct dedup_store_file *sf, const struct dedup_config *c)
{
  size_t i;
  int r = 0;

  for (i = 0; i < c->index.nr_incarnations && r == 0; i++)
    r = note_listed (sf, c->index.incarnations[i].host_off,
                     c->index.incarnations[i].size_bytes);
  for (i = 0; i < c->index.nr_segments && r == 0; i++)
    r = note_listed (sf, c->index.segments[i].host_off, c->index.segments[i].size_bytes);
  for (i = 0; i < c->index.nr_limbo && r == 0; i++)
    r = note_listed (sf, c->index.limbo[i].host_off, c->index.limbo[i].size_bytes);
  return r;
}

static int
new_store_file (struct dedup_disk *d, const struct dedup_open_params *p,
                struct dedup_store_file **out)
{
  struct dedup_store_file *sf = calloc (1, sizeof *sf);

  if (sf == NULL)
    return -ENOMEM;
  sf->store.ops = &both_ops;
  sf->image = d->io;
  sf->io = p->store;
  sf->log = d->log;
  sf->path = strdup (p->store_path ? p->store_path : "store file");
  sf->image_path = strdup (d->path);
  *out = sf;
  return sf->path && sf->image_path ? 0 : -ENOMEM;
}

static void
say_lost (const struct dedup_disk *d, const char *why, uint64_t lost)
{
  log_line (d->log, LOG_ERROR, "%s: store=%s: %s: %" PRIu64 " entries of the "
            "index are %s", d->path, d->store_file->path, why, lost,
              d->writable ? "lost" : "not used");
}

/* The file is not what the configuration lists. */
static void
start_anew (struct dedup_disk *d, enum found found)
{
  const uint64_t lost = forget_areas (d->config);

  if (lost > 0)
    say_lost (d, found == FOUND_NONE ? "it is new" :
              found == FOUND_DAMAGED ? "its header is damaged" :
              "it is older or newer than the image", lost);
}

static int
attach (struct dedup_disk *d, const struct dedup_open_params *p,
        struct fault *f)
{
  const uint64_t session = d->config->store_session;
  struct wire_file w;
  enum found found;
  int r;

  r = check_header (p, d->config->store_id, &w, &found, f);
  if (r < 0)
    return r;
  r = new_store_file (d, p, &d->store_file);
  if (r < 0)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  d->store_file->belongs = found == FOUND_OURS && session != 0 &&
    (be64_load (w.session) == session ||
     be64_load (w.session_before) == session);
  if (!d->store_file->belongs)
    start_anew (d, found);
  r = note_all_listed (d->store_file, d->config);
  return r < 0 ? fault_io (f, ENOMEM, UINT64_MAX, "out of memory") : 0;
}

int
dedup_store_file_attach (struct dedup_disk *d,
                         const struct dedup_open_params *p, struct fault *f)
{
  uint64_t lost;

  if (p->store != NULL)
    return attach (d, p, f);
  lost = forget_areas (d->config);
  if (lost > 0)
    log_line (d->log, LOG_ERROR, "%s: %" PRIu64 " entries of its index are in "
              "a store file, which is not there or was not given (store=): %s",
              d->path, lost, d->writable ? "they are lost" :
              "they are not used");
  return 0;
}

void
dedup_store_file_free (struct dedup_store_file *sf)
{
  if (sf == NULL)
    return;
  free (sf->areas);
  free (sf->path);
  free (sf->image_path);
  free (sf);
}

/* --- This session's ------------------------------------------------------- */

static int
begin (struct dedup_disk *d)
{
  struct dedup_store_file *sf = d->store_file;
  struct dedup_config *c = d->config;
  uint64_t session, before;
  int r = dedup_config_settle (d);   /* so that BEFORE is the durable one's */

  if (r < 0)
    return r;
  before = sf->belongs ? c->store_session : 0;
  do
    if (getrandom (&session, sizeof session, 0) != sizeof session)
      return -EIO;
  while (session == 0 || session == before);
  r = write_header (d, session, before);
  if (r < 0)
    return r;
  c->store_session = session;
  r = dedup_config_commit (d);
  if (r == 0)
    r = write_header (d, session, 0);
  /* Without space for one of them the file has both numbers still. */
  sf->belongs = r == 0 || r == -ENOSPC;
  sf->begun = r == 0;
  return r;
}

bool
dedup_store_file_ready (struct dedup_disk *d)
{
  struct dedup_store_file *sf = d->store_file;

  if (sf == NULL || __atomic_load_n (&sf->failed, __ATOMIC_RELAXED) ||
      __atomic_load_n (&sf->full, __ATOMIC_RELAXED))
    return false;
  return sf->begun || begin (d) == 0;
}

bool
dedup_store_file_lost (struct dedup_disk *d, uint64_t host_off)
{
  return dedup_in_store_file (host_off) &&
    (__atomic_load_n (&d->store_file->failed, __ATOMIC_RELAXED) ||
     __atomic_load_n (&d->store_file->full, __ATOMIC_RELAXED));
}

/* --- Areas ---------------------------------------------------------------- */

/* The first place that is free; the first cluster is the header's. */
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

/* Real space, or at least a file that reaches behind the area. */
static int
allocate (struct dedup_store_file *sf, uint64_t off, uint64_t size)
{
  int r = io_allocate (sf->io, off, size);

  return r == -EOPNOTSUPP || r == -ENOTSUP
    ? io_pwrite (sf->io, "", 1, off + size - 1) : r;
}

static int
alloc_in_file (struct dedup_disk *d, uint64_t size, uint64_t *host_off)
{
  struct dedup_store_file *sf = d->store_file;
  const uint64_t off = find_place (sf, size, d->cluster_size);
  int r;

  if (off + size > MAX_HOST_OFF)
    return -EFBIG;
  r = allocate (sf, off, size);
  if (r == 0)
    r = note_area (sf, off, size);
  if (r == 0)
    *host_off = off | DEDUP_IN_STORE_FILE;
  else if (r == -ENOSPC)
    note_full (sf);
  if (r == 0)
    __atomic_store_n (&sf->said_full, false, __ATOMIC_RELAXED);
  return r;
}

int
dedup_index_area_alloc (struct dedup_disk *d, uint64_t size,
                        uint64_t *host_off)
{
  int r;

  if (dedup_store_file_ready (d) && alloc_in_file (d, size, host_off) == 0)
    return 0;
  r = dedup_failed (d);                  /* beginning may have met a failure */
  if (r == 0)
    r = dedup_area_alloc (d, size, host_off);
  if (d->store_file)                     /* the next one tries it again */
    __atomic_store_n (&d->store_file->full, false, __ATOMIC_RELAXED);
  return r;
}

int
dedup_index_area_free (struct dedup_disk *d, uint64_t host_off, uint64_t size)
{
  struct dedup_store_file *sf = d->store_file;
  const uint64_t off = in_file (host_off);
  size_t i;

  if (!dedup_in_store_file (host_off))
    return dedup_area_free (d, host_off, size);
  for (i = 0; i < sf->nr_areas; i++) {
    struct qcow2_area *a = &sf->areas[i];

    if (off < a->host_off || off + size != a->host_off + a->size)
      continue;
    a->size -= size;                     /* all of it, or its end */
    if (a->size == 0)
      *a = sf->areas[--sf->nr_areas];
    if (io_discard (sf->io, off, size) < 0)
      break;                             /* the host can't: it is used again */
  }
  return 0;
}

int
dedup_index_sync (struct dedup_disk *d, uint64_t host_off)
{
  int r;

  if (!dedup_in_store_file (host_off))
    return dedup_sync (d);
  if (mutation (MUTATION_STORE_FILE_NO_SYNC))
    return 0;
  if (__atomic_load_n (&d->store_file->failed, __ATOMIC_RELAXED))
    return -EIO;
  r = io_sync (d->store_file->io);
  if (r < 0)
    note_failure (d->store_file, "making it durable", r);
  return r;
}
