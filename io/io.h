/* SPDX-License-Identifier: BSD-3-Clause */
/* Defines the byte store, which holds the bytes of an image.
 *
 * A byte store is addressed by host offset in bytes.  It is safe for use
 * from any number of threads at once.  All calls return 0 (or a size) or
 * -errno; short transfers are retried inside, so a call moves everything or
 * fails.  Reads past the end return zeroes.
 */
#ifndef DEDUP_IO_H
#define DEDUP_IO_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "cleanup.h"
#include "fault.h"
#include "log.h"

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
  /* May be NULL: then it is a write and a sync. */
  int (*pwritev_sync) (struct io_store *s, const struct iovec *iov, int iovcnt,
                       uint64_t host_off);
  int (*discard) (struct io_store *s, uint64_t host_off, uint64_t len);
  int (*allocate) (struct io_store *s, uint64_t host_off, uint64_t len);
  int (*truncate) (struct io_store *s, uint64_t size);
  void (*write_out) (struct io_store *s, uint64_t host_off, uint64_t len);
  /* May be NULL: then it is a plain read. */
  int (*pread_medium) (struct io_store *s, void *buf, size_t len,
                       uint64_t host_off);
  /* May be NULL: then parts are read one by one, and advice is ignored. */
  void (*read_many) (struct io_store *s, struct io_part *v, size_t nr);
  bool (*will_need) (struct io_store *s, const struct io_part *v, size_t nr,
                     bool around);
  int64_t (*size) (struct io_store *s);
  uint64_t (*max_size) (struct io_store *s);   /* or NULL: UINT64_MAX */
  unsigned (*block_size) (struct io_store *s); /* or NULL: 1 */
  bool (*host_space) (struct io_store *s, uint64_t *bytes_left,
                      uint64_t *bytes);                            /* or NULL */
  uint64_t (*next_hole) (struct io_store *s, uint64_t host_off);   /* or NULL */
  int (*next_data) (struct io_store *s, uint64_t host_off,
                    uint64_t *data);                               /* or NULL */
  /* Returns whether it knows nothing of space: then no hole is filled.  NULL: false. */
  bool (*lacks_space) (struct io_store *s);
  void (*before_fork) (struct io_store *s);                        /* or NULL */
  int (*after_fork) (struct io_store *s);                          /* or NULL */
  bool (*tainted) (struct io_store *s, uint64_t host_off,
                   uint64_t len);                       /* or NULL: nothing */
  int (*forget_taint) (struct io_store *s, uint64_t host_off,
                       uint64_t len);                   /* or NULL */
  void (*close) (struct io_store *s);
};

/* The start of the struct of each implementation. */
struct io_store {
  const struct io_ops *ops;
};

/* Read or write LEN bytes, or those of IOV, at HOST_OFF. */
int io_pread (struct io_store *s, void *buf, size_t len, uint64_t host_off)
  MUST_CHECK;
int io_pwrite (struct io_store *s, const void *buf, size_t len,
               uint64_t host_off) MUST_CHECK;
int io_preadv (struct io_store *s, const struct iovec *iov, int iovcnt,
               uint64_t host_off) MUST_CHECK;
int io_pwritev (struct io_store *s, const struct iovec *iov, int iovcnt,
                uint64_t host_off) MUST_CHECK;

/* The alignment of buffers, in bytes, with which io_pread_medium copies
 * nothing. */
#define IO_MEDIUM_ALIGN 4096u

/* Reads LEN bytes at HOST_OFF from the medium, not from the host's page cache,
 * as far as the host can do that.  Bytes that were written and are not on the
 * medium yet are brought there first, or read from the cache.  It is slower
 * than io_pread where the bytes are cached, and shows what a reader will get
 * when they are not.  Results as io_pread. */
int io_pread_medium (struct io_store *s, void *buf, size_t len,
                     uint64_t host_off) MUST_CHECK;

/* Reads NR parts, side by side where the store can: the wait is then that for
 * the slowest part, not the sum.  Sets the result of each part; returns 0, or
 * the -errno of the first part that failed. */
int io_read_many (struct io_store *s, struct io_part *v, size_t nr)
  MUST_CHECK;

/* Begins to read NR parts that will be read soon, and does not wait.  It is
 * advice: it changes no byte, cannot fail, and costs little where the parts are
 * in memory already.  Returns whether it asked the host for anything.  AROUND:
 * the bytes around the parts will be read soon, too; where memory is plenty
 * they are read with them, as large reads cost less than many small ones. */
bool io_will_need (struct io_store *s, const struct io_part *v, size_t nr,
                   bool around);

/* Writes zeroes, as data and not as a hole, in pieces of 1 MiB. */
int io_pwrite_zeroes (struct io_store *s, uint64_t host_off, uint64_t len)
  MUST_CHECK;

/* Makes everything that was written before the call durable.  After a failure
 * it is not known what is durable, and another call may return 0 all the same.
 * Never returns -ENOSPC (which means: try again). */
int io_sync (struct io_store *s) MUST_CHECK;

/* Writes, and makes that and everything that was written before the call durable,
 * as io_sync does.  The two may go on side by side, so where the store is far away
 * they cost one round trip.  -ENOSPC: the write found no space, and nothing that was
 * written before need be durable. */
int io_pwritev_sync (struct io_store *s, const struct iovec *iov, int iovcnt,
                     uint64_t host_off) MUST_CHECK;

/* Begins to write a range from the page cache to the device, so that the next
 * sync, by any caller, has little left to do.  It is advice: it makes nothing
 * durable, and that sync reports its errors.  Waits only where the device's
 * queue is full. */
void io_write_out (struct io_store *s, uint64_t host_off, uint64_t len);

/* Gives the space of a range back to the host; it reads as zeroes afterwards
 * or, where the host cannot do that, as before (-EOPNOTSUPP).  On an NBD export
 * it may also read as before, or in parts, after success.  Never changes the
 * size. */
int io_discard (struct io_store *s, uint64_t host_off, uint64_t len)
  MUST_CHECK;

/* Reserves real space for a range, so that writing there cannot fail with
 * ENOSPC.  Extends the store where needed; -EOPNOTSUPP where the host
 * cannot. */
int io_allocate (struct io_store *s, uint64_t host_off, uint64_t len)
  MUST_CHECK;

/* Sets the size.  On a device, a size up to the device's changes nothing, and a
 * larger one is -ENOSPC. */
int io_truncate (struct io_store *s, uint64_t size) MUST_CHECK;

/* Returns the size in bytes, or -errno. */
int64_t io_size (struct io_store *s) MUST_CHECK;

/* Returns the size that the store cannot grow past: that of a device.
 * UINT64_MAX: no limit is known. */
uint64_t io_max_size (struct io_store *s);

/* Returns the bytes that the store writes as a whole: a write of a part of such a block
 * writes the rest of it again, which a crash may tear.  A power of two from IO_SECTOR to
 * IO_MAX_BLOCK: the physical block of a device, the minimum block of an NBD export, and
 * IO_SECTOR for a regular file. */
unsigned io_block_size (struct io_store *s);
#define IO_SECTOR 512u
#define IO_MAX_BLOCK 65536u

/* Sets *BYTES to the size of the file system that holds the store, and
 * *BYTES_LEFT to what this user can still write there.  False: there is no such
 * limit (a device, memory), or the host cannot tell. */
bool io_host_space (struct io_store *s, uint64_t *bytes_left, uint64_t *bytes)
  MUST_CHECK;

/* Returns the start of the first hole at or after HOST_OFF: of bytes that read
 * as zeroes and take no space on the host.  The end of the file begins a hole.
 * UINT64_MAX: there is none, or the host cannot tell.  Changes by others
 * meanwhile may be missed. */
uint64_t io_next_hole (struct io_store *s, uint64_t host_off);

/* Sets *DATA to the first byte at or after HOST_OFF that takes space on the
 * host, UINT64_MAX if there is none.  -EOPNOTSUPP: the host cannot tell. */
int io_next_data (struct io_store *s, uint64_t host_off, uint64_t *data)
  MUST_CHECK;

/* Gets real space for the holes of a range; -ENOSPC after some of them, where
 * there is no more.  The bytes stay as they are; nobody else may write there
 * meanwhile.  Does nothing on an NBD export, where space is the server's affair. */
int io_fill_holes (struct io_store *s, uint64_t host_off, uint64_t len)
  MUST_CHECK;

/* Stops the threads that the store itself has, because they do not survive a fork,
 * and starts them again, in whichever process goes on.  Between the two calls there
 * may be no other one, except of io_close. */
void io_before_fork (struct io_store *s);
int io_after_fork (struct io_store *s) MUST_CHECK;

/* Returns whether a write that was lost with a connection may still land in the
 * range.  A new write or discard there fails with -ESTALE, until the store is
 * closed; what is there stays readable (nbd.h). */
bool io_tainted (struct io_store *s, uint64_t host_off, uint64_t len);
/* Ends that for the range: its reader tells what lands there late from what is written
 * now, so it may be written again.  Fails with -ENOMEM. */
int io_forget_taint (struct io_store *s, uint64_t host_off, uint64_t len) MUST_CHECK;

/* Closes and frees the store.  Errors were reported by io_sync; NULL is
 * allowed. */
void io_close (struct io_store *s);

/* --- file.c: a regular file or block device ------------------------- */

/* Selects the image locks of QEMU to hold (OFD byte-range locks: permission
 * bytes from 100, unshared bytes from 200; see QEMU block/file-posix.c and
 * docs/on-disk.md). */
enum io_file_lock {
  IO_LOCK_NONE,
  IO_LOCK_READ,   /* read consistently; others may read, not write */
  IO_LOCK_WRITE,  /* write; others may open it without locks only */
};

#define IO_FILE_WRITE   1  /* open read-write */
#define IO_FILE_CREATE  2  /* create, fail with EEXIST if it exists */

/* Opens PATH.  Fails with FAULT_BUSY (EBUSY) when another process holds a
 * conflicting lock, with a one-line FAULT_IO for a directory or anything
 * that is neither a regular file nor a block device.  -ENOENT: there is no
 * such file, but its directory exists (else -ENOTDIR; a link to nothing is
 * -ELOOP). */
int io_file_open (const char *path, int flags, enum io_file_lock lock,
                  struct io_store **out, struct fault *f) MUST_CHECK;

/* Opens NAME, which has no slash, in the directory DIR, as io_file_open does,
 * but does not follow a symbolic link. */
int io_file_open_in (const char *dir, const char *name, int flags,
                     enum io_file_lock lock, struct io_store **out,
                     struct fault *f) MUST_CHECK;

/* Returns whether the block device at PATH is mounted, or part of another
 * device.  False for anything else, and where that cannot be found out. */
bool io_device_in_use (const char *path);

/* --- place.c: where an image lies ---------------------------------------- */

/* Returns whether S is the URI of an NBD export: it begins with nbd://, nbds://,
 * nbd+unix:// or nbds+unix://.  Anything else is a path. */
bool io_is_uri (const char *s);

/* Returns whether S is a file that was to be locked, on a file system without
 * locks. */
bool io_file_lacks_locks (const struct io_store *s);

/* Opens PLACE, a path or a URI, as io_file_open opens a path.  Devices and exports
 * do not grow: io_max_size tells how far an image in them can, and nothing else
 * distinguishes them.
 *
 * Where a lock is asked for and the place has none that reaches every server, a
 * lease stands for it (lease.h): IO_LOCK_WRITE takes it, which may wait for its
 * term, and IO_LOCK_READ fails if a server renews it.  Such places are NBD
 * exports, files on a file system without locks, and block devices that have had
 * a lease, or with IO_PLACE_LEASE.  LOG, which may be NULL and must outlive the
 * store like PLACE, is told of waiting and of a lease that is lost. */
#define IO_PLACE_LEASE  4  /* a block device has a lease, besides its locks */
#define IO_PLACE_OVERWRITE 8   /* bytes where the lease goes are not needed */

struct io_place_params {
  const char *place;
  int flags;
  enum io_file_lock lock;
  const struct log_sink *log;
  /* Of NBD exports: */
  unsigned reconnect_delay;     /* seconds in which a lost connection must be back,
                                 * else all calls fail */
  unsigned connections;         /* at the most; 0: as many as suit */
  bool fenced;                  /* as in nbd.h */
  /* Is called by another thread while the lease is being taken for IO_LOCK_WRITE, and
   * reads from S what the caller will read next: all of that is then read ahead at once.
   * The bytes may be another server's that still writes, so they are good for nothing
   * else, and S refuses changes.  It has returned when the call returns.  May be NULL. */
  void (*rehearse) (void *opaque, struct io_store *s);
  void *opaque;
};
#define IO_RECONNECT_DELAY 60u  /* unless another is asked for */

int io_place_open_with (const struct io_place_params *p, struct io_store **out,
                        struct fault *f) MUST_CHECK;
int io_place_open (const char *place, int flags, enum io_file_lock lock,
                   struct io_store **out, struct fault *f) MUST_CHECK;

/* Does what io_place_open_with does about leases, for a store of PLACE that is
 * open for writing and was opened in another way.  *S is replaced, and on failure
 * closed and NULL.  A store that has a lease already keeps it. */
int io_place_lease (const char *place, int flags, const struct log_sink *log,
                    struct io_store **s, struct fault *f) MUST_CHECK;

#define IO_PLACE_HOLDER_TEXT 200

/* Returns how many bytes at the end of S, a device or export that was opened without its
 * lease, belong to one: 0 if no server ever took it, or if that cannot be read. */
uint64_t io_lease_bytes (struct io_store *s);

/* Describes who has the lease of PLACE, as far as its record says, which may have
 * ended: "HOST, process 12, since ...".  Waits for nothing.  Returns 1; 0 if it is
 * free, or if the place has none; or -errno. */
int io_place_holder (const char *place, char text[IO_PLACE_HOLDER_TEXT],
                     struct fault *f) MUST_CHECK;

/* Makes the lease of PLACE free, whoever has it: only for somebody who knows that
 * the holder has ended.  One that has not writes until it notices, up to a sixth of
 * its term later.  Returns 0, also if the place has no lease, or -errno. */
int io_place_unlock (const char *place, struct fault *f) MUST_CHECK;

/* --- file-birth.c: a file that gets its name when it is complete ------- */

struct io_birth;

#define IO_BIRTH_NAMED 1   /* for tests: as on a host without unnamed files */

/* Creates an empty file in PATH's directory that is not called PATH yet, open
 * for writing and locked as by IO_LOCK_WRITE.  A process that dies leaves no
 * file or, where the host's file system has no unnamed files, one with a name
 * that begins with a dot, which a later birth removes.
 *
 * *OUT is the caller's; *B is freed by one of the two calls below. */
int io_birth_begin (const char *path, int flags, struct io_birth **b,
                    struct io_store **out, struct fault *f) MUST_CHECK;

/* Makes the data durable, then names the file PATH, durably, too.  Never
 * replaces a file: -EEXIST if there is one by now.  Frees B in any case. */
int io_birth_finish (struct io_birth *b, struct fault *f) MUST_CHECK;

/* Drops the file without naming it, and frees B; NULL is allowed. */
void io_birth_cancel (struct io_birth *b);

/* --- memory.c: bytes in RAM, for tests -------------------------------- */
int io_memory_new (uint64_t size, struct io_store **out) MUST_CHECK;

/* Makes a store like a device of SIZE bytes, which never changes its size and
 * has no space to give back.  All bytes are FILL, in place of older
 * contents. */
int io_memory_new_device (uint64_t size, uint8_t fill, struct io_store **out)
  MUST_CHECK;

/* Sets what io_block_size returns for a store in memory. */
void io_memory_set_block (struct io_store *s, unsigned size);

/* --- faulty.c: wraps another store, for tests -------------------------- */

enum io_call { IO_PREAD, IO_PWRITE, IO_SYNC, IO_DISCARD, IO_ALLOCATE,
               IO_TRUNCATE, IO_NR_CALLS };

/* Is called before each call of the store, from any thread.  It returns 0 to
 * let the call pass or -errno to fail it without touching the wrapped store.
 * For a write it may also return a number of bytes below LEN: so many are
 * written, then the write fails with ENOSPC. */
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

/* Returns the number of records so far, and the records in *LOG.  The array
 * belongs to the store and is stable while no call is under way. */
size_t io_recording_log (struct io_store *s, const struct io_record **log);

#endif
