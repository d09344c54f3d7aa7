/* SPDX-License-Identifier: BSD-3-Clause */
/* Sets each field of each structure on disk to what it must not be: 0, 1, the
 * maximum, misaligned, one more, the place of each other structure and its
 * own, and makes it a compressed entry of these places.  Checksums are made
 * right.  Then the image opens or is refused with a line that says why and
 * not a byte changed; and after writes, trims and a close, no guest cluster
 * of any disk that the poke left alone and nobody wrote has other bytes, the
 * check finds no more harm than before, and a persistent bitmap that can be
 * relied on knows what changed.
 *
 * poke [EVERY [FIRST [BASE]]]: each EVERYth case (1), from FIRST on; of one
 * image only (its number in enum base_kind).  A case that fails is printed with
 * its number: poke 1000000 NUMBER runs it alone.
 */
#include "fuzz.h"

#include <errno.h>
#include <stdio.h>
#include <time.h>

#include "checked.h"
#include "dedup.h"
#include "image.h"
#include "poke-bitmaps.h"

#define GUEST_CLUSTERS 2048u   /* as the bases have, or fewer */
#define FRESH 300u             /* where new data goes; see work_on */
#define NR_FRESH 120u

/* A reference to nowhere is one complaint; once the file has grown to there,
 * it is three: of its flag, of the refcount, of the area.  A compressed entry has no
 * flag, and refers to up to three clusters. */
#define SAME_HARM 3u
#define SAME_HARM_COMPRESSED 6u

/* An entry that names the data of another guest cluster, or a refcount that
 * does not count it, costs that one when it is dropped: nobody could know
 * without counting all references. */
#define SAME_DATA 1u

struct field {
  const char *name;
  uint32_t off;
  unsigned width;
};

#define F(name, off, width) { #name, off, width }

static const struct field header_fields[] = {
  F (version, 4, 4), F (backing_off, 8, 8), F (backing_len, 16, 4),
  F (cluster_bits, 20, 4), F (size, 24, 8), F (crypt, 32, 4),
  F (l1_entries, 36, 4), F (l1_off, 40, 8), F (reftable_off, 48, 8),
  F (reftable_clusters, 56, 4), F (nr_snapshots, 60, 4),
  F (snapshots_off, 64, 8), F (incompatible, 72, 8), F (compatible, 80, 8),
  F (autoclear, 88, 8), F (refcount_order, 96, 4), F (header_length, 100, 4),
  F (compression, 104, 1), F (ext_type, 112, 4), F (ext_len, 116, 4),
  F (ext_config_off, 120, 8), F (ext_config_size, 128, 4),
  F (ext_flags, 136, 4), F (ext_hash, 140, 1), F (ext_layout, 141, 1),
  { NULL }
};
static const struct field snapshot_fields[] = {
  F (l1_off, 0, 8), F (l1_entries, 8, 4), F (id_len, 12, 2),
  F (name_len, 14, 2), F (vm_state, 32, 4), F (extra_len, 36, 4),
  F (vm_state_64, 40, 8), F (disk_size, 48, 8), F (id, 56, 1), { NULL }
};
static const struct field config_fields[] = {
  F (version, 8, 4), F (length, 12, 4), F (store_id, 16, 8),
  F (generation, 24, 8), F (epoch, 32, 4), F (block_size, 36, 4),
  F (epoch_start, 40, 8), F (checkpoint, 48, 8), F (index_start, 56, 8),
  F (order, 64, 4), F (max_incarnations, 68, 4), F (nr_areas, 72, 4),
  F (nr_incarnations, 76, 4), F (nr_limbo, 80, 4), F (flags, 84, 4),
  F (next_id, 88, 8), F (max_areas, 96, 4), F (area_size, 100, 4),
  F (reserved, 112, 8), F (area_off, 128, 8), F (area_first, 136, 8),
  F (area_blocks, 144, 4), F (area_pad, 148, 4), F (area2_off, 152, 8),
  F (area2_first, 160, 8), F (area3, 176, 8), F (inc, 184, 8),
  F (inc, 192, 8), F (inc, 200, 8), F (inc, 208, 8), F (inc, 216, 8),
  /* Incarnations, limbo, segments, lookups, cuts: as the image has them. */
  F (array, 224, 8), F (array, 232, 8), F (array, 240, 8), F (array, 248, 8),
  F (array, 256, 8), F (array, 264, 8), F (array, 272, 8), F (array, 280, 8),
  F (array, 288, 8), F (array, 296, 8), F (array, 304, 8), F (array, 312, 8),
  F (array, 320, 8), F (array, 328, 8), F (array, 336, 8), F (array, 344, 8),
  F (array, 352, 8), F (array, 360, 8), F (array, 368, 8), F (array, 376, 8),
  { NULL }
};
static const struct field block_fields[] = {
  F (magic, 0, 8), F (store_id, 8, 8), F (seq, 16, 8), F (durable, 24, 8),
  F (epoch, 32, 4), F (length, 36, 4), F (record_size, 48, 1),
  F (record_type, 49, 1), F (record, 50, 2), F (record, 52, 8),
  F (record, 60, 8), F (record, 84, 8), F (record, 92, 8), { NULL }
};
static const struct field head_fields[] = {
  F (magic, 0, 8), F (store_id, 8, 8), F (id, 16, 8), F (order, 24, 4),
  F (entries, 28, 4), F (tombstones, 32, 4), F (filter_pages, 36, 4),
  F (table_pages, 40, 8), F (filter_sum, 48, 8), { NULL }
};
static const struct field page_fields[] = {
  F (magic, 0, 8), F (id, 8, 8), F (page, 16, 8), F (hash, 32, 8),
  F (value, 64, 8), F (value, 104, 8), { NULL }
};
static const struct field table_fields[] = {
  F (entry, 0, 8), F (entry, 8, 8), F (entry, 32, 8), F (half, 2, 2),
  F (half, 6, 2), F (half, 24, 2), F (half, 100, 2), { NULL }
};

static const struct field seg_head_fields[] = {
  F (magic, 0, 8), F (store_id, 8, 8), F (id, 16, 8), F (lo, 24, 4),
  F (hi, 28, 4), F (entries, 32, 4), F (tombstones, 36, 4), F (bits, 40, 4),
  F (shards, 44, 4), F (words, 48, 8), { NULL }
};
static const struct field seg_meta_fields[] = {     /* behind the entries */
  F (fence, 0, 4), F (fence, 4, 4), F (fence, 8, 4), F (shard, 12, 4),
  F (seed, 16, 4), F (shard, 20, 4), F (words, 24, 8), F (words, 64, 8),
  F (words, 504, 8), { NULL }
};
static const struct field seg_page_fields[] = {
  F (magic, 0, 8), F (id, 8, 8), F (number, 16, 4), F (entries, 20, 4),
  F (hash, 32, 8), F (value, 64, 8), F (hash, 72, 8), F (value, 104, 8),
  F (hash, 4032, 8), F (value, 4064, 8), { NULL }
};
static const struct field bitmap_fields[] = {
  F (table, 0, 8), F (table_entries, 8, 4), F (flags, 12, 4), F (type, 16, 1),
  F (granularity, 17, 1), F (name_len, 18, 2), F (extra_len, 20, 4),
  F (name, 24, 1), { NULL }
};
static const struct field bitmap_ext_fields[] = {
  F (type, 0, 4), F (len, 4, 4), F (nr, 8, 4), F (reserved, 12, 4),
  F (dir_size, 16, 8), F (dir_off, 24, 8), { NULL }
};

static const struct field disk_fields[] = {
  F (l1_off, 0, 8), F (l1_entries, 8, 4), F (id_len, 12, 2),
  F (name_len, 14, 2), F (vm_state, 32, 4), F (extra_len, 36, 4),
  F (vm_state_64, 40, 8), F (disk_size, 48, 8), F (icount, 56, 8),
  F (magic, 64, 8), F (disk_version, 72, 4), F (disk_flags, 76, 4),
  F (uuid, 80, 8), F (origin, 96, 8), F (created, 112, 8),
  F (disk_compress, 120, 1), F (disk_reserved, 121, 4), F (id, 128, 1), F (name, 129, 1), { NULL }
};

struct poke {
  const struct base *base;
  enum base_kind kind;
  const struct place *place;
  const struct field *field;
  uint64_t value;
};

static void
print_line (void *opaque, enum log_level level, const char *line)
{
  printf ("log: %s\n", line);
}

static const struct log_sink sink = { .write = print_line };
#define MAX_CPU_MS 10000       /* of one case; most take 4, under ASAN 40 */

static bool verbose;           /* one case alone */
static int only = -1;          /* of this base */
static unsigned every = 1, first, number, nr_cases, nr_run, nr_refused, nr_failed;

static const struct field *
fields_of (const struct base *b, const struct place *p, size_t i)
{
  switch (p->kind) {
  case PLACE_CONFIG: return config_fields;
  case PLACE_JOURNAL: return block_fields;
  case PLACE_INC_HEAD: return head_fields;
  case PLACE_INC_PAGE: return page_fields;
  case PLACE_SEG_HEAD: return p->host_off == p->head_off ? seg_head_fields
      : seg_meta_fields;
  case PLACE_SEG_PAGE: return seg_page_fields;
  case PLACE_BITMAP: return p->host_off < PLAIN_CLUSTER ? bitmap_ext_fields
      : bitmap_fields;
  case PLACE_DISK: return disk_fields;
  case PLACE_TABLE: break;
  }
  if (i == 0)
    return header_fields;
  return p->len % 512 != 0 && p->len > 32 && p->len < 512 &&
    b->bytes[p->host_off + 36] == 0 && b->bytes[p->host_off + 39] == 16
    ? snapshot_fields : table_fields;
}

/* --- One case --------------------------------------------------------------- */

static void
fail (const struct poke *k, const char *what, uint64_t n)
{
  nr_failed++;
  printf ("case %u: base %d, place 0x%llx (%d), %s at %u := 0x%llx: %s %llu\n",
          number, k->kind, (unsigned long long) k->place->host_off,
          k->place->kind, k->field->name, k->field->off,
          (unsigned long long) k->value, what, (unsigned long long) n);
}

static uint64_t
same_harm (const struct poke *k)
{
  return k->value & QCOW2_L2_COMPRESSED ? SAME_HARM_COMPRESSED : SAME_HARM;
}

/* The external data file of the case, in memory, whatever its name. */
static struct io_store *data_file;

static void
attach_data (struct dedup_pool *d)
{
  struct qcow2_image *img = dedup_image (d);

  if (qcow2_geometry (img)->has_data_file)
    img->data = data_file;
}

static void
close_disk (struct dedup_pool *d)
{
  dedup_image (d)->data = NULL;
  dedup_free (d);
}

static int
open_disk (struct io_store *io, bool writable, struct dedup_pool **d,
           struct fault *f)
{
  struct dedup_open_params p = {
    .path = "poke", .writable = writable, .dedup = true, .verify = true,
    .max_incarnations = -1, .cache_bytes = 1 << 20, .order = 4,
    .host_files = QCOW2_FILES_IGNORE, .log = verbose ? &sink : NULL,
  };

  int r;

  memset (f, 0, sizeof *f);
  *d = NULL;
  r = dedup_open (io, &p, d, f);
  if (r == 0)
    attach_data (*d);
  return r;
}

#define MAX_DISKS 8u           /* beside the active one */
#define WRITTEN_DISKS 2u       /* of these, the first */

struct disk_view {
  char name[32];
  uint64_t nr;
  uint64_t sum[GUEST_CLUSTERS];
};

struct view {                  /* of the guest's clusters */
  struct disk_view disks[MAX_DISKS];   /* by name; the active one is not there */
  unsigned nr_disks;
  uint64_t nr, size;
  uint64_t sum[GUEST_CLUSTERS];    /* 0: cannot be read */
  uint64_t harm;               /* corruptions and errors that check finds */
  bool opened;
  struct bitmaps bitmaps;
};

static void
print_problem (void *opaque, bool is_leak, const char *line)
{
  if (verbose && !is_leak)
    printf ("check: %s\n", line);
}

/* Sums the clusters of a root of BYTES bytes; returns how many. */
static uint64_t
sum_root (struct dedup_pool *d, unsigned root, uint64_t bytes, uint64_t size,
          uint64_t sum[GUEST_CLUSTERS])
{
  const uint64_t nr = MIN_OF (div_round_up (bytes, size), GUEST_CLUSTERS);
  CLEANUP_FREE uint8_t *buf = malloc (size);

  MUST (buf);
  for (uint64_t i = 0; i < nr; i++) {
    memset (buf, 0, size);
    if (dedup_read (d, root, buf, i * size,
                    MIN_OF (bytes - i * size, size)) == 0)
      sum[i] = dedup_checksum (buf, size) | 1;
  }
  return nr;
}

/* Looks at the disks beside the active one.  Of several with one name the first
 * counts, as everywhere. */
static void
see_disks (struct dedup_pool *d, struct view *v)
{
  struct dedup_disk_info *info;
  size_t nr;

  MUST (dedup_disk_list (d, &info, &nr) == 0);
  for (size_t i = 0; i < nr && v->nr_disks < MAX_DISKS; i++) {
    struct disk_view *at = &v->disks[v->nr_disks++];

    snprintf (at->name, sizeof at->name, "%s", info[i].name);
    at->nr = sum_root (d, info[i].root, info[i].size, v->size, at->sum);
  }
  dedup_disk_list_free (info, nr);
}

/* Returns how many corruptions and errors a check finds in the tables of the
 * file; UINT64_MAX: it cannot be checked. */
static uint64_t
harm_in (struct dedup_pool *d)
{
  const struct qcow2_check_params cp = { .problem = print_problem };
  struct dedup_check_result res = { 0 };
  struct fault f;

  return dedup_check (d, &cp, &res, &f) < 0 ? UINT64_MAX
    : res.image.corruptions + res.image.errors;
}

/* As harm_in, after a recovery of a copy: until then the tables in the file may be
 * older than the configuration, and lack store areas that it lists. */
static uint64_t
harm_when_recovered (struct io_store *io)
{
  size_t len = (size_t) io_size (io);
  CLEANUP_FREE uint8_t *bytes = malloc (len);
  struct io_store *copy;
  struct dedup_pool *d;
  uint64_t harm = UINT64_MAX;
  struct fault f;

  MUST (bytes && io_pread (io, bytes, len, 0) == 0);
  copy = store_of (bytes, len);
  if (open_disk (copy, true, &d, &f) == 0) {
    if (dedup_finish (d) == 0)
      harm = harm_in (d);
    close_disk (d);
  }
  io_close (copy);
  return harm;
}

static void
see (struct io_store *io, struct view *v)
{
  const struct qcow2_geometry *g;
  struct dedup_pool *d;
  struct fault f;

  memset (v, 0, sizeof *v);
  if (open_disk (io, false, &d, &f) < 0) {
    if (verbose)
      printf ("look: %s\n", f.msg);
    return;
  }
  v->opened = true;
  v->bitmaps = bitmaps_look (io);
  g = qcow2_geometry (dedup_image (d));
  v->size = g->cluster_size;
  v->nr = sum_root (d, QCOW2_ROOT_ACTIVE, g->virtual_size, v->size, v->sum);
  see_disks (d, v);
  v->harm = g->incompatible & QCOW2_INCOMPAT_RECOVERY
    ? harm_when_recovered (io) : harm_in (d);
  close_disk (d);
}

/* Is guest cluster I one that the work writes or trims? */
static bool
worked_on (uint64_t i)
{
  return i < 24 || (i >= FRESH && i < FRESH + NR_FRESH);
}

static void
run_jobs (struct dedup_pool *d)
{
  unsigned due;

  for (unsigned n = 0; n < 200 && (due = dedup_due (d, NULL)); n++)
    if (dedup_run (d, (enum dedup_job) (due & -due)) < 0)
      break;
}

/* Writes the clusters that are worked on through further disks, too: only where
 * these are new, so that what they share with the active one can be compared. */
static void
write_disks (struct dedup_pool *d, const uint8_t *buf, uint64_t i)
{
  struct dedup_disk_info *info;
  size_t nr;
  int r = 0;

  if (i < FRESH || i % 16 != 1)
    return;
  MUST (dedup_disk_list (d, &info, &nr) == 0);
  for (size_t k = 0; k < MIN_OF (nr, WRITTEN_DISKS); k++)
    if (info[k].writable && i < info[k].size / qcow2_geometry (dedup_image (d))->cluster_size)
      r = dedup_write (d, info[k].root, buf, i, 1);
  dedup_disk_list_free (info, nr);
  (void) r;
}

/* Indexes what the active disk has. */
static void
index_all (struct dedup_pool *d)
{
  struct dedup_existing res = { 0 };
  uint64_t at = 0;
  size_t nr;

  while (dedup_existing_next (d, &at, &nr, &res) == 1 &&
         dedup_existing_index (d, at, nr, false, &res) == 0)
    at += nr;
}

/* Index (in every second case), overwrite, trim, free, use again. */
static void
work_on (struct dedup_pool *d)
{
  const struct qcow2_geometry *g = qcow2_geometry (dedup_image (d));
  CLEANUP_FREE uint8_t *buf = malloc (g->cluster_size);
  int r = 0;

  MUST (buf);
  if (number % 2 == 0)
    index_all (d);
  for (uint64_t i = 0; i < FRESH + NR_FRESH; i++) {
    if (!worked_on (i) || i >= g->nr_clusters)
      continue;
    for (uint64_t k = 0; k < g->cluster_size; k++)
      buf[k] = (uint8_t) (i * 7 + k * 13 + k / 256 + 1);
    r = i % 8 == 7 ? dedup_unmap (d, QCOW2_ROOT_ACTIVE, i, 1, DEDUP_TRIM)
      : dedup_write (d, QCOW2_ROOT_ACTIVE, buf, i, 1);
    write_disks (d, buf, i);
    if (i % 32 == 0) {
      r = dedup_flush (d);
      run_jobs (d);
    }
  }
  (void) r;
}

/* True: it was refused. */
static bool
serve (const struct poke *k, struct io_store *io)
{
  CLEANUP_FREE uint8_t *before = NULL, *after = NULL;
  int64_t size = io_size (io);
  struct dedup_pool *d;
  struct fault f;
  int r;

  before = malloc ((size_t) size);
  after = malloc ((size_t) size);
  MUST (before && after && io_pread (io, before, (size_t) size, 0) == 0);
  r = open_disk (io, true, &d, &f);
  if (verbose)
    printf ("open: %d %s\n", r, f.msg);
  if (r == 0) {
    work_on (d);
    r = dedup_finish (d);
    close_disk (d);
    return false;
  }
  if (f.msg[0] == '\0' || strchr (f.msg, '\n'))
    fail (k, "refused without one line", 0);
  MUST (io_pread (io, after, (size_t) size, 0) == 0);
  if (io_size (io) != size || memcmp (before, after, (size_t) size) != 0)
    fail (k, "refused, but changed", (uint64_t) -r);
  return true;
}

static const struct disk_view *
find_disk (const struct view *v, const char *name)
{
  for (unsigned i = 0; i < v->nr_disks; i++)
    if (strcmp (v->disks[i].name, name) == 0)
      return &v->disks[i];
  return NULL;
}

/* The same for the disks beside the active one, which are there still. */
static void
compare_disks (const struct poke *k, const struct view *good,
               const struct view *before, const struct view *after)
{
  for (unsigned d = 0; d < good->nr_disks; d++) {
    const struct disk_view *g = &good->disks[d];
    const struct disk_view *b = find_disk (before, g->name);
    const struct disk_view *a = find_disk (after, g->name);
    uint64_t lost = 0;

    if (b == NULL)
      continue;
    if (a == NULL) {
      fail (k, "a disk is gone:", d);
      continue;
    }
    for (uint64_t i = 0; i < MIN_OF (g->nr, b->nr); i++)
      lost += (i < FRESH || i >= FRESH + NR_FRESH) && b->sum[i] == g->sum[i] &&
        a->sum[i] != g->sum[i];
    if (lost > (k->place->kind == PLACE_TABLE ? SAME_DATA : 0))
      fail (k, "clusters of a disk changed:", lost);
  }
}

static void
compare (const struct poke *k, const struct view *good,
         const struct view *before, const struct view *after)
{
  uint64_t i, lost = 0;

  if (!before->opened || before->size != good->size)
    return;
  if (!after->opened) {
    fail (k, "does not open any more", 0);
    return;
  }
  for (i = 0; i < good->nr && i < before->nr; i++)
    if (!worked_on (i) && before->sum[i] == good->sum[i] &&
        after->sum[i] != good->sum[i])
      lost++;
  if (lost > (k->place->kind == PLACE_TABLE ? SAME_DATA : 0))
    fail (k, "clusters changed:", lost);
  compare_disks (k, good, before, after);
  if (before->harm != UINT64_MAX && after->harm > before->harm + same_harm (k))
    fail (k, "check finds more:", after->harm - before->harm);
}

/* What a bitmap says that can be relied on.  Only what was written counts: a
 * wrong entry may show tables, which change. */
static void
compare_bitmaps (const struct poke *k, struct io_store *io,
                 const struct view *before, const struct view *after)
{
  static uint64_t sum[GUEST_CLUSTERS];
  uint64_t missed, changed = 0;
  unsigned wanted = before->bitmaps.in_use;

  if (!before->opened || !after->opened || before->size != after->size)
    return;
  for (uint64_t i = 0; i < GUEST_CLUSTERS; i++) {
    sum[i] = worked_on (i) ? before->sum[i] : 0;
    changed += sum[i] && after->sum[i] && sum[i] != after->sum[i];
  }
  missed = bitmaps_miss (io, sum, after->sum, MIN_OF (before->nr, after->nr),
                         after->size);
  if (missed > 0)
    fail (k, "a bitmap does not know clusters:", missed);
  if (changed > 0)
    wanted |= before->bitmaps.odd;
  if (after->bitmaps.nr > 0 && (wanted & ~after->bitmaps.in_use))
    fail (k, "a bitmap is not in use that has to be:", wanted);
  if (changed > 0 && before->bitmaps.wrong && after->bitmaps.claimed)
    fail (k, "bitmaps that can't be right are not given up", 0);
}

static void
put (struct io_store *io, uint64_t off, unsigned width, uint64_t v)
{
  uint8_t b[8];

  for (unsigned i = 0; i < width; i++)
    b[i] = (uint8_t) (v >> 8 * (width - 1 - i));
  MUST (io_pwrite (io, b, width, off) == 0);
}

/* So long as the disk of BASE_DATA_FILE, each cluster another. */
static void
new_data_file (void)
{
  uint8_t buf[PLAIN_CLUSTER];

  MUST (io_memory_new (128 << 10, &data_file) == 0);
  for (unsigned i = 0; i < 64; i++) {
    memset (buf, (int) i + 1, sizeof buf);
    MUST (io_pwrite (data_file, buf, sizeof buf, i * PLAIN_CLUSTER) == 0);
  }
}

static const struct view *
view_of_base (enum base_kind kind)
{
  static struct view views[NR_BASES];
  struct io_store *io, *data = data_file;

  if (!views[kind].opened) {
    io = store_of (get_base (kind)->bytes, get_base (kind)->len);
    new_data_file ();
    see (io, &views[kind]);
    MUST (views[kind].opened && views[kind].harm == 0);
    io_close (data_file);
    data_file = data;
    io_close (io);
  }
  return &views[kind];
}

static uint64_t
cpu_ms (void)
{
  struct timespec t;

  clock_gettime (CLOCK_PROCESS_CPUTIME_ID, &t);
  return (uint64_t) t.tv_sec * 1000 + (uint64_t) t.tv_nsec / 1000000;
}

static void
run_case (const struct poke *k)
{
  static struct view before, after;
  struct io_store *io;
  uint64_t start;

  number = nr_cases++;
  if (only >= 0 && (int) k->kind != only)
    return;
  if (number < first || (number - first) % every != 0)
    return;
  nr_run++;
  start = cpu_ms ();
  io = store_of (k->base->bytes, k->base->len);
  put (io, k->place->host_off + k->field->off, k->field->width, k->value);
  fix_checksum (io, k->place);
  new_data_file ();
  see (io, &before);
  if (serve (k, io))
    nr_refused++;
  else {
    see (io, &after);
    compare (k, view_of_base (k->kind), &before, &after);
    compare_bitmaps (k, io, &before, &after);
  }
  io_close (data_file);
  io_close (io);
  if (cpu_ms () - start > MAX_CPU_MS)
    fail (k, "took so many ms of CPU time:", cpu_ms () - start);
}

/* --- All cases -------------------------------------------------------------- */

static void
try_value (struct poke *k, uint64_t v)
{
  k->value = k->field->width == 8 ? v
    : v & ((UINT64_C (1) << 8 * k->field->width) - 1);
  run_case (k);
}

/* The old value, which is where it is in the file. */
static uint64_t
old_value (const struct poke *k)
{
  const uint8_t *p = k->base->bytes + k->place->host_off + k->field->off;
  uint64_t v = 0;

  for (unsigned i = 0; i < k->field->width; i++)
    v = v << 8 | p[i];
  return v;
}

static void
try_field (struct poke *k)
{
  static const uint64_t values[] = { 0, 1, UINT64_MAX, INT64_MAX, 2 };
  const struct base *b = k->base;
  uint64_t old = old_value (k), cluster = UINT64_C (1) << b->cluster_bits;
  bool flags = k->place->kind == PLACE_TABLE;
  size_t step = b->nr_places / 12 + 1;

  for (size_t i = 0; i < sizeof values / sizeof values[0]; i++)
    try_value (k, values[i]);
  try_value (k, old + 1);
  try_value (k, old - 1);
  try_value (k, old ^ 0x200);
  try_value (k, old ^ UINT64_C (1) << (8 * k->field->width - 1));
  if (k->field->width == 1)
    try_value (k, 32);           /* of a granularity: one too many */
  if (k->field->width < 4)
    return;
  try_value (k, k->place->host_off);
  try_value (k, k->place->host_off | (flags ? QCOW2_L2_COPIED : 0));
  try_value (k, b->len + cluster - b->len % cluster);
  try_value (k, (b->len * 2) | (flags ? QCOW2_L2_COPIED : 0));
  for (size_t i = 1; i < b->nr_places; i += step) {
    uint64_t off = b->places[i].host_off / cluster * cluster;

    try_value (k, off);
    if (flags)
      try_value (k, off | QCOW2_L2_COPIED);
  }
}

static void
try_base (enum base_kind kind)
{
  struct poke k = { .base = get_base (kind), .kind = kind };
  unsigned nr_blocks = 0, nr_pages = 0;

  for (size_t i = 0; i < k.base->nr_places; i++) {
    k.place = &k.base->places[i];
    if ((k.place->kind == PLACE_JOURNAL && ++nr_blocks > 40) ||
        ((k.place->kind == PLACE_INC_PAGE || k.place->kind == PLACE_SEG_PAGE)
         && ++nr_pages > 4))
      continue;
    if (k.place->kind == PLACE_JOURNAL &&
        k.base->bytes[k.place->host_off] == 0)
      continue;                /* never written */
    for (k.field = fields_of (k.base, k.place, i); k.field->name; k.field++)
      if (k.field->off + k.field->width <= k.place->len)
        try_field (&k);
  }
}

/* Makes the field a compressed entry: of a place, short and as long as can be. */
static void
try_compressed (struct poke *k)
{
  const struct base *b = k->base;
  const uint64_t longest = ((UINT64_C (1) << (b->cluster_bits - 8)) - 1)
    << (62 - (b->cluster_bits - 8));
  size_t step = b->nr_places / 12 + 1;

  for (size_t i = 0; i < b->nr_places; i += step) {
    try_value (k, b->places[i].host_off | QCOW2_L2_COMPRESSED);
    try_value (k, b->places[i].host_off | longest | QCOW2_L2_COMPRESSED);
  }
  try_value (k, (b->len - 100) | longest | QCOW2_L2_COMPRESSED);
  try_value (k, b->len * 2 | QCOW2_L2_COMPRESSED);
  try_value (k, old_value (k) | longest);
  try_value (k, old_value (k) | QCOW2_L2_COMPRESSED | QCOW2_L2_COPIED);
}

static void
try_base_compressed (enum base_kind kind)
{
  struct poke k = { .base = get_base (kind), .kind = kind };

  for (size_t i = 0; i < k.base->nr_places; i++) {
    k.place = &k.base->places[i];
    if (k.place->kind != PLACE_TABLE)
      continue;
    for (k.field = fields_of (k.base, k.place, i); k.field->name; k.field++)
      if (k.field->width == 8 &&
          k.field->off + k.field->width <= k.place->len)
        try_compressed (&k);
  }
}

int
main (int argc, char *argv[])
{
  if (argc > 1)
    every = (unsigned) strtoul (argv[1], NULL, 10);
  if (argc > 2)
    first = (unsigned) strtoul (argv[2], NULL, 10);
  if (argc > 3)
    only = atoi (argv[3]);
  if (every == 0)
    every = 1;
  verbose = every >= 1000000;
  for (int kind = 0; kind < NR_BASES; kind++)
    try_base ((enum base_kind) kind);
  for (int kind = 0; kind < NR_BASES; kind++)
    if (kind != BASE_BITMAPS)   /* whose tables are most of them bitmaps' */
      try_base_compressed ((enum base_kind) kind);
  printf ("%u of %u cases, %u refused, %u failed\n", nr_run, nr_cases,
          nr_refused, nr_failed);
  return nr_failed > 0 || nr_run == 0;
}
