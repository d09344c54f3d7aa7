/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests making an image at a path: nothing that a killed process leaves is
 * refused later, and nothing that holds data is overwritten. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <dirent.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <cmocka.h>

#include "dedup.h"

static char dir[200], path[300];

static const struct dedup_create_params params = {
  .image = { .virtual_size = 1 << 20, .cluster_bits = 12, .refcount_order = 4 },
};

static int
setup (void **state)
{
  const char *tmp = getenv ("TMPDIR");

  snprintf (dir, sizeof dir, "%s/dedup-make-XXXXXX", tmp ? tmp : "/tmp");
  if (mkdtemp (dir) == NULL)
    return -1;
  snprintf (path, sizeof path, "%s/image", dir);
  return 0;
}

static int
teardown (void **state)
{
  char name[600];
  struct dirent *e;
  DIR *d = opendir (dir);

  while (d && (e = readdir (d)) != NULL) {
    snprintf (name, sizeof name, "%s/%s", dir, e->d_name);
    (void) unlink (name);
  }
  if (d)
    closedir (d);
  return rmdir (dir);
}

static unsigned
names_in_dir (void)
{
  DIR *d = opendir (dir);
  unsigned n = 0;

  assert_non_null (d);
  while (readdir (d) != NULL)
    n++;
  closedir (d);
  return n - 2;
}

static void
write_file (const char *name, const void *bytes, size_t len, off_t size)
{
  int fd = open (name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);

  assert_true (fd >= 0);
  assert_int_equal (pwrite (fd, bytes, len, size - (off_t) len), len);
  assert_int_equal (ftruncate (fd, size), 0);
  close (fd);
}

static int
make (bool *named)
{
  struct fault f = { 0 };
  struct io_store *io;
  int r = dedup_make (path, &params, false, &io, named, &f);

  if (r == 0)
    io_close (io);
  return r;
}

static void
assert_is_image (void)
{
  struct dedup_open_params p = { .path = path, .writable = true,
                                 .dedup = true, .verify = true,
                                 .max_incarnations = -1 };
  struct fault f = { 0 };
  struct dedup_pool *d;
  struct io_store *io;

  assert_int_equal (io_file_open (path, IO_FILE_WRITE, IO_LOCK_WRITE, &io,
                                  &f), 0);
  assert_int_equal (dedup_open (io, &p, &d, &f), 0);
  assert_int_equal (qcow2_geometry (dedup_image (d))->virtual_size, 1 << 20);
  assert_int_equal (dedup_finish (d), 0);
  dedup_free (d);
  io_close (io);
}

/* --- A process that dies ------------------------------------------------ */

static int
die_at (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  unsigned *left = opaque;

  if (call != IO_PREAD && (*left)-- == 0)
    _exit (99);
  return 0;
}

/* In a child, which dies before the Nth call that changes something: true. */
static bool
dies_while_filling (unsigned n)
{
  struct fault f = { 0 };
  struct io_store *io, *faulty;
  int status;
  pid_t pid = fork ();

  assert_true (pid >= 0);
  if (pid == 0) {
    if (io_file_open (path, IO_FILE_WRITE, IO_LOCK_WRITE, &io, &f) < 0 ||
        io_faulty_new (io, die_at, &n, &faulty) < 0 ||
        dedup_create (faulty, &params, &f) < 0)
      _exit (1);
    _exit (0);
  }
  assert_int_equal (waitpid (pid, &status, 0), pid);
  assert_true (WIFEXITED (status));
  assert_int_not_equal (WEXITSTATUS (status), 1);
  return WEXITSTATUS (status) == 99;
}

static void
test_death_at_every_call_can_be_made_good (void **state)
{
  unsigned n, finished = 0, images = 0;
  bool named, died = true;
  int r;

  for (n = 0; died; n++) {
    write_file (path, "", 0, 0);
    died = dies_while_filling (n);
    r = make (&named);
    assert_true (r == 0 || r == -EEXIST);
    assert_false (named);
    finished += r == 0;
    images += r == -EEXIST;
    assert_is_image ();
  }
  /* Before the header was written, and after it. */
  assert_true (finished >= 4 && images >= 4);
}

/* --- What is there already ----------------------------------------------- */

static void
test_empty_file_becomes_an_image (void **state)
{
  bool named;

  write_file (path, "", 0, 0);
  assert_int_equal (make (&named), 0);
  assert_is_image ();
  write_file (path, "", 0, 3 << 20);     /* zeroes */
  assert_int_equal (make (&named), 0);
  assert_is_image ();
}

static void
assert_is_left_alone (const void *bytes, size_t len, off_t size)
{
  struct stat before, after;
  char buf[64];
  bool named;
  int fd;

  write_file (path, bytes, len, size);
  assert_int_equal (stat (path, &before), 0);
  assert_int_equal (make (&named), -EEXIST);
  assert_int_equal (stat (path, &after), 0);
  assert_int_equal (after.st_size, before.st_size);
  assert_int_equal (after.st_ino, before.st_ino);
  fd = open (path, O_RDONLY | O_CLOEXEC);
  assert_int_equal (pread (fd, buf, len, size - (off_t) len), len);
  assert_memory_equal (buf, bytes, len);
  close (fd);
}

static void
test_data_is_never_written_over (void **state)
{
  assert_is_left_alone ("x", 1, 1);
  assert_is_left_alone ("x", 1, 5000);
  assert_is_left_alone ("x", 1, 40 << 20);
  assert_is_left_alone ("DDUPUNFINISHEE", 15, 15);
  assert_is_left_alone ("", 0, (64 << 20) + 1);   /* somebody's empty disk */
}

static void
test_dangling_link_is_refused (void **state)
{
  char target[300];
  struct fault f = { 0 };
  struct io_store *io;
  bool named;

  snprintf (target, sizeof target, "%s/elsewhere", dir);
  assert_int_equal (symlink (target, path), 0);
  assert_int_equal (dedup_make (path, &params, false, &io, &named, &f),
                    -ELOOP);
  assert_non_null (strstr (f.msg, "symbolic link"));
  assert_int_equal (names_in_dir (), 1);
}

/* --- Births --------------------------------------------------------------- */

static void
births (int flags)
{
  struct fault f = { 0 };
  struct io_store *a, *b, *c;
  struct io_birth *ba, *bb;
  struct stat st;

  assert_int_equal (io_birth_begin (path, flags, &ba, &a, &f), 0);
  assert_int_equal (io_birth_begin (path, flags, &bb, &b, &f), 0);
  assert_int_equal (io_pwrite (a, "first", 5, 0), 0);
  assert_int_equal (io_pwrite (b, "another", 7, 0), 0);
  assert_int_equal (access (path, F_OK), -1);
  assert_int_equal (io_birth_finish (ba, &f), 0);
  assert_int_equal (io_birth_finish (bb, &f), -EEXIST);
  assert_int_equal (stat (path, &st), 0);
  assert_int_equal (st.st_size, 5);
  assert_int_equal (st.st_nlink, 1);
  io_close (b);
  /* Locked from the first moment on. */
  assert_int_equal (io_file_open (path, 0, IO_LOCK_READ, &c, &f), -EBUSY);
  io_close (a);
  assert_int_equal (names_in_dir (), 1);
}

static void
test_birth_names_a_complete_file (void **state)
{
  births (0);
}

static void
test_birth_without_unnamed_files_does_the_same (void **state)
{
  births (IO_BIRTH_NAMED);
}

static void
test_birth_given_up_leaves_nothing (void **state)
{
  struct fault f = { 0 };
  struct io_birth *b;
  struct io_store *io;

  assert_int_equal (io_birth_begin (path, 0, &b, &io, &f), 0);
  assert_int_equal (names_in_dir (), 0);
  io_birth_cancel (b);
  io_close (io);
  assert_int_equal (io_birth_begin (path, IO_BIRTH_NAMED, &b, &io, &f), 0);
  assert_int_equal (names_in_dir (), 1);
  io_birth_cancel (b);
  io_close (io);
  assert_int_equal (names_in_dir (), 0);
}

/* Old and unlocked ones go; young ones, locked ones, and other names stay. */
static void
test_names_of_killed_births_do_not_pile_up (void **state)
{
  static const struct timespec old[2] = { { 1000, 0 }, { 1000, 0 } };
  struct fault f = { 0 };
  struct io_birth *b, *locked;
  struct io_store *io, *locked_io;
  char name[5][400];
  unsigned i;

  assert_int_equal (io_birth_begin (path, IO_BIRTH_NAMED, &locked, &locked_io,
                                    &f), 0);
  snprintf (name[0], 400, "%s/.image.0123456789abcdef.birth", dir);
  snprintf (name[1], 400, "%s/.image.1123456789abcdef.birth", dir);
  snprintf (name[2], 400, "%s/.image2.0123456789abcdef.birth", dir);
  snprintf (name[3], 400, "%s/.image.0123456789abcdef.birth2", dir);
  snprintf (name[4], 400, "%s/.image.backup.birth", dir);
  for (i = 0; i < 5; i++) {
    write_file (name[i], "x", 1, 1);
    if (i != 1)
      assert_int_equal (utimensat (AT_FDCWD, name[i], old, 0), 0);
  }
  assert_int_equal (io_birth_begin (path, IO_BIRTH_NAMED, &b, &io, &f), 0);
  assert_int_equal (access (name[0], F_OK), -1);
  for (i = 1; i < 5; i++)
    assert_int_equal (access (name[i], F_OK), 0);
  assert_int_equal (names_in_dir (), 6);
  assert_int_equal (io_birth_finish (locked, &f), 0);
  io_birth_cancel (b);
  io_close (io);
  io_close (locked_io);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown (name, setup, teardown)
    TEST (test_death_at_every_call_can_be_made_good),
    TEST (test_empty_file_becomes_an_image),
    TEST (test_data_is_never_written_over),
    TEST (test_dangling_link_is_refused),
    TEST (test_birth_names_a_complete_file),
    TEST (test_birth_without_unnamed_files_does_the_same),
    TEST (test_birth_given_up_leaves_nothing),
    TEST (test_names_of_killed_births_do_not_pile_up),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
