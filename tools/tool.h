/* SPDX-License-Identifier: BSD-3-Clause */
/* What the subcommands of qcow2-dedup share. */
#ifndef DEDUP_TOOL_H
#define DEDUP_TOOL_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "cleanup.h"
#include "fault.h"
#include "io.h"
#include "log.h"
#include "qcow2.h"

/* Exit codes; those of check are qemu-img's. */
enum {
  TOOL_OK = 0,
  TOOL_FAILED = 1,
  TOOL_CORRUPT = 2,
  TOOL_LEAKS = 3,
};

/* Table cache of a run: the L2 tables of 32 GiB at 4 KiB clusters. */
#define TOOL_CACHE_BYTES (64u << 20)

/* The subcommands: ARGV[0] is the subcommand's name.  The result is the exit
 * code. */
int tool_create (int argc, char *argv[]);
int tool_info (int argc, char *argv[]);
int tool_check (int argc, char *argv[]);
int tool_recover (int argc, char *argv[]);
int tool_index (int argc, char *argv[]);
int tool_measure (int argc, char *argv[]);

/* --- Messages --------------------------------------------------------- */

/* "qcow2-dedup: PATH: ..." on stderr (PATH may be NULL).  Returns
 * TOOL_FAILED. */
int tool_error (const char *path, const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 2, 3)));
/* The same from a fault, or from the -errno R if the fault is empty. */
int tool_fault (const char *path, int r, const struct fault *f);
/* Wrong usage: "qcow2-dedup: SUBCOMMAND: ...; try ... --help". */
int tool_usage_error (const char *subcommand, const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 2, 3)));

/* Sinks for what the libraries say: errors only, or also what was done. */
extern const struct log_sink tool_log_errors, tool_log_info;

/* A percentage on stderr, if that is a terminal. */
struct tool_progress {
  const char *what;
  bool shown;
  unsigned percent;
};
void tool_progress_step (struct tool_progress *p, uint64_t done,
                         uint64_t total);
/* Wipe the line, before something else is printed. */
void tool_progress_clear (struct tool_progress *p);

/* Did all of stdout get out?  CODE if so, else TOOL_FAILED. */
int tool_finish_stdout (int code);

/* --- Arguments ----------------------------------------------------------- */

/* A size with an optional suffix k, M, G, T, P or E (powers of 1024, either
 * case), or b. */
bool tool_parse_size (const char *s, uint64_t *size) MUST_CHECK;
/* A decimal number in [MIN, MAX]. */
bool tool_parse_number (const char *s, uint64_t min, uint64_t max,
                        uint64_t *n) MUST_CHECK;

struct tool_args {
  const char *subcommand;
  void (*help) (void);
  bool has_output;            /* takes --output */
  bool has_verbose;           /* takes --verbose */
  bool json, verbose;         /* out */
  const char *path;           /* out */
  const char *store_path;     /* out: --store, or NULL */
};
/* For subcommands that take FILE alone.  -1: go on; else the exit code. */
int tool_parse_args (int argc, char *argv[], struct tool_args *a);
/* The same, then FILE opened for reading and handed to RUN; the exit code. */
int tool_on_image (int argc, char *argv[], struct tool_args *a,
                   int (*run) (struct io_store *io,
                               const struct tool_args *a));

/* The store file at PATH (NULL: none), which must be there. */
int tool_open_store (const char *path, bool writable, struct io_store **out,
                     struct fault *f) MUST_CHECK;

bool tool_parse_output (const char *s, bool *json) MUST_CHECK;

void tool_version (void);

struct dedup_create_params;
/* What create makes where nothing is said. */
void tool_create_defaults (struct dedup_create_params *p);
/* The argument of create's -o, which is cut up; for messages of SUBCOMMAND.  -1:
 * go on, else the exit code. */
int tool_create_options (const char *subcommand, char *arg,
                         struct dedup_create_params *p);

/* --- Images --------------------------------------------------------------- */

/* Is bit 48 set?  Was the anchor applied (qcow2_anchor_was_applied)?  Changes
 * nothing.  -errno with F filled. */
int tool_look (struct io_store *io, const char *path, bool *needs_recovery,
               bool *no_disk, struct fault *f) MUST_CHECK;
/* The first of the two.  -errno with F filled. */
int tool_needs_recovery (struct io_store *io, const char *path,
                         bool *needs_recovery, struct fault *f) MUST_CHECK;

/* "1.5 GiB" into BUF. */
const char *tool_human (uint64_t bytes, char buf[32]);

#endif
