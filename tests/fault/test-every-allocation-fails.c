/* SPDX-License-Identifier: BSD-3-Clause */
/* Every allocation of memory that the engine makes fails, once and from then
 * on, in the workloads of test-every-io-fails.
 *
 * The linker sends the rooms' calls of the allocator through here (--wrap);
 * those of shared libraries, GnuTLS among them, are not seen.  An allocation
 * counts while a call of the engine runs.
 */
#include "fault-world.h"

#include <errno.h>

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

static bool
fails (void)
{
  struct world *w = fault_running;

  if (w == NULL || fault_ask (w, FAULT_MALLOC) == 0)
    return false;
  errno = ENOMEM;
  return true;
}

void *
__wrap_malloc (size_t size)
{
  return fails () ? NULL : __real_malloc (size);
}

void *
__wrap_calloc (size_t nr, size_t size)
{
  return fails () ? NULL : __real_calloc (nr, size);
}

void *
__wrap_realloc (void *p, size_t size)
{
  return fails () ? NULL : __real_realloc (p, size);
}

void *
__wrap_aligned_alloc (size_t align, size_t size)
{
  return fails () ? NULL : __real_aligned_alloc (align, size);
}

char *
__wrap_strdup (const char *s)
{
  return fails () ? NULL : __real_strdup (s);
}

int
main (void)
{
  static const int enomem[] = { ENOMEM, 0 };
  size_t i;

  scale_init ();
  if (play_one ())
    return 0;
  for (i = 0; i < nr_fault_shapes; i++)
    play_all (&fault_shapes[i], FAULT_MALLOC, enomem);
  return 0;
}
