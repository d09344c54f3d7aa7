#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""randfile.py FILE MEBIBYTES [SEED]: writes bytes that nothing compresses, the
same for the same seed."""
import random
import sys

rng = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 1)
with open(sys.argv[1], 'wb') as f:
    for _ in range(int(sys.argv[2])):
        f.write(rng.randbytes(1 << 20))
