/* SPDX-License-Identifier: BSD-3-Clause */
/* Where the bytes of an image live.
 *
 * A byte store is addressed by host offset in bytes.  It is safe for use
 * from any number of threads at once.  All calls return 0 (or a size) or
 * -errno; short transfers are retried inside, so a call moves everything or
 * fails.  Reads past the end give zeroes.
 */
#ifndef DEDUP_IO_H
#define DEDUP_IO_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "cleanup.h"
#include "fault.h"

struct io_store;

/* One range of a scattered read. */
struct io_part {
  void *buf;                 /* LEN bytes; not used by io_will_need */
  size_t len;
  uint64_t host_off;
  int result;                /* set by io_read_many: 0 or -errno */
};

struct io_ops {
  int (*preadv) (struct io_store *s, const struct iovec *iov, int iovcnt,
                 uint64_t host_off);
  int (*pwritev) (struct io_store *s, const struct iovec *iov, int iovcnt,
                  uint64_t host_off);
  int (*sync) (struct io_store *s);      /* fdatasync */
  int (*discard) (struct io_store *s, uint64_t host_off, uint64_t len);
  int (*allocate) (struct io_store *s, uint64_t host_off, uint64_t len);
  int (*truncate) (struct io_store *s, uint64_t size);
  void (*write_out) (struct io_store *s, uint64_t host_off, uint64_t len);
  /* Either may be NULL: parts are read one by one, advice is ignored. */
  void (*read_many) (struct io_store *s, struct io_part *v, size_t nr);
  bool (*will_need) (struct io_store *s, const struct io_part *v, size_t nr,
                     bool around);
  int64_t (*size) (struct io_store *s);
  uint64_t (*max_size) (struct io_store *s);   /* or NULL: UINT64_MAX */
  uint64_t (*next_hole) (struct io_store *s, uint64_t host_off);   /* or NULL */
  int (*next_data) (struct io_store *s, uint64_t host_off,
                    uint64_t *data);                               /* or NULL */
  void (*close) (struct io_store *s);
};

/* Embedded at the start of each implementation. */
struct io_store {
  const struct io_ops *ops;
};

/* Read or write LEN bytes at HOST_OFF. */
int io_pread (struct io_store *s, void *buf, size_t len, uint64_t host_off)
  MUST_CHECK;
int io_pwrite (struct io_store *s, const void *buf, size_t len,
               uint64_t host_off) MUST_CHECK;
int io_preadv (struct io_store *s, const struct iovec *iov, int iovcnt,
               uint64_t host_off) MUST_CHECK;
int io_pwritev (struct io_store *s, const struct iovec *iov, int iovcnt,
                uint64_t host_off) MUST_CHECK;

/* Read NR parts, side by side where the store can: the wait is then that for
 * the slowest part, not the sum.  Sets the result of each part; 0, or the
 * first part's -errno that failed. */
int io_read_many (struct io_store *s, struct io_part *v, size_t nr)
  MUST_CHECK;

/* Begin to read NR parts that will be asked for soon, and do not wait.
 * Advice: it changes no byte, cannot fail, and costs little where the parts are
 * in memory already.  Returns whether it had to ask for anything.  AROUND: what
 * lies around the parts will be asked for, too; where memory is plenty it is
 * read with them, as large reads cost less than many small ones. */
bool io_will_need (struct io_store *s, const struct io_part *v, size_t nr,
                   bool around);

/* Write zeroes, which are really written, in pieces of a MiB. */
int io_pwrite_zeroes (struct io_store *s, uint64_t host_off, uint64_t len)
  MUST_CHECK;

/* Make everything that was written before the call durable.  After a failure
 * nobody knows what is, and another call may return 0 in spite of it; it is
 * never -ENOSPC (which means: try again). */
int io_sync (struct io_store *s) MUST_CHECK;

/* Begin to write a range that was written before to the device, so that the
 * next sync, whoever calls it, finds little left to do.  Advice: nothing is
 * durable by it, and what fails is told by that sync.  Waits only where the
 * device has too much to do already. */
void io_write_out (struct io_store *s, uint64_t host_off, uint64_t len);

/* Give the space of a range back; it reads as zeroes afterwards or, where
 * the host cannot do that, as before (-EOPNOTSUPP).  Never changes size. */
int io_discard (struct io_store *s, uint64_t host_off, uint64_t len)
  MUST_CHECK;

/* Reserve real space for a range, so that writing there cannot fail with
 * ENOSPC.  Extends the store where needed; -EOPNOTSUPP where the host
 * cannot. */
int io_allocate (struct io_store *s, uint64_t host_off, uint64_t len)
  MUST_CHECK;

int io_truncate (struct io_store *s, uint64_t size) MUST_CHECK;

/* Size in bytes, or -errno. */
int64_t io_size (struct io_store *s) MUST_CHECK;

/* The size past which the store cannot grow: a device's.  UINT64_MAX: none is
 * known. */
uint64_t io_max_size (struct io_store *s);

/* Where the first hole at or after HOST_OFF begins: bytes that read as zeroes
 * and for which the host keeps nothing; what is past the end is one.
 * UINT64_MAX: none, or the host does not tell.  What others change meanwhile
 * may not show. */
uint64_t io_next_hole (struct io_store *s, uint64_t host_off);

/* Where the first bytes at or after HOST_OFF are for which the host keeps
 * something: *DATA, UINT64_MAX if there are none.  -EOPNOTSUPP: the host does
 * not tell. */
int io_next_data (struct io_store *s, uint64_t host_off, uint64_t *data)
  MUST_CHECK;

/* Real space for the holes of a range, as far as there is some (-ENOSPC).  What
 * it reads as stays; nobody else writes there meanwhile. */
int io_fill_holes (struct io_store *s, uint64_t host_off, uint64_t len)
  MUST_CHECK;

/* Close and free.  Errors were reported by io_sync; NULL is fine. */
void io_close (struct io_store *s);

/* --- file.c: a regular file or block device ------------------------- */

/* Which of QEMU's image locks to hold (OFD byte-range locks: permission
 * bytes from 100, unshared bytes from 200; see QEMU block/file-posix.c and
 * docs/on-disk.md). */
enum io_file_lock {
  IO_LOCK_NONE,
  IO_LOCK_READ,   /* read consistently; others may read, not write */
  IO_LOCK_WRITE,  /* write; nobody else may open it but without locks */
};

#define IO_FILE_WRITE   1  /* open read-write */
#define IO_FILE_CREATE  2  /* create, fail with EEXIST if it is there */

/* Open PATH.  Fails with FAULT_BUSY (EBUSY) when another process holds a
 * conflicting lock, with a one-line FAULT_IO for a directory or anything
 * that is neither a regular file nor a block device.  -ENOENT: there is no
 * such file, but its directory is there (else -ENOTDIR; a link to nothing is
 * -ELOOP). */
int io_file_open (const char *path, int flags, enum io_file_lock lock,
                  struct io_store **out, struct fault *f) MUST_CHECK;

/* The same for NAME, which has no slash, in the directory DIR; a symbolic link
 * is not followed. */
int io_file_open_in (const char *dir, const char *name, int flags,
                     enum io_file_lock lock, struct io_store **out,
                     struct fault *f) MUST_CHECK;

/* Is the block device at PATH mounted, or part of another device?  False for
 * anything else, and where it cannot be told. */
bool io_device_in_use (const char *path);

/* --- file-birth.c: a file that gets its name when it is complete ------- */

struct io_birth;

#define IO_BIRTH_NAMED 1   /* for tests: as on a host without unnamed files */

/* Makes an empty file in PATH's directory that is not called PATH yet, open
 * for writing and locked as by IO_LOCK_WRITE.  A process that dies leaves no
 * file or, where the host's file system has no unnamed files, one with a name
 * that begins with a dot, which a later birth removes.
 *
 * *OUT is the caller's, *B belongs to one of the two calls below. */
int io_birth_begin (const char *path, int flags, struct io_birth **b,
                    struct io_store **out, struct fault *f) MUST_CHECK;

/* Makes what was written durable, then names the file PATH, durably.  Never
 * replaces a file: -EEXIST if there is one by now.  Frees B in any case. */
int io_birth_finish (struct io_birth *b, struct fault *f) MUST_CHECK;

/* Gives the birth up; NULL is fine. */
void io_birth_cancel (struct io_birth *b);

/* --- memory.c: bytes in RAM, for tests -------------------------------- */
int io_memory_new (uint64_t size, struct io_store **out) MUST_CHECK;

/* Like a device of SIZE bytes, which never changes its size and has no space to
 * give back.  All bytes are FILL, for what was there before. */
int io_memory_new_device (uint64_t size, uint8_t fill, struct io_store **out)
  MUST_CHECK;

/* --- faulty.c: wraps another store, for tests -------------------------- */

enum io_call { IO_PREAD, IO_PWRITE, IO_SYNC, IO_DISCARD, IO_ALLOCATE,
               IO_TRUNCATE, IO_NR_CALLS };

/* Called before each call, from any thread: return 0 to let it through or
 * -errno to fail it without touching the wrapped store.  For a write also a
 * number of bytes below LEN: so many are written, then it fails with ENOSPC. */
typedef int (*io_faulty_cb) (void *opaque, enum io_call call,
                             uint64_t host_off, uint64_t len);

/* Wraps BELOW, which is closed with the wrapper. */
int io_faulty_new (struct io_store *below, io_faulty_cb cb, void *opaque,
                   struct io_store **out) MUST_CHECK;

/* --- recording.c: wraps another store, for crash tests ----------------- */

struct io_record {
  enum io_call call;      /* IO_PWRITE, IO_SYNC, IO_DISCARD, IO_TRUNCATE */
  uint64_t host_off;      /* of a write or discard; the size of a truncate */
  uint64_t len;
  unsigned char *data;    /* of a write: owned by the recording */
};

int io_recording_new (struct io_store *below, struct io_store **out)
  MUST_CHECK;

/* The log so far.  The array belongs to the store and is stable while no
 * call is under way. */
size_t io_recording_log (struct io_store *s, const struct io_record **log);

#endif
