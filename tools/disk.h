/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares what the commands of qcow2-dedup disk share: their arguments, the open
 * pool, and work on ranges of a disk. */
#ifndef DEDUP_TOOL_DISK_H
#define DEDUP_TOOL_DISK_H

#include "dedup.h"
#include "tool-image.h"

#define DISK_MAX_OPERANDS 2     /* fixed ones after POOL; delete takes more */

struct disk_args {              /* the command line */
  const char *command;          /* such as "disk create", for messages */
  const char *path;             /* of the pool */
  const char *store_path;       /* --store, or NULL */
  char *const *operands;        /* after POOL; "" for --active */
  int nr_operands;
  bool json, no_wait, force, resume, shrink, sizes, progress;
  const char *format;           /* --format, or NULL */
  uint64_t size;                /* --size; 0: not given */
};

struct disk_pool {
  struct io_store *io, *store;
  struct dedup_pool *d;
  const struct disk_args *args;
};

enum {                          /* bits: which options a command takes */
  DISK_OPT_JSON = 1, DISK_OPT_NO_WAIT = 2, DISK_OPT_FORCE = 4,
  DISK_OPT_RESUME = 8, DISK_OPT_SHRINK = 16, DISK_OPT_SIZES = 32,
  DISK_OPT_PROGRESS = 64, DISK_OPT_FORMAT = 128, DISK_OPT_SIZE = 256,
  DISK_OPT_ACTIVE = 512,
};

/* --- disk-help.c ----------------------------------------------------------- */

/* Prints the summary of all commands. */
void disk_help (void);
/* Prints the summary of the command NAME, which takes the options in OPTS. */
void disk_command_help (const char *name, unsigned opts);

/* --- Commands -------------------------------------------------------------- */

/* Each runs one command and returns the exit code. */
int disk_create (const struct disk_args *a);
int disk_clone (const struct disk_args *a);
int disk_snapshot (const struct disk_args *a);
int disk_reset (const struct disk_args *a);
int disk_rename (const struct disk_args *a);
int disk_resize (const struct disk_args *a);
int disk_set (const struct disk_args *a);
int disk_delete (const struct disk_args *a);
int disk_list (const struct disk_args *a);
int disk_info (const struct disk_args *a);
int disk_import (const struct disk_args *a);
int disk_export (const struct disk_args *a);

/* --- disk-open.c ---------------------------------------------------------- */

/* Opens the pool, calls RUN with it, and closes it.  WRITABLE: after RUN, tables
 * that are lent are paid for and deleted disks are freed, unless --no-wait was
 * given, so that the image is clean.  Returns RUN's exit code, or TOOL_FAILED
 * after a message. */
int disk_with_pool (const struct disk_args *a, bool writable,
                    int (*run) (struct disk_pool *p));
/* Finds a disk or snapshot by its name; "" is the active disk.  Sets *INFO, whose
 * name is the caller's to free.  -ENOENT with F filled. */
int disk_find (struct disk_pool *p, const char *name,
               struct dedup_disk_info *info, struct fault *f) MUST_CHECK;
/* Prints the line "qcow2-dedup: POOL: ..." with F's message, or that of R. */
int disk_fault (const struct disk_pool *p, int r, const struct fault *f);
/* Parses the size of a disk: a multiple of 512, and not 0.  -1 if it is one, else
 * the exit code. */
int disk_parse_size (const struct disk_args *a, const char *s, uint64_t *size);

/* --- disk-range.c ---------------------------------------------------------- */

/* Runs the background jobs that are urgent, between two writes. */
int disk_run_urgent (struct disk_pool *p) MUST_CHECK;
/* Finds the first byte at or after FROM, below SIZE, whose cluster holds data (or
 * may hold it).  *AT is SIZE if there is none. */
int disk_next_data (struct qcow2_image *img, unsigned root, uint64_t from,
                    uint64_t size, uint64_t *at) MUST_CHECK;
/* Makes all bytes of the disk from FROM up to its SIZE zero, and gives their
 * space back. */
int disk_cut_off (struct disk_pool *p, unsigned root, uint64_t size,
                  uint64_t from) MUST_CHECK;

/* --- disk-source.c ---------------------------------------------------------- */

/* A file that is imported. */
struct disk_source {
  struct io_store *io;
  struct qcow2_image *img;      /* NULL: raw */
  uint64_t size;                /* bytes of the disk in it */
};
/* Opens the file for reading, under QEMU's lock for readers.  FORMAT: "raw",
 * "qcow2" or NULL, which looks at the first bytes. */
int disk_source_open (const char *path, const char *format,
                      struct disk_source *s, struct fault *f) MUST_CHECK;
void disk_source_close (struct disk_source *s);
/* Finds the first byte at or after FROM that may not be zero; *AT is at least the
 * size if there is none. */
int disk_source_next (struct disk_source *s, uint64_t from,
                      uint64_t *at) MUST_CHECK;
/* Reads a range that may reach past the end, where there are zeroes. */
int disk_source_read (struct disk_source *s, void *buf, uint64_t from,
                      size_t len) MUST_CHECK;

/* --- disk-target.c ---------------------------------------------------------- */

struct disk_target;             /* a file that is written by an export */
/* Makes the file at PATH for a disk of SIZE bytes, in FORMAT.  An existing file is
 * replaced only with FORCE, and only when the new one is complete; a device is
 * written over. */
int disk_target_new (const char *path, const char *format, uint64_t size,
                     bool force, struct disk_target **t, struct fault *f)
  MUST_CHECK;
/* Returns the unit of writes, in bytes: a power of two. */
size_t disk_target_unit (const struct disk_target *t);
/* Returns whether zeroes must be written, too. */
bool disk_target_is_dense (const struct disk_target *t);
/* Writes whole units; what lies past the end of the disk must be zero. */
int disk_target_write (struct disk_target *t, const uint8_t *buf,
                       uint64_t guest_off, size_t len) MUST_CHECK;
/* Makes the file durable, and gives it its name.  Frees T in any case. */
int disk_target_finish (struct disk_target *t, struct fault *f) MUST_CHECK;
/* Drops the file.  NULL is allowed. */
void disk_target_cancel (struct disk_target *t);

/* --- disk-print.c ----------------------------------------------------------- */

struct json_t;

/* The disks and snapshots of a pool, sorted: each disk is followed by its
 * snapshots, in the order in which they were made. */
struct disk_table {
  struct dedup_disk_info *v;    /* owned */
  size_t nr;
};
int disk_table_load (struct disk_pool *p, struct disk_table *t) MUST_CHECK;
void disk_table_free (struct disk_table *t);
/* Returns the name of the disk or snapshot that INFO is a clone of; NULL: of none,
 * of the active disk, or of one that was deleted. */
const char *disk_origin (const struct disk_table *t,
                         const struct dedup_disk_info *info);
/* Returns whether INFO is a snapshot, by its name, of the disk called DISK. */
bool disk_is_snapshot_of (const struct dedup_disk_info *info,
                          const char *disk);
/* Returns NAME without control characters and bytes that are not UTF-8: '?' is in
 * their place.  The caller's; NULL: out of memory. */
char *disk_printable (const char *name);
/* Writes the local time into BUF. */
const char *disk_time (uint64_t seconds, char buf[32]);
/* Returns a JSON object of what is known of INFO without counting; NULL: out of
 * memory. */
struct json_t *disk_to_json (const struct disk_table *t,
                             const struct dedup_disk_info *info);
/* Sets member KEY of O to the string S, made printable, or to null. */
void disk_json_set_string (struct json_t *o, const char *key, const char *s);
void disk_json_set (struct json_t *o, const char *key, uint64_t v);
/* Prints the object and frees it. */
void disk_json_print (struct json_t *o);

#endif
