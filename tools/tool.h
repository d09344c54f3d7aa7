/* SPDX-License-Identifier: BSD-3-Clause */
/* The code that the subcommands of qcow2-dedup share: messages, progress,
 * arguments, and a look at an image before it is opened. */
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

/* Exit codes.  Those of check have the meanings of qemu-img check's. */
enum {
  TOOL_OK = 0,
  TOOL_FAILED = 1,
  TOOL_CORRUPT = 2,
  TOOL_LEAKS = 3,
  TOOL_INTERRUPTED = 130,     /* as a shell reports the end by SIGINT */
};

/* Size of the table cache: holds the L2 tables of 32 GiB at 4 KiB clusters. */
#define TOOL_CACHE_BYTES (64u << 20)

/* Each runs one subcommand and returns the exit code.  ARGV[0] is the
 * subcommand's name. */
int tool_create (int argc, char *argv[]);
int tool_info (int argc, char *argv[]);
int tool_check (int argc, char *argv[]);
int tool_recover (int argc, char *argv[]);
int tool_index (int argc, char *argv[]);
int tool_compact (int argc, char *argv[]);
int tool_measure (int argc, char *argv[]);
int tool_disk (int argc, char *argv[]);
int tool_report (int argc, char *argv[]);
int tool_status (int argc, char *argv[]);
int tool_metrics (int argc, char *argv[]);
int tool_control (int argc, char *argv[]);
int tool_scrub (int argc, char *argv[]);
int tool_unlock (int argc, char *argv[]);

/* --- Messages --------------------------------------------------------- */

/* Prints the line "qcow2-dedup: PATH: ..." on stderr, without PATH if that is
 * NULL.  Returns TOOL_FAILED. */
int tool_error (const char *path, const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 2, 3)));
/* Prints such a line with the message of F, or that of the -errno R if F is
 * empty.  Returns TOOL_FAILED. */
int tool_fault (const char *path, int r, const struct fault *f);
/* Prints the line for wrong usage, "qcow2-dedup: SUBCOMMAND: ...; try ...
 * --help".  Returns TOOL_FAILED. */
int tool_usage_error (const char *subcommand, const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 2, 3)));

/* A log sink for the libraries that prints errors and drops all other lines. */
extern const struct log_sink tool_log_errors;

/* A percentage that is shown on stderr while a subcommand works, if stderr is a
 * terminal or the user asks for it. */
struct tool_progress {
  const char *what;           /* such as "Checking" */
  bool always;                /* if it is no terminal: in lines */
  bool shown;
  unsigned percent;
};
/* Shows DONE of TOTAL, both in any one unit, if the percentage has changed. */
void tool_progress_step (struct tool_progress *p, uint64_t done,
                         uint64_t total);
/* Wipes the line.  Needed before anything else is printed. */
void tool_progress_clear (struct tool_progress *p);

/* --- interrupt.c ---------------------------------------------------------- */

/* From now on the first SIGINT or SIGTERM only makes tool_interrupted true. */
void tool_catch_signals (void);
bool tool_interrupted (void);

/* --- Output --------------------------------------------------------------- */

/* Flushes stdout.  Returns CODE, or TOOL_FAILED after a message if some of
 * it could not be written, for instance because a disk is full. */
int tool_finish_stdout (int code);

/* --- Arguments ----------------------------------------------------------- */

/* Parses a size in bytes with an optional suffix of either case: b for bytes,
 * or k, M, G, T, P or E for powers of 1024.  False if S is none, or 2^64 or
 * more. */
bool tool_parse_size (const char *s, uint64_t *size) MUST_CHECK;
/* Parses a decimal number in [MIN, MAX].  False if S is none. */
bool tool_parse_number (const char *s, uint64_t min, uint64_t max,
                        uint64_t *n) MUST_CHECK;

/* In: what the subcommand takes.  Out: what the user gave. */
struct tool_args {
  const char *subcommand;
  void (*help) (void);
  bool has_output;            /* takes --output */
  bool has_verbose;           /* takes --verbose */
  bool json, verbose;         /* out */
  const char *path;           /* out */
  const char *store_path;     /* out: --store, or NULL */
  /* Further options, which end with one without a name, and what takes one of them: its
   * value and its argument.  TAKE returns -1, or the exit code.  NULL: none. */
  const struct option *own;
  int (*take) (struct tool_args *a, int c, const char *arg);
};
/* Further options of a subcommand, at the most. */
#define TOOL_MAX_OWN 8
/* Parses the command line of a subcommand whose only operand is FILE.  Returns
 * -1 if the subcommand is to run, else the exit code: 0 after --help and
 * --version, TOOL_FAILED after a message about wrong usage. */
int tool_parse_args (int argc, char *argv[], struct tool_args *a);
/* Parses the command line, opens FILE read-only under QEMU's locks for readers,
 * and hands it to RUN.  Returns the exit code. */
int tool_on_image (int argc, char *argv[], struct tool_args *a,
                   int (*run) (struct io_store *io,
                               const struct tool_args *a));

/* Opens the store file at PATH, which must exist.  *OUT is NULL if PATH is.
 * -errno with F filled, which names the option. */
int tool_open_store (const char *path, bool writable, struct io_store **out,
                     struct fault *f) MUST_CHECK;

/* Parses the argument of --output.  False if it is neither human nor json. */
bool tool_parse_output (const char *s, bool *json) MUST_CHECK;

void tool_version (void);

struct dedup_create_params;
/* Sets the defaults of the options of create. */
void tool_create_defaults (struct dedup_create_params *p);
/* Parses ARG, the argument of -o of create and measure, and writes into it.
 * SUBCOMMAND is named in messages.  Returns -1 if ARG is valid, else the exit
 * code. */
int tool_create_options (const char *subcommand, char *arg,
                         struct dedup_create_params *p);

/* --- Images --------------------------------------------------------------- */

/* Tells whether bit 48 is set and whether the anchor was applied as a snapshot
 * (qcow2_anchor_was_applied).  Changes nothing.  -errno with F filled. */
int tool_look (struct io_store *io, const char *path, bool *needs_recovery,
               bool *no_disk, struct fault *f) MUST_CHECK;
/* Tells whether bit 48 is set.  Changes nothing.  -errno with F filled. */
int tool_needs_recovery (struct io_store *io, const char *path,
                         bool *needs_recovery, struct fault *f) MUST_CHECK;

/* Writes BYTES in the form "1.5 GiB" into BUF.  Returns BUF. */
const char *tool_human (uint64_t bytes, char buf[32]);

#endif
