/* SPDX-License-Identifier: BSD-3-Clause */
/* Opens the external data file of an image (specification, incompatible
 * bit 2).
 *
 * Such a file holds the guest clusters, each at its guest offset and without
 * refcounts.  An L2 entry says whether a cluster is allocated there, and must
 * name that offset.  There are no compressed clusters and no internal
 * snapshots.
 *
 * A relative name in the header starts at the directory of the image, as that
 * of a backing file does.  (QEMU starts at the directory that it runs in.)
 * host-file.c decides whether the file may be opened.  Runs at open only,
 * single-threaded.
 */
#include <errno.h>
#include <string.h>

#include "image.h"

int
qcow2_data_file_open (struct qcow2_image *img, struct fault *f)
{
  const struct qcow2_header *h = &img->header;
  CLEANUP_FREE char *path = NULL;
  struct fault why = { 0 };
  int r;

  if (!qcow2_has_data_file (&h->geo) ||
      img->host_files == QCOW2_FILES_IGNORE)
    return 0;
  if (h->data_file_name[0] == '\0')
    return fault_unsupported (f, "its external data file has no name");
  r = qcow2_host_file_open (img, h->data_file_name,
                            img->writable ? IO_FILE_WRITE : 0,
                            img->writable ? IO_LOCK_WRITE : IO_LOCK_READ,
                            &path, &img->data, &why);
  if (r < 0)
    return fault_set (f, why.kind, -r, UINT64_MAX, "data file %.120s: %s",
                      h->data_file_name, why.msg[0] ? why.msg :
                      strerror (-r));
  return 0;
}
