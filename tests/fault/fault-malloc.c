/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes allocations fail on demand.
 *
 * The linker sends what the rooms and the test call here (--wrap); the calls
 * of shared libraries, GnuTLS among them, are not seen.
 */
#include "fault-malloc.h"

#include <errno.h>
#include <stdlib.h>

void *__real_malloc (size_t size);
void *__real_calloc (size_t nr, size_t size);
void *__real_realloc (void *p, size_t size);
void *__real_aligned_alloc (size_t align, size_t size);
char *__real_strdup (const char *s);
void *__wrap_malloc (size_t size);
void *__wrap_calloc (size_t nr, size_t size);
void *__wrap_realloc (void *p, size_t size);
void *__wrap_aligned_alloc (size_t align, size_t size);
char *__wrap_strdup (const char *s);

bool (*fault_malloc_fails) (size_t size);

static bool
fails (size_t size)
{
  if (fault_malloc_fails == NULL || !fault_malloc_fails (size))
    return false;
  errno = ENOMEM;
  return true;
}

void *
__wrap_malloc (size_t size)
{
  return fails (size) ? NULL : __real_malloc (size);
}

void *
__wrap_calloc (size_t nr, size_t size)
{
  return fails (nr * size) ? NULL : __real_calloc (nr, size);
}

void *
__wrap_realloc (void *p, size_t size)
{
  return fails (size) ? NULL : __real_realloc (p, size);
}

void *
__wrap_aligned_alloc (size_t align, size_t size)
{
  return fails (size) ? NULL : __real_aligned_alloc (align, size);
}

char *
__wrap_strdup (const char *s)
{
  return fails (1) ? NULL : __real_strdup (s);
}
