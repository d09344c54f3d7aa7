/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares the store's configuration, two slots that are written in turn
 * (docs/on-disk.md 3.1), and the header extension that leads to them (section
 * 1). */
#ifndef DEDUP_CONFIG_H
#define DEDUP_CONFIG_H

#include "dedup-limits.h"
#include "dedup-types.h"
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
/* -EINVAL: layout version, flags or reserved bytes are not of this version. */
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

/* Flags (docs/on-disk.md 3.1): the index is exact; the checkpoint is the end of
 * a session that left lent tables to be paid for, or deleted disks to be
 * freed. */
#define DEDUP_CONFIG_EXACT 1u
#define DEDUP_CONFIG_WORK_LEFT 2u

/* A cluster of data that a scrub found bad. */
struct dedup_bad_cluster {
  uint64_t host_idx;
  uint32_t flags;
  struct dedup_hash hash;       /* of the bytes that it had; see the flags */
};
#define DEDUP_BAD_HASH 1u       /* HASH is known */
#define DEDUP_BAD_SURE 2u       /* the cluster has had no other data since then */
#define DEDUP_BAD_UNREADABLE 4u /* the medium returns no bytes */
#define DEDUP_BAD_FLAGS 7u      /* those that are written */
#define DEDUP_BAD_TRIED 8u      /* it could not be healed in this session */

/* What the store knows about the health of data (config-notes.c).  Advice. */
struct dedup_notes {
  bool complete;                /* the index is: see index.h */
  uint64_t scrub_position;      /* clusters below it were scrubbed by a scrub
                                 * that has not ended; 0: there is none */
  bool indexing;                /* of existing data has begun and not ended */
  uint32_t nr_bad;
  struct dedup_bad_cluster bad[DEDUP_MAX_BAD];   /* ascending */
};

struct dedup_config {
  uint64_t store_id;
  uint64_t generation;
  uint32_t epoch;
  uint64_t epoch_start;
  uint64_t checkpoint;
  uint64_t index_start;
  uint32_t flags;
  bool has_disks;               /* or had some: records may name places */
  bool may_pack;                /* the journal may have records of data that this
                                 * program compressed */
  bool compress;                /* new data is to be compressed; only with MAY_PACK */
  uint64_t store_session;       /* of the store file; 0: none is in use */
  struct dedup_lookups lookups; /* of all sessions, as of the last save */
  uint32_t max_journal_areas;
  uint32_t journal_area_size;
  uint8_t hash_key[DEDUP_HASH_KEY_SIZE];   /* 0 where the hash has none */
  uint32_t nr_areas, nr_cuts;
  struct dedup_journal_area areas[DEDUP_MAX_JOURNAL_AREAS];
  struct dedup_cut cuts[DEDUP_MAX_CUTS];
  struct dedup_index_manifest index;   /* as of the last commit */
  struct dedup_notes notes;
};

/* Returns where the journal lies, as C says; valid as long as C is. */
static inline struct dedup_journal_place
dedup_config_place (const struct dedup_config *c)
{
  return (struct dedup_journal_place) {
    .store_id = c->store_id, .epoch = c->epoch, .epoch_start = c->epoch_start,
    .areas = c->areas, .nr_areas = c->nr_areas };
}

/* Returns how many bytes of a slot C takes. */
size_t dedup_config_length (const struct dedup_config *c);
/* Encodes C into BUF, zero padded.  Returns the bytes used. */
size_t dedup_config_encode (const struct dedup_config *c,
                            uint8_t buf[DEDUP_CONFIG_SLOT]);
/* Decodes BUF and checks every field, also that areas are aligned to
 * CLUSTER_SIZE and do not overlap each other.  -EINVAL: not a valid slot. */
int dedup_config_decode (const uint8_t buf[DEDUP_CONFIG_SLOT],
                         uint64_t cluster_size, struct dedup_config *c,
                         struct fault *f) MUST_CHECK;

/* Encodes C's notes into BUF, behind a configuration of LENGTH bytes, as many bad
 * clusters as have room.  Returns the bytes used. */
size_t dedup_notes_encode (const struct dedup_config *c,
                           uint8_t buf[DEDUP_CONFIG_SLOT], size_t length);
/* Decodes the notes behind a configuration of LENGTH bytes, whose fields C has.
 * Notes that are wrong or missing leave C's all zero.  BUF is changed and
 * restored. */
void dedup_notes_decode (uint8_t buf[DEDUP_CONFIG_SLOT], size_t length,
                         struct dedup_config *c);

/* Returns the length of a configuration that dedup_config_decode accepted. */
size_t dedup_slot_length (const uint8_t buf[DEDUP_CONFIG_SLOT]);

/* Notes that entries of the index were lost, tombstones perhaps among them. */
static inline void
dedup_config_entries_lost (struct dedup_config *c)
{
  c->flags &= ~DEDUP_CONFIG_EXACT;
  c->notes.complete = false;
}

/* Reads both slots at EXT's place and returns the newer valid one in *C.  A
 * slot is not valid either if an area lies past the end of the file (rounded
 * up to a cluster) or in the configuration area.  -EINVAL: neither slot is
 * valid. */
int dedup_config_read (struct io_store *io, const struct dedup_ext *ext,
                       uint64_t cluster_size, struct dedup_config *c,
                       struct fault *f) MUST_CHECK;
/* Adds 1 to the generation and writes the slot that its parity says (odd: the
 * second half of the area).  Does not sync: the caller does before the next
 * write.  The file must reach over all areas already (-EIO).  On failure the
 * generation stays, so that a retry writes the same slot. */
int dedup_config_write (struct io_store *io, const struct dedup_ext *ext,
                        struct dedup_config *c) MUST_CHECK;

/* Forgets the cuts of blocks below a number, which are never read again. */
void dedup_forget_cuts (struct dedup_config *c, uint64_t below);

#endif
