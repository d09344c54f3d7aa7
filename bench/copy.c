/* SPDX-License-Identifier: BSD-3-Clause */
/* dedup-copy: measures how fast this machine copies to and from places in a
 * page.
 *
 * Reads a file that is in the page cache into memory that begins a given number
 * of bytes after a page does, writes it from there, and copies to there with
 * memcpy; prints MB for each second of this process's CPU time, the best of
 * some rounds.  On processors with fsrm the kernel and the C library copy by
 * `rep movsb', which some of them do slowly to a place 1 to 31 bytes further
 * into its page than the source is into its own.  malloc's large pieces begin
 * at 16.
 *
 *   dedup-copy [DIRECTORY]      where the file, 64 MiB, is made and removed
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MIB ((size_t) 1 << 20)
#define FILE_MIB 64
#define BUFFERS 8               /* one for each request in flight */
#define ROUNDS 5

static int fd;
static char *source, *buffers[BUFFERS];

enum what { READ_1M, READ_4K, WRITE_1M, COPY_1M, COPY_4K, COPY_1K, NR_WHAT };

static const char *const names[NR_WHAT] = {
  "pread 1M", "pread 4k", "pwrite 1M", "memcpy 1M", "memcpy 4k", "memcpy 1k",
};

static void
fail (const char *what)
{
  perror (what);
  exit (EXIT_FAILURE);
}

static double
cpu_seconds (void)
{
  struct timespec t;

  clock_gettime (CLOCK_PROCESS_CPUTIME_ID, &t);
  return (double) t.tv_sec + (double) t.tv_nsec / 1e9;
}

static void
transfer (ssize_t n, size_t len)
{
  if (n != (ssize_t) len)
    fail ("transfer");
}

/* Moves MiB number I, in pieces, to or from a buffer OFFSET bytes into a
 * page. */
static void
move (enum what what, size_t i, size_t offset)
{
  static const size_t pieces[NR_WHAT] = { MIB, 4096, MIB, MIB, 4096, 1024 };
  const size_t len = pieces[what];
  char *to = buffers[i % BUFFERS] + offset;
  size_t at;

  for (at = 0; at < MIB; at += len)
    switch (what) {
    case READ_1M: case READ_4K:
      transfer (pread (fd, to + at, len, (off_t) (i * MIB + at)), len);
      break;
    case WRITE_1M:
      transfer (pwrite (fd, to + at, len, (off_t) (i * MIB + at)), len);
      break;
    default:
      memcpy (to + at, source + at, len);
      __asm__ volatile ("" : : "r" (to) : "memory");
    }
}

static double
megabytes_per_s (enum what what, size_t offset)
{
  double best = 1e9, start, took;
  size_t i;
  int round;

  for (round = 0; round < ROUNDS; round++) {
    start = cpu_seconds ();
    for (i = 0; i < FILE_MIB; i++)
      move (what, i, offset);
    took = cpu_seconds () - start;
    best = took < best ? took : best;
  }
  return FILE_MIB * (double) MIB / best / 1e6;
}

static char *
new_pages (size_t len)
{
  char *p = mmap (NULL, len, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

  if (p == MAP_FAILED)
    fail ("mmap");
  memset (p, 1, len);
  return p;
}

static void
make_file (const char *dir)
{
  char path[4096];
  size_t i;

  snprintf (path, sizeof path, "%s/dedup-copy-XXXXXX", dir);
  fd = mkstemp (path);
  if (fd == -1)
    fail (path);
  unlink (path);
  for (i = 0; i < FILE_MIB; i++)
    transfer (pwrite (fd, source, MIB, (off_t) (i * MIB)), MIB);
}

int
main (int argc, char *argv[])
{
  static const size_t offsets[] = { 0, 8, 16, 32, 48, 64, 2064 };
  size_t i;
  int what;

  source = new_pages (MIB);
  for (i = 0; i < BUFFERS; i++)
    buffers[i] = new_pages (MIB + 4096);
  make_file (argc > 1 ? argv[1] : "/tmp");
  printf ("MB/s     ");
  for (what = 0; what < NR_WHAT; what++)
    printf (" %9s", names[what]);
  for (i = 0; i < sizeof offsets / sizeof offsets[0]; i++) {
    printf ("\nat %6zu", offsets[i]);
    for (what = 0; what < NR_WHAT; what++)
      printf (" %9.0f", megabytes_per_s ((enum what) what, offsets[i]));
  }
  printf ("\n");
  return EXIT_SUCCESS;
}
