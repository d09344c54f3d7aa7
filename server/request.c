/* SPDX-License-Identifier: BSD-3-Clause */
/* The request path: turns requests of any alignment into operations on whole
 * guest clusters.
 *
 * A request is cut into pieces of whole clusters, and each piece is one
 * operation of the pool (at most DEDUP_CHUNK_*).  A request of one piece is
 * therefore atomic: after a crash it is there or it is not.
 *
 * A request is inside the disk's gate all the time, so that the disk does not
 * change its size meanwhile, nor its root end.
 *
 * Each piece locks the range of its clusters, shared for reads and exclusively
 * for all else.  A partial cluster is read, completed and written back under
 * one hold of the lock, so that writers of different bytes of a cluster do not
 * lose each other's data.  A thread holds one range at a time, so ranges cannot
 * deadlock.
 *
 * Whole clusters are passed down in the client's buffer.  A piece with a
 * partial cluster at an end is assembled in a buffer of its own.
 *
 * Each public function counts its request, with all the time that it took.
 *
 * Threads: any; the only state is the disk's.  Left out on purpose: caching,
 * and order between requests that are in flight together, which NBD does not
 * promise.
 */
#include <errno.h>
#include <string.h>

#include "aligned.h"
#include "checked.h"
#include "clock.h"
#include "disk-internal.h"

/* The most clusters of one dedup_unmap: 256 MiB of 4 KiB clusters.  Readers of
 * the range need not wait for the whole of a large trim then. */
#define MAX_UNMAP_CLUSTERS 65536u

#define CACHE_STEP_BYTES (1u << 20)

struct piece {
  uint64_t first, nr;           /* guest clusters */
  uint64_t guest_off;           /* the bytes of the request in them */
  size_t len;
};

static uint64_t
cluster_size (const struct srv_disk *d)
{
  return UINT64_C (1) << d->cluster_bits;
}

/* Returns the first piece of a request of LEN bytes (not 0) at GUEST_OFF. */
static struct piece
cut_piece (const struct srv_disk *d, uint64_t guest_off, uint64_t len)
{
  uint64_t first = guest_off >> d->cluster_bits;
  uint64_t end = (first + srv_disk_max_piece (d)) << d->cluster_bits;
  uint64_t piece_len = MIN_OF (len, end - guest_off);
  uint64_t last = (guest_off + piece_len - 1) >> d->cluster_bits;

  return (struct piece) {
    .first = first, .nr = last - first + 1,
    .guest_off = guest_off, .len = piece_len,
  };
}

/* Checks a request that changes the disk, and notes that it begins: the loop
 * cleans up when nothing has changed for a while. */
static int MUST_CHECK
check_change (struct srv_disk *d, uint64_t guest_off, uint64_t len)
{
  if (!d->writable)
    return -EROFS;
  srv_disk_note_change (d);
  return srv_disk_check_range (d, guest_off, len);
}

/* Returns what the client is told of a request that changed the disk and ended
 * with R.  WROTE: the request needs space on the host, so its success shows
 * that there is some. */
static int
change_result (struct srv_disk *d, int r, bool wrote)
{
  if (r < 0 || wrote)
    srv_space_note (d->space, r);
  return srv_nbd_result (r);
}

static int MUST_CHECK
flush_if (struct srv_disk *d, bool fua)
{
  return fua ? dedup_flush (d->pool) : 0;
}

/* --- Read ---------------------------------------------------------------- */

static int MUST_CHECK
read_locked_range (struct srv_disk *d, void *buf, uint64_t guest_off,
                   size_t len)
{
  struct srv_range range;
  int r;

  r = srv_range_acquire (&d->ranges, &range, guest_off >> d->cluster_bits,
                         (guest_off + len - 1) >> d->cluster_bits, false);
  if (r < 0)
    return r;
  r = dedup_read (d->pool, d->root, buf, guest_off, len);
  srv_range_release (&d->ranges, &range);
  return r;
}

/* Announces to the host what a sequential reader will read after this request.
 * The range of the request itself was announced by earlier ones. */
static void
read_ahead (struct srv_disk *d, uint64_t guest_off, uint32_t len)
{
  struct srv_ahead a;

  if (len < SRV_READ_AHEAD_MIN) {
    srv_scattered_note (&d->scattered, NULL);
    return;
  }
  a = srv_read_ahead_note (&d->read_ahead, guest_off, len, d->size_bytes);
  srv_scattered_note (&d->scattered, &a);
  if (a.from < a.to &&
      !dedup_will_need (d->pool, d->root, a.from, a.to - a.from, true))
    srv_read_ahead_rest (&d->read_ahead, &a);
}

static int MUST_CHECK
read_pieces (struct srv_disk *d, char *buf, uint64_t guest_off, uint32_t len)
{
  int r = 0;

  while (r >= 0 && len > 0) {
    struct piece p = cut_piece (d, guest_off, len);

    r = read_locked_range (d, buf, p.guest_off, p.len);
    buf += p.len;
    guest_off += p.len;
    len -= p.len;
  }
  return r;
}

/* Reads take no range lock where nobody can write. */
static int MUST_CHECK
read_inside (struct srv_disk *d, void *buf, uint64_t guest_off, uint32_t len)
{
  int r = srv_disk_check_range (d, guest_off, len);

  if (r < 0)
    return r;
  read_ahead (d, guest_off, len);
  if (d->writable)
    r = read_pieces (d, buf, guest_off, len);
  else
    r = dedup_read (d->pool, d->root, buf, guest_off, len);
  return srv_nbd_result (r);
}

static int MUST_CHECK
read_gated (struct srv_disk *d, void *buf, uint64_t guest_off, uint32_t len)
{
  int r = srv_gate_enter (&d->gate);

  if (r < 0)
    return r;
  r = read_inside (d, buf, guest_off, len);
  srv_gate_leave (&d->gate);
  return r;
}

int
srv_pread (struct srv_disk *d, void *buf, uint64_t guest_off, uint32_t len)
{
  const uint64_t start_ns = clock_now_ns ();

  return srv_disk_count (d, SRV_REQUEST_READ, guest_off, len, start_ns,
                         read_gated (d, buf, guest_off, len));
}

/* Reads the range into a scratch buffer, which fills the table cache and the
 * host's page cache. */
static int MUST_CHECK
cache_pieces (struct srv_disk *d, uint64_t guest_off, uint32_t len)
{
  CLEANUP_FREE char *scratch = NULL;
  int r = srv_disk_check_range (d, guest_off, len);

  if (r < 0)
    return r;
  scratch = aligned_new (MIN_OF (len, CACHE_STEP_BYTES));
  if (scratch == NULL)
    return -ENOMEM;
  while (r >= 0 && len > 0) {
    uint32_t step = MIN_OF (len, CACHE_STEP_BYTES);

    r = read_gated (d, scratch, guest_off, step);
    guest_off += step;
    len -= step;
  }
  return r;
}

int
srv_cache (struct srv_disk *d, uint64_t guest_off, uint32_t len)
{
  const uint64_t start_ns = clock_now_ns ();

  return srv_disk_count (d, SRV_REQUEST_CACHE, guest_off, len, start_ns,
                         cache_pieces (d, guest_off, len));
}

/* --- Write --------------------------------------------------------------- */

/* Fills BOUNCE, which has room for the clusters of P, where the request has no
 * bytes: with those of the disk, and with zeroes past its end. */
static int MUST_CHECK
complete_piece (struct srv_disk *d, const struct piece *p, char *bounce)
{
  uint64_t start = p->first << d->cluster_bits;
  size_t total = p->nr << d->cluster_bits;
  size_t inside = MIN_OF (total, d->size_bytes - start);
  size_t head = p->guest_off - start;
  size_t tail = head + p->len;
  int r = 0;

  memset (bounce + inside, 0, total - inside);
  if (p->nr == 1 && head > 0 && tail < inside)
    return dedup_read (d->pool, d->root, bounce, start, inside);
  if (head > 0 && tail < inside)        /* both ends at once */
    (void) dedup_will_need (d->pool, d->root, start + tail, inside - tail,
                            false);
  if (head > 0)
    r = dedup_read (d->pool, d->root, bounce, start, head);
  if (r >= 0 && tail < inside)
    r = dedup_read (d->pool, d->root, bounce + tail, start + tail,
                    inside - tail);
  return r;
}

/* Writes the clusters of P from a buffer of their own.  BUF NULL means zeroes,
 * here and below. */
static int MUST_CHECK
write_bounced (struct srv_disk *d, const void *buf, const struct piece *p)
{
  size_t head = p->guest_off - (p->first << d->cluster_bits);
  CLEANUP_FREE char *bounce = aligned_new (p->nr << d->cluster_bits);
  int r;

  if (bounce == NULL)
    return -ENOMEM;
  r = complete_piece (d, p, bounce);
  if (r < 0)
    return r;
  if (buf)
    memcpy (bounce + head, buf, p->len);
  else
    memset (bounce + head, 0, p->len);
  return dedup_write (d->pool, d->root, bounce, p->first, p->nr);
}

static int MUST_CHECK
write_piece (struct srv_disk *d, const void *buf, const struct piece *p)
{
  struct srv_range range;
  int r;

  r = srv_range_acquire (&d->ranges, &range, p->first, p->first + p->nr - 1,
                         true);
  if (r < 0)
    return r;
  if (buf && p->len == p->nr << d->cluster_bits)
    r = dedup_write (d->pool, d->root, buf, p->first, p->nr);
  else
    r = write_bounced (d, buf, p);
  srv_range_release (&d->ranges, &range);
  return r;
}

static int MUST_CHECK
write_range (struct srv_disk *d, const char *buf, uint64_t guest_off,
             uint64_t len)
{
  int r = 0;

  while (r >= 0 && len > 0) {
    struct piece p = cut_piece (d, guest_off, len);

    r = write_piece (d, buf, &p);
    if (buf)
      buf += p.len;
    guest_off += p.len;
    len -= p.len;
  }
  return r;
}

int
srv_disk_fill (struct srv_disk *d, const void *buf, uint64_t guest_off,
               uint64_t len)
{
  int r = srv_gate_enter (&d->gate);

  if (r < 0)
    return r;
  r = srv_disk_check_range (d, guest_off, len);
  if (r == 0)
    r = write_range (d, buf, guest_off, len);
  srv_gate_leave (&d->gate);
  return MIN_OF (r, 0);
}

static int MUST_CHECK
write_inside (struct srv_disk *d, const void *buf, uint64_t guest_off,
              uint32_t len, bool fua)
{
  int r = check_change (d, guest_off, len);

  if (r < 0)
    return r;
  r = write_range (d, buf, guest_off, len);
  if (r >= 0)
    r = flush_if (d, fua);
  return change_result (d, r, true);
}

static int MUST_CHECK
write_gated (struct srv_disk *d, const void *buf, uint64_t guest_off,
             uint32_t len, bool fua)
{
  int r = srv_gate_enter (&d->gate);

  if (r < 0)
    return r;
  r = write_inside (d, buf, guest_off, len, fua);
  srv_gate_leave (&d->gate);
  return r;
}

int
srv_pwrite (struct srv_disk *d, const void *buf, uint64_t guest_off,
            uint32_t len, bool fua)
{
  const uint64_t start_ns = clock_now_ns ();

  return srv_disk_count (d, SRV_REQUEST_WRITE, guest_off, len, start_ns,
                         write_gated (d, buf, guest_off, len, fua));
}

/* Flushes the pool, whose journal all disks share: so for a client of a
 * snapshot, too. */
static int MUST_CHECK
flush_gated (struct srv_disk *d)
{
  int r = srv_gate_enter (&d->gate);

  if (r < 0)
    return r;
  if (dedup_writable (d->pool))
    r = change_result (d, dedup_flush (d->pool), false);
  srv_gate_leave (&d->gate);
  return r;
}

int
srv_flush (struct srv_disk *d)
{
  const uint64_t start_ns = clock_now_ns ();

  return srv_disk_count (d, SRV_REQUEST_FLUSH, 0, 0, start_ns,
                         flush_gated (d));
}

/* --- Trim and zero ------------------------------------------------------- */

/* Finds the whole clusters inside a range: [*first, *end), with *first >= *end
 * if there are none.  A partial last cluster of the disk counts as whole in a
 * range that reaches the end of the disk. */
static void
whole_clusters (const struct srv_disk *d, uint64_t guest_off, uint64_t len,
                uint64_t *first, uint64_t *end)
{
  *first = div_round_up (guest_off, cluster_size (d));
  if (guest_off + len == d->size_bytes)
    *end = d->nr_clusters;
  else
    *end = (guest_off + len) >> d->cluster_bits;
}

static int MUST_CHECK
unmap_clusters (struct srv_disk *d, uint64_t first, uint64_t end,
                enum dedup_unmap how)
{
  int r = 0;

  while (r >= 0 && first < end) {
    uint64_t nr = MIN_OF (end - first, MAX_UNMAP_CLUSTERS);
    struct srv_range range;

    r = srv_range_acquire (&d->ranges, &range, first, first + nr - 1, true);
    if (r < 0)
      return r;
    r = dedup_unmap (d->pool, d->root, first, nr, how);
    srv_range_release (&d->ranges, &range);
    first += nr;
  }
  return r;
}

/* Leaves clusters at the ends that are only partly in the range: a trim is a
 * hint. */
static int MUST_CHECK
trim_inside (struct srv_disk *d, uint64_t guest_off, uint32_t len, bool fua)
{
  uint64_t first, end;
  int r = check_change (d, guest_off, len);

  if (r < 0)
    return r;
  whole_clusters (d, guest_off, len, &first, &end);
  if (len > 0)
    r = unmap_clusters (d, first, end, DEDUP_TRIM);
  if (r >= 0)
    r = flush_if (d, fua);
  return change_result (d, r, false);
}

static int MUST_CHECK
trim_gated (struct srv_disk *d, uint64_t guest_off, uint32_t len, bool fua)
{
  int r = srv_gate_enter (&d->gate);

  if (r < 0)
    return r;
  r = trim_inside (d, guest_off, len, fua);
  srv_gate_leave (&d->gate);
  return r;
}

int
srv_trim (struct srv_disk *d, uint64_t guest_off, uint32_t len, bool fua)
{
  const uint64_t start_ns = clock_now_ns ();

  return srv_disk_count (d, SRV_REQUEST_TRIM, guest_off, len, start_ns,
                         trim_gated (d, guest_off, len, fua));
}

static int MUST_CHECK
zero_range (struct srv_disk *d, uint64_t guest_off, uint64_t len,
            enum dedup_unmap how)
{
  uint64_t first, end, middle_off, middle_end, range_end = guest_off + len;
  int r;

  whole_clusters (d, guest_off, len, &first, &end);
  if (first >= end)
    return write_range (d, NULL, guest_off, len);

  middle_off = first << d->cluster_bits;
  middle_end = MIN_OF (end << d->cluster_bits, range_end);
  r = write_range (d, NULL, guest_off, middle_off - guest_off);
  if (r >= 0)
    r = unmap_clusters (d, first, end, how);
  if (r >= 0)
    r = write_range (d, NULL, middle_end, range_end - middle_end);
  return r;
}

static int MUST_CHECK
zero_inside (struct srv_disk *d, uint64_t guest_off, uint32_t len,
             enum dedup_unmap how, bool fua)
{
  int r = check_change (d, guest_off, len);

  if (r < 0)
    return r;
  if (len > 0)
    r = zero_range (d, guest_off, len, how);
  if (r >= 0)
    r = flush_if (d, fua);
  return change_result (d, r, false);
}

static int MUST_CHECK
zero_gated (struct srv_disk *d, uint64_t guest_off, uint32_t len,
            bool may_trim, bool fua)
{
  int r = srv_gate_enter (&d->gate);

  if (r < 0)
    return r;
  r = zero_inside (d, guest_off, len, may_trim ? DEDUP_TRIM : DEDUP_ZERO, fua);
  srv_gate_leave (&d->gate);
  return r;
}

int
srv_zero (struct srv_disk *d, uint64_t guest_off, uint32_t len,
          bool may_trim, bool fast, bool fua)
{
  const uint64_t start_ns = clock_now_ns ();

  return srv_disk_count (d, SRV_REQUEST_ZERO, guest_off, len, start_ns,
                         zero_gated (d, guest_off, len, may_trim, fua));
}
