/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests what is built for images: the header with a store's extension, the
 * snapshot table with an anchor, new images, and plans.
 *
 * The oracle is `qemu-img check`, which must find no errors.
 */
#include "qcow2-images.h"

/* --- Rebuilding the header ------------------------------------------ */

static const uint8_t store_ext[QCOW2_STORE_EXTENSION_SIZE] = "some store";

/* Rebuild the header of image NAME in the file; returns what rebuild did. */
static int
rebuild (const char *name, struct fault *f)
{
  size_t len;
  uint8_t *buf = read_file (name, &len);
  struct qcow2_header h;
  int r;

  memset (f, 0, sizeof *f);
  assert_int_equal (qcow2_header_decode (buf, len, &h, f), 0);
  r = qcow2_header_rebuild (buf, &h, &h.fields, store_ext, f);
  if (r == 0)
    patch (name, 0, buf, h.geo.cluster_size);
  free (buf);
  return r;
}

static void
test_rebuilt_header_keeps_what_was_there (void **state)
{
  static const char *const sizes[] = { "512", "1k", "4k", "64k" };
  struct qcow2_image *img;
  struct fault f;
  size_t i;

  run ("truncate -s 1M a-backing-file");
  for (i = 0; i < 4; i++) {
    run ("qemu-img create -f qcow2 -o cluster_size=%s -F raw "
         "-b a-backing-file x 1M", sizes[i]);
    run ("qemu-io -f qcow2 -c 'write -P 1 0 64k' x");
    assert_int_equal (rebuild ("x", &f), 0);
    assert_int_not_equal (shell ("qemu-img info x"), 0);
    assert_true (log_contains (QCOW2_RECOVERY_NAME));
    assert_int_equal (rebuild ("x", &f), 0);     /* again: the same */
    img = must_open ("x", true);
    assert_memory_equal (qcow2_store_extension (img), store_ext,
                         sizeof store_ext);
    assert_int_equal (qcow2_set_recovery_bit (img, false), 0);
    close_image (img);
    run ("qemu-img check x; qemu-img info x");
    run ("qemu-img info x | grep 'backing file: a-backing-file' && "
         "qemu-img info x | grep 'backing file format: raw'");
    assert_reads_like_qemu ("x");
  }
}

static void
test_rebuilt_header_keeps_unknown_extensions (void **state)
{
  struct qcow2_ext_walk w;
  struct qcow2_ext e;
  struct fault f;
  size_t len, seen = 0;
  uint8_t *buf;

  run ("qemu-img create -f qcow2 x 1M");
  assert_int_equal (rebuild ("x", &f), 0);
  buf = read_file ("x", &len);
  assert_memory_equal (buf + 8, "\0\0\0\0\0\0\0\0", 8);  /* no backing file */
  free (buf);
  run ("touch b; qemu-img create -f qcow2 -F raw -b b x 1M");
  hide_backing_format ("x");
  assert_int_equal (rebuild ("x", &f), 0);
  buf = read_file ("x", &len);
  w = qcow2_ext_first (buf, len, 112);
  while (qcow2_ext_next (&w, &e) == 1)
    if (e.type == 0x12345678 && e.len == 3 && memcmp (e.data, "raw", 3) == 0)
      seen++;
    else if (e.type == QCOW2_EXT_FEATURE_NAMES && e.len > 48 &&
             memmem (e.data, e.len, "lazy refcounts", 14))
      seen++;
  assert_int_equal (seen, 2);
  free (buf);
}

static void
test_header_without_room_is_refused (void **state)
{
  struct fault f;
  size_t len;
  uint8_t *before, *after;

  run ("touch b; qemu-img create -u -f qcow2 -o cluster_size=512 -F raw "
       "-b $(printf '%%0340d' 1) x 1M || "
       "qemu-img create -u -f qcow2 -o cluster_size=512 -F raw "
       "-b $(printf '%%0300d' 1) x 1M");
  before = read_file ("x", &len);
  assert_int_equal (rebuild ("x", &f), -ENOSPC);
  assert_int_equal (f.kind, FAULT_UNSUPPORTED);
  assert_non_null (strstr (f.msg, "no room"));
  after = read_file ("x", &len);
  assert_memory_equal (before, after, len);
  free (before);
  free (after);
}

static void
test_recovery_bit_clears_autoclear_bits (void **state)
{
  struct qcow2_image *img;
  size_t len;
  uint8_t *buf;
  be64 wire;

  run ("qemu-img create -f qcow2 -o lazy_refcounts=on x 1M");
  patch_u64 ("x", 88, UINT64_C (1) << 40);
  img = must_open ("x", true);
  assert_int_equal (qcow2_set_recovery_bit (img, true), 0);
  assert_true (qcow2_geometry (img)->incompatible & QCOW2_INCOMPAT_RECOVERY);
  close_image (img);
  buf = read_file ("x", &len);
  memcpy (&wire, buf + 72, sizeof wire);
  assert_int_equal (be64_load (wire), QCOW2_INCOMPAT_RECOVERY);
  memcpy (&wire, buf + 80, sizeof wire);
  assert_int_equal (be64_load (wire), 1);
  memcpy (&wire, buf + 88, sizeof wire);
  assert_int_equal (be64_load (wire), 0);
  free (buf);
}

static int
fail_sync (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  return call == IO_SYNC && *(bool *) opaque ? -EIO : 0;
}

static void
test_recovery_bit_counts_only_when_durable (void **state)
{
  struct qcow2_open_params params = { .writable = true, .cache_bytes = MIB };
  struct qcow2_image *img;
  struct io_store *file, *io;
  struct fault f = { 0 };
  bool failing = true;

  run ("qemu-img create -f qcow2 x 1M");
  assert_int_equal (io_file_open ("x", IO_FILE_WRITE, IO_LOCK_WRITE, &file,
                                  &f), 0);
  assert_int_equal (io_faulty_new (file, fail_sync, &failing, &io), 0);
  assert_int_equal (qcow2_open (io, &params, &img, &f), 0);
  assert_int_equal (qcow2_set_recovery_bit (img, true), -EIO);
  assert_int_equal (qcow2_geometry (img)->incompatible, 0);
  failing = false;
  assert_int_equal (qcow2_set_recovery_bit (img, true), 0);
  assert_int_not_equal (qcow2_geometry (img)->incompatible, 0);
  close_image (img);
}

/* --- Snapshots ------------------------------------------------------ */

static void
test_snapshots_are_listed (void **state)
{
  const struct qcow2_snapshot *s;
  struct qcow2_image *img;

  run ("qemu-img create -f qcow2 x 1M; qemu-img snapshot -c first x; "
       "qemu-io -f qcow2 -c 'write -P 1 0 64k' x; "
       "qemu-img snapshot -c 'the second' x; qemu-img resize x 2M");
  img = must_open ("x", true);
  assert_int_equal (qcow2_snapshots (img, &s), 2);
  assert_string_equal (s[0].name, "first");
  assert_string_equal (s[1].name, "the second");
  assert_string_equal (s[1].id, "2");
  assert_int_equal (s[1].disk_size, MIB);
  assert_false (s[1].is_anchor);
  assert_false (qcow2_has_anchor (img));
  close_image (img);
  assert_reads_like_qemu ("x");
}

/* A snapshot called as anchors are is none: its id differs. */
static void
test_only_id_and_name_make_an_anchor (void **state)
{
  struct qcow2_image *img;

  run ("qemu-img create -f qcow2 x 1M; qemu-img snapshot -c %s x; "
       "qemu-img snapshot -c %s x", QCOW2_ANCHOR_NAME, QCOW2_OLD_ANCHOR_NAME);
  img = must_open ("x", true);
  assert_false (qcow2_has_anchor (img));
  close_image (img);
}

static void
test_encoded_table_keeps_the_others (void **state)
{
  struct qcow2_snapshot_table *t;
  struct qcow2_image *img;
  uint8_t *buf, *again;
  size_t len, len_again, others;
  uint32_t nr;

  run ("qemu-img create -f qcow2 x 1M; qemu-img snapshot -c abc x; "
       "qemu-img snapshot -c defghijklm x");
  img = must_open ("x", true);
  t = &img->snapshots;
  assert_int_equal (qcow2_snapshot_encode (img, 0x70000, 3, &buf, &len, &nr),
                    0);
  assert_int_equal (nr, 3);
  assert_true (len > t->raw_len);
  others = t->raw_len;
  assert_memory_equal (buf, t->raw[0].bytes, t->raw[0].len);
  assert_memory_equal (buf + t->raw[0].len, t->raw[1].bytes, t->raw[1].len);
  assert_int_equal (t->raw[0].len + t->raw[1].len, others);
  patch ("x", img->fields.snapshots_off, buf, len);
  patch_u32 ("x", 60, nr);
  close_image (img);
  run ("truncate -s 1M x; qemu-img snapshot -l x");
  assert_true (log_contains ("defghijklm"));
  assert_true (log_contains (QCOW2_ANCHOR_NAME));

  img = must_open ("x", true);
  t = &img->snapshots;
  assert_true (qcow2_has_anchor (img));
  assert_int_equal (t->anchor, 2);
  assert_int_equal (img->fields.anchor_l1_off, 0x70000);
  assert_int_equal (img->fields.anchor_l1_entries, 3);
  assert_int_equal (t->v[2].disk_size, 3 * 8192 * UINT64_C (65536) - 1);
  assert_string_equal (t->v[2].id, QCOW2_ANCHOR_NAME);
  assert_int_equal (qcow2_snapshot_encode (img, 0x90000, 4, &again,
                                           &len_again, &nr), 0);
  assert_int_equal (nr, 3);
  assert_int_equal (len_again, len);
  assert_memory_equal (again, buf, others);
  close_image (img);
  free (buf);
  free (again);
}

static void
test_bad_snapshot_tables_are_corrupt (void **state)
{
  static const struct { unsigned off; uint32_t value; } bad[] = {
    { 4, 0x00050200 }, { 8, 0xffffffff }, { 12, 0xffffffff },
    { 36, 0xffffffff }, { 36, 1025 },
  };
  uint64_t table;
  size_t i;

  for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    struct qcow2_image *img;

    run ("rm -f x; qemu-img create -f qcow2 x 1M; qemu-img snapshot -c s x");
    img = must_open ("x", false);
    table = img->fields.snapshots_off;
    close_image (img);
    patch_u32 ("x", table + bad[i].off, bad[i].value);
    assert_refused ("x", false, FAULT_CORRUPT, "snapshot");
  }
  patch_u32 ("x", 60, 3000);
  assert_refused ("x", false, FAULT_CORRUPT, "snapshot");
}

/* --- Create --------------------------------------------------------- */

static int
create (const char *name, uint64_t size, unsigned bits, unsigned order,
        struct fault *f)
{
  const struct qcow2_create_params p = {
    .virtual_size = size, .cluster_bits = bits, .refcount_order = order,
  };
  struct io_store *io;
  int r;

  memset (f, 0, sizeof *f);
  unlink (name);
  r = io_file_open (name, IO_FILE_WRITE | IO_FILE_CREATE, IO_LOCK_WRITE, &io,
                    f);
  assert_int_equal (r, 0);
  r = qcow2_create (io, &p, f);
  io_close (io);
  return r;
}

static void
create_and_open (uint64_t size, unsigned bits, unsigned order)
{
  struct qcow2_image *img;
  struct fault f;
  char name[32];

  snprintf (name, sizeof name, "new-%u-%u-%u", bits, order,
            (unsigned) (size % 1000));
  if (create (name, size, bits, order, &f) < 0)
    fail_msg ("%s: %s", name, f.msg);
  img = must_open (name, order > 0);
  assert_int_equal (qcow2_geometry (img)->virtual_size,
                    round_up_pow2 (size, 512));
  assert_int_equal (qcow2_geometry (img)->refcount_bits, 1 << order);
  close_image (img);
}

static void
test_created_images_pass_qemu_img_check (void **state)
{
  unsigned bits, order;

  for (bits = 9; bits <= 21; bits++)
    create_and_open (20 * GIB, bits, 4);
  for (order = 0; order <= 6; order++) {
    create_and_open (1, 9, order);
    create_and_open (20 * GIB, 9, order);
    create_and_open (300 * MIB + 17, 12, order);
    create_and_open (20 * GIB, 21, order);
  }
  run ("for i in new-*; do qemu-img check -q $i || { echo $i; exit 1; }; "
       "done");
  run ("for i in new-9-6-1 new-9-1-480 new-12-2-817 new-21-4-480; do "
       "qemu-io -c 'write -P 3 0 512' $i && qemu-img check -q $i || exit 1; "
       "done");
  run ("rm new-*");
}

static void
test_sizes_that_do_not_fit_are_refused (void **state)
{
  /* 2^22 L1 entries of 64 or 2^18 clusters each. */
  const uint64_t max_512 = UINT64_C (1) << (22 + 6 + 9);
  struct fault f;

  create_and_open (max_512, 9, 4);
  run ("qemu-img check -q new-*; rm new-*");
  assert_int_equal (create ("x", max_512 + 1, 9, 4, &f), -EINVAL);
  assert_int_equal (f.kind, FAULT_USAGE);
  assert_non_null (strstr (f.msg, "137438953472"));
  create_and_open (UINT64_C (1) << (22 + 18 + 21), 21, 4);
  run ("qemu-img check -q new-*; rm new-*");
  assert_int_equal (create ("x", (UINT64_C (1) << 61) + 1, 21, 4, &f),
                    -EINVAL);
  assert_int_equal (create ("x", UINT64_MAX, 21, 4, &f), -EINVAL);
  assert_int_equal (create ("x", 0, 16, 4, &f), -EINVAL);
  assert_int_equal (f.kind, FAULT_USAGE);
  assert_int_equal (create ("x", MIB, 8, 4, &f), -EINVAL);
  assert_int_equal (create ("x", MIB, 22, 4, &f), -EINVAL);
  assert_int_equal (create ("x", MIB, 16, 7, &f), -EINVAL);
}

/* --- Plans ---------------------------------------------------------- */

static void
apply_all (struct qcow2_image *img, const struct qcow2_plan *plan)
{
  struct qcow2_txn txn;
  size_t i;
  int r;

  qcow2_txn_begin (img, &txn);
  for (i = 0; i < plan->nr_changes; i++)
    do {
      lock_acquire (&img->lock);
      r = qcow2_apply_locked (&txn, &plan->changes[i]);
      lock_release (&img->lock);
      if (r == -EAGAIN)
        assert_int_equal (qcow2_txn_load (&txn), 0);
      else
        assert_int_equal (r, 0);
    } while (r == -EAGAIN);
  qcow2_txn_end (&txn);
}

static void
write_back (struct qcow2_image *img)
{
  struct qcow2_writeback *wb;
  int r;

  lock_acquire (&img->lock);
  assert_int_equal (qcow2_writeback_begin_locked (img, &wb), 0);
  lock_release (&img->lock);
  r = qcow2_writeback_write (wb);
  lock_acquire (&img->lock);
  qcow2_writeback_end_locked (wb, r == 0);
  lock_release (&img->lock);
  assert_int_equal (r, 0);
}

/* Make a store of two areas in NAME, as dedup/create.c would; with CRASH, die
 * after the write of the header and recover. */
static void
add_store (const char *name, uint64_t max_clusters, bool crash)
{
  struct qcow2_image *img = must_open (name, true);
  uint64_t size[2] = { 128 * KIB, 512 * KIB };
  const uint64_t cs = qcow2_geometry (img)->cluster_size;
  struct qcow2_plan *plan;
  struct fault f = { 0 };
  uint64_t rounded = MAX_OF (cs, 128 * KIB);

  size[0] = rounded;
  size[1] = round_up_pow2 (size[1], cs);
  if (max_clusters == 0)
    max_clusters = qcow2_growth_bound (img);
  if (qcow2_plan_new (img, size, 2, max_clusters, &plan, &f) < 0)
    fail_msg ("%s", f.msg);
  assert_true (plan->area_host_off[0] >= img->file_size);
  assert_int_equal (plan->area_host_off[1], plan->area_host_off[0] + size[0]);
  assert_int_equal (qcow2_plan_write (img, plan), 0);
  assert_int_equal (qcow2_plan_commit_header (img, plan, store_ext, &f), 0);
  if (crash) {
    close_image (img);
    img = must_open (name, true);
    assert_true (qcow2_has_anchor (img));
    assert_memory_equal (qcow2_store_extension (img), store_ext,
                         sizeof store_ext);
  }
  apply_all (img, plan);
  write_back (img);
  assert_int_equal (qcow2_set_recovery_bit (img, false), 0);
  assert_true (qcow2_has_anchor (img));
  qcow2_plan_free (plan);
  close_image (img);
}

static void
test_planned_store_leaves_a_clean_image (void **state)
{
  static const char *const options[] = {
    "cluster_size=512", "cluster_size=512,refcount_bits=64",
    "cluster_size=4k", "cluster_size=64k,refcount_bits=2",
    "cluster_size=2M",
  };
  struct qcow2_plan *plan;
  struct qcow2_image *img;
  struct fault f = { 0 };
  size_t i;

  for (i = 0; i < sizeof options / sizeof options[0]; i++) {
    run ("qemu-img create -f qcow2 -o %s x 100M; "
         "qemu-io -f qcow2 -c 'write -P 1 0 300k' x; "
         "qemu-img snapshot -c keep x; "
         "qemu-io -f qcow2 -c 'write -P 2 100k 300k' x; "
         "qemu-img convert -f qcow2 -O raw x before.raw", options[i]);
    add_store ("x", 0, i % 2 == 0);
    run ("qemu-img check x");
    assert_true (log_contains ("No errors were found"));
    run ("qemu-img snapshot -l x");
    assert_true (log_contains ("keep") && log_contains (QCOW2_ANCHOR_NAME));
    assert_reads_like_qemu ("x");
    run ("cmp before.raw ref.raw");
    /* What is large enough stays. */
    img = must_open ("x", true);
    assert_int_equal (qcow2_plan_new (img, NULL, 0,
                                      qcow2_growth_bound (img) / 8 * 7,
                                      &plan, &f), 0);
    assert_int_equal (plan->nr_changes, 0);
    qcow2_plan_free (plan);
    close_image (img);
    run ("qemu-img snapshot -d %s x; qemu-img check x", QCOW2_ANCHOR_NAME);
    assert_true (log_contains ("No errors were found"));
  }
}

/* Make the refcount table and the anchor's L1 bigger, as an open does. */
static void
test_planned_growth_leaves_a_clean_image (void **state)
{
  struct qcow2_image *img;
  struct qcow2_plan *plan;
  struct fault f = { 0 };
  uint64_t nr_l1, nr_reftable, clusters = 4 << 20;

  run ("qemu-img create -f qcow2 -o cluster_size=512 x 1M; "
       "qemu-io -f qcow2 -c 'write -P 1 0 300k' x; "
       "qemu-img snapshot -c keep x");
  add_store ("x", 4096, false);
  run ("qemu-img check x");
  run ("qemu-img snapshot -c later x");      /* after the anchor */
  img = must_open ("x", true);
  nr_l1 = img->anchor.l1.nr;
  nr_reftable = img->reftable.nr;
  assert_int_equal (qcow2_plan_new (img, NULL, 0, clusters, &plan, &f), 0);
  assert_true (plan->new_header);
  assert_int_equal (plan->changes[0].type, QCOW2_CHANGE_HEADER);
  assert_int_equal (qcow2_plan_write (img, plan), 0);
  apply_all (img, plan);
  write_back (img);
  assert_true (img->anchor.l1.nr > nr_l1);
  assert_true (img->reftable.nr > nr_reftable);
  assert_true (img->anchor.l1.nr * 64 >= clusters);
  assert_true (img->reftable.nr * 256 >= clusters);
  qcow2_plan_free (plan);
  close_image (img);
  run ("qemu-img check x");
  assert_true (log_contains ("No errors were found"));
  run ("qemu-img snapshot -l x");
  assert_true (log_contains ("keep") && log_contains (QCOW2_ANCHOR_NAME) &&
               log_contains ("later"));
  assert_reads_like_qemu ("x");
}

static int
fail_header_write (void *opaque, enum io_call call, uint64_t host_off,
                   uint64_t len)
{
  return call == IO_PWRITE && host_off == 0 ? -EIO : 0;
}

static void
test_failed_header_write_changes_nothing (void **state)
{
  struct qcow2_open_params params = { .writable = true, .cache_bytes = MIB };
  const uint64_t size = MIB;
  struct qcow2_image *img;
  struct qcow2_plan *plan;
  struct io_store *file, *io;
  struct fault f = { 0 };

  run ("qemu-img create -f qcow2 x 1M");
  assert_int_equal (io_file_open ("x", IO_FILE_WRITE, IO_LOCK_WRITE, &file,
                                  &f), 0);
  assert_int_equal (io_faulty_new (file, fail_header_write, NULL, &io), 0);
  assert_int_equal (qcow2_open (io, &params, &img, &f), 0);
  assert_int_equal (qcow2_plan_new (img, &size, 1, qcow2_growth_bound (img),
                                    &plan, &f), 0);
  assert_int_equal (qcow2_plan_write (img, plan), 0);
  assert_int_equal (qcow2_plan_commit_header (img, plan, store_ext, &f),
                    -EIO);
  assert_int_equal (f.kind, FAULT_IO);
  assert_int_equal (qcow2_geometry (img)->incompatible, 0);
  assert_null (qcow2_store_extension (img));
  assert_false (qcow2_has_anchor (img));
  qcow2_plan_free (plan);
  close_image (img);
  run ("qemu-img check x");
}

static void
test_plans_past_the_formats_limits_are_refused (void **state)
{
  struct qcow2_image *img;
  struct qcow2_plan *plan;
  struct fault f = { 0 };

  run ("qemu-img create -f qcow2 -o cluster_size=512,refcount_bits=64 x 1M");
  img = must_open ("x", true);
  /* 2^20 refcount blocks of 64 entries. */
  assert_int_equal (qcow2_plan_new (img, NULL, 0, (1 << 26) + 1, &plan, &f),
                    -ENOSPC);
  assert_int_equal (f.kind, FAULT_UNSUPPORTED);
  close_image (img);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (test_rebuilt_header_keeps_what_was_there),
    TEST (test_rebuilt_header_keeps_unknown_extensions),
    TEST (test_header_without_room_is_refused),
    TEST (test_recovery_bit_clears_autoclear_bits),
    TEST (test_recovery_bit_counts_only_when_durable),
    TEST (test_snapshots_are_listed),
    TEST (test_only_id_and_name_make_an_anchor),
    TEST (test_encoded_table_keeps_the_others),
    TEST (test_bad_snapshot_tables_are_corrupt),
    TEST (test_created_images_pass_qemu_img_check),
    TEST (test_sizes_that_do_not_fit_are_refused),
    TEST (test_planned_store_leaves_a_clean_image),
    TEST (test_planned_growth_leaves_a_clean_image),
    TEST (test_failed_header_write_changes_nothing),
    TEST (test_plans_past_the_formats_limits_are_refused),
  };

  return cmocka_run_group_tests (tests, enter_directory, leave_directory);
}
