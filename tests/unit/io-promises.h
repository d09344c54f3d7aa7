/* SPDX-License-Identifier: BSD-3-Clause */
/* Checks the promises of io.h on a new, empty store.  Shared by the tests of
 * the stores in memory and of files. */
#ifndef DEDUP_IO_PROMISES_H
#define DEDUP_IO_PROMISES_H

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "io.h"

static inline void
fill (unsigned char *buf, size_t len, unsigned seed)
{
  size_t i;

  for (i = 0; i < len; i++)
    buf[i] = (unsigned char) (rand_r (&seed) >> 7);
}

static inline void
assert_zeroes (const unsigned char *buf, size_t len)
{
  size_t i;

  for (i = 0; i < len; i++)
    assert_int_equal (buf[i], 0);
}

static void
reads_past_the_end_give_zeroes (struct io_store *s)
{
  unsigned char data[3000], buf[5000];
  const struct iovec iov[] = { { buf, 1000 }, { NULL, 0 },
                               { buf + 1000, 3000 }, { buf + 4000, 1000 } };

  fill (data, sizeof data, 1);
  assert_int_equal (io_pwrite (s, data, sizeof data, 0), 0);
  memset (buf, 0xff, sizeof buf);
  assert_int_equal (io_preadv (s, iov, 4, 500), 0);
  assert_memory_equal (buf, data + 500, 2500);
  assert_zeroes (buf + 2500, 2500);
  memset (buf, 0xff, sizeof buf);
  assert_int_equal (io_pread (s, buf, sizeof buf, 1 << 20), 0);
  assert_zeroes (buf, sizeof buf);
  assert_int_equal (io_size (s), 3000);
}

static void
vectors_land_in_order (struct io_store *s)
{
  unsigned char data[6000], buf[6000];
  const struct iovec out[] = { { data, 1 }, { data + 1, 4094 }, { data, 0 },
                               { data + 4095, 1905 } };
  const struct iovec in[] = { { buf, 0 }, { buf, 4097 },
                              { buf + 4097, 1903 } };

  fill (data, sizeof data, 2);
  assert_int_equal (io_pwritev (s, out, 4, 100), 0);
  assert_int_equal (io_size (s), 6100);
  assert_int_equal (io_preadv (s, in, 3, 100), 0);
  assert_memory_equal (buf, data, sizeof data);
  assert_int_equal (io_pread (s, buf, 100, 0), 0);
  assert_zeroes (buf, 100);
}

static void
truncate_cuts_and_extends_with_zeroes (struct io_store *s)
{
  unsigned char data[4096], buf[4096];

  fill (data, sizeof data, 3);
  assert_int_equal (io_pwrite (s, data, sizeof data, 0), 0);
  assert_int_equal (io_truncate (s, 1000), 0);
  assert_int_equal (io_size (s), 1000);
  assert_int_equal (io_truncate (s, 300000), 0);
  assert_int_equal (io_size (s), 300000);
  assert_int_equal (io_pread (s, buf, sizeof buf, 0), 0);
  assert_memory_equal (buf, data, 1000);
  assert_zeroes (buf + 1000, sizeof buf - 1000);
}

static void
discard_zeroes_its_range_only (struct io_store *s)
{
  static unsigned char data[65536], buf[65536];

  fill (data, sizeof data, 4);
  assert_int_equal (io_pwrite (s, data, sizeof data, 0), 0);
  assert_int_equal (io_discard (s, 4096, 8192), 0);
  assert_int_equal (io_discard (s, 61440, 1 << 20), 0);
  assert_int_equal (io_size (s), 65536);
  assert_int_equal (io_pread (s, buf, sizeof buf, 0), 0);
  memset (data + 4096, 0, 8192);
  memset (data + 61440, 0, 4096);
  assert_memory_equal (buf, data, sizeof data);
}

static void
allocate_extends_and_keeps_bytes (struct io_store *s)
{
  unsigned char data[100], buf[100];

  fill (data, sizeof data, 5);
  assert_int_equal (io_pwrite (s, data, sizeof data, 0), 0);
  assert_int_equal (io_allocate (s, 0, 50), 0);
  assert_int_equal (io_size (s), 100);
  assert_int_equal (io_allocate (s, 4096, 65536), 0);
  assert_int_equal (io_size (s), 4096 + 65536);
  assert_int_equal (io_pread (s, buf, sizeof buf, 0), 0);
  assert_memory_equal (buf, data, sizeof data);
}

static void
ranges_that_do_not_fit_are_refused (struct io_store *s)
{
  unsigned char b[2] = { 0 };
  const struct iovec huge[] = { { b, SIZE_MAX }, { b, 2 } };

  assert_int_equal (io_pread (s, b, 2, INT64_MAX - 1), -EINVAL);
  assert_int_equal (io_pwrite (s, b, 2, UINT64_MAX), -EINVAL);
  assert_int_equal (io_preadv (s, huge, 2, 0), -EINVAL);
  assert_int_equal (io_pwritev (s, huge, 2, 0), -EINVAL);
  assert_int_equal (io_discard (s, UINT64_MAX, 1), -EINVAL);
  assert_int_equal (io_allocate (s, INT64_MAX, 1), -EINVAL);
  assert_int_equal (io_truncate (s, UINT64_MAX), -EINVAL);
  assert_int_equal (io_size (s), 0);
}

static void
empty_ranges_do_nothing (struct io_store *s)
{
  assert_int_equal (io_pwrite (s, NULL, 0, 4096), 0);
  assert_int_equal (io_pread (s, NULL, 0, 4096), 0);
  assert_int_equal (io_preadv (s, NULL, 0, 4096), 0);
  assert_int_equal (io_discard (s, 4096, 0), 0);
  assert_int_equal (io_allocate (s, 4096, 0), 0);
  assert_int_equal (io_size (s), 0);
}

typedef void (*promise) (struct io_store *s);

static const promise promises[] = {
  reads_past_the_end_give_zeroes, vectors_land_in_order,
  truncate_cuts_and_extends_with_zeroes, discard_zeroes_its_range_only,
  allocate_extends_and_keeps_bytes, ranges_that_do_not_fit_are_refused,
  empty_ranges_do_nothing,
};
#define NR_PROMISES (sizeof promises / sizeof promises[0])

/* Also closes S. */
static inline void
keeps (struct io_store *s, promise fn)
{
  fn (s);
  assert_int_equal (io_sync (s), 0);
  io_close (s);
}

#endif
