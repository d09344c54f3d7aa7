/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests files as byte stores.  Functions of the C library that this program
 * defines itself play awkward hosts (short transfers, EINTR, file systems that
 * lack a call): see hooks.  Locks are tested against bytes locked as QEMU would
 * lock them.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "checked.h"
#include "io-promises.h"
#include "io.h"

/* --- the C library, with faults ------------------------------------------ */

static struct {
  size_t short_max;          /* move at most so many bytes a call; 0: off */
  int eintr;                 /* fail so many calls with EINTR first */
  int fdatasync_err, fallocate_err, fcntl_err, lseek_err; /* fail so */
  int calls;                 /* preadv and pwritev */
  int preads;                /* calls of pread */
  int iovcnt_max;            /* the longest array seen by them */
} hooks;

static bool
interrupted (void)
{
  if (hooks.eintr == 0)
    return false;
  hooks.eintr--;
  errno = EINTR;
  return true;
}

static bool
fails_with (int err)
{
  errno = err;
  return err != 0;
}

static void
note_call (int iovcnt)
{
  hooks.calls++;
  hooks.iovcnt_max = MAX_OF (hooks.iovcnt_max, iovcnt);
}

ssize_t
preadv (int fd, const struct iovec *iov, int iovcnt, off_t off)
{
  if (interrupted ())
    return -1;
  note_call (iovcnt);
  if (hooks.short_max > 0)
    return pread (fd, iov->iov_base, MIN_OF (iov->iov_len, hooks.short_max),
                  off);
  return syscall (SYS_preadv, fd, iov, iovcnt, (long) off,
                  (long) (off >> 32));
}

ssize_t
pread (int fd, void *buf, size_t len, off_t off)
{
  hooks.preads++;
  return syscall (SYS_pread64, fd, buf, len, off);
}

ssize_t
pwritev (int fd, const struct iovec *iov, int iovcnt, off_t off)
{
  if (interrupted ())
    return -1;
  note_call (iovcnt);
  if (hooks.short_max > 0)
    return pwrite (fd, iov->iov_base, MIN_OF (iov->iov_len, hooks.short_max),
                   off);
  return syscall (SYS_pwritev, fd, iov, iovcnt, (long) off,
                  (long) (off >> 32));
}

int
fdatasync (int fd)
{
  if (interrupted () || fails_with (hooks.fdatasync_err))
    return -1;
  return syscall (SYS_fdatasync, fd);
}

int
fallocate (int fd, int mode, off_t off, off_t len)
{
  if (interrupted () || fails_with (hooks.fallocate_err))
    return -1;
  return syscall (SYS_fallocate, fd, mode, off, len);
}

off_t
lseek (int fd, off_t off, int whence)
{
  if (fails_with (hooks.lseek_err))
    return -1;
  return syscall (SYS_lseek, fd, off, whence);
}

int
fcntl (int fd, int cmd, ...)
{
  va_list args;
  void *arg;

  va_start (args, cmd);
  arg = va_arg (args, void *);
  va_end (args);
  if ((cmd == F_OFD_SETLK || cmd == F_OFD_GETLK) &&
      fails_with (hooks.fcntl_err))
    return -1;
  return syscall (SYS_fcntl, fd, cmd, arg);
}

/* --- a scratch file for each test ---------------------------------------- */

static char dir[PATH_MAX];
static char path[PATH_MAX + 16];

static int
set_up (void **state)
{
  const char *tmp = getenv ("TMPDIR");

  memset (&hooks, 0, sizeof hooks);
  snprintf (dir, sizeof dir, "%s/test-io-XXXXXX", tmp ? tmp : "/tmp");
  if (mkdtemp (dir) == NULL)
    return -1;
  snprintf (path, sizeof path, "%s/image", dir);
  return 0;
}

static int
tear_down (void **state)
{
  memset (&hooks, 0, sizeof hooks);
  unlink (path);
  return rmdir (dir);
}

static struct io_store *
open_image (int flags, enum io_file_lock lock)
{
  struct fault f = { 0 };
  struct io_store *s = NULL;

  if (io_file_open (path, flags, lock, &s, &f) < 0)
    fail_msg ("%s: %s", path, f.msg);
  return s;
}

static struct io_store *
create_image (void)
{
  return open_image (IO_FILE_WRITE | IO_FILE_CREATE, IO_LOCK_NONE);
}

static void
assert_open_fails (int flags, enum io_file_lock lock, int err,
                   enum fault_kind kind, const char *msg)
{
  struct fault f = { 0 };
  struct io_store *s = NULL;

  assert_int_equal (io_file_open (path, flags, lock, &s, &f), -err);
  assert_null (s);
  assert_int_equal (f.err, err);
  assert_int_equal (f.kind, kind);
  assert_string_equal (f.msg, msg);
}

static int64_t
bytes_on_disk (void)
{
  struct stat st;

  assert_int_equal (stat (path, &st), 0);
  return (int64_t) st.st_blocks * 512;
}

/* --- file: transfers ----------------------------------------------------- */

static void
a_file_keeps_each_promise (void **state)
{
  size_t i;

  for (i = 0; i < NR_PROMISES; i++) {
    keeps (create_image (), promises[i]);
    assert_int_equal (unlink (path), 0);
  }
}

static void
short_transfers_are_continued (void **state)
{
  struct io_store *s = create_image ();
  size_t max;

  for (max = 1; max < 6000; max = max * 3 + 1) {
    hooks.short_max = max;
    hooks.eintr = 2;
    vectors_land_in_order (s);
    assert_int_equal (hooks.eintr, 0);
    assert_int_equal (io_truncate (s, 0), 0);
    reads_past_the_end_give_zeroes (s);
    assert_int_equal (io_truncate (s, 0), 0);
  }
  io_close (s);
}

static void
interrupted_calls_are_repeated (void **state)
{
  struct io_store *s = create_image ();

  assert_int_equal (io_truncate (s, 4096), 0);
  hooks.eintr = 3;
  assert_int_equal (io_sync (s), 0);
  assert_int_equal (hooks.eintr, 0);
  hooks.eintr = 3;
  assert_int_equal (io_discard (s, 0, 4096), 0);
  assert_int_equal (hooks.eintr, 0);
  io_close (s);
}

static void
long_vectors_respect_iov_max (void **state)
{
  enum { NR = 3 * IOV_MAX + 7 };
  static unsigned char data[NR * 3], buf[NR * 3];
  static struct iovec iov[NR];
  struct io_store *s = create_image ();
  int i;

  fill (data, sizeof data, 6);
  for (i = 0; i < NR; i++)
    iov[i] = (struct iovec) { data + i * 3, 3 };
  assert_int_equal (io_pwritev (s, iov, NR, 0), 0);
  for (i = 0; i < NR; i++)
    iov[i].iov_base = buf + i * 3;
  assert_int_equal (io_preadv (s, iov, NR, 0), 0);
  assert_memory_equal (buf, data, sizeof data);
  assert_int_equal (hooks.iovcnt_max, IOV_MAX);
  assert_int_equal (hooks.calls, 8);
  io_close (s);
}

static void
empty_iovecs_are_not_taken_for_the_end (void **state)
{
  static struct iovec iov[IOV_MAX + 1];
  struct io_store *s = create_image ();
  char c = 'x';

  assert_int_equal (io_pwrite (s, &c, 1, 0), 0);
  c = 0;
  iov[IOV_MAX] = (struct iovec) { &c, 1 };
  assert_int_equal (io_preadv (s, iov, IOV_MAX + 1, 0), 0);
  assert_int_equal (c, 'x');
  io_close (s);
}

static void
a_write_past_the_size_limit_is_a_full_disk (void **state)
{
  static unsigned char data[8192];
  struct io_store *s = create_image ();
  struct rlimit old, small;

  signal (SIGXFSZ, SIG_IGN);
  assert_int_equal (getrlimit (RLIMIT_FSIZE, &old), 0);
  small = old;
  small.rlim_cur = 4096;
  assert_int_equal (setrlimit (RLIMIT_FSIZE, &small), 0);
  assert_int_equal (io_pwrite (s, data, sizeof data, 0), -ENOSPC);
  assert_int_equal (io_truncate (s, 8192), -ENOSPC);
  assert_int_equal (io_allocate (s, 0, 8192), -ENOSPC);
  assert_int_equal (setrlimit (RLIMIT_FSIZE, &old), 0);
  assert_int_equal (io_pwrite (s, data, sizeof data, 0), 0);
  io_close (s);
}

static void
host_errors_are_folded_for_clients (void **state)
{
  struct io_store *s = create_image ();

  hooks.fdatasync_err = EDQUOT;
  assert_int_equal (io_sync (s), -EIO);   /* not to be tried again */
  hooks.fdatasync_err = ENXIO;
  assert_int_equal (io_sync (s), -EIO);
  hooks.fallocate_err = EDQUOT;
  assert_int_equal (io_allocate (s, 0, 4096), -ENOSPC);
  hooks.fallocate_err = EOPNOTSUPP;
  assert_int_equal (io_allocate (s, 0, 4096), -EOPNOTSUPP);
  assert_int_equal (io_discard (s, 0, 4096), -EOPNOTSUPP);
  hooks.fallocate_err = ENOSYS;
  assert_int_equal (io_discard (s, 0, 4096), -EOPNOTSUPP);
  hooks.fallocate_err = EINVAL;
  assert_int_equal (io_discard (s, 0, 4096), -EOPNOTSUPP);
  io_close (s);
}

static void
discard_and_allocate_change_what_the_host_holds (void **state)
{
  static unsigned char data[1 << 20];
  struct io_store *s = create_image ();

  memset (data, 1, sizeof data);
  assert_int_equal (io_pwrite (s, data, sizeof data, 0), 0);
  assert_int_equal (io_sync (s), 0);
  assert_true (bytes_on_disk () >= 1 << 20);
  assert_int_equal (io_discard (s, 0, 1 << 20), 0);
  assert_true (bytes_on_disk () < 1 << 19);
  assert_int_equal (io_allocate (s, 0, 1 << 20), 0);
  assert_true (bytes_on_disk () >= 1 << 20);
  io_close (s);
}

/* Asked twice, as the second answer may be remembered. */
static void
assert_next_hole (struct io_store *s, uint64_t host_off, uint64_t hole)
{
  assert_int_equal (io_next_hole (s, host_off), hole);
  assert_int_equal (io_next_hole (s, host_off), hole);
}

static void
write_ones (struct io_store *s, uint64_t from, uint64_t len)
{
  static unsigned char data[1 << 20];

  memset (data, 1, sizeof data);
  for (; len > 0; from += sizeof data, len -= sizeof data)
    assert_int_equal (io_pwrite (s, data, sizeof data, from), 0);
}

static void
holes_are_found_where_the_host_has_them (void **state)
{
  const uint64_t mib = 1 << 20;
  struct io_store *s = create_image (), *memory;

  assert_next_hole (s, 0, 0);
  assert_int_equal (io_truncate (s, 8 * mib), 0);
  assert_next_hole (s, 5, 5);
  write_ones (s, 2 * mib, 4 * mib);
  assert_next_hole (s, 0, 0);
  assert_next_hole (s, 2 * mib, 6 * mib);
  assert_next_hole (s, 3 * mib + 1, 6 * mib);
  assert_int_equal (io_discard (s, 4 * mib, mib), 0);
  assert_next_hole (s, 3 * mib + 1, 4 * mib);
  assert_next_hole (s, 4 * mib + 1, 4 * mib + 1);
  assert_next_hole (s, 5 * mib, 6 * mib);
  assert_int_equal (io_truncate (s, 5 * mib + 4096), 0);
  assert_next_hole (s, 5 * mib, 5 * mib + 4096);
  assert_next_hole (s, 9 * mib, 9 * mib);
  assert_next_hole (s, UINT64_MAX - 1, UINT64_MAX - 1);
  hooks.lseek_err = EINVAL;
  assert_int_equal (io_next_hole (s, 3 * mib), UINT64_MAX);
  io_close (s);
  assert_int_equal (io_memory_new (mib, &memory), 0);
  assert_int_equal (io_next_hole (memory, 0), UINT64_MAX);
  io_close (memory);
}

/* --- file: open ---------------------------------------------------------- */

static void
open_says_what_is_wrong (void **state)
{
  assert_open_fails (0, IO_LOCK_NONE, ENOENT, FAULT_IO, "no such file");
  assert_int_equal (mkdir (path, 0777), 0);
  assert_open_fails (0, IO_LOCK_NONE, EISDIR, FAULT_IO, "is a directory");
  assert_int_equal (rmdir (path), 0);
  assert_int_equal (mkfifo (path, 0666), 0);
  assert_open_fails (IO_FILE_WRITE, IO_LOCK_NONE, EINVAL, FAULT_IO,
                     "is neither a regular file nor a block device");
  assert_int_equal (unlink (path), 0);
  assert_int_equal (symlink ("/dev/null", path), 0);
  assert_open_fails (0, IO_LOCK_NONE, EINVAL, FAULT_IO,
                     "is neither a regular file nor a block device");
  assert_int_equal (unlink (path), 0);
  assert_int_equal (symlink (path, path), 0);
  assert_open_fails (0, IO_LOCK_NONE, ELOOP, FAULT_IO,
                     "is a symbolic link, or a loop of them");
}

/* -ENOENT means that the file could be made there. */
static void
open_tells_what_is_missing (void **state)
{
  static const char dangling[] = "is a symbolic link to a file that does not "
                                 "exist";
  const int create = IO_FILE_WRITE | IO_FILE_CREATE;
  struct io_store *s = NULL;
  struct fault f = { 0 }, g = { 0 };
  char below[sizeof path + 2];

  snprintf (below, sizeof below, "%s/x", path);
  assert_int_equal (io_file_open (below, 0, IO_LOCK_NONE, &s, &f), -ENOTDIR);
  assert_string_equal (f.msg, "its directory does not exist");
  assert_int_equal (io_file_open (below, create, IO_LOCK_NONE, &s, &g),
                    -ENOTDIR);
  assert_string_equal (g.msg, "its directory does not exist");
  assert_int_equal (symlink ("nothing", path), 0);
  assert_open_fails (0, IO_LOCK_NONE, ELOOP, FAULT_IO, dangling);
  assert_open_fails (create, IO_LOCK_NONE, ELOOP, FAULT_IO, dangling);
}

/* root may do anything, so ask as somebody else. */
static void
open_without_permission_says_so (void **state)
{
  pid_t child;
  int status;
  struct fault f = { 0 };
  struct io_store *s = NULL;

  io_close (create_image ());
  assert_int_equal (chmod (path, 0400), 0);
  assert_int_equal (chmod (dir, 0711), 0);
  child = fork ();
  if (child == 0) {
    if (geteuid () == 0 && setuid (65534) == -1)
      _exit (2);
    if (io_file_open (path, IO_FILE_WRITE, IO_LOCK_NONE, &s, &f) != -EACCES)
      _exit (3);
    _exit (strcmp (f.msg, "permission denied") != 0);
  }
  assert_int_equal (waitpid (child, &status, 0), child);
  assert_int_equal (status, 0);
}

static void
create_never_touches_what_is_there (void **state)
{
  struct io_store *s = create_image ();

  assert_int_equal (io_pwrite (s, "keep", 4, 0), 0);
  assert_open_fails (IO_FILE_WRITE | IO_FILE_CREATE, IO_LOCK_NONE, EEXIST,
                     FAULT_IO, "exists already");
  assert_int_equal (io_size (s), 4);
  io_close (s);
}

static void
a_read_only_store_refuses_changes (void **state)
{
  struct io_store *s;

  io_close (create_image ());
  s = open_image (0, IO_LOCK_READ);
  assert_int_equal (io_pwrite (s, "x", 1, 0), -EROFS);
  assert_int_equal (io_truncate (s, 1), -EROFS);
  assert_int_equal (io_discard (s, 0, 1), -EROFS);
  assert_int_equal (io_allocate (s, 0, 1), -EROFS);
  assert_int_equal (io_size (s), 0);
  io_close (s);
}

static int
lowest_free_fd (void)
{
  int fd = dup (0);

  close (fd);
  return fd;
}

static void
the_descriptor_is_closed_on_exec_and_on_failure (void **state)
{
  int fd = lowest_free_fd ();
  struct io_store *s = create_image (), *w;

  assert_int_equal (fcntl (fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
  io_close (s);
  assert_int_equal (lowest_free_fd (), fd);
  w = open_image (IO_FILE_WRITE, IO_LOCK_WRITE);
  fd = lowest_free_fd ();
  assert_open_fails (0, IO_LOCK_READ, EBUSY, FAULT_BUSY,
                     "is in use by another process (QEMU or nbdkit)");
  assert_int_equal (lowest_free_fd (), fd);
  io_close (w);
}

/* --- file: locks --------------------------------------------------------- */

static void
assert_busy (int flags, enum io_file_lock lock)
{
  assert_open_fails (flags, lock, EBUSY, FAULT_BUSY,
                     "is in use by another process (QEMU or nbdkit)");
}

static void
a_writer_keeps_everybody_out (void **state)
{
  struct io_store *s, *unlocked;

  io_close (create_image ());
  s = open_image (IO_FILE_WRITE, IO_LOCK_WRITE);
  assert_busy (IO_FILE_WRITE, IO_LOCK_WRITE);
  assert_busy (0, IO_LOCK_READ);
  unlocked = open_image (0, IO_LOCK_NONE);
  io_close (unlocked);
  assert_busy (0, IO_LOCK_READ);
  io_close (s);
  io_close (open_image (IO_FILE_WRITE, IO_LOCK_WRITE));
}

static void
readers_keep_writers_out_but_not_each_other (void **state)
{
  struct io_store *a, *b;

  io_close (create_image ());
  a = open_image (0, IO_LOCK_READ);
  b = open_image (0, IO_LOCK_READ);
  assert_busy (IO_FILE_WRITE, IO_LOCK_WRITE);
  io_close (a);
  assert_busy (IO_FILE_WRITE, IO_LOCK_WRITE);
  io_close (b);
  io_close (open_image (IO_FILE_WRITE, IO_LOCK_WRITE));
}

static void
a_child_keeps_the_lock_of_its_parent (void **state)
{
  struct io_store *s;
  int pipe_fd[2], status;
  pid_t child;
  char c;

  io_close (create_image ());
  assert_int_equal (pipe (pipe_fd), 0);
  s = open_image (IO_FILE_WRITE, IO_LOCK_WRITE);
  child = fork ();
  if (child == 0) {
    close (pipe_fd[1]);
    _exit (read (pipe_fd[0], &c, 1) != 0);
  }
  io_close (s);
  assert_busy (0, IO_LOCK_READ);
  close (pipe_fd[1]);
  assert_int_equal (waitpid (child, &status, 0), child);
  close (pipe_fd[0]);
  assert_int_equal (status, 0);
  io_close (open_image (0, IO_LOCK_READ));
}

/* Would we get a write lock on BYTE, that is, has nobody any lock on it? */
static bool
byte_is_free (int fd, off_t byte)
{
  struct flock fl = { .l_type = F_WRLCK, .l_start = byte, .l_len = 1 };

  assert_int_equal (fcntl (fd, F_OFD_GETLK, &fl), 0);
  return fl.l_type == F_UNLCK;
}

static void
assert_bytes_held (enum io_file_lock lock, const off_t *held)
{
  struct io_store *s = open_image (IO_FILE_WRITE, lock);
  int fd = open (path, O_RDWR);
  off_t byte;

  for (byte = 90; byte < 220; byte++) {
    if (byte == *held) {
      assert_false (byte_is_free (fd, byte));
      held++;
    }
    else
      assert_true (byte_is_free (fd, byte));
  }
  close (fd);
  io_close (s);
}

static void
the_bytes_are_those_of_qemu (void **state)
{
  const off_t none[] = { -1 };
  const off_t reader[] = { 100, 201, 203, -1 };
  const off_t writer[] = { 100, 101, 103, 201, 203, -1 };

  io_close (create_image ());
  assert_bytes_held (IO_LOCK_NONE, none);
  assert_bytes_held (IO_LOCK_READ, reader);
  assert_bytes_held (IO_LOCK_WRITE, writer);
}

/* Somebody else read-locks BYTE: are we refused? */
static bool
refused_by (off_t byte, enum io_file_lock lock)
{
  struct flock fl = { .l_type = F_RDLCK, .l_start = byte, .l_len = 1 };
  int fd = open (path, O_RDWR), r;
  struct io_store *s = NULL;

  assert_int_equal (fcntl (fd, F_OFD_SETLK, &fl), 0);
  r = io_file_open (path, IO_FILE_WRITE, lock, &s, NULL);
  assert_true (r == 0 || r == -EBUSY);
  io_close (s);
  close (fd);
  return r == -EBUSY;
}

static void
each_byte_of_qemu_refuses_whom_it_should (void **state)
{
  off_t byte;

  io_close (create_image ());
  for (byte = 99; byte < 206; byte++) {
    assert_int_equal (refused_by (byte, IO_LOCK_READ),
                      byte == 101 || byte == 103 || byte == 200);
    assert_int_equal (refused_by (byte, IO_LOCK_WRITE),
                      byte == 101 || byte == 103 || byte == 200 ||
                      byte == 201 || byte == 203);
    assert_false (refused_by (byte, IO_LOCK_NONE));
  }
}

static void
without_locks_in_the_file_system_it_opens (void **state)
{
  const int errs[] = { ENOLCK, EINVAL, ENOSYS, EOPNOTSUPP };
  size_t i;

  io_close (create_image ());
  for (i = 0; i < sizeof errs / sizeof errs[0]; i++) {
    hooks.fcntl_err = errs[i];
    io_close (open_image (IO_FILE_WRITE, IO_LOCK_WRITE));
  }
  hooks.fcntl_err = EIO;
  assert_open_fails (IO_FILE_WRITE, IO_LOCK_WRITE, EIO, FAULT_IO,
                     "cannot be locked: Input/output error");
}

/* --- file: reads of the medium --------------------------------------------- */

#define BLOCKS 64               /* of IO_MEDIUM_ALIGN */
#define READERS 4

/* Makes a file whose blocks differ. */
static struct io_store *
create_blocks (void)
{
  struct io_store *s = create_image ();
  unsigned char block[IO_MEDIUM_ALIGN];

  for (unsigned i = 0; i < BLOCKS; i++) {
    fill (block, sizeof block, i);
    assert_int_equal (io_pwrite (s, block, sizeof block, i * sizeof block), 0);
  }
  return s;
}

/* Reads block I, a part of it that is not aligned, and what is as far behind the end of the
 * file.  Returns whether all is right. */
static bool
block_is_right (struct io_store *s, unsigned i, unsigned char *buf)
{
  unsigned char want[IO_MEDIUM_ALIGN];
  bool ok;

  fill (want, sizeof want, i);
  ok = io_pread_medium (s, buf, sizeof want, i * sizeof want) == 0 &&
    memcmp (buf, want, sizeof want) == 0;
  ok &= io_pread_medium (s, buf, 101, i * sizeof want + 7) == 0 &&
    memcmp (buf, want + 7, 101) == 0;
  ok &= io_pread_medium (s, buf, sizeof want, (BLOCKS + i) * sizeof want) == 0;
  for (size_t k = 0; k < sizeof want; k++)
    ok &= buf[k] == 0;
  return ok;
}

static bool
all_blocks_are_right (struct io_store *s)
{
  unsigned char *buf = aligned_alloc (IO_MEDIUM_ALIGN, IO_MEDIUM_ALIGN);
  bool ok = buf != NULL;

  for (unsigned i = 0; i < BLOCKS && ok; i++)
    ok = block_is_right (s, i, buf);
  free (buf);
  return ok;
}

/* Returns whether the file system of the scratch file reads directly. */
static bool
reads_directly (void)
{
  unsigned char *buf = aligned_alloc (IO_MEDIUM_ALIGN, IO_MEDIUM_ALIGN);
  const int fd = open (path, O_RDONLY | O_DIRECT);
  const bool ok = fd != -1 && buf != NULL &&
    syscall (SYS_pread64, fd, buf, IO_MEDIUM_ALIGN, 0L) == IO_MEDIUM_ALIGN;

  if (fd != -1)
    close (fd);
  free (buf);
  return ok;
}

/* A direct read by pread locks the file for as long as the medium takes, so that writers
 * wait; an asynchronous one does not (io/file-aio.c). */
static void
reads_of_the_medium_are_asynchronous (void **state)
{
  struct io_store *s = create_blocks ();

  if (!reads_directly ()) {
    io_close (s);
    skip ();
  }
  assert_true (all_blocks_are_right (s));     /* those that do without */
  hooks.preads = 0;
  assert_true (all_blocks_are_right (s));
  assert_int_equal (hooks.preads, 0);
  io_close (s);
}

static void *
read_all_blocks (void *opaque)
{
  for (unsigned i = 0; i < 8; i++)
    if (!all_blocks_are_right (opaque))
      return opaque;
  return NULL;
}

static void
reads_of_the_medium_side_by_side_get_their_own_bytes (void **state)
{
  struct io_store *s = create_blocks ();
  pthread_t t[READERS];
  void *wrong, *any = NULL;

  for (unsigned i = 0; i < READERS; i++)
    assert_int_equal (pthread_create (&t[i], NULL, read_all_blocks, s), 0);
  for (unsigned i = 0; i < READERS; i++) {
    pthread_join (t[i], &wrong);
    any = wrong ? wrong : any;
  }
  assert_null (any);
  io_close (s);
}

static void
a_child_reads_the_medium_asynchronously_too (void **state)
{
  struct io_store *s = create_blocks ();
  int status;
  pid_t child;

  if (!reads_directly ()) {
    io_close (s);
    skip ();
  }
  assert_true (all_blocks_are_right (s));     /* there is a context */
  child = fork ();
  if (child == 0) {
    hooks.preads = 0;
    _exit (!all_blocks_are_right (s) || hooks.preads > 0);
  }
  assert_int_equal (waitpid (child, &status, 0), child);
  assert_int_equal (status, 0);
  assert_true (all_blocks_are_right (s));
  io_close (s);
}

/* Makes the system call NR fail with ERR from now on. */
static bool
forbid (unsigned nr, unsigned err)
{
  struct sock_filter rules[] = {
    BPF_STMT (BPF_LD | BPF_W | BPF_ABS, offsetof (struct seccomp_data, nr)),
    BPF_JUMP (BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1),
    BPF_STMT (BPF_RET | BPF_K, SECCOMP_RET_ERRNO | err),
    BPF_STMT (BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog p = { sizeof rules / sizeof rules[0], rules };

  return prctl (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
    prctl (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &p) == 0;
}

static void
without_asynchronous_reads_the_medium_is_read (void **state)
{
  static const struct { unsigned nr, err; } faults[] = {
    { SYS_io_setup, EAGAIN }, { SYS_io_setup, ENOSYS }, { SYS_io_submit, EPERM },
    { SYS_io_submit, EAGAIN }, { SYS_sync_file_range, EPERM },
  };
  struct io_store *s = create_blocks ();
  int status;
  pid_t child;

  for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++) {
    child = fork ();
    if (child == 0)
      _exit (!forbid (faults[i].nr, faults[i].err) ? 77
             : !all_blocks_are_right (s));
    assert_int_equal (waitpid (child, &status, 0), child);
    if (WIFEXITED (status) && WEXITSTATUS (status) == 77)
      break;                    /* nobody may set up a filter here */
    assert_int_equal (status, 0);
  }
  io_close (s);
}

#define TEST(fn) cmocka_unit_test_setup_teardown (fn, set_up, tear_down)

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (a_file_keeps_each_promise),
    TEST (short_transfers_are_continued),
    TEST (interrupted_calls_are_repeated),
    TEST (long_vectors_respect_iov_max),
    TEST (empty_iovecs_are_not_taken_for_the_end),
    TEST (a_write_past_the_size_limit_is_a_full_disk),
    TEST (host_errors_are_folded_for_clients),
    TEST (discard_and_allocate_change_what_the_host_holds),
    TEST (holes_are_found_where_the_host_has_them),
    TEST (open_says_what_is_wrong),
    TEST (open_tells_what_is_missing),
    TEST (open_without_permission_says_so),
    TEST (create_never_touches_what_is_there),
    TEST (a_read_only_store_refuses_changes),
    TEST (the_descriptor_is_closed_on_exec_and_on_failure),
    TEST (reads_of_the_medium_are_asynchronous),
    TEST (reads_of_the_medium_side_by_side_get_their_own_bytes),
    TEST (a_child_reads_the_medium_asynchronously_too),
    TEST (without_asynchronous_reads_the_medium_is_read),
    TEST (a_writer_keeps_everybody_out),
    TEST (readers_keep_writers_out_but_not_each_other),
    TEST (a_child_keeps_the_lock_of_its_parent),
    TEST (the_bytes_are_those_of_qemu),
    TEST (each_byte_of_qemu_refuses_whom_it_should),
    TEST (without_locks_in_the_file_system_it_opens),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
