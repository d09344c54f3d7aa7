/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes the first inputs of the fuzzers that need good ones: DIR/image,
 * DIR/header, DIR/snapshots, DIR/compressed, DIR/config, DIR/journal, DIR/disk.
 */
#include <stdio.h>

#include "fuzz.h"

#include "record.h"

#include "image.h"

static void
write_file (const char *dir, const char *name, const char *what,
            const uint8_t *head, size_t head_len, const uint8_t *bytes,
            size_t len)
{
  char path[4096];
  FILE *f;

  snprintf (path, sizeof path, "%s/%s/seed-%s", dir, name, what);
  f = fopen (path, "wb");
  if (f == NULL) {
    perror (path);
    exit (1);
  }
  MUST (fwrite (head, 1, head_len, f) == head_len);
  MUST (fwrite (bytes, 1, len, f) == len);
  MUST (fclose (f) == 0);
}

static size_t
used (const uint8_t *p, size_t len)
{
  while (len > 0 && p[len - 1] == 0)
    len--;
  return len;
}

static void
config_seeds (const char *dir, enum base_kind kind, const char *name)
{
  const struct base *b = get_base (kind);
  unsigned nr = 0;
  char what[32];

  for (size_t i = 0; i < b->nr_places; i++) {
    const uint8_t *p = b->bytes + b->places[i].host_off;

    if (b->places[i].kind != PLACE_CONFIG)
      continue;
    snprintf (what, sizeof what, "%s%u", name, nr++);
    write_file (dir, "config", what, (const uint8_t *) "\0\0", 2, p,
                used (p, 65536));
  }
}

/* Encodes the refcounts of some clusters from HOST_IDX on. */
static size_t
refcount_list (uint64_t host_idx, uint8_t *out)
{
  struct dedup_record r;

  dedup_reflist_begin (&r, host_idx, 2, true);
  dedup_record_encode (&r, out);
  dedup_reflist_extend (out, DEDUP_REC_MAX - out[0], 1, 300, true);
  dedup_reflist_extend (out, DEDUP_REC_MAX - out[0], 3, 1, false);
  return out[0];
}

/* Encodes records that name places in the tables, and END behind each; all of
 * them fit the image, though the data of some is not there.  Returns how many
 * bytes. */
static size_t
place_records (const struct base *b, uint8_t *out, size_t max)
{
  const uint64_t size = UINT64_C (1) << b->cluster_bits;
  size_t len = 0;

  for (size_t i = 0; i < b->nr_places && len + 7 * DEDUP_REC_MAX < max; i++) {
    const uint64_t at = b->places[i].host_off;
    struct dedup_record v[] = {
      { .type = DEDUP_REC_ENTRY, .entry_kind = i & 1, .change = {
          .place = at + i * 8, .count = (uint32_t) (1 + i % 8) } },
      { .type = DEDUP_REC_TABLE, .change = {
          .host_off = at, .source_off = i % 3 ? 0 : at + size } },
      { .type = DEDUP_REC_HASHAT, .host_idx = at / size, .place = at },
      { .type = DEDUP_REC_WRITEAT, .host_idx = at / size, .place = at + i * 8 },
      { .type = DEDUP_REC_PACKEDAT, .place = at + i * 8,
        .host_idx = UINT64_C (1) << 62 | (i % 4) << (70 - b->cluster_bits) | at },
      { .type = DEDUP_REC_END },
    };
    const size_t nr = sizeof v / sizeof v[0];

    if (b->places[i].kind != PLACE_TABLE)
      continue;
    for (size_t k = 0; k < nr; k++)
      if (k == nr - 1 || k == i % (nr - 1) || i % 7 == 0)
        len += dedup_record_encode (&v[k], out + len);
    len += refcount_list (at / size, out + len);
  }
  return len;
}

/* Writes an input with the first LEN bytes of RECORDS, which has room for 32
 * more; MODE is as in fuzz-journal.c. */
static void
journal_seed (const char *dir, const char *what, uint8_t mode,
              uint8_t *records, size_t len)
{
  uint8_t head[2] = { (uint8_t) (1 | 8 | mode), 0 };
  size_t pad = 16 - len % 16;

  if (pad == 1)                 /* no record is that short */
    pad += 16;
  memset (records + len, 0, pad);
  records[len] = (uint8_t) pad;
  records[len + 1] = DEDUP_REC_NONE;
  head[1] = (uint8_t) ((len + pad) / 16);
  write_file (dir, "journal", what, head, sizeof head, records, len + pad);
}

static void
good_journal_seeds (const char *dir)
{
  uint8_t records[240 * 16];
  size_t len = place_records (get_base (BASE_CRASHED_DISKS), records,
                              sizeof records - 32);

  journal_seed (dir, "places", 0, records, len);
  journal_seed (dir, "places-not-durable", 2, records, len);
  journal_seed (dir, "places-read-only", 4, records, len);
}

/* One record each that must not be applied. */
static void
bad_journal_seeds (const char *dir)
{
  const struct base *b = get_base (BASE_CRASHED_DISKS);
  const uint64_t size = UINT64_C (1) << b->cluster_bits, at = b->len - size;
#define ENTRY(k, p, n, e) { .type = DEDUP_REC_ENTRY, .entry_kind = (k), \
                            .change = { .place = (p), .count = (n), \
                                        .entry = (e) } }
#define TABLE(to, from) { .type = DEDUP_REC_TABLE, \
                          .change = { .host_off = (to), .source_off = (from) } }
  const struct dedup_record v[] = {
    ENTRY (1, at + size - 8, 2, 0), ENTRY (0, at + size - 16, UINT32_MAX, 0),
    ENTRY (1, at + 4, 1, 0), ENTRY (0, 0, 1, 0), ENTRY (1, size - 8, 1, 0),
    ENTRY (1, UINT64_C (1) << 55, 1, 0), ENTRY (0, UINT64_MAX - 7, 1, 0),
    ENTRY (1, at, 1, 3 * size + 512), ENTRY (1, at, 1, UINT64_MAX),
    TABLE (at, at), TABLE (0, at), TABLE (at, UINT64_C (1) << 60),
    TABLE (at + 1, 0), TABLE (at, at - size + 8),
    { .type = DEDUP_REC_HASHAT, .host_idx = UINT64_MAX, .place = at },
    { .type = DEDUP_REC_WRITEAT, .host_idx = at / size, .place = UINT64_MAX },
    { .type = DEDUP_REC_PACKEDAT, .host_idx = UINT64_MAX >> 1, .place = at },
    { .type = DEDUP_REC_PACKEDAT, .host_idx = UINT64_C (1) << 62, .place = at },
    { .type = DEDUP_REC_PACKED, .host_idx = UINT64_C (1) << 62 | at,
      .root = UINT16_MAX, .guest_idx = UINT64_MAX },
  };
  const struct dedup_record end = { .type = DEDUP_REC_END };
  uint8_t records[256];
  size_t len;
  char what[32];

  for (unsigned i = 0; i < sizeof v / sizeof v[0]; i++) {
    len = dedup_record_encode (&v[i], records);
    len += dedup_record_encode (&end, records + len);
    snprintf (what, sizeof what, "bad-place%u", i);
    journal_seed (dir, what, 0, records, len);
  }
}

/* Without patches: a mode, no patches, not killed; then requests (work.c) that
 * read, write, trim, zero and map across clusters of every kind, flush, run
 * the jobs, and look at the first snapshot. */
static void
disk_seed (const char *dir, const char *what, uint8_t mode)
{
  static const uint8_t ops[] = "\0\0"
    "\x0b\x01\x00\x00\x0f" "\x00\x00\x00\xff\xff"  /* read, the snapshot */
    "\x06\x01\x00\x00\x0f" "\x06\x81\x00\x00\x0f"  /* map */
    "\x00\x85\x00\x00\x03" "\x09\x89\x00\x00\x01"  /* write parts */
    "\x00\x01\x00\x00\x0f" "\x02\x01\x01\x00\x0f"
    "\x00\xc1\x00\x00\x0f"                       /* to a cluster's end */
    "\x04\x91\x00\x00\x0f" "\x05\x0d\x01\x00\x0f"  /* trim, zero */
    "\x0d\x15\x01\x00\x07" "\x1f\x01\x00\x00\x00"  /* flush, jobs */
    "\x00\x05\x01\x00\x02" "\x03\x81\x00\x00\x0f"
    "\x0b\x01\x00\x00\x0f" "\x20\x00\x00\xff\x0f";

  write_file (dir, "disk", what, &mode, 1, ops, sizeof ops - 1);
}

/* The same on several disks: each is read and written, and the work that was left
 * is done in between. */
static void
pool_seed (const char *dir, const char *what, uint8_t mode)
{
  static const uint8_t ops[] = "\0\0"
    "\x1b\x01\x00\x00\x0f" "\x10\x00\x00\xff\x7f\x41"
    "\x2b\x01\x00\x00\x0f" "\x10\x00\x00\xff\x3f\x42"
    "\x00\x85\x00\x00\x03" "\x3b\x01\x00\x00\x0f" "\x40\x00\x00\xff\x0f\x43"
    "\x1f\x01\x00\x00\x00"                      /* flush, jobs */
    "\x1b\x01\x00\x00\x0f" "\x00\x10\x00\xff\x7f\x44"
    "\x2b\x01\x00\x00\x0f" "\x20\x00\x00\xff\x3f\x45"
    "\x04\x91\x00\x00\x0f" "\x1f\x01\x00\x00\x00";

  write_file (dir, "disk", what, &mode, 1, ops, sizeof ops - 1);
}

static void
image_seeds (const char *dir)
{
  uint8_t buf[DATA_FILE_BYTES];
  uint8_t extended[EXTENDED_BYTES];

  make_data_file (buf, false);
  write_file (dir, "image", "data-file", NULL, 0, buf, sizeof buf);
  write_file (dir, "header", "data-file", NULL, 0, buf, PLAIN_CLUSTER);
  make_data_file (buf, true);
  write_file (dir, "image", "raw-data-file", NULL, 0, buf, sizeof buf);
  make_extended (extended);
  write_file (dir, "header", "extended", NULL, 0, extended, PLAIN_CLUSTER);
}

/* A table with one disk. */
static void
disk_entry_seed (const char *dir)
{
  const struct qcow2_snapshot disk = {
    .id = "1", .name = "vm1", .l1_off = 0x1000, .l1_entries = 1,
    .disk_size = 65536, .disk_flags = QCOW2_DISK_WRITABLE, .uuid = { 1 },
    .origin = { 2 }, .created = 3, .compress = QCOW2_COMPRESS_ON,
  };
  struct qcow2_snapshot_raw raw;

  MUST (qcow2_snapshot_encode_disk (&disk, NULL, &raw) == 0);
  write_file (dir, "snapshots", "disk", (const uint8_t *) "\1\0", 2,
              raw.bytes, raw.len);
  free (raw.bytes);
}

int
main (int argc, char *argv[])
{
  uint8_t plain[PLAIN_BYTES];
  const struct base *b;
  const char *dir = argc > 1 ? argv[1] : ".";

  make_plain (plain);
  write_file (dir, "image", "plain", NULL, 0, plain, sizeof plain);
  write_file (dir, "header", "plain", NULL, 0, plain, PLAIN_CLUSTER);
  b = get_base (BASE_CLEAN);
  write_file (dir, "header", "store", NULL, 0, b->bytes, 512);
  write_file (dir, "snapshots", "one", (const uint8_t *) "\1\0", 2,
              plain + 9 * PLAIN_CLUSTER, 64);
  disk_entry_seed (dir);
  write_file (dir, "compressed", "zlib",
              (const uint8_t *) "\0\0\0\0\0\0\0\0\0\0\1", 11,
              plain + 8 * PLAIN_CLUSTER, 64);
  config_seeds (dir, BASE_CLEAN, "slot");
  config_seeds (dir, BASE_CRASHED_DISKS, "disks");
  good_journal_seeds (dir);
  bad_journal_seeds (dir);
  image_seeds (dir);
  disk_seed (dir, "plain", 0 | 128);
  disk_seed (dir, "extended", 2 | 128);
  disk_seed (dir, "extended-read-only", 2 | 64);
  disk_seed (dir, "data-file", 6 | 128);
  pool_seed (dir, "pool", 10);
  pool_seed (dir, "pool-read-only", 10 | 64);
  return 0;
}
