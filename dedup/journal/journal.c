/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes the journal: keeps blocks in memory, and makes them durable by group
 * commit.
 *
 * Owns the block being filled, the sealed blocks that wait to be written, the
 * pool of memory for both, and the list of areas.  A block's life:
 *
 *   free -> fill -> sealed -> in the batch of a commit -> free
 *
 * It gets its number and its place in the file when filling starts, and is
 * written once.  Where the areas are full, the block being filled has the
 * number after their last block, and nothing may be put into it.
 *
 * Appending can't fail: all memory is there from the start, and
 * dedup_journal_room_locked promises records only against free blocks and
 * places in the areas.  The promise holds while the caller keeps the lock and
 * doesn't seal.
 *
 * Commit: a thread that needs a block durable and finds no commit under way
 * becomes the leader.  It seals the block being filled, takes all sealed blocks
 * and releases the lock; writes them; syncs once; and publishes the result with
 * the lock held again.  All other threads wait, and check again: those whose
 * records came after the leader's seal elect another leader.  So at most one
 * batch is in flight, blocks reach the file in order, and `durable` only grows.
 *
 * A block gets its "known durable" number when the leader takes it, not when
 * it is sealed: the number can only be higher then, so that whatever waits for
 * law 6 waits less.
 *
 * A write that finds no space on the host leaves everything as it was: the
 * batch goes back to the front of the sealed blocks, all who wait for it get
 * -ENOSPC, and the next commit writes it again, with what was sealed since.
 * The durable number has not moved meanwhile, so each block gets the same bytes
 * at the same place, and it does not matter which of them were written, or how
 * far.  The blocks stay in memory, so there is room for 8 MiB of them.
 *
 * Any other failure of a write, and every failure of a sync, is sticky (law
 * 10).  Blocks appended after it stay in memory until room runs out.
 *
 * Threads: everything is done under the caller's lock, except writing,
 * checksums and sync, which only the one leader does, without it.  Left out:
 * when to commit, when to write a checkpoint, and where areas come from.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "journal-block.h"
#include "journal.h"
#include "mutation.h"

#define MAX_WAITING ((8u << 20) / DEDUP_BLOCK_SIZE)

#define NR_BLOCKS (MAX_WAITING + DEDUP_JOURNAL_RESERVE)

#define MAX_IOV 1024    /* pieces that the host takes in one call (IOV_MAX) */

/* The number of records that an empty block takes at least, since none is
 * longer than DEDUP_REC_MAX. */
#define RECORDS_PER_BLOCK \
  ((DEDUP_BLOCK_SIZE - DEDUP_BLOCK_HEADER) / DEDUP_REC_MAX)

struct block {
  struct block *next;
  uint8_t *data;        /* DEDUP_BLOCK_SIZE bytes, constant */
  uint64_t seq;
  uint64_t host_off;
  uint32_t len;         /* bytes used, header included */
};

struct block_list {
  struct block *first, *last;
};

struct dedup_journal {
  /* Constant after dedup_journal_new: */
  struct io_store *io;
  struct lock *lock;
  uint64_t store_id;
  uint32_t epoch;
  struct block *blocks;         /* NR_BLOCKS */
  uint8_t *memory;              /* their data */

  /* Waits with lock: */
  pthread_cond_t commit_done;

  /* Protected by lock: */
  struct dedup_journal_area areas[DEDUP_MAX_JOURNAL_AREAS];
  size_t nr_areas;              /* never 0 */
  uint64_t fill_seq;            /* number of the block being filled */
  struct block *fill;           /* NULL while that is empty */
  uint32_t list_at;             /* offset in it of the record that was appended
                                 * last, if that is REFLIST; else 0 */
  uint64_t list_idx;            /* the last host index of that record */
  struct block *free;           /* last in, first out: few pages touched */
  size_t nr_free;
  struct block_list sealed;     /* in order of seq */
  uint64_t pending;             /* bytes of records not durable */
  uint64_t durable;
  uint64_t known_durable;
  uint64_t certain;
  bool group_open;              /* records came since the last END */
  bool committing;              /* there is a leader */
  uint64_t nr_commits;          /* begun */
  uint64_t refused;             /* the last of them that found no space */
  int err;                      /* sticky, -errno */

  /* The leader's alone: */
  struct iovec iov[MAX_IOV];
};

/* --- Blocks and areas ---------------------------------------------------- */

/* Returns the number after the last block of AREA. */
static uint64_t
area_end (const struct dedup_journal_area *area)
{
  return area->first_seq + area->nr_blocks;
}

static uint64_t
end_seq (const struct dedup_journal *j)
{
  return area_end (&j->areas[j->nr_areas - 1]);
}

static uint64_t
host_off_of (const struct dedup_journal *j, uint64_t seq)
{
  for (size_t i = j->nr_areas; i-- > 0;)
    if (seq >= j->areas[i].first_seq && seq < area_end (&j->areas[i]))
      return j->areas[i].host_off +
        (seq - j->areas[i].first_seq) * DEDUP_BLOCK_SIZE;
  abort ();     /* our own bug: a block outside the areas */
}

static void
put_free (struct dedup_journal *j, struct block *b)
{
  b->next = j->free;
  j->free = b;
  j->nr_free++;
}

static void
start_block (struct dedup_journal *j)
{
  struct block *b = j->free;

  assert (j->fill == NULL);
  assert (b != NULL);           /* appended more than room was promised */
  assert (j->fill_seq < end_seq (j));
  j->free = b->next;
  j->nr_free--;
  b->next = NULL;
  b->seq = j->fill_seq;
  b->host_off = host_off_of (j, b->seq);
  b->len = DEDUP_BLOCK_HEADER;
  j->fill = b;
}

static void
seal_block (struct dedup_journal *j)
{
  struct block *b = j->fill;

  if (j->sealed.last)
    j->sealed.last->next = b;
  else
    j->sealed.first = b;
  j->sealed.last = b;
  j->fill = NULL;
  j->list_at = 0;
  j->fill_seq++;
}

/* --- New and free -------------------------------------------------------- */

/* Returns true if the areas follow each other, and NEXT_SEQ lies in them or at
 * their end. */
static bool
params_are_sound (const struct dedup_journal_params *p)
{
  uint64_t end;

  if (p->nr_areas == 0 || p->nr_areas > DEDUP_MAX_JOURNAL_AREAS)
    return false;
  end = p->areas[0].first_seq;
  if (end == 0 || p->next_seq < end)
    return false;
  for (size_t i = 0; i < p->nr_areas; i++)
    if (p->areas[i].nr_blocks == 0 || p->areas[i].first_seq != end ||
        !add_u64 (end, p->areas[i].nr_blocks, &end))
      return false;
  return p->next_seq <= end;
}

static int
make_pool (struct dedup_journal *j)
{
  j->blocks = calloc (NR_BLOCKS, sizeof *j->blocks);
  /* Not cleared: pages that are never used are never touched. */
  j->memory = aligned_alloc (DEDUP_BLOCK_SIZE,
                             (size_t) NR_BLOCKS * DEDUP_BLOCK_SIZE);
  if (j->blocks == NULL || j->memory == NULL)
    return -ENOMEM;
  for (size_t i = NR_BLOCKS; i-- > 0;) {
    j->blocks[i].data = j->memory + i * DEDUP_BLOCK_SIZE;
    put_free (j, &j->blocks[i]);
  }
  return 0;
}

int
dedup_journal_new (const struct dedup_journal_params *p,
                   struct dedup_journal **out)
{
  struct dedup_journal *j;

  if (!params_are_sound (p))
    return -EINVAL;
  j = calloc (1, sizeof *j);
  if (j == NULL)
    return -ENOMEM;
  pthread_cond_init (&j->commit_done, NULL);
  j->io = p->io;
  j->lock = p->lock;
  j->store_id = p->store_id;
  j->epoch = p->epoch;
  memcpy (j->areas, p->areas, p->nr_areas * sizeof *p->areas);
  j->nr_areas = p->nr_areas;
  j->fill_seq = p->next_seq;
  j->durable = j->known_durable = j->certain = p->next_seq - 1;
  if (make_pool (j) < 0) {
    dedup_journal_free (j);
    return -ENOMEM;
  }
  *out = j;
  return 0;
}

void
dedup_journal_free (struct dedup_journal *j)
{
  if (j == NULL)
    return;
  assert (!j->committing);
  pthread_cond_destroy (&j->commit_done);
  free (j->memory);
  free (j->blocks);
  free (j);
}

/* --- Appending ----------------------------------------------------------- */

void
dedup_journal_append_locked (struct dedup_journal *j,
                             const struct dedup_record *r)
{
  uint8_t rec[DEDUP_REC_MAX];
  size_t size = dedup_record_encode (r, rec);

  assert (lock_held (j->lock));
  if (j->fill && j->fill->len + size > DEDUP_BLOCK_SIZE)
    seal_block (j);
  if (j->fill == NULL)
    start_block (j);
  memcpy (j->fill->data + j->fill->len, rec, size);
  j->fill->len += (uint32_t) size;
  j->pending += size;
  j->group_open = r->type != DEDUP_REC_END;
  j->list_at = 0;
}

/* Adds a cluster to the record that was appended last.  Returns false if that is
 * no REFLIST, or has no room for it. */
static bool
extend_list (struct dedup_journal *j, uint64_t host_idx, uint64_t refcount,
             bool anchored)
{
  size_t n;

  if (j->list_at == 0 || host_idx <= j->list_idx)
    return false;
  n = dedup_reflist_extend (j->fill->data + j->list_at,
                            DEDUP_BLOCK_SIZE - j->fill->len,
                            host_idx - j->list_idx, refcount, anchored);
  j->fill->len += (uint32_t) n;
  j->pending += n;
  return n > 0;
}

void
dedup_journal_append_refcount_locked (struct dedup_journal *j,
                                      uint64_t host_idx, uint64_t refcount,
                                      bool anchored)
{
  struct dedup_record r;

  assert (lock_held (j->lock));
  if (!extend_list (j, host_idx, refcount, anchored)) {
    dedup_reflist_begin (&r, host_idx, refcount, anchored);
    dedup_journal_append_locked (j, &r);
    j->list_at = j->fill->len - DEDUP_REFLIST_SIZE (&r);
  }
  j->list_idx = host_idx;
}

void
dedup_journal_end_locked (struct dedup_journal *j)
{
  static const struct dedup_record end = { .type = DEDUP_REC_END };

  assert (lock_held (j->lock));
  if (j->group_open)
    dedup_journal_append_locked (j, &end);
}

/* Returns the number of blocks behind the one being filled that NR records may
 * need. */
static uint64_t
blocks_for (const struct dedup_journal *j, uint64_t nr)
{
  uint64_t fit = 0;

  if (j->fill)
    fit = (DEDUP_BLOCK_SIZE - j->fill->len) / DEDUP_REC_MAX;
  return nr <= fit ? 0 : div_round_up (nr - fit, RECORDS_PER_BLOCK);
}

bool
dedup_journal_room_locked (const struct dedup_journal *j, size_t nr_records,
                           uint64_t leave)
{
  uint64_t need, places;

  assert (lock_held (j->lock));
  if (nr_records > (size_t) MAX_WAITING * RECORDS_PER_BLOCK)
    return false;
  need = blocks_for (j, (uint64_t) nr_records + 1);    /* and END */
  places = end_seq (j) - j->fill_seq - (j->fill != NULL);
  return need + leave <= places && need + DEDUP_JOURNAL_RESERVE <= j->nr_free;
}

bool
dedup_journal_filling_locked (const struct dedup_journal *j)
{
  assert (lock_held (j->lock));
  return !j->committing && j->nr_free < NR_BLOCKS - MAX_WAITING / 4;
}

uint64_t
dedup_journal_left_locked (const struct dedup_journal *j)
{
  uint64_t left;

  assert (lock_held (j->lock));
  left = end_seq (j) - j->fill_seq;
  return left > 0 ? left - 1 : 0;
}

uint64_t
dedup_journal_seq_locked (const struct dedup_journal *j)
{
  assert (lock_held (j->lock));
  return j->fill_seq;
}

uint64_t
dedup_journal_seal_locked (struct dedup_journal *j)
{
  assert (lock_held (j->lock));
  assert (!j->group_open);
  if (j->fill)
    seal_block (j);
  return j->fill_seq;
}

bool
dedup_journal_force_locked (struct dedup_journal *j)
{
  bool empty = j->fill == NULL;

  assert (lock_held (j->lock));
  if (empty) {
    /* A block that waits already will carry the durable number as well; and
     * a full journal has no place for another. */
    if (j->sealed.first || j->fill_seq == end_seq (j) || j->free == NULL)
      return false;
    start_block (j);
  }
  seal_block (j);
  return empty;
}

uint64_t
dedup_journal_pending_locked (const struct dedup_journal *j)
{
  assert (lock_held (j->lock));
  return j->pending;
}

uint64_t
dedup_journal_durable_locked (const struct dedup_journal *j)
{
  assert (lock_held (j->lock));
  return j->durable;
}

uint64_t
dedup_journal_known_durable_locked (const struct dedup_journal *j)
{
  assert (lock_held (j->lock));
  return j->known_durable;
}

uint64_t
dedup_journal_certain_locked (const struct dedup_journal *j)
{
  assert (lock_held (j->lock));
  return j->certain;
}

int
dedup_journal_error_locked (const struct dedup_journal *j)
{
  assert (lock_held (j->lock));
  return j->err;
}

/* --- Commit -------------------------------------------------------------- */

/* Encodes the headers and checksums of a batch. */
static void
encode_batch (struct dedup_journal *j, const struct block_list *batch,
              uint64_t known_durable)
{
  for (struct block *b = batch->first; b; b = b->next) {
    struct dedup_block_head h = {
      .store_id = j->store_id, .seq = b->seq,
      .known_durable = known_durable, .epoch = j->epoch, .len = b->len };

    dedup_block_encode (&h, b->data);
  }
}

/* Writes the run of contiguous blocks that *B starts; moves *B behind it. */
static int
write_run (struct dedup_journal *j, const struct block **b)
{
  uint64_t start = (*b)->host_off;
  int n = 0;

  do {
    j->iov[n].iov_base = (*b)->data;
    j->iov[n].iov_len = DEDUP_BLOCK_SIZE;
    n++;
    *b = (*b)->next;
  } while (*b && n < MAX_IOV &&
           (*b)->host_off == start + (uint64_t) n * DEDUP_BLOCK_SIZE);
  return *b ? io_pwritev (j->io, j->iov, n, start)
    : io_pwritev_sync (j->io, j->iov, n, start);
}

/* Writes a batch and syncs the file.  The sync may go on beside the write of the last
 * run: a crash between the two may leave a block whose data is missing, which a
 * recovery finds out (verify_group), as it does after a crash before the sync.  The leader
 * calls this without the lock. */
static int
write_batch (struct dedup_journal *j, const struct block_list *batch,
             uint64_t known_durable)
{
  const struct block *b = batch->first;
  int r = 0;

  encode_batch (j, batch, known_durable);
  while (b && r == 0)
    r = write_run (j, &b);
  if (r < 0 && r != -ENOSPC && mutation (MUTATION_LAW_10))
    r = io_sync (j->io);
  return r;
}

/* Puts a batch that found no space back to the front of the sealed blocks. */
static void
put_back (struct dedup_journal *j, const struct block_list *batch)
{
  batch->last->next = j->sealed.first;
  j->sealed.first = batch->first;
  if (j->sealed.last == NULL)
    j->sealed.last = batch->last;
}

static void
batch_is_durable (struct dedup_journal *j, const struct block_list *batch,
                  uint64_t known_durable)
{
  j->durable = batch->last->seq;
  /* The blocks that said the old number are below the new one. */
  j->certain = j->known_durable;
  j->known_durable = MAX_OF (j->known_durable, known_durable);
  j->refused = 0;
}

/* Publishes the result R of writing a batch, and takes its memory back. */
static void
publish_batch (struct dedup_journal *j, const struct block_list *batch,
               uint64_t known_durable, int r)
{
  struct block *next;

  if (r == -ENOSPC && mutation (MUTATION_NO_SPACE_DURABLE))
    r = 0;
  j->committing = false;
  pthread_cond_broadcast (&j->commit_done);
  if (r == -ENOSPC) {
    j->refused = j->nr_commits;
    if (!mutation (MUTATION_NO_SPACE_LOST)) {
      put_back (j, batch);
      return;
    }
  }
  else if (r < 0)
    j->err = r;           /* law 10 */
  else
    batch_is_durable (j, batch, known_durable);
  for (struct block *b = batch->first; b; b = next) {
    next = b->next;
    if (r >= 0)
      j->pending -= b->len - DEDUP_BLOCK_HEADER;
    put_free (j, b);
  }
}

/* Carries out one commit as its leader.  Called with the lock, which is
 * released meanwhile. */
static void
lead_commit (struct dedup_journal *j)
{
  struct block_list batch;
  uint64_t known_durable = j->durable;
  int r;

  j->nr_commits++;
  if (j->fill)
    seal_block (j);
  batch = j->sealed;
  assert (batch.first != NULL);   /* or there was nothing to wait for */
  j->sealed = (struct block_list) { NULL, NULL };
  j->committing = true;

  lock_release (j->lock);
  r = write_batch (j, &batch, known_durable);
  lock_acquire (j->lock);
  publish_batch (j, &batch, known_durable, r);
}

int
dedup_journal_commit (struct dedup_journal *j)
{
  LOCK_FOR_SCOPE (j->lock);
  uint64_t need = j->fill ? j->fill_seq : j->fill_seq - 1;
  uint64_t before = j->nr_commits;

  while (j->err == 0 && j->durable < need) {
    /* A commit that began after this call had all its records in the batch. */
    if (j->refused > before)
      return -ENOSPC;
    if (j->committing)
      lock_wait (j->lock, &j->commit_done);
    else
      lead_commit (j);
  }
  return j->err;
}

bool
dedup_journal_refused_locked (const struct dedup_journal *j)
{
  assert (lock_held (j->lock));
  return j->refused > 0;
}

int
dedup_journal_sync (struct dedup_journal *j)
{
  LOCK_FOR_SCOPE (j->lock);
  int r;

  while (j->committing)
    lock_wait (j->lock, &j->commit_done);
  if (j->err)
    return j->err;
  j->committing = true;
  lock_release (j->lock);
  r = io_sync (j->io);
  lock_acquire (j->lock);
  if (r < 0)
    j->err = r;           /* law 10 */
  j->committing = false;
  pthread_cond_broadcast (&j->commit_done);
  return r;
}

/* --- Maintenance of the area list ---------------------------------------- */

int
dedup_journal_add_area_locked (struct dedup_journal *j,
                               struct dedup_journal_area *area)
{
  assert (lock_held (j->lock));
  assert (area->nr_blocks > 0);
  if (j->nr_areas == DEDUP_MAX_JOURNAL_AREAS)
    return -ENOSPC;
  area->first_seq = end_seq (j);
  j->areas[j->nr_areas++] = *area;
  return 0;
}

size_t
dedup_journal_drop_locked (struct dedup_journal *j, uint64_t seq,
                           struct dedup_journal_area *out, size_t max)
{
  size_t n = 0;

  assert (lock_held (j->lock));
  /* The last area stays, because numbers continue from its end.  A block at or
   * below the durable number is neither being filled nor waiting. */
  while (n < max && n + 1 < j->nr_areas &&
         area_end (&j->areas[n]) <= MIN_OF (seq, j->durable + 1)) {
    out[n] = j->areas[n];
    n++;
  }
  j->nr_areas -= n;
  memmove (j->areas, j->areas + n, j->nr_areas * sizeof *j->areas);
  return n;
}

size_t
dedup_journal_areas_locked (const struct dedup_journal *j,
                            struct dedup_journal_area *out, size_t max)
{
  size_t n;

  assert (lock_held (j->lock));
  n = MIN_OF (j->nr_areas, max);
  memcpy (out, j->areas, n * sizeof *out);
  return n;
}
