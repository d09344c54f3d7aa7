/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares what the fuzzers share: taking numbers from an input, images to
 * start from, and work on a served disk.
 *
 * Each fuzz-NAME.c has LLVMFuzzerTestOneInput and no main.  clang's libFuzzer
 * brings one (meson -Dfuzz=true); elsewhere replay.c does, which runs files.
 */
#ifndef DEDUP_FUZZ_H
#define DEDUP_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "io.h"

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t len);

/* --- Input ---------------------------------------------------------------- */

struct input {
  const uint8_t *p;
  size_t left;
};

/* The next bytes as a little-endian number; zeroes past the end. */
static inline uint64_t
take (struct input *in, unsigned bytes)
{
  uint64_t v = 0;

  for (unsigned i = 0; i < bytes; i++)
    if (in->left > 0) {
      v |= (uint64_t) *in->p++ << 8 * i;
      in->left--;
    }
  return v;
}

/* --- Images --------------------------------------------------------------- */

/* Where something lies in an image, for patches. */
struct place {
  uint64_t host_off;
  uint32_t len;
  enum { PLACE_TABLE, PLACE_CONFIG, PLACE_JOURNAL, PLACE_INC_HEAD,
         PLACE_INC_PAGE, PLACE_SEG_HEAD, PLACE_SEG_PAGE, PLACE_BITMAP,
         PLACE_DISK } kind;    /* a disk's entry in the snapshot table */
  uint64_t head_off;           /* PLACE_INC_HEAD, PLACE_SEG_HEAD: page 0, also
                                * for a page of the filter, whose sum is
                                * there */
  uint32_t filter_bytes;
  uint64_t meta_off, area_end; /* PLACE_SEG_HEAD: fences and filter, and what
                                * they lie in */
};

#define MAX_PLACES 4096

struct base {
  uint8_t *bytes;
  size_t len;
  unsigned cluster_bits;
  struct place places[MAX_PLACES];
  size_t nr_places;
};

enum base_kind {
  BASE_PLAIN,      /* 512-byte clusters: snapshot, shared and compressed
                    * clusters, shared L2 table; no store */
  BASE_CLEAN,      /* a store with runs, closed */
  BASE_CRASHED,    /* the same, bit 48 set, records in the journal */
  BASE_CRASHED_DISKS,  /* the same, where records name places */
  BASE_BOTH,       /* runs, and incarnations above them, closed */
  BASE_BITMAPS,    /* as BASE_PLAIN, with two persistent bitmaps */
  BASE_EXTENDED,   /* extended L2 entries of every kind, a snapshot; 16 KiB */
  BASE_DATA_FILE,  /* an external data file, which work_on_disk brings */
  BASE_POOL,       /* disks, closed with lent tables and one being deleted */
  BASE_PACKED,     /* as BASE_CRASHED, and new data is compressed */
  NR_BASES
};

/* Made once; NULL is never returned. */
const struct base *get_base (enum base_kind kind);

/* A byte store in memory with these bytes. */
struct io_store *store_of (const uint8_t *bytes, size_t len);

/* The plain image into BUF; its length is PLAIN_BYTES. */
#define PLAIN_CLUSTER 512u
#define PLAIN_BYTES (16 * PLAIN_CLUSTER)
void make_plain (uint8_t buf[PLAIN_BYTES]);
/* The same with bitmaps, which are enabled. */
#define BITMAPS_BYTES (20 * PLAIN_CLUSTER)
void make_bitmaps (uint8_t buf[BITMAPS_BYTES]);

/* Extended L2 entries. */
#define EXTENDED_CLUSTER 16384u
#define EXTENDED_BYTES (13 * EXTENDED_CLUSTER)
void make_extended (uint8_t buf[EXTENDED_BYTES]);
/* An external data file, which with RAW is the disk. */
#define DATA_FILE_BYTES (8 * PLAIN_CLUSTER)
void make_data_file (uint8_t buf[DATA_FILE_BYTES], bool raw);

/* Compute the checksum of what lies at P anew (docs/on-disk.md 3), so that
 * it does not end where all the rest would begin. */
void fix_checksum (struct io_store *io, const struct place *p);

/* --- Work ------------------------------------------------------------------ */

/* Open (writable or not), do what IN says, check that what was written reads
 * back, close, and open again if it closed.  The store stays the caller's. */
void work_on_disk (struct io_store *io, struct input *in, bool writable);

/* Every root of an image without a store: map, read, check. */
void look_at_image (struct io_store *io);

#define MUST(cond) do { if (!(cond)) abort (); } while (0)

#endif
