/* SPDX-License-Identifier: BSD-3-Clause */
/* The store's configuration: two slots, written in turn (docs/on-disk.md
 * 3.1), and the header extension that leads to them (section 1). */
#ifndef DEDUP_CONFIG_H
#define DEDUP_CONFIG_H

#include "dedup-limits.h"
#include "dedup.h"
#include "journal.h"
#include "manifest.h"

struct dedup_ext {              /* the header extension, decoded */
  uint64_t config_off;
  uint32_t config_size;
  uint32_t max_incarnations;
  uint32_t flags;
  uint8_t hash_alg;
};

#define DEDUP_EXT_SIZE 32

void dedup_ext_encode (const struct dedup_ext *e, uint8_t out[DEDUP_EXT_SIZE]);
/* -EINVAL: layout version, flags or reserved bytes are not ours. */
int dedup_ext_decode (const uint8_t in[DEDUP_EXT_SIZE], struct dedup_ext *e)
  MUST_CHECK;

/* Set in the host offset of an incarnation, segment or limbo area that lies in
 * the store file (docs/on-disk.md section 9). */
#define DEDUP_IN_STORE_FILE (UINT64_C (1) << 62)

static inline bool
dedup_in_store_file (uint64_t host_off)
{
  return (host_off & DEDUP_IN_STORE_FILE) != 0;
}

/* A block of which a recovery took the first groups only. */
struct dedup_cut {
  uint64_t seq;
  uint32_t len;                 /* bytes of it that count, with its header */
};

#define DEDUP_CONFIG_EXACT 1u   /* flags: see docs/on-disk.md section 5 */

struct dedup_config {
  uint64_t store_id;
  uint64_t generation;
  uint32_t epoch;
  uint64_t epoch_start;
  uint64_t checkpoint;
  uint64_t index_start;
  uint32_t flags;
  uint64_t store_session;       /* of the store file; 0: none is in use */
  struct dedup_lookups lookups; /* of all sessions, as of the last save */
  uint32_t max_journal_areas;
  uint32_t journal_area_size;
  uint8_t hash_key[DEDUP_HASH_KEY_SIZE];   /* 0 where the hash has none */
  uint32_t nr_areas, nr_cuts;
  struct dedup_journal_area areas[DEDUP_MAX_JOURNAL_AREAS];
  struct dedup_cut cuts[DEDUP_MAX_CUTS];
  struct dedup_index_manifest index;   /* as of the last commit */
};

/* Returns where the journal lies, as C says; valid as long as C is. */
static inline struct dedup_journal_place
dedup_config_place (const struct dedup_config *c)
{
  return (struct dedup_journal_place) {
    .store_id = c->store_id, .epoch = c->epoch, .epoch_start = c->epoch_start,
    .areas = c->areas, .nr_areas = c->nr_areas };
}

/* Encode into BUF (DEDUP_CONFIG_SLOT bytes, zero padded); returns the bytes
 * used. */
size_t dedup_config_encode (const struct dedup_config *c,
                            uint8_t buf[DEDUP_CONFIG_SLOT]);
/* Decode and check everything, also that areas are aligned to CLUSTER_SIZE
 * and do not overlap each other.  -EINVAL: not a valid slot. */
int dedup_config_decode (const uint8_t buf[DEDUP_CONFIG_SLOT],
                         uint64_t cluster_size, struct dedup_config *c,
                         struct fault *f) MUST_CHECK;

/* Read both slots at EXT's place and return the newer valid one.  A slot is
 * not valid either if an area lies past the end of the file (rounded up to a
 * cluster) or in the configuration area.  -EINVAL: neither is. */
int dedup_config_read (struct io_store *io, const struct dedup_ext *ext,
                       uint64_t cluster_size, struct dedup_config *c,
                       struct fault *f) MUST_CHECK;
/* Add 1 to the generation and write the slot that its parity says (odd: the
 * second half of the area).  No sync: the caller does it before the next
 * write.  The file must reach over all areas already (-EIO).  On failure the
 * generation stays, so that a retry takes the same slot. */
int dedup_config_write (struct io_store *io, const struct dedup_ext *ext,
                        struct dedup_config *c) MUST_CHECK;

#endif
