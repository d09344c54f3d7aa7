/* SPDX-License-Identifier: BSD-3-Clause */
/* For tests that make images with QEMU's tools: a directory of their own under
 * $TMPDIR, which is the working directory and empty at the start of each
 * test; shell commands; opening, patching and comparing images. */
#ifndef QCOW2_IMAGES_H
#define QCOW2_IMAGES_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checked.h"
#include "header-format.h"
#include "image.h"

#define KIB UINT64_C (1024)
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)

static char dir[256];

static inline int
enter_directory (void **state)
{
  const char *tmp = getenv ("TMPDIR");

  snprintf (dir, sizeof dir, "%s/qcow2-static-XXXXXX", tmp ? tmp : "/tmp");
  return mkdtemp (dir) == NULL || chdir (dir) == -1 ? -1 : 0;
}

/* Each test starts with an empty directory: the files of one that failed may
 * still be open, and locked. */
static inline int
empty_directory (void **state)
{
  return system ("rm -rf *");
}

static inline int
leave_directory (void **state)
{
  char cmd[300];

  snprintf (cmd, sizeof cmd, "rm -rf '%s'", dir);
  return chdir ("/") == -1 ? -1 : system (cmd);
}

/* Run a shell command; its output goes to the file "log". */
static inline int __attribute__ ((__format__ (__printf__, 1, 2)))
shell (const char *fmt, ...)
{
  char cmd[2048], whole[2200];
  va_list ap;

  va_start (ap, fmt);
  vsnprintf (cmd, sizeof cmd, fmt, ap);
  va_end (ap);
  snprintf (whole, sizeof whole, "{ %s\n} >log 2>&1 </dev/null", cmd);
  return system (whole);
}

#define run(...)                                                \
  do {                                                          \
    if (shell (__VA_ARGS__) != 0) {                             \
      if (system ("cat log >&2") == -1)                         \
        abort ();                                               \
      fail_msg ("a command failed; its output is above");       \
    }                                                           \
  } while (0)

static inline bool
log_contains (const char *text)
{
  char cmd[256];

  snprintf (cmd, sizeof cmd, "grep -qF '%s' log", text);
  return system (cmd) == 0;
}

static inline int
try_open (const char *name, bool writable, bool allow_recovery,
          struct io_store **io, struct qcow2_image **img, struct fault *f)
{
  struct qcow2_open_params params = {
    .path = name, .writable = writable, .allow_recovery = allow_recovery,
    .cache_bytes = MIB, .host_files = QCOW2_FILES_ANY,
  };
  int r;

  memset (f, 0, sizeof *f);
  r = io_file_open (name, writable ? IO_FILE_WRITE : 0,
                    writable ? IO_LOCK_WRITE : IO_LOCK_READ, io, f);
  assert_int_equal (r, 0);
  r = qcow2_open (*io, &params, img, f);
  if (r < 0)
    io_close (*io);
  return r;
}

static inline struct qcow2_image *
must_open (const char *name, bool writable)
{
  struct qcow2_image *img;
  struct io_store *io;
  struct fault f;

  if (try_open (name, writable, true, &io, &img, &f) < 0)
    fail_msg ("%s: %s", name, f.msg);
  return img;
}

static inline void
close_image (struct qcow2_image *img)
{
  struct io_store *io = qcow2_io (img);

  qcow2_close (img);
  io_close (io);
}

static inline void
assert_refused (const char *name, bool writable, enum fault_kind kind,
                const char *words)
{
  struct qcow2_image *img;
  struct io_store *io;
  struct fault f;
  int r = try_open (name, writable, false, &io, &img, &f);

  if (r == 0)
    fail_msg ("%s was opened", name);
  assert_int_equal (f.err, -r);
  assert_int_equal (f.kind, kind);
  if (!strstr (f.msg, words))
    fail_msg ("%s: \"%s\" does not say \"%s\"", name, f.msg, words);
}

static inline uint8_t *
read_file (const char *name, size_t *len)
{
  int fd = open (name, O_RDONLY);
  struct stat st;
  uint8_t *buf;

  assert_true (fd >= 0);
  assert_int_equal (fstat (fd, &st), 0);
  *len = st.st_size;
  buf = malloc (*len + 1);
  assert_non_null (buf);
  assert_true (read (fd, buf, *len) == (ssize_t) *len);
  close (fd);
  return buf;
}

static inline void
patch (const char *name, uint64_t off, const void *data, size_t len)
{
  int fd = open (name, O_RDWR);

  assert_true (fd >= 0);
  assert_true (pwrite (fd, data, len, off) == (ssize_t) len);
  close (fd);
}

static inline void
patch_u64 (const char *name, uint64_t off, uint64_t value)
{
  be64 wire = be64_make (value);

  patch (name, off, &wire, sizeof wire);
}

static inline void
patch_u32 (const char *name, uint64_t off, uint32_t value)
{
  be32 wire = be32_make (value);

  patch (name, off, &wire, sizeof wire);
}

/* Random, but the same in every run. */
static inline uint64_t
next_random (uint64_t *seed)
{
  *seed = *seed * UINT64_C (6364136223846793005) + 1442695040888963407;
  return *seed >> 33;
}

static inline void
assert_same_bytes (struct qcow2_image *img, const uint8_t *want,
                   uint64_t off, size_t len)
{
  uint8_t *got = malloc (len + 1);
  size_t i;

  assert_non_null (got);
  memset (got, 0xa5, len);
  assert_int_equal (qcow2_read (img, QCOW2_ROOT_ACTIVE, got, off, len), 0);
  for (i = 0; i < len && got[i] == want[off + i]; i++)
    ;
  if (i < len)
    fail_msg ("byte %llu is 0x%02x, not 0x%02x",
              (unsigned long long) (off + i), got[i], want[off + i]);
  free (got);
}

/* The whole image, and odd pieces of it, read as QEMU reads them. */
static inline void
assert_reads_like_qemu (const char *name)
{
  struct qcow2_image *img;
  uint64_t seed = 1, off, len;
  uint8_t *want;
  size_t size;
  int i;

  run ("qemu-img convert -f qcow2 -O raw %s ref.raw", name);
  want = read_file ("ref.raw", &size);
  img = must_open (name, false);
  assert_int_equal (qcow2_geometry (img)->virtual_size, size);
  assert_same_bytes (img, want, 0, size);
  for (i = 0; i < 100; i++) {
    off = next_random (&seed) % size;
    len = next_random (&seed) % (i % 2 ? 1000 : 300000);
    assert_same_bytes (img, want, off, MIN_OF (len, size - off));
  }
  close_image (img);
  free (want);
}

/* Make the backing format extension of NAME one that nobody knows. */
static inline void
hide_backing_format (const char *name)
{
  const be32 type = be32_make (QCOW2_EXT_BACKING_FORMAT);
  size_t len;
  uint8_t *buf = read_file (name, &len);
  uint8_t *at = memmem (buf, 65536, &type, sizeof type);

  assert_non_null (at);
  patch_u32 (name, at - buf, 0x12345678);
  free (buf);
}

#define TEST(f) cmocka_unit_test_setup (f, empty_directory)

#endif
