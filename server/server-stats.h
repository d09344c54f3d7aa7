/* SPDX-License-Identifier: BSD-3-Clause */
/* Tells what an image that is served has done and has: requests with their times,
 * space, the index, and who its clients are.  A part of server.h, which includes it.
 *
 * Reading figures disturbs nobody: no function here reads the disk or waits for a job,
 * and the image lock is taken for some microseconds.  Counters are exact once the
 * requests that they count have been answered.  Two groups of figures are taken from
 * time to time by a thread of the image (watch.c), and say when: what the disks map
 * and store, for which all tables are read, and the figures of the index, which a
 * long job may hold back.  Any thread may call these functions.
 */
#ifndef DEDUP_SERVER_STATS_H
#define DEDUP_SERVER_STATS_H

#include <stdbool.h>
#include <stdint.h>

#include "cleanup.h"
#include "dedup-figures.h"

struct srv_image;

/* --- Requests ------------------------------------------------------------- */

enum srv_request {
  SRV_REQUEST_READ, SRV_REQUEST_WRITE, SRV_REQUEST_FLUSH, SRV_REQUEST_TRIM,
  SRV_REQUEST_ZERO, SRV_REQUEST_CACHE, SRV_REQUEST_BLOCK_STATUS,
  SRV_NR_REQUESTS
};
/* Returns the name of a type: "read", "write", ... "block-status". */
const char *srv_request_name (enum srv_request type);

struct srv_counter {
  uint64_t nr;                  /* requests that were answered, */
  uint64_t errors;              /* of them with an error */
  uint64_t bytes;               /* of those without one */
};
struct srv_counters {
  struct srv_counter v[SRV_NR_REQUESTS];
};

/* Bucket I of a histogram counts requests that took 2^I ns or more, and less than
 * twice that; the last one also all slower ones (2.1 s or more). */
#define SRV_LATENCY_BUCKETS 32

struct srv_request_stats {
  struct srv_counter count;
  uint64_t total_ns, max_ns;
  uint64_t latency[SRV_LATENCY_BUCKETS];
};

/* --- The image ------------------------------------------------------------ */

struct srv_space_stats {
  /* As of COUNTED_AT, which is 0 before the first count: */
  uint64_t logical_bytes;       /* mapped in all disks together */
  uint64_t logical_bytes_with_snapshots;
  uint64_t stored_bytes;        /* clusters that hold data of any disk */
  uint64_t deduplicated_bytes;  /* what would be stored without compression */
  uint64_t dead_bytes;          /* stored bytes of compressed data that no disk has any
                                 * more */
  uint64_t shared_dead_bytes;   /* of these, those that no compaction gives back */
  uint64_t nr_disks, nr_snapshots;
  uint64_t counted_at;          /* seconds since 1970 */
  uint64_t count_ns;            /* how long counting took */
  /* As of the last second; UINT64_MAX: not known. */
  uint64_t file_bytes;          /* size of the image file or device */
  uint64_t allocated_bytes;     /* that the file takes on the host */
  uint64_t host_bytes, host_free_bytes;  /* of the host's file system or device */
  uint64_t available_bytes;     /* for new data: HOST_FREE_BYTES, and free clusters
                                 * that need nothing from the host */
  uint64_t low_bytes;           /* below that, space is low */
  const char *status;           /* "ok", "low" or "gone" */
};

struct srv_stats {
  uint64_t started_at;          /* seconds since 1970 */
  uint64_t uptime_ns;
  uint32_t cluster_size;        /* bytes */
  uint64_t nr_clients;
  struct srv_request_stats requests[SRV_NR_REQUESTS];
  struct srv_space_stats space;
  struct dedup_now now;
  struct dedup_stats index;     /* as of INDEX_AT */
  uint64_t index_at;            /* seconds since 1970; 0: not known yet */
  bool read_only;               /* no client can write, */
  char read_only_reason[200];   /* because of this */
};
void srv_image_stats (struct srv_image *m, struct srv_stats *s);

/* Counts anew what the disks map and store, which reads all tables, and waits for
 * the end: so that the next srv_image_stats tells of now.  -ENOMEM, -EIO; -ESHUTDOWN:
 * the image is being closed, or was not started. */
int srv_image_count_space (struct srv_image *m) MUST_CHECK;

/* Sets below how many available bytes space is low; 0: a twentieth of the host's
 * file system, at most 10 GiB. */
void srv_image_set_space_low (struct srv_image *m, uint64_t bytes);
uint64_t srv_image_space_low (const struct srv_image *m);

/* --- Clients -------------------------------------------------------------- */

struct srv_client;

struct srv_client_info {
  uint64_t id;                  /* never used twice */
  const char *export_name;      /* that it asked for */
  const char *address;          /* for people */
  uint64_t since;               /* seconds since 1970 */
  struct srv_counters counters;
};

/* Adds a client, which connected to the export NAME from ADDRESS, to the list.  The
 * caller frees it before the image is closed, or never.  -ENOMEM. */
int srv_client_new (struct srv_image *m, const char *name,
                    const char *address, struct srv_client **out) MUST_CHECK;
void srv_client_free (struct srv_client *c);
/* Counts a request of C that had the result R.  C may be NULL. */
void srv_client_count (struct srv_client *c, enum srv_request type,
                       uint64_t bytes, int r);
/* Calls CB for all clients, the oldest first, with an id above AFTER, until CB
 * returns non-zero, which is the result then.  -ENOMEM. */
int srv_image_list_clients (struct srv_image *m, uint64_t after,
                            int (*cb) (void *opaque,
                                       const struct srv_client_info *c),
                            void *opaque) MUST_CHECK;

#endif
