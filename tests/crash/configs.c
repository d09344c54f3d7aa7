/* SPDX-License-Identifier: BSD-3-Clause */
/* The kinds of workload.  Small disks, small log stores, small journals: so
 * that in some hundred operations everything happens that takes months on a
 * large one. */
#include "crash.h"

/* cluster bits, refcount order | log store order, incarnations, journal areas
 * | clusters, clients, operations | flush, reopen, job, zero: one in | base */
const struct cfg crash_configs[] = {
  { "plain work", 12, 4, 5, 0, 4, 192, 1, 300, 8, 0, 6, 6, BASE_CREATED },
  { "many closes", 12, 4, 4, 0, 4, 128, 1, 250, 12, 15, 8, 4, BASE_CREATED },
  { "small log stores", 12, 4, 4, 2, 4, 192, 1, 350, 6, 0, 4, 8,
    BASE_CREATED },
  { "one incarnation", 12, 4, 4, 1, 2, 192, 1, 350, 6, 60, 4, 8,
    BASE_CREATED },
  { "long journal", 12, 4, 6, 3, 3, 96, 1, 900, 2, 0, 10, 5, BASE_CREATED },
  { "packed journal", 12, 4, 9, 0, 2, 96, 1, 900, 2, 0, 10, 2, BASE_CREATED },
  { "seldom flushed", 12, 4, 5, 0, 4, 128, 1, 300, 60, 25, 60, 3,
    BASE_CREATED },
  { "torn batches", 12, 4, 6, 0, 4, 128, 1, 300, 90, 0, 90, 2, BASE_CREATED,
    .deep = true },
  { "torn sessions", 12, 4, 6, 0, 4, 128, 1, 300, 90, 20, 90, 2,
    BASE_CREATED, .deep = true },
  { "three clients", 12, 4, 5, 2, 4, 192, 3, 300, 8, 100, 4, 6,
    BASE_CREATED },
  { "four clients", 12, 4, 5, 0, 4, 128, 4, 400, 10, 0, 8, 6, BASE_CREATED },
  { "two, odd end", 12, 4, 4, 3, 4, 96, 2, 300, 6, 70, 2, 5, BASE_CREATED,
    .partial_end = true },
  { "tiny clusters", 9, 4, 5, 2, 4, 512, 1, 250, 8, 60, 6, 6, BASE_CREATED },
  { "tiny, clients", 9, 3, 4, 1, 4, 256, 3, 240, 8, 0, 6, 6, BASE_CREATED },
  { "large clusters", 16, 4, 4, 2, 4, 32, 1, 120, 6, 40, 5, 5, BASE_CREATED },
  { "refcounts of 2", 12, 1, 5, 0, 4, 128, 1, 200, 8, 60, 6, 6,
    BASE_CREATED },
  { "refcounts of 4", 12, 2, 5, 0, 4, 128, 2, 240, 8, 80, 6, 6,
    BASE_CREATED },
  { "refcounts of 64", 12, 6, 5, 2, 4, 128, 1, 240, 8, 60, 6, 6,
    BASE_CREATED },
  { "no verify", 12, 4, 4, 2, 4, 160, 1, 300, 7, 60, 3, 3, BASE_CREATED,
    .no_verify = true },
  { "no verify, clients", 12, 4, 4, 2, 4, 160, 3, 300, 7, 100, 3, 3,
    BASE_CREATED, .no_verify = true },
  { "no dedup", 12, 4, 5, 0, 4, 128, 2, 240, 8, 70, 6, 6, BASE_CREATED,
    .no_dedup = true },
  { "adopted", 12, 4, 4, 2, 4, 96, 1, 120, 8, 30, 5, 5, BASE_PLAIN },
  { "adopted, clients", 12, 5, 5, 2, 4, 96, 2, 160, 8, 60, 5, 5,
    BASE_PLAIN },
  { "adopted, tiny", 9, 4, 4, 2, 4, 256, 1, 100, 8, 30, 5, 5, BASE_PLAIN },
  { "adopted, compressed", 16, 4, 4, 2, 4, 32, 1, 80, 8, 30, 5, 5,
    BASE_COMPRESSED },
  { "adopted, snapshot", 12, 4, 4, 2, 4, 96, 1, 120, 8, 30, 5, 5,
    BASE_SNAPSHOT },
  { "grown", 12, 4, 4, 2, 4, 96, 1, 100, 8, 20, 5, 5, BASE_GROWN },
  { "failed sync", 12, 4, 5, 2, 4, 128, 1, 200, 8, 60, 6, 6, BASE_CREATED,
    .fail_sync = true },
  { "failed sync, clients", 12, 4, 5, 2, 4, 128, 3, 240, 8, 0, 6, 6,
    BASE_CREATED, .fail_sync = true },
};
const size_t nr_crash_configs = sizeof crash_configs / sizeof crash_configs[0];
