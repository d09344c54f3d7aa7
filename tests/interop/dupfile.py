#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""dupfile.py FILE BLOCKS [SEED [BLOCK_SIZE]]: makes a raw file of which half
the blocks occur several times, and one in twenty holds zeroes."""
import random
import sys

path, nr = sys.argv[1], int(sys.argv[2])
rng = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 1)
size = int(sys.argv[4]) if len(sys.argv) > 4 else 4096
common = [rng.randbytes(size) for _ in range(max(1, nr // 5))]
with open(path, 'wb') as f:
    for _ in range(nr):
        kind = rng.random()
        f.write(bytes(size) if kind < 0.05 else
                rng.choice(common) if kind < 0.6 else rng.randbytes(size))
