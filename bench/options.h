/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares the command line of dedup-load. */
#ifndef BENCH_OPTIONS_H
#define BENCH_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "content.h"

/* NBD servers need not take more in one request of data. */
#define MAX_DATA_BLOCK (UINT64_C (32) << 20)
/* Trim and zero have a 32-bit length. */
#define MAX_RANGE_BLOCK (UINT64_C (2) << 30)
#define MAX_DEPTH 1024
#define MAX_CONNECTIONS 64

enum load_op { OP_READ, OP_WRITE, OP_TRIM, OP_ZERO };
enum load_check { CHECK_NOTHING, CHECK_CONTENT, CHECK_ZERO };

struct mode {
  const char *name;
  enum load_op op;
  enum load_check check;
  bool random;           /* order of the blocks */
  unsigned batch;        /* writes before each flush, 0: no flushes */
  uint64_t block;        /* defaults */
  unsigned depth;
};

struct options {
  const struct mode *mode;
  const char *uri;
  uint64_t block;
  unsigned depth;
  unsigned connections;
  uint64_t offset;       /* the region, in bytes; */
  uint64_t size;         /* 0: up to the end of the export */
  uint64_t ops;          /* 0: no limit */
  double seconds;        /* 0: no limit */
  bool random;
  bool flush;
  uint64_t seed;         /* of the order */
  uint64_t reorder;      /* 0, or visits the same blocks in another order */
  struct content content;   /* units of the region are set by load.c */
};

/* Ends the program with a message if anything is wrong. */
void options_parse (int argc, char *argv[], struct options *o);

void die (const char *fmt, ...)
  __attribute__ ((__noreturn__, __format__ (__printf__, 1, 2)));

#endif
