/* SPDX-License-Identifier: BSD-3-Clause */
/* Fuzzes the index on plain storage against a plain model
 * (tests/index-model.h), with crashes: no image, no journal.
 *
 * Input: the order of log stores and the limit on incarnations (1 byte), then a
 * byte for each thing to do, with the numbers that it asks for (1 or 2 bytes
 * each).  A byte below 192 puts a key.
 */
#include "fuzz.h"

#include "../index-model.h"

#define MAX_WORK 4000

static uint64_t
choose (void *opaque, uint64_t n)
{
  return take (opaque, n > 256 ? 2 : 1) % n;
}

static enum model_work
work_of (uint64_t byte)
{
  if (byte < 192)
    return MODEL_PUT;
  if (byte < 208)
    return MODEL_DELETE;
  return (enum model_work) (byte - 208) % MODEL_NR_WORKS;
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t len)
{
  static struct model m;
  struct input in = { data, len };
  const unsigned first = (unsigned) take (&in, 1);
  unsigned i;

  if (len > 8192)
    return -1;
  model_init (&m, 4, first & 1 ? 5 : 0);
  m.may_lose = first & 1;
  m.choose = choose;
  m.opaque = &in;
  for (i = 0; i < MAX_WORK && in.left > 0; i++)
    model_do (&m, work_of (take (&in, 1)));
  model_check_all (&m);
  model_free (&m);
  return 0;
}
