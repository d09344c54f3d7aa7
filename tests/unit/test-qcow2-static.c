/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests reading images that QEMU made: clusters of all kinds, backing chains,
 * and the refusal of images that are not served or cannot be right.
 *
 * The oracle for bytes is `qemu-img convert -O raw`.
 */
#include "qcow2-images.h"

/* --- Reading -------------------------------------------------------- */

static void
test_plain_clusters_read_like_qemu (void **state)
{
  static const char *const sizes[] = { "512", "4k", "64k", "2M" };
  size_t i;

  for (i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
    run ("qemu-img create -f qcow2 -o cluster_size=%s plain 9437696",
         sizes[i]);
    run ("qemu-io -f qcow2 -c 'write -P 1 5k 100k' -c 'write -P 2 1M 300k' "
         "-c 'write -z 1100k 64k' -c 'discard 4M 1M' -c 'write -P 3 3M 2560k' "
         "-c 'write -P 4 50k 3k' -c 'write -P 5 9M 512' plain");
    assert_reads_like_qemu ("plain");
  }
}

/* Bytes of which some compress well, some hardly, some not at all. */
static void
make_mixed_data (void)
{
  run ("{ head -c 700000 /dev/urandom; yes some text | head -c 900000;"
       "  head -c 300000 /dev/zero; head -c 400000 /dev/urandom | base64; "
       "  seq 100000 | head -c 400000; } >mixed; truncate -s %%512 mixed");
}

static void
test_compressed_clusters_read_like_qemu (void **state)
{
  static const char *const types[] = { "zlib", "zstd" };
  static const char *const sizes[] = { "512", "4k", "64k", "2M" };
  size_t t, s;

  make_mixed_data ();
  for (t = 0; t < 2; t++)
    for (s = 0; s < 4; s++) {
      run ("qemu-img convert -c -f raw -O qcow2 -o cluster_size=%s,"
           "compression_type=%s mixed packed", sizes[s], types[t]);
      assert_reads_like_qemu ("packed");
      run ("cmp mixed ref.raw");
    }
}

static void
test_damaged_compressed_cluster_is_an_error (void **state)
{
  static const char *const types[] = { "zlib", "zstd" };
  /* Valid, but they expand to nothing. */
  static const char *const empty[] = {
    "\x03\0\0\0\0\0\0\0\0", "\x28\xb5\x2f\xfd\x20\0\1\0\0"
  };
  struct qcow2_image *img;
  struct qcow2_extent e;
  uint8_t buf[4096];
  size_t t;

  run ("seq 100000 | head -c 65536 >text");
  for (t = 0; t < 2; t++) {
    run ("qemu-img convert -c -f raw -O qcow2 -o cluster_size=4k,"
         "compression_type=%s text packed", types[t]);
    img = must_open ("packed", false);
    assert_int_equal (qcow2_map (img, 0, 4096, 4096, &e, 1), 1);
    assert_int_equal (e.kind, QCOW2_COMPRESSED);
    qcow2_compressed_extent (img, e.entry, &e.host_off, &e.len);
    assert_int_equal (qcow2_read (img, 0, buf, 4096, 4096), 0);
    patch ("packed", e.host_off, "\xff\xff\xff\xff\xff\xff\xff\xff", 8);
    assert_int_equal (qcow2_read (img, 0, buf, 4096, 4096), -EIO);
    patch ("packed", e.host_off, empty[t], 9);
    assert_int_equal (qcow2_read (img, 0, buf, 4096, 4096), -EIO);
    assert_int_equal (qcow2_read (img, 0, buf, 8192, 4096), 0);
    close_image (img);
  }
}

static void
test_version_2_reads_like_qemu (void **state)
{
  run ("qemu-img create -f qcow2 -o compat=0.10 old 3M");
  run ("qemu-io -f qcow2 -c 'write -P 1 5k 100k' -c 'write -P 2 2M 300k' old");
  assert_reads_like_qemu ("old");
}

static void
test_snapshots_read_as_the_disk_was (void **state)
{
  struct qcow2_image *img;
  uint8_t *want, got[70000];
  size_t len;

  run ("qemu-img create -f qcow2 -o cluster_size=4k x 3M; "
       "qemu-io -f qcow2 -c 'write -P 1 5k 700k' x; "
       "qemu-img snapshot -c one x; "
       "qemu-io -f qcow2 -c 'write -P 2 3k 500k' x; qemu-img resize x 5M; "
       "qemu-img convert -f qcow2 -l snapshot.name=one -O raw x one.raw");
  want = read_file ("one.raw", &len);
  img = must_open ("x", false);
  assert_int_equal (qcow2_read (img, 1, got, 1000, sizeof got), 0);
  assert_memory_equal (got, want + 1000, sizeof got);
  assert_int_equal (qcow2_read (img, 1, got, 3 * MIB - 1000, 1000), 0);
  assert_int_equal (qcow2_read (img, 1, got, 3 * MIB, 1000), -EINVAL);
  assert_int_equal (qcow2_read (img, 2, got, 0, 1000), -EINVAL);
  close_image (img);
  free (want);
}

static void
test_huge_empty_disk_maps_in_few_steps (void **state)
{
  const uint64_t size = 1024 * GIB;
  struct qcow2_image *img;
  struct qcow2_extent e[4];
  uint64_t off;
  int nr, calls = 0;

  run ("qemu-img create -f qcow2 huge 1T");
  run ("qemu-io -f qcow2 -c 'write 600G 64k' huge");
  img = must_open ("huge", false);
  for (off = 0; off < size; calls++) {
    nr = qcow2_map (img, 0, off, size - off, e, 4);
    assert_true (nr > 0);
    assert_int_equal (e[0].guest_off, off);
    off = e[nr - 1].guest_off + e[nr - 1].len;
  }
  assert_int_equal (off, size);
  assert_true (calls < 100);
  assert_int_equal (qcow2_map (img, 0, size - 1, 2, e, 4), -EINVAL);
  assert_int_equal (qcow2_map (img, 0, UINT64_MAX, 2, e, 4), -EINVAL);
  close_image (img);
}

static void
test_contiguous_clusters_are_one_extent (void **state)
{
  struct qcow2_image *img;
  struct qcow2_extent e[4];

  run ("qemu-img create -f qcow2 -o cluster_size=4k run 4M");
  run ("qemu-io -f qcow2 -c 'write -P 1 0 1M' run");
  img = must_open ("run", false);
  assert_int_equal (qcow2_map (img, 0, 1000, 500000, e, 4), 1);
  assert_int_equal (e[0].kind, QCOW2_DATA);
  assert_int_equal (e[0].guest_off, 1000);
  assert_int_equal (e[0].len, 500000);
  assert_int_equal (e[0].host_off % 4096, 1000);
  assert_int_equal (qcow2_map (img, 0, MIB - 4096, 8192, e, 4), 2);
  assert_int_equal (e[1].kind, QCOW2_UNALLOCATED);
  assert_int_equal (e[1].len, 4096);
  close_image (img);
}

/* Where the L2 entry of guest offset 0 lies in the file. */
static uint64_t
first_l2_entry (const char *name)
{
  size_t len;
  uint8_t *buf = read_file (name, &len);
  uint64_t l1_off, l2_off;
  be64 wire;

  memcpy (&wire, buf + 40, sizeof wire);
  l1_off = be64_load (wire);
  memcpy (&wire, buf + l1_off, sizeof wire);
  l2_off = be64_load (wire) & QCOW2_OFFSET_MASK;
  free (buf);
  return l2_off;
}

static void
test_impossible_entries_fail_only_their_cluster (void **state)
{
  static const uint64_t bad[] = {
    QCOW2_L2_COPIED | UINT64_C (0x50200),          /* misaligned */
    QCOW2_L2_COPIED | UINT64_C (0xffffff0000),     /* past the end */
    QCOW2_L2_COPIED | UINT64_C (0x50000) | 2,      /* reserved bit */
    QCOW2_L2_COPIED | UINT64_C (0x50000) | UINT64_C (1) << 57,
    QCOW2_L2_COMPRESSED | UINT64_C (0xffffff0000),
  };
  struct qcow2_image *img;
  uint8_t buf[1000];
  uint64_t entry;
  size_t i;

  run ("qemu-img create -f qcow2 bad 1M");
  run ("qemu-io -f qcow2 -c 'write -P 1 0 256k' bad");
  entry = first_l2_entry ("bad");
  for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    patch_u64 ("bad", entry, bad[i]);
    img = must_open ("bad", false);
    assert_int_equal (qcow2_read (img, 0, buf, 0, sizeof buf), -EIO);
    assert_int_equal (qcow2_read (img, 0, buf, 65535, sizeof buf), -EIO);
    assert_int_equal (qcow2_read (img, 0, buf, 65536, sizeof buf), 0);
    assert_int_equal (buf[999], 1);
    close_image (img);
  }
}

/* What lies behind one another is one extent, whatever flags say who owns it,
 * up to the first entry that is something else or cannot be. */
static void
test_runs_end_where_they_end (void **state)
{
  struct qcow2_image *img;
  struct qcow2_extent e[8];
  uint64_t table, first, end, i;
  size_t len;

  run ("qemu-img create -f qcow2 -o cluster_size=4k ends 4M");
  run ("qemu-io -f qcow2 -c 'write -P 1 0 1M' -c 'write -P 1 1300k 2M' ends");
  table = first_l2_entry ("ends");
  img = must_open ("ends", false);
  assert_int_equal (qcow2_map (img, 0, 0, MIB, e, 8), 1);
  first = e[0].host_off;
  close_image (img);
  free (read_file ("ends", &len));
  end = round_up_pow2 (len, 4096);

  patch_u64 ("ends", table + 8 * 10, QCOW2_L2_COPIED | first);
  patch_u64 ("ends", table + 8 * 20, first + 20 * 4096);   /* shared */
  patch_u64 ("ends", table + 8 * 30,
             (QCOW2_L2_COPIED | (first + 30 * 4096)) + QCOW2_L2_ZERO);
  patch_u64 ("ends", table + 8 * 42, QCOW2_L2_COPIED | (first + 41 * 4096));
  for (i = 0; i < 6; i++)       /* three more than there are */
    patch_u64 ("ends", table + 8 * (300 + i),
               QCOW2_L2_COPIED | (end + (i - 3) * 4096));
  img = must_open ("ends", false);
  assert_int_equal (qcow2_map (img, 0, 1000, MIB - 1000, e, 8), 7);
  assert_int_equal (e[0].len, 10 * 4096 - 1000);
  assert_int_equal (e[1].host_off, first);
  assert_int_equal (e[1].len, 4096);
  assert_int_equal (e[2].host_off, first + 11 * 4096);
  assert_int_equal (e[2].len, 19 * 4096);
  assert_int_equal (e[3].kind, QCOW2_ZERO);
  assert_int_equal (e[3].len, 4096);
  assert_int_equal (e[4].host_off, first + 31 * 4096);
  assert_int_equal (e[4].len, 11 * 4096);
  assert_int_equal (e[5].host_off, first + 41 * 4096);
  assert_int_equal (e[5].len, 4096);
  assert_int_equal (e[6].host_off, first + 43 * 4096);
  assert_int_equal (e[6].len, MIB - 43 * 4096);
  assert_int_equal (qcow2_map (img, 0, 11 * 4096 + 5, 3 * 4096, e, 8), 1);
  assert_int_equal (e[0].host_off, first + 11 * 4096 + 5);
  assert_int_equal (e[0].len, 3 * 4096);
  assert_int_equal (qcow2_map (img, 0, 40 * 4096, 3 * 4096, e, 8), 2);
  assert_int_equal (e[0].len, 2 * 4096);
  assert_true (qcow2_map (img, 0, 2 * MIB - 4096, 4096 + 8192, e, 8) > 0);
  assert_int_equal (e[0].guest_off, 2 * MIB - 4096);   /* a table's last */
  assert_int_equal (qcow2_map (img, 0, 300 * 4096, 10 * 4096, e, 8), 1);
  assert_int_equal (e[0].len, 3 * 4096);
  assert_int_equal (qcow2_map (img, 0, 303 * 4096, 4096, e, 8), -EIO);
  close_image (img);
}

/* --- Backing files -------------------------------------------------- */

static void
make_chain (const char *base_size, const char *mid_size,
            const char *top_size)
{
  run ("truncate -s %s base; mkdir -p sub", base_size);
  run ("qemu-io -f raw -c 'write -P 9 10k 900k' base");
  run ("qemu-img create -f qcow2 -F raw -b ../base sub/mid %s", mid_size);
  run ("qemu-io -f qcow2 -c 'write -P 8 100k 130k' -c 'write -z 320k 64k' "
       "sub/mid");
  run ("qemu-img create -f qcow2 -F qcow2 -b sub/mid top %s", top_size);
  run ("qemu-io -f qcow2 -c 'write -P 7 500k 10k' top");
}

static void
test_backing_chains_read_like_qemu (void **state)
{
  make_chain ("1M", "1M", "1M");
  assert_reads_like_qemu ("top");
  make_chain ("1M", "777k", "3M");
  assert_reads_like_qemu ("top");
  make_chain ("1M", "2M", "600k");
  assert_reads_like_qemu ("top");
  run ("qemu-img create -f qcow2 -o compat=0.10 sub/v2 1M");
  run ("qemu-io -f qcow2 -c 'write -P 8 0 130k' sub/v2");
  run ("qemu-img create -f qcow2 -F qcow2 -b file:$PWD/sub/v2 top 1M");
  assert_reads_like_qemu ("top");
}

static void
test_backing_status_follows_the_chain (void **state)
{
  struct qcow2_image *img;
  enum qcow2_kind kind;
  uint64_t len = 4 * MIB;

  make_chain ("1M", "2M", "4M");
  img = must_open ("top", false);
  assert_int_equal (qcow2_backing_status (img, 0, &len, &kind), 0);
  assert_int_equal (kind, QCOW2_DATA);
  assert_int_equal (len, 320 * KIB);
  len = 4 * MIB;
  assert_int_equal (qcow2_backing_status (img, 321 * KIB, &len, &kind), 0);
  assert_int_equal (kind, QCOW2_ZERO);
  len = 4 * MIB;
  assert_int_equal (qcow2_backing_status (img, MIB - 5, &len, &kind), 0);
  assert_int_equal (kind, QCOW2_DATA);
  assert_int_equal (len, 5);
  len = 4 * MIB;
  assert_int_equal (qcow2_backing_status (img, MIB, &len, &kind), 0);
  assert_int_equal (kind, QCOW2_ZERO);
  assert_int_equal (len, MIB);
  len = MIB;
  assert_int_equal (qcow2_backing_status (img, 3 * MIB, &len, &kind), 0);
  assert_int_equal (kind, QCOW2_ZERO);
  close_image (img);
  img = must_open ("sub/mid", false);
  close_image (img);
}

static void
test_backing_format_is_probed_if_not_given (void **state)
{
  make_chain ("1M", "1M", "1M");
  hide_backing_format ("top");
  hide_backing_format ("sub/mid");
  assert_reads_like_qemu ("top");
}

static void
test_backing_faults_name_the_file (void **state)
{
  make_chain ("1M", "1M", "1M");
  run ("mv base gone");
  assert_refused ("top", false, FAULT_IO, "backing file sub/mid: backing "
                  "file ../base: ");
  run ("echo hello >sub/mid");
  assert_refused ("top", false, FAULT_CORRUPT,
                  "backing file sub/mid: is not a qcow2 image");
  run ("qemu-img create -u -f qcow2 -F raw -b nbd://localhost/x net 1M");
  assert_refused ("net", false, FAULT_UNSUPPORTED, "nbd://localhost/x: only");
  run ("qemu-img create -u -f qcow2 -F vmdk -b v vm 1M; touch v");
  assert_refused ("vm", false, FAULT_UNSUPPORTED,
                  "backing file v: backing format vmdk is not supported");
  run ("qemu-img create -u -f qcow2 -F qcow2 -b loop x 1M; "
       "mv x loop");
  assert_refused ("loop", false, FAULT_UNSUPPORTED, "backing file loop: ");
}

/* A backing file whose format the header does not name, and which QEMU would
 * not take for raw. */
static void
test_backing_files_of_other_formats_are_not_raw (void **state)
{
  run ("for f in vmdk vdi vhdx vpc qed parallels; do "
       "qemu-img create -f $f other 8M && "
       "qemu-img create -f qcow2 -u -b other -F raw top-$f 8M && "
       "cp other other-$f; done");
  for (const char *f = "vmdk\0vdi\0vhdx\0vpc\0qed\0parallels\0"; *f;
       f += strlen (f) + 1) {
    char cmd[100], top[32];

    snprintf (cmd, sizeof cmd, "cp other-%s other", f);
    run ("%s", cmd);
    snprintf (top, sizeof top, "top-%s", f);
    close_image (must_open (top, false));       /* it is named: raw */
    hide_backing_format (top);
    assert_refused (top, false, FAULT_UNSUPPORTED, "looks like");
  }
}

/* As qemu-img does not make them all: what a file begins with, in printf's
 * way. */
static void
test_first_bytes_of_other_formats_are_known (void **state)
{
  static const struct {
    const char *format, *bytes;
    unsigned at;
  } v[] = {
    { "vmdk", "KDMV", 0 }, { "vmdk", "COWD", 0 },
    { "vmdk", "# Disk DescriptorFile", 0 },
    { "vdi", "\\177\\020\\332\\276", 64 }, { "vhdx", "vhdxfile", 0 },
    { "vpc", "conectix", 0 }, { "qed", "QED\\000", 0 },
    { "luks", "LUKS\\272\\276", 0 }, { "parallels", "WithoutFreeSpace", 0 },
    { "parallels", "WithouFreSpacExt", 0 },
    { "bochs", "Bochs Virtual HD Image", 0 },
  };

  for (size_t i = 0; i < sizeof v / sizeof v[0]; i++) {
    char said[64];

    run ("rm -f b x; truncate -s 1M b; printf '%s' | "
         "dd of=b bs=1 seek=%u conv=notrunc; "
         "qemu-img create -u -f qcow2 -b b -F raw x 1M", v[i].bytes, v[i].at);
    close_image (must_open ("x", false));       /* it is named: raw */
    hide_backing_format ("x");
    snprintf (said, sizeof said, "looks like %s", v[i].format);
    assert_refused ("x", false, FAULT_UNSUPPORTED, said);
    /* With one byte changed it is nobody's. */
    run ("printf ! | dd of=b bs=1 seek=%u conv=notrunc", v[i].at + 3);
    close_image (must_open ("x", false));
  }
}

/* Whoever may write a raw backing file can make a qcow2 image of it that names
 * other files: where the header says raw, it is raw. */
static void
test_named_raw_it_is_raw_whatever_it_holds (void **state)
{
  struct qcow2_image *img;
  char buf[512];

  run ("echo secret >secret; truncate -s 1M secret;"
       "qemu-img create -f qcow2 -b secret -F raw b 1M;"
       "qemu-img create -u -f qcow2 -b b -F raw x 1M");
  img = must_open ("x", false);
  assert_int_equal (qcow2_read (img, 0, buf, 0, sizeof buf), 0);
  assert_memory_equal (buf, "QFI\xfb", 4);
  close_image (img);
  hide_backing_format ("x");
  img = must_open ("x", false);                 /* as QEMU would take it */
  assert_int_equal (qcow2_read (img, 0, buf, 0, sizeof buf), 0);
  assert_memory_equal (buf, "secret", 6);
  close_image (img);
}

/* --- Extended L2 entries ---------------------------------------------- */

static void
test_subclusters_read_like_qemu (void **state)
{
  run ("truncate -s 1M base;"
       "qemu-io -f raw -c 'write -P 9 0 1M' base");
  run ("qemu-img create -f qcow2 -o extended_l2=on -b base -F raw sub 2M;"
       "qemu-io -f qcow2 -c 'write -P 1 2k 4k' -c 'write -z 10k 6k' "
       "-c 'write -P 2 100k 200k' -c 'write -z 256k 64k' -c 'discard 320k 64k' "
       "-c 'write -P 3 1500k 512' sub");
  assert_reads_like_qemu ("sub");
}

/* What the entry of the first cluster, at the beginning of the file's fifth,
 * says is not possible: only that cluster can't be read.  In an entry without
 * a place, the bit of a part would name the image's header. */
static void
test_impossible_subclusters_are_errors (void **state)
{
  static const struct {
    uint64_t xor, bitmap;
    bool keep_place;
  } bad[] = {
    { 0, UINT64_C (0x00000001ffffffff), true },     /* allocated and zero */
    { 0, UINT64_C (0x0000000100000001), true },
    { QCOW2_L2_ZERO, 0xffffffff, true },            /* reserved here */
    { 0, 1, false },                                /* allocated nowhere */
    { 0, 0xffffffff, false },
  };
  struct qcow2_image *img;
  uint8_t buf[512];

  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    const uint64_t l2 = 4 * 65536;
    uint64_t entry = QCOW2_L2_COPIED | 5 * 65536;

    run ("qemu-img create -f qcow2 -o extended_l2=on x 1M;"
         "qemu-io -f qcow2 -c 'write -P 1 0 128k' x");
    patch_u64 ("x", l2, bad[i].keep_place ? entry ^ bad[i].xor : 0);
    patch_u64 ("x", l2 + 8, bad[i].bitmap);
    img = must_open ("x", false);
    assert_int_equal (qcow2_read (img, 0, buf, 0, sizeof buf), -EIO);
    assert_int_equal (qcow2_read (img, 0, buf, 65536, sizeof buf), 0);
    assert_int_equal (buf[0], 1);
    close_image (img);
  }
  run ("qemu-img create -f qcow2 -o cluster_size=4k x 1M");
  patch_u64 ("x", 72, QCOW2_INCOMPAT_EXTENDED_L2);
  assert_refused ("x", false, FAULT_CORRUPT, "too small for extended L2");
}

/* --- Refusals ------------------------------------------------------- */

static void
test_features_are_refused_by_name (void **state)
{
  run ("qemu-img create -f qcow2 -o data_file=x.data x 1M; rm x.data");
  assert_refused ("x", false, FAULT_IO, "data file x.data: ");
  run ("qemu-img create -f qcow2 x 1M");
  patch_u32 ("x", 32, 1);
  assert_refused ("x", false, FAULT_UNSUPPORTED, "AES encryption");
  patch_u32 ("x", 32, 2);
  assert_refused ("x", false, FAULT_UNSUPPORTED, "LUKS encryption");
  patch_u32 ("x", 32, 0);
  patch_u64 ("x", 72, UINT64_C (1) << 20 | UINT64_C (1) << 33);
  assert_refused ("x", false, FAULT_UNSUPPORTED, "bit 20, bit 33");
  patch_u64 ("x", 72, QCOW2_INCOMPAT_RECOVERY);
  assert_refused ("x", false, FAULT_UNSUPPORTED, QCOW2_RECOVERY_NAME);
  close_image (must_open ("x", true));
  patch_u64 ("x", 72, 0);
  patch_u32 ("x", 4, 4);
  assert_refused ("x", false, FAULT_UNSUPPORTED, "qcow version 4");
  run ("echo QFI >x");
  assert_refused ("x", false, FAULT_CORRUPT, "is not a qcow2 image");
  run (": >x");
  assert_refused ("x", false, FAULT_CORRUPT, "is an empty file");
}

static void
test_unknown_bit_has_the_images_own_name (void **state)
{
  static const char name[] = "extended L2 entries";
  size_t len;
  uint8_t *buf, *at;

  run ("qemu-img create -f qcow2 x 1M");
  buf = read_file ("x", &len);
  at = memmem (buf, 65536, name, sizeof name);
  assert_non_null (at);
  patch ("x", at - 1 - buf, "\x15" "odd\nfeature\x80", 14);
  patch_u64 ("x", 72, UINT64_C (1) << 0x15);
  assert_refused ("x", false, FAULT_UNSUPPORTED, "odd?feature?");
  free (buf);
}

static void
test_bad_header_fields_are_corrupt (void **state)
{
  static const struct { unsigned off; uint32_t value; const char *words; }
  bad[] = {
    { 20, 8, "cluster size" }, { 20, 22, "cluster size" },
    { 20, 16 + 256, "cluster size" },
    { 24, 0x7fffffff, "L1 table" },
    { 36, 0, "L1 table" }, { 36, 0xffffffff, "L1 table" },
    { 40, 0x01000000, "L1 table offset" }, { 44, 8, "L1 table offset" },
    { 44, 0, "L1 table offset" }, { 44, 0x7f000000, "past the end" },
    { 52, 0, "refcount table offset" }, { 52, 512, "refcount table offset" },
    { 52, 0x7f000000, "past the end" },
    { 56, 0, "refcount table size" }, { 56, 1000, "refcount table size" },
    { 60, 65537, "snapshots" }, { 60, 1, "snapshot table offset" },
    { 96, 7, "refcount order" },
    { 100, 100, "header length" }, { 100, 108, "header length" },
    { 100, 131072, "header length" },
    { 104, 0x01000000, "compression type" },
    { 112 + 4, 0x10000000, "header extension" },
  };
  size_t i;

  for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    run ("rm -f x; qemu-img create -f qcow2 x 1M");
    patch_u32 ("x", bad[i].off, bad[i].value);
    assert_refused ("x", false, FAULT_CORRUPT, bad[i].words);
  }
}

static void
test_backing_name_must_lie_in_the_first_cluster (void **state)
{
  run ("touch b; qemu-img create -f qcow2 -F raw -b b x 1M");
  patch_u64 ("x", 8, 8);
  assert_refused ("x", false, FAULT_CORRUPT, "not in the first cluster");
  patch_u64 ("x", 8, 65537);
  assert_refused ("x", false, FAULT_CORRUPT, "not in the first cluster");
  patch_u64 ("x", 8, 65535);
  patch_u32 ("x", 16, 2);
  assert_refused ("x", false, FAULT_CORRUPT, "too long");
  patch_u64 ("x", 8, 50000);
  patch_u32 ("x", 16, 1024);
  assert_refused ("x", false, FAULT_CORRUPT, "too long");
  patch_u32 ("x", 16, 5);
  assert_refused ("x", false, FAULT_CORRUPT, "zero byte");
}

/* Cut the file anywhere: no crash, and no wrong bytes for what is left. */
static void
test_truncated_files_fail_cleanly (void **state)
{
  struct qcow2_image *img;
  struct io_store *io;
  struct fault f;
  uint8_t buf[4096];
  size_t len, i;

  run ("qemu-img create -f qcow2 -o cluster_size=4k x 1M");
  run ("qemu-io -f qcow2 -c 'write -P 1 0 64k' x; qemu-img snapshot -c s x");
  free (read_file ("x", &len));
  for (i = 0; i < len; i += 1021) {
    run ("cp x y; truncate -s %zu y", i);
    if (try_open ("y", false, false, &io, &img, &f) < 0) {
      assert_int_equal (f.kind, FAULT_CORRUPT);
      continue;
    }
    if (qcow2_read (img, 0, buf, 32768, sizeof buf) == 0)
      assert_true (buf[0] <= 1);
    close_image (img);
  }
}

/* Random bytes in the first cluster: decoded or refused, never a crash, and
 * a fault whenever it is refused. */
static void
test_decode_survives_any_header (void **state)
{
  uint8_t *good, *buf = malloc (4096);
  struct qcow2_header h;
  struct fault f;
  uint64_t seed = 7;
  size_t len;
  int i, n, r;

  assert_non_null (buf);
  run ("touch b; qemu-img create -f qcow2 -o cluster_size=4k -F raw -b b x 1M");
  good = read_file ("x", &len);
  for (i = 0; i < 20000; i++) {
    memcpy (buf, good, 4096);
    for (n = next_random (&seed) % 6; n >= 0; n--)
      buf[8 + next_random (&seed) % (i % 2 ? 120 : 600)] =
        next_random (&seed) % 3 ? next_random (&seed) : 0;
    memset (&f, 0, sizeof f);
    r = qcow2_header_decode (buf, 512 << next_random (&seed) % 4, &h, &f);
    assert_int_equal (r, -f.err);
    assert_int_equal (r == 0, f.kind == FAULT_NONE);
  }
  free (good);
  free (buf);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (test_plain_clusters_read_like_qemu),
    TEST (test_compressed_clusters_read_like_qemu),
    TEST (test_damaged_compressed_cluster_is_an_error),
    TEST (test_backing_files_of_other_formats_are_not_raw),
    TEST (test_first_bytes_of_other_formats_are_known),
    TEST (test_named_raw_it_is_raw_whatever_it_holds),
    TEST (test_subclusters_read_like_qemu),
    TEST (test_impossible_subclusters_are_errors),
    TEST (test_version_2_reads_like_qemu),
    TEST (test_snapshots_read_as_the_disk_was),
    TEST (test_huge_empty_disk_maps_in_few_steps),
    TEST (test_contiguous_clusters_are_one_extent),
    TEST (test_impossible_entries_fail_only_their_cluster),
    TEST (test_runs_end_where_they_end),
    TEST (test_backing_chains_read_like_qemu),
    TEST (test_backing_status_follows_the_chain),
    TEST (test_backing_format_is_probed_if_not_given),
    TEST (test_backing_faults_name_the_file),
    TEST (test_features_are_refused_by_name),
    TEST (test_unknown_bit_has_the_images_own_name),
    TEST (test_bad_header_fields_are_corrupt),
    TEST (test_backing_name_must_lie_in_the_first_cluster),
    TEST (test_truncated_files_fail_cleanly),
    TEST (test_decode_survives_any_header),
  };

  return cmocka_run_group_tests (tests, enter_directory, leave_directory);
}
