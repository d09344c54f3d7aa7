/* SPDX-License-Identifier: BSD-3-Clause */
/* The external data file (specification, incompatible bit 2): guest clusters
 * are there, each at its guest offset, without refcounts; an L2 entry says
 * whether they are, and must name that offset.  There are no compressed
 * clusters and no internal snapshots.
 *
 * The name in the header counts from the directory of the image, as that of a
 * backing file does.  (QEMU takes it from the directory it runs in.)
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
