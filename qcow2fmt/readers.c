/* SPDX-License-Identifier: BSD-3-Clause */
/* Knows when everybody has ended who may still read what an L2 entry led to before it
 * was changed.
 *
 * Who reads guest bytes maps them under the image's lock, and reads them without it.  A
 * write cannot change the entry meanwhile, because it takes the lock of that range of
 * the disk.  A change of an entry in place (in-place.c) can: it may be for several roots,
 * whose ranges nobody has locked.  So what the entry led to keeps its bytes until all
 * readers have ended that were under way when the entry was changed.  Readers that begin
 * later find the new entry.
 *
 * Readers are counted in two numbers, those of even and those of odd phases.  Who waits
 * begins a new phase, and waits until the number of the old one is 0.  A reader never
 * waits.  It reads the phase, counts itself, and reads the phase again: if a new one has
 * begun in between, it takes its count back and begins again.  All of this is
 * sequentially consistent, so either the reader sees the new phase, or who waits sees the
 * reader's count.  Those who wait do so one after the other, so no reader of the phase
 * before the last one is left when a phase begins.
 *
 * Any thread.  Nobody may wait here while he reads, or while he holds something that a
 * reader could wait for: the image's lock, or a table that is being loaded.
 */
#include "checked.h"
#include "image.h"

void
qcow2_readers_init (struct qcow2_image *img)
{
  pthread_mutex_init (&img->readers.mutex, NULL);
  pthread_cond_init (&img->readers.ended, NULL);
}

void
qcow2_readers_destroy (struct qcow2_image *img)
{
  pthread_mutex_destroy (&img->readers.mutex);
  pthread_cond_destroy (&img->readers.ended);
}

unsigned
qcow2_reader_begin (struct qcow2_image *img)
{
  struct qcow2_readers *x = &img->readers;
  unsigned phase;

  for (;;) {
    phase = __atomic_load_n (&x->phase, __ATOMIC_SEQ_CST);
    __atomic_add_fetch (&x->nr[phase % 2], 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n (&x->phase, __ATOMIC_SEQ_CST) == phase)
      return phase % 2;
    qcow2_reader_end (img, phase % 2);
  }
}

void
qcow2_reader_end (struct qcow2_image *img, unsigned reader)
{
  struct qcow2_readers *x = &img->readers;

  if (__atomic_sub_fetch (&x->nr[reader], 1, __ATOMIC_SEQ_CST) > 0 ||
      !__atomic_load_n (&x->is_awaited, __ATOMIC_SEQ_CST))
    return;
  pthread_mutex_lock (&x->mutex);
  pthread_cond_broadcast (&x->ended);
  pthread_mutex_unlock (&x->mutex);
}

/* Waits for all readers that have begun. */
static void
wait_for_readers (struct qcow2_readers *x)
{
  unsigned old;

  pthread_mutex_lock (&x->mutex);
  while (__atomic_load_n (&x->is_awaited, __ATOMIC_SEQ_CST))
    pthread_cond_wait (&x->ended, &x->mutex);
  __atomic_store_n (&x->is_awaited, true, __ATOMIC_SEQ_CST);
  old = __atomic_fetch_add (&x->phase, 1, __ATOMIC_SEQ_CST) % 2;
  while (__atomic_load_n (&x->nr[old], __ATOMIC_SEQ_CST) > 0)
    pthread_cond_wait (&x->ended, &x->mutex);
  __atomic_store_n (&x->is_awaited, false, __ATOMIC_SEQ_CST);
  pthread_cond_broadcast (&x->ended);
  pthread_mutex_unlock (&x->mutex);
}

void
qcow2_note_moved_locked (struct qcow2_image *img)
{
  assert (lock_held (&img->lock));
  img->readers.moves++;
}

bool
qcow2_readers_settle (struct qcow2_image *img)
{
  struct qcow2_readers *x = &img->readers;
  uint64_t moves;
  bool settled;

  lock_acquire (&img->lock);
  moves = x->moves;
  settled = x->settled >= moves;
  lock_release (&img->lock);
  if (!settled) {
    wait_for_readers (x);
    LOCK_FOR_SCOPE (&img->lock);
    x->settled = MAX_OF (x->settled, moves);
  }
  return moves > 0;
}
