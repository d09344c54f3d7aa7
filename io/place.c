/* SPDX-License-Identifier: BSD-3-Clause */
/* Opens the place of an image by its path or URI, with its locks or its lease.
 *
 * A lease stands where locks do not reach every server (io.h says where).  It is taken
 * after the place is open, since its record is in it, and asked for again by an NBD
 * store that was connected anew, before that writes anything.
 *
 * Keeps no state; any thread. */
#include "lease.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "checked.h"
#include "nbd.h"
#include "preview.h"

#define START_BYTES (UINT64_C (256) << 10)

bool
io_is_uri (const char *s)
{
  static const char *const schemes[] = { "nbd://", "nbds://", "nbd+unix://",
                                         "nbds+unix://" };
  size_t i;

  for (i = 0; i < sizeof schemes / sizeof schemes[0]; i++)
    if (strncasecmp (s, schemes[i], strlen (schemes[i])) == 0)
      return true;
  return false;
}

static int
open_unleased (const struct io_place_params *p, struct io_store **leased,
               struct io_store **out, struct fault *f)
{
  const struct io_nbd_params n = {
    .uri = p->place, .log = p->log, .writable = p->flags & IO_FILE_WRITE,
    .connections = p->connections, .reconnect_delay = p->reconnect_delay,
    .fenced = p->fenced,
    .may_resume = leased ? io_lease_may_resume : NULL, .opaque = leased,
  };

  if (io_is_uri (p->place))
    return io_nbd_open (&n, out, f);
  return io_file_open (p->place, p->flags & (IO_FILE_WRITE | IO_FILE_CREATE),
                       p->lock, out, f);
}

/* --- Leases --------------------------------------------------------------- */

/* Returns whether the store of PLACE has a lease at its end.  1: yes; 0; or
 * -errno. */
static int
has_lease_at_end (const char *place, int flags, struct io_store *s,
                  struct fault *f)
{
  struct io_lease_holder h;
  int r;

  if (io_max_size (s) == UINT64_MAX)
    return 0;
  if (io_is_uri (place) || flags & IO_PLACE_LEASE)
    return 1;
  if (io_max_size (s) < 2 * IO_LEASE_BYTES)
    return 0;
  r = io_lease_read (s, NULL, &h);
  if (r == -EINVAL)
    return 0;                   /* the bytes of an image, or older ones */
  return r < 0 ? fault_io (f, -r, UINT64_MAX, "reading its end: %s",
                           strerror (-r)) : r;
}

/* Opens the lease file of PLACE, or creates it.  It may appear meanwhile. */
static int
open_lease_file (const char *place, bool writable, struct io_store **area,
                 struct fault *f)
{
  const int flags = writable ? IO_FILE_WRITE : 0;
  struct fault why = { 0 };
  char *path;
  int r;

  if (asprintf (&path, "%s.lease", place) < 0)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  r = io_file_open (path, flags, IO_LOCK_NONE, area, &why);
  if (r == -ENOENT && writable) {
    why = (struct fault) { 0 };
    r = io_file_open (path, flags | IO_FILE_CREATE, IO_LOCK_NONE, area, &why);
  }
  if (r == -EEXIST) {
    why = (struct fault) { 0 };
    r = io_file_open (path, flags, IO_LOCK_NONE, area, &why);
  }
  free (path);
  return r < 0 ? fault_io (f, -r, UINT64_MAX, "its lease, in the file with "
                           ".lease behind its name: %s", why.msg) : 0;
}

/* Finds out whether the store of PLACE has a lease (1), and where. */
static int
find_lease (const char *place, int flags, bool writable, struct io_store *s,
            struct io_store **area, struct fault *f)
{
  struct fault ignored = { 0 };
  int r;

  *area = NULL;
  if (!io_file_lacks_locks (s))
    return has_lease_at_end (place, flags, s, f);
  if (io_max_size (s) != UINT64_MAX)
    return has_lease_at_end (place, flags | IO_PLACE_LEASE, s, f);
  r = open_lease_file (place, writable, area, writable ? f : &ignored);
  return r == -ENOENT && !writable ? 0 : r < 0 ? r : 1;
}

/* Empties the lease area at the end of S if it holds bytes and no record. */
static int
empty_area (struct io_store *s, struct fault *f)
{
  const uint64_t size = round_down_pow2 (io_max_size (s), 4096);
  struct io_lease_holder h;
  int r = io_lease_read (s, NULL, &h);

  if (r != -EINVAL || size < 2 * IO_LEASE_BYTES)
    return 0;                   /* taking it reports other errors */
  r = io_pwrite_zeroes (s, size - IO_LEASE_BYTES, IO_LEASE_BYTES);
  if (r == 0)
    r = io_sync (s);
  return r < 0 ? fault_io (f, -r, UINT64_MAX, "emptying its end: %s",
                           strerror (-r)) : 0;
}

/* As io_place_lease; LEASED is for io_lease_take.  PREVIEW, which may be NULL, is stopped
 * before the store is closed. */
static int
place_lease (const char *place, int flags, const struct log_sink *log,
             struct io_store **leased, struct io_preview *preview,
             struct io_store **s, struct fault *f)
{
  struct io_lease_params p = { .log = log, .path = place, .self = leased,
                               .failed = io_preview_stop, .opaque = preview };
  struct io_store *below = *s;
  int r;

  *s = NULL;
  r = find_lease (place, flags, true, below, &p.area, f);
  if (r == 1 && p.area == NULL && flags & IO_PLACE_OVERWRITE &&
      empty_area (below, f) < 0) {
    io_preview_stop (preview);
    io_close (below);
    free (leased);
    return -EIO;
  }
  if (r == 1)
    return io_lease_take (below, &p, s, f);
  if (r == 0)
    *s = below;
  else {
    io_preview_stop (preview);
    io_close (below);
    free (leased);
  }
  return r;
}

int
io_place_lease (const char *place, int flags, const struct log_sink *log,
                struct io_store **s, struct fault *f)
{
  return io_lease_log (*s, log, place) ? 0
    : place_lease (place, flags, log, NULL, NULL, s, f);
}

/* Fails if a server writes to the place. */
static int
check_no_writer (const char *place, int flags, struct io_store **s,
                 struct fault *f)
{
  struct io_lease_params p = { 0 };
  int r = find_lease (place, flags, false, *s, &p.area, f);

  if (r == 1)
    r = io_lease_probe (*s, &p, f);
  io_close (p.area);
  if (r == 0)
    return 0;
  io_close (*s);
  *s = NULL;
  return r == 1 ? -EBUSY : r;
}

/* Begins to read the first bytes of the place, where an image has its header and, unless
 * it is large, its first tables: an open reads them piece by piece, which would be a
 * round trip each.  Not before nobody else can write there. */
static void
announce_start (struct io_store *s)
{
  const struct io_part start = { .len = START_BYTES };

  (void) io_will_need (s, &start, 1, true);
}

/* Gets the lease of a URI, with the rehearsal beside it. */
static int
lease_and_rehearse (const struct io_place_params *p, struct io_store **leased,
                    struct io_store **s, struct fault *f)
{
  struct io_preview *v = p->rehearse
    ? io_preview_start (*s, p->rehearse, p->opaque) : NULL;
  int r = place_lease (p->place, p->flags, p->log, leased, v, s, f);

  if (r == 0 && v == NULL)
    announce_start (*s);
  io_preview_end (v, *s);
  return r;
}

int
io_place_open_with (const struct io_place_params *p, struct io_store **out,
                    struct fault *f)
{
  struct io_store **leased = NULL;
  int r;

  if (io_is_uri (p->place) && p->lock == IO_LOCK_WRITE) {
    leased = calloc (1, sizeof *leased);
    if (leased == NULL)
      return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  }
  r = open_unleased (p, leased, out, f);
  if (r < 0)
    free (leased);
  if (r < 0 || p->lock == IO_LOCK_NONE)
    return r;
  if (p->lock == IO_LOCK_WRITE && io_is_uri (p->place))
    return lease_and_rehearse (p, leased, out, f);
  if (p->lock == IO_LOCK_WRITE)
    return place_lease (p->place, p->flags, p->log, NULL, NULL, out, f);
  r = check_no_writer (p->place, p->flags, out, f);
  if (r == 0 && io_is_uri (p->place))
    announce_start (*out);
  return r;
}

int
io_place_open (const char *place, int flags, enum io_file_lock lock,
               struct io_store **out, struct fault *f)
{
  const struct io_place_params p = {
    .place = place, .flags = flags, .lock = lock,
    .reconnect_delay = IO_RECONNECT_DELAY,
  };

  return io_place_open_with (&p, out, f);
}

/* --- Looking at a lease, and breaking it ------------------------------------ */

uint64_t
io_lease_bytes (struct io_store *s)
{
  const uint64_t size = io_max_size (s);
  struct io_lease_holder h;

  if (size == UINT64_MAX || size < 2 * IO_LEASE_BYTES ||
      io_lease_read (s, NULL, &h) != 1)
    return 0;
  return size - round_down_pow2 (size, 4096) + IO_LEASE_BYTES;
}

/* Opens PLACE without a lock, and *AREA, the file that its lease lies in; NULL: it
 * lies at the end of the place.  Returns 0 if it has no lease, else 1. */
static int
open_for_lease (const char *place, int flags, struct io_store **s,
                struct io_store **area, struct fault *f)
{
  int r = io_place_open (place, flags, IO_LOCK_NONE, s, f);

  *area = NULL;
  if (r < 0 || io_max_size (*s) != UINT64_MAX)
    return r < 0 ? r : io_max_size (*s) >= 2 * IO_LEASE_BYTES;
  r = open_lease_file (place, false, area, f);
  if (r == 0 && flags & IO_FILE_WRITE) {
    io_close (*area);
    r = open_lease_file (place, true, area, f);
  }
  return r == 0 ? 1 : r == -ENOENT ? 0 : r;
}

int
io_place_holder (const char *place, char text[IO_PLACE_HOLDER_TEXT],
                 struct fault *f)
{
  struct io_store *s = NULL, *area = NULL;
  struct io_lease_holder h;
  int r = open_for_lease (place, 0, &s, &area, f);

  if (r == 1) {
    r = io_lease_read (s, area, &h);
    if (r == -EINVAL)
      r = 0;                    /* there never was one */
    if (r < 0)
      (void) fault_io (f, -r, UINT64_MAX, "reading its lease: %s", strerror (-r));
  }
  if (r == 1 && h.state == IO_LEASE_FREE)
    r = 0;
  if (r == 1)
    io_lease_describe (&h, text);
  io_close (area);
  io_close (s);
  return r;
}

int
io_place_unlock (const char *place, struct fault *f)
{
  struct io_lease_params p = { .path = place };
  struct io_store *s = NULL;
  int r = open_for_lease (place, IO_FILE_WRITE, &s, &p.area, f);

  if (r == 1)
    r = io_lease_break (s, &p, f);
  io_close (p.area);
  io_close (s);
  return r;
}
