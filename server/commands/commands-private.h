/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares what the files of this room share: the state of a control socket, the
 * tables by subject, and helpers for commands. */
#ifndef DEDUP_COMMANDS_PRIVATE_H
#define DEDUP_COMMANDS_PRIVATE_H

#include <pthread.h>

#include "commands.h"

/* The "node-name" of the image, the only node there is. */
#define SRV_NODE_NAME "image"

struct srv_control {
  struct srv_image *image;      /* constant after attach */

  /* Constant after open: */
  struct qmp_server *server;
  char *path, *image_path;      /* owned */
  const struct log_sink *log;
  void (*quit) (void *opaque);
  void (*set_log_level) (void *opaque, enum log_level level);
  void *opaque;

  /* Atomic: */
  bool quitting;                /* the command quit was given */

  /* Commands that change settings run one at a time; the values are atomic: */
  enum log_level log_level;
  uint64_t job_speed;           /* bytes a second, of all jobs; 0: no limit */
};

/* One table for each subject: */
extern const struct qmp_schema srv_disk_commands;       /* disks.c */
extern const struct qmp_schema srv_block_commands;      /* block.c */
extern const struct qmp_schema srv_job_commands;        /* jobs.c */
extern const struct qmp_schema srv_image_commands;      /* image.c */
extern const struct qmp_schema srv_scrub_commands;      /* scrub.c */
extern const struct qmp_schema srv_compact_commands;    /* compact.c */
extern const struct qmp_schema srv_stats_commands;      /* stats.c */
extern const struct qmp_schema srv_event_schema;        /* announce.c */

/* Sends events of the image to the clients of the socket: the listener of
 * server-events.h.  OPAQUE is a struct srv_control. */
void srv_announce (void *opaque, const struct srv_event *e);

/* --- For commands ---------------------------------------------------------- */

/* The image of a command, from its OPAQUE. */
struct srv_image *srv_control_image (void *opaque);

/* Returns R, the result of a call that filled F or not, as the result of a command:
 * 0 or more is 0; else E gets the message, or the text of the errno. */
int srv_command_result (int r, const struct fault *f, struct qmp_error *e);

/* Logs that CALLER asked for WHAT (one line, printable or not), and how that ended: R
 * is the result and E its error. */
void srv_command_log (struct srv_control *c, const struct qmp_caller *caller,
                      int r, const struct qmp_error *e, const char *what, ...)
  __attribute__ ((__format__ (__printf__, 5, 6)));

/* Return the argument NAME; "" or the default if it was not given. */
const char *srv_arg_string (const json_t *args, const char *name);
bool srv_arg_bool (const json_t *args, const char *name, bool otherwise);
int64_t srv_arg_int (const json_t *args, const char *name, int64_t otherwise);
bool srv_arg_given (const json_t *args, const char *name);

/* Returns S as a JSON string; bytes that are not UTF-8 become '?'.  NULL: out of
 * memory. */
json_t *srv_json_text (const char *s);

/* A part of a long list that fits into one reply. */
struct srv_page {
  json_t *list;                 /* NULL: out of memory */
  size_t bytes;                 /* of the list as text */
};

/* The most bytes that a page has as text.  Clients that read lines, such as Go's
 * scanner, take 64 KiB at the most. */
#define SRV_PAGE_BYTES 61440

/* Adds ITEM, of which it takes the reference.  0: it was added; 1: it does not fit,
 * and the page is full; -ENOMEM. */
int srv_page_add (struct srv_page *p, json_t *item) MUST_CHECK;

/* Arguments of each command that starts a job, which also has "speed". */
#define SRV_JOB_ID_ARG                                                       \
  { "job-id", "str", true, "The id of the job: a letter, then letters, "     \
    "digits, '-', '.' and '_'.  Default: made from its type." }
#define SRV_JOB_DISMISS_ARG                                                  \
  { "auto-dismiss", "bool", true, "Forget the job when it has ended.  Else " \
    "it stays in the list until job-dismiss.  Default: true." }
/* Fills OPTIONS with what these say, and returns the id, NULL if none was given. */
const char *srv_job_args (json_t *args, struct srv_job_options *options);

#endif
