/* SPDX-License-Identifier: BSD-3-Clause */
/* The code that the subcommands of qcow2-dedup share: messages, progress and
 * arguments.  tool-image.h has what those share that open images. */
#ifndef DEDUP_TOOL_H
#define DEDUP_TOOL_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "cleanup.h"
#include "fault.h"
#include "log.h"

/* Exit codes.  Those of check have the meanings of qemu-img check's. */
enum {
  TOOL_OK = 0,
  TOOL_FAILED = 1,
  TOOL_CORRUPT = 2,
  TOOL_LEAKS = 3,
  TOOL_INTERRUPTED = 130,     /* as a shell reports the end by SIGINT */
};

/* Each runs one subcommand and returns the exit code.  ARGV[0] is the
 * subcommand's name.  tool-image.h has the others. */
int tool_status (int argc, char *argv[]);
int tool_metrics (int argc, char *argv[]);
int tool_control (int argc, char *argv[]);

/* --- image-program.c ------------------------------------------------------ */

/* Replaces this program by qcow2-dedup-image, with the same arguments.  It
 * returns only if that cannot be run: TOOL_FAILED after a message. */
int tool_become_image_program (char *argv[]);

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

struct option;
/* Prints the line for wrong usage that names the option which is wrong.  C is what
 * getopt_long (opterr 0, the list of letters begins with ':') has just returned: '?' or
 * ':', or the value of one of OPTIONS which the subcommand does not take.  Returns
 * TOOL_FAILED. */
int tool_bad_option (const char *subcommand, int c, char *argv[],
                     const struct option *options);

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

/* Parses the argument of --output.  False if it is neither human nor json. */
bool tool_parse_output (const char *s, bool *json) MUST_CHECK;

void tool_version (void);

/* Writes BYTES in the form "1.5 GiB" into BUF.  Returns BUF. */
const char *tool_human (uint64_t bytes, char buf[32]);

#endif
