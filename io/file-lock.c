/* SPDX-License-Identifier: BSD-3-Clause */
/* Takes the byte-range locks by which QEMU processes share an image.
 *
 * Each permission P has two bytes in the file: a process that uses the
 * permission locks 100 + P, one that denies it to others locks 200 + P.  All
 * are read locks, which do not exclude each other: a process finds a conflict
 * by asking whether it could get a write lock on the opposite byte.  It locks
 * all of its own bytes before it asks, so that of two processes that start at
 * once at least one sees the other (both may then give up, as two QEMUs would).
 *
 * The permissions are 0 read consistently, 1 write, and 3 resize (2 is for
 * writes that change nothing; neither QEMU nor this program denies those to
 * others).  A reader, too, denies writing, because tables would change under
 * it.  Byte 200 stays unlocked: it would refuse even programs that ask QEMU not
 * to lock (qemu-img info -U).
 *
 * The locks are those of the open file description (OFD): closing another
 * descriptor of the file does not drop them, and a child that inherits the
 * descriptor keeps them.  The functions have no state and may be called from
 * any thread.
 */
#include "file-lock.h"

#include <errno.h>
#include <fcntl.h>

#define PERM_BASE 100
#define UNSHARED_BASE 200
#define NR_PERMS 4

#define PERM_READ (1u << 0)
#define PERM_WRITE (1u << 1)
#define PERM_RESIZE (1u << 3)

static int
lock_call (int fd, int cmd, struct flock *fl)
{
  int r;

  do
    r = fcntl (fd, cmd, fl);
  while (r == -1 && errno == EINTR);
  return r == -1 ? -errno : 0;
}

static int
read_lock_byte (int fd, off_t byte)
{
  struct flock fl = { .l_type = F_RDLCK, .l_whence = SEEK_SET,
                      .l_start = byte, .l_len = 1 };

  return lock_call (fd, F_OFD_SETLK, &fl);
}

/* Returns 0, or -EBUSY if another process has any lock on the byte. */
static int
check_byte (int fd, off_t byte)
{
  struct flock fl = { .l_type = F_WRLCK, .l_whence = SEEK_SET,
                      .l_start = byte, .l_len = 1 };
  int r = lock_call (fd, F_OFD_GETLK, &fl);

  if (r < 0)
    return r;
  return fl.l_type == F_UNLCK ? 0 : -EBUSY;
}

static int
for_each_bit (int fd, unsigned perms, off_t base,
              int (*fn) (int fd, off_t byte))
{
  int p, r = 0;

  for (p = 0; p < NR_PERMS && r == 0; p++)
    if (perms & (1u << p))
      r = fn (fd, base + p);
  return r;
}

static int
lock_and_check (int fd, unsigned used, unsigned unshared)
{
  int r = for_each_bit (fd, used, PERM_BASE, read_lock_byte);

  if (r == 0)
    r = for_each_bit (fd, unshared, UNSHARED_BASE, read_lock_byte);
  if (r == 0)
    r = for_each_bit (fd, used, UNSHARED_BASE, check_byte);
  if (r == 0)
    r = for_each_bit (fd, unshared, PERM_BASE, check_byte);
  return r;
}

static void
unlock_all (int fd)
{
  struct flock fl = { .l_type = F_UNLCK, .l_whence = SEEK_SET,
                      .l_start = PERM_BASE,
                      .l_len = UNSHARED_BASE + NR_PERMS - PERM_BASE };

  /* Errors are ignored: the caller closes fd where a lock would matter. */
  (void) lock_call (fd, F_OFD_SETLK, &fl);
}

/* Returns whether the error means that the kernel or file system has no such
 * locks. */
static bool
means_unsupported (int err)
{
  return err == ENOLCK || err == EINVAL || err == ENOSYS || err == EOPNOTSUPP;
}

int
io_file_lock_take (int fd, enum io_file_lock how, struct fault *f)
{
  unsigned used = PERM_READ;
  int r;

  if (how == IO_LOCK_NONE)
    return 0;
  if (how == IO_LOCK_WRITE)
    used |= PERM_WRITE | PERM_RESIZE;
  r = lock_and_check (fd, used, PERM_WRITE | PERM_RESIZE);
  if (r == 0)
    return 0;
  unlock_all (fd);
  if (means_unsupported (-r))
    return 1;
  if (r == -EBUSY || r == -EAGAIN || r == -EACCES)
    return fault_set (f, FAULT_BUSY, EBUSY, UINT64_MAX,
                      "is in use by another process (QEMU or nbdkit)");
  errno = -r;
  return fault_io (f, -r, UINT64_MAX, "cannot be locked: %m");
}
