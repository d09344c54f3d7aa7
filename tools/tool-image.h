/* SPDX-License-Identifier: BSD-3-Clause */
/* The code that those subcommands of qcow2-dedup share which open images, and so are
 * in the program qcow2-dedup-image. */
#ifndef DEDUP_TOOL_IMAGE_H
#define DEDUP_TOOL_IMAGE_H

#include "io.h"
#include "qcow2.h"
#include "tool.h"

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
int tool_scrub (int argc, char *argv[]);
int tool_unlock (int argc, char *argv[]);

/* Parses the command line, opens FILE read-only under QEMU's locks for readers,
 * and hands it to RUN.  Returns the exit code. */
int tool_on_image (int argc, char *argv[], struct tool_args *a,
                   int (*run) (struct io_store *io,
                               const struct tool_args *a));

/* Opens the store file at PATH, which must exist.  *OUT is NULL if PATH is.
 * -errno with F filled, which names the option. */
int tool_open_store (const char *path, bool writable, struct io_store **out,
                     struct fault *f) MUST_CHECK;

struct dedup_create_params;
/* Sets the defaults of the options of create. */
void tool_create_defaults (struct dedup_create_params *p);
/* Parses ARG, the argument of -o of create and measure, and writes into it.
 * SUBCOMMAND is named in messages.  Returns -1 if ARG is valid, else the exit
 * code. */
int tool_create_options (const char *subcommand, char *arg,
                         struct dedup_create_params *p);

/* Tells whether bit 48 is set and whether the anchor was applied as a snapshot
 * (qcow2_anchor_was_applied).  Changes nothing.  -errno with F filled. */
int tool_look (struct io_store *io, const char *path, bool *needs_recovery,
               bool *no_disk, struct fault *f) MUST_CHECK;
/* Tells whether bit 48 is set.  Changes nothing.  -errno with F filled. */
int tool_needs_recovery (struct io_store *io, const char *path,
                         bool *needs_recovery, struct fault *f) MUST_CHECK;

#endif
