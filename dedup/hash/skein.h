/* SPDX-License-Identifier: BSD-3-Clause */
/* Computes Skein-256-256: a hash of 256 bits that keeps a state of 256 bits.
 *
 * Source: "The Skein Hash Function Family", version 1.3 (Ferguson, Lucks,
 * Schneier, Whiting, Bellare, Kohno, Callas, Walker; 2010).
 */
#ifndef DEDUP_SKEIN_H
#define DEDUP_SKEIN_H

#include <stddef.h>
#include <stdint.h>

#define DEDUP_SKEIN_SIZE 32

/* Hashes LEN bytes.  Cannot fail, and keeps no state: any thread may call. */
void dedup_skein (const void *data, size_t len,
                  uint8_t out[DEDUP_SKEIN_SIZE]);

#endif
