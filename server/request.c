/* SPDX-License-Identifier: BSD-3-Clause */
/* The request path: ranges of bytes in, whole guest clusters out.
 *
 * A request is cut into pieces of whole clusters that the disk takes as one
 * operation each (DEDUP_CHUNK_*); a request that fits in a chunk is one
 * operation, so after a crash it is there or it is not.  Each piece holds
 * its clusters in the range lock, shared for reads, exclusive for the rest:
 * what completes a partial cluster is read and written back under one hold,
 * so that writers of different bytes of one cluster lose nothing.  No piece
 * holds more than one range, so nothing can deadlock.
 *
 * Whole clusters go down from the client's buffer; a piece with a partial
 * end is put together in a buffer of its own.
 *
 * Threads: any.  There is no state here but the range lock and the time of
 * the last change.  Not done here on purpose: order between requests that
 * are under way together (NBD promises none), and caching.
 */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "aligned.h"
#include "checked.h"
#include "internal.h"

/* Clusters per dedup_unmap: 256 MiB of 4 KiB clusters, so that readers of
 * the range need not wait for the whole of a large trim. */
#define MAX_UNMAP_CLUSTERS 65536u

#define CACHE_STEP_BYTES (1u << 20)

#define EXTENTS_PER_MAP 64

struct piece {
  uint64_t first, nr;           /* guest clusters */
  uint64_t guest_off;           /* the request's bytes in them */
  size_t len;
};

static uint64_t
cluster_size (const struct srv_export *e)
{
  return UINT64_C (1) << e->cluster_bits;
}

static uint64_t
max_piece_clusters (const struct srv_export *e)
{
  uint64_t nr = DEDUP_CHUNK_BYTES >> e->cluster_bits;

  return MAX_OF (1, MIN_OF (nr, DEDUP_CHUNK_CLUSTERS));
}

/* The first piece of LEN bytes (not 0) at GUEST_OFF. */
static struct piece
cut_piece (const struct srv_export *e, uint64_t guest_off, uint64_t len)
{
  uint64_t first = guest_off >> e->cluster_bits;
  uint64_t end = (first + max_piece_clusters (e)) << e->cluster_bits;
  uint64_t piece_len = MIN_OF (len, end - guest_off);
  uint64_t last = (guest_off + piece_len - 1) >> e->cluster_bits;

  return (struct piece) {
    .first = first, .nr = last - first + 1,
    .guest_off = guest_off, .len = piece_len,
  };
}

/* Reads of a file can fail in more ways than NBD knows; -EINVAL from below
 * means bytes that contradict the format, which is not the client's doing. */
static int
nbd_result (int r)
{
  switch (-r) {
  case 0: case EIO: case ENOSPC: case ENOMEM: case EPERM: case EROFS:
  case ENOTSUP: case ESHUTDOWN:
    return r;
  case EDQUOT: case EFBIG:
    return -ENOSPC;
  default:
    return r > 0 ? 0 : -EIO;
  }
}

static int MUST_CHECK
check_range (const struct srv_export *e, uint64_t guest_off, uint64_t len)
{
  if (guest_off > e->size_bytes || len > e->size_bytes - guest_off)
    return -EINVAL;
  return 0;
}

uint64_t
srv_root_size (const struct srv_export *e, unsigned root)
{
  const struct qcow2_snapshot *v;

  if (root == SRV_ROOT_ACTIVE)
    return e->size_bytes;
  if (root > qcow2_snapshots (dedup_image (e->disk), &v))
    return 0;
  return MIN_OF (v[root - 1].disk_size, INT64_MAX);
}

static int MUST_CHECK
check_root_range (const struct srv_export *e, unsigned root,
                  uint64_t guest_off, uint64_t len)
{
  uint64_t size = srv_root_size (e, root);

  return guest_off > size || len > size - guest_off ? -EINVAL : 0;
}

/* Also notes the time: the loop cleans up when nothing has changed for a
 * while. */
static int MUST_CHECK
check_change (struct srv_export *e, uint64_t guest_off, uint64_t len)
{
  struct timespec t;

  if (!e->writable)
    return -EROFS;
  clock_gettime (CLOCK_MONOTONIC, &t);
  __atomic_store_n (&e->last_change_ns,
                    (uint64_t) t.tv_sec * 1000000000 + (uint64_t) t.tv_nsec,
                    __ATOMIC_RELAXED);
  return check_range (e, guest_off, len);
}

/* The result of a request that changes something, for the client; WROTE: it
 * would have needed space if the host had any. */
static int
change_result (struct srv_export *e, int r, bool wrote)
{
  if (r < 0 || wrote)
    srv_space_note (&e->space, r);
  return nbd_result (r);
}

static int MUST_CHECK
flush_if (struct srv_export *e, bool fua)
{
  return fua ? dedup_flush (e->disk) : 0;
}

/* --- Read ---------------------------------------------------------------- */

static int MUST_CHECK
read_locked_range (struct srv_export *e, void *buf, uint64_t guest_off,
                   size_t len)
{
  struct srv_range range;
  int r;

  srv_range_acquire (&e->ranges, &range, guest_off >> e->cluster_bits,
                     (guest_off + len - 1) >> e->cluster_bits, false);
  r = dedup_read (e->disk, QCOW2_ROOT_ACTIVE, buf, guest_off, len);
  srv_range_release (&e->ranges, &range);
  return r;
}

/* A request that continues a sequential reader: announce what comes next.  What
 * it asks for itself was announced by those before. */
static void
read_ahead (struct srv_export *e, unsigned root, uint64_t guest_off,
            uint32_t len, uint64_t size)
{
  struct srv_ahead a;

  if (len < SRV_READ_AHEAD_MIN)
    return;
  a = srv_read_ahead_note (&e->read_ahead, root, guest_off, len, size);
  if (a.from < a.to &&
      !dedup_will_need (e->disk, root, a.from, a.to - a.from, true))
    srv_read_ahead_rest (&e->read_ahead, &a);
}

int
srv_pread (struct srv_export *e, void *buf, uint64_t guest_off, uint32_t len)
{
  char *out = buf;
  int r = check_range (e, guest_off, len);

  if (r >= 0)
    read_ahead (e, QCOW2_ROOT_ACTIVE, guest_off, len, e->size_bytes);
  while (r >= 0 && len > 0) {
    struct piece p = cut_piece (e, guest_off, len);

    r = nbd_result (read_locked_range (e, out, p.guest_off, p.len));
    out += p.len;
    guest_off += p.len;
    len -= p.len;
  }
  return r;
}

/* Nobody writes to a snapshot, nor frees its clusters: no range lock. */
int
srv_root_pread (struct srv_export *e, unsigned root, void *buf,
                uint64_t guest_off, uint32_t len)
{
  int r;

  if (root == SRV_ROOT_ACTIVE)
    return srv_pread (e, buf, guest_off, len);
  r = check_root_range (e, root, guest_off, len);
  if (r < 0)
    return r;
  read_ahead (e, root, guest_off, len, srv_root_size (e, root));
  return nbd_result (dedup_read (e->disk, root, buf, guest_off, len));
}

/* Reading is what warms the tables and the host's page cache. */
int
srv_root_cache (struct srv_export *e, unsigned root, uint64_t guest_off,
                uint32_t len)
{
  CLEANUP_FREE char *scratch = NULL;
  int r = check_root_range (e, root, guest_off, len);

  if (r < 0)
    return r;
  scratch = aligned_new (MIN_OF (len, CACHE_STEP_BYTES));
  if (scratch == NULL)
    return -ENOMEM;
  while (r >= 0 && len > 0) {
    uint32_t step = MIN_OF (len, CACHE_STEP_BYTES);

    r = srv_root_pread (e, root, scratch, guest_off, step);
    guest_off += step;
    len -= step;
  }
  return r;
}

int
srv_cache (struct srv_export *e, uint64_t guest_off, uint32_t len)
{
  return srv_root_cache (e, SRV_ROOT_ACTIVE, guest_off, len);
}

/* --- Write --------------------------------------------------------------- */

/* Fill what the request leaves of the piece's clusters in BOUNCE: from the
 * disk, and past its end with zeroes. */
static int MUST_CHECK
complete_piece (struct srv_export *e, const struct piece *p, char *bounce)
{
  uint64_t start = p->first << e->cluster_bits;
  size_t total = p->nr << e->cluster_bits;
  size_t inside = MIN_OF (total, e->size_bytes - start);
  size_t head = p->guest_off - start;
  size_t tail = head + p->len;
  int r = 0;

  memset (bounce + inside, 0, total - inside);
  if (p->nr == 1 && head > 0 && tail < inside)
    return dedup_read (e->disk, QCOW2_ROOT_ACTIVE, bounce, start, inside);
  if (head > 0 && tail < inside)        /* both ends at once */
    (void) dedup_will_need (e->disk, QCOW2_ROOT_ACTIVE, start + tail,
                            inside - tail, false);
  if (head > 0)
    r = dedup_read (e->disk, QCOW2_ROOT_ACTIVE, bounce, start, head);
  if (r >= 0 && tail < inside)
    r = dedup_read (e->disk, QCOW2_ROOT_ACTIVE, bounce + tail, start + tail,
                    inside - tail);
  return r;
}

/* BUF NULL stands for zeroes, here and below. */
static int MUST_CHECK
write_bounced (struct srv_export *e, const void *buf, const struct piece *p)
{
  size_t head = p->guest_off - (p->first << e->cluster_bits);
  CLEANUP_FREE char *bounce = aligned_new (p->nr << e->cluster_bits);
  int r;

  if (bounce == NULL)
    return -ENOMEM;
  r = complete_piece (e, p, bounce);
  if (r < 0)
    return r;
  if (buf)
    memcpy (bounce + head, buf, p->len);
  else
    memset (bounce + head, 0, p->len);
  return dedup_write (e->disk, QCOW2_ROOT_ACTIVE, bounce, p->first, p->nr);
}

static int MUST_CHECK
write_piece (struct srv_export *e, const void *buf, const struct piece *p)
{
  struct srv_range range;
  int r;

  srv_range_acquire (&e->ranges, &range, p->first, p->first + p->nr - 1,
                     true);
  if (buf && p->len == p->nr << e->cluster_bits)
    r = dedup_write (e->disk, QCOW2_ROOT_ACTIVE, buf, p->first, p->nr);
  else
    r = write_bounced (e, buf, p);
  srv_range_release (&e->ranges, &range);
  return r;
}

static int MUST_CHECK
write_range (struct srv_export *e, const char *buf, uint64_t guest_off,
             uint64_t len)
{
  int r = 0;

  while (r >= 0 && len > 0) {
    struct piece p = cut_piece (e, guest_off, len);

    r = write_piece (e, buf, &p);
    if (buf)
      buf += p.len;
    guest_off += p.len;
    len -= p.len;
  }
  return r;
}

int
srv_pwrite (struct srv_export *e, const void *buf, uint64_t guest_off,
            uint32_t len, bool fua)
{
  int r = check_change (e, guest_off, len);

  if (r < 0)
    return r;
  r = write_range (e, buf, guest_off, len);
  if (r >= 0)
    r = flush_if (e, fua);
  return change_result (e, r, true);
}

int
srv_flush (struct srv_export *e)
{
  if (!e->writable)
    return 0;
  return change_result (e, dedup_flush (e->disk), false);
}

/* --- Trim and zero ------------------------------------------------------- */

/* The whole clusters inside a range: [*first, *end), *first >= *end if there
 * is none.  A partial last cluster of the disk is whole for a range that
 * reaches the disk's end. */
static void
whole_clusters (const struct srv_export *e, uint64_t guest_off, uint64_t len,
                uint64_t *first, uint64_t *end)
{
  *first = div_round_up (guest_off, cluster_size (e));
  if (guest_off + len == e->size_bytes)
    *end = e->nr_clusters;
  else
    *end = (guest_off + len) >> e->cluster_bits;
}

static int MUST_CHECK
unmap_clusters (struct srv_export *e, uint64_t first, uint64_t end,
                enum dedup_unmap how)
{
  int r = 0;

  while (r >= 0 && first < end) {
    uint64_t nr = MIN_OF (end - first, MAX_UNMAP_CLUSTERS);
    struct srv_range range;

    srv_range_acquire (&e->ranges, &range, first, first + nr - 1, true);
    r = dedup_unmap (e->disk, QCOW2_ROOT_ACTIVE, first, nr, how);
    srv_range_release (&e->ranges, &range);
    first += nr;
  }
  return r;
}

/* A trim is a hint: what it does not cover wholly stays. */
int
srv_trim (struct srv_export *e, uint64_t guest_off, uint32_t len, bool fua)
{
  uint64_t first, end;
  int r = check_change (e, guest_off, len);

  if (r < 0)
    return r;
  whole_clusters (e, guest_off, len, &first, &end);
  if (len > 0)
    r = unmap_clusters (e, first, end, DEDUP_TRIM);
  if (r >= 0)
    r = flush_if (e, fua);
  return change_result (e, r, false);
}

static int MUST_CHECK
zero_range (struct srv_export *e, uint64_t guest_off, uint64_t len,
            enum dedup_unmap how)
{
  uint64_t first, end, middle_off, middle_end, range_end = guest_off + len;
  int r;

  whole_clusters (e, guest_off, len, &first, &end);
  if (first >= end)
    return write_range (e, NULL, guest_off, len);

  middle_off = first << e->cluster_bits;
  middle_end = MIN_OF (end << e->cluster_bits, range_end);
  r = write_range (e, NULL, guest_off, middle_off - guest_off);
  if (r >= 0)
    r = unmap_clusters (e, first, end, how);
  if (r >= 0)
    r = write_range (e, NULL, middle_end, range_end - middle_end);
  return r;
}

int
srv_zero (struct srv_export *e, uint64_t guest_off, uint32_t len,
          bool may_trim, bool fast, bool fua)
{
  int r = check_change (e, guest_off, len);

  if (r < 0)
    return r;
  if (len > 0)
    r = zero_range (e, guest_off, len, may_trim ? DEDUP_TRIM : DEDUP_ZERO);
  if (r >= 0)
    r = flush_if (e, fua);
  return change_result (e, r, false);
}

/* --- Extents ------------------------------------------------------------- */

struct extent_merge {
  int (*cb) (void *opaque, uint64_t guest_off, uint64_t len,
             enum srv_extent_type type);
  void *opaque;
  bool only_one, done;

  /* The extent that grows; none while len is 0. */
  uint64_t guest_off, len;
  enum srv_extent_type type;
};

static int MUST_CHECK
emit_extent (struct extent_merge *m)
{
  int r;

  if (m->len == 0 || m->done)
    return 0;
  r = m->cb (m->opaque, m->guest_off, m->len, m->type);
  m->done = r != 0 || m->only_one;
  m->guest_off += m->len;
  m->len = 0;
  return r;
}

static int MUST_CHECK
add_extent (struct extent_merge *m, uint64_t len, enum srv_extent_type type)
{
  int r = 0;

  if (m->len > 0 && m->type != type)
    r = emit_extent (m);
  m->type = type;
  m->len += len;
  return r;
}

/* Nothing of its own here: what does the backing chain say? */
static int MUST_CHECK
add_unallocated (struct srv_export *e, struct extent_merge *m,
                 uint64_t guest_off, uint64_t len)
{
  struct qcow2_image *img = dedup_image (e->disk);
  int r = 0;

  while (r == 0 && len > 0 && !m->done) {
    uint64_t run = len;
    enum qcow2_kind kind;

    r = qcow2_backing_status (img, guest_off, &run, &kind);
    if (r < 0)
      return nbd_result (r);
    if (run == 0 || run > len)
      return -EIO;
    r = add_extent (m, run, kind == QCOW2_DATA ? SRV_DATA : SRV_HOLE_ZERO);
    guest_off += run;
    len -= run;
  }
  return r;
}

static int MUST_CHECK
add_mapped (struct srv_export *e, struct extent_merge *m,
            const struct qcow2_extent *ext)
{
  switch (ext->kind) {
  case QCOW2_UNALLOCATED:
    return add_unallocated (e, m, ext->guest_off, ext->len);
  case QCOW2_ZERO:
    return add_extent (m, ext->len, SRV_ZERO);
  default:
    return add_extent (m, ext->len, SRV_DATA);
  }
}

/* One call's worth; *COVERED: how far it got. */
static int MUST_CHECK
add_range (struct srv_export *e, unsigned root, struct extent_merge *m,
           uint64_t guest_off, uint64_t len, uint64_t *covered)
{
  struct qcow2_extent ext[EXTENTS_PER_MAP];
  int nr, i, r = 0;

  *covered = 0;
  nr = qcow2_map (dedup_image (e->disk), root, guest_off, len, ext,
                  EXTENTS_PER_MAP);
  if (nr <= 0)
    return nr < 0 ? nbd_result (nr) : -EIO;
  for (i = 0; i < nr && r == 0 && !m->done; ++i) {
    r = add_mapped (e, m, &ext[i]);
    *covered += ext[i].len;
  }
  return r;
}

int
srv_root_extents (struct srv_export *e, unsigned root, uint64_t guest_off,
                  uint32_t len, bool only_one, srv_extent_cb cb, void *opaque)
{
  struct extent_merge m = {
    .cb = cb, .opaque = opaque, .only_one = only_one, .guest_off = guest_off,
  };
  uint64_t covered;
  int r = check_root_range (e, root, guest_off, len);

  while (r == 0 && len > 0 && !m.done) {
    r = add_range (e, root, &m, guest_off, len, &covered);
    guest_off += covered;
    len -= covered;
  }
  return r == 0 ? emit_extent (&m) : r;
}

int
srv_extents (struct srv_export *e, uint64_t guest_off, uint32_t len,
             bool only_one, srv_extent_cb cb, void *opaque)
{
  return srv_root_extents (e, SRV_ROOT_ACTIVE, guest_off, len, only_one, cb,
                           opaque);
}
