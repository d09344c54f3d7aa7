# SPDX-License-Identifier: BSD-3-Clause
"""memory.py PID VIRTUAL CLUSTER CACHE ORDER ENTRIES HOST_BYTES CONNECTIONS
REQUEST: checks that the peak memory of the server PID (VmHWM) is within what
section 9 of docs/ARCHITECTURE.md allows.  Sizes are in bytes; REQUEST is that
of the largest one.  Prints both in MiB; exit status 1 if it is not.
"""
import sys

MIB = 1 << 20


def bound(virtual, cluster, cache, order, entries, host, connections,
          request):
    """The formula, term by term as it stands there."""
    dirty = max(cache, 32 * MIB)
    slots = 4 << order
    return {
        'program': 16 * MIB,
        'tables': 2 * dirty * 21 // 20,
        'copies': dirty * 5 // 4,
        'log stores': 2 * 42 * slots,
        'freeze and merge': 8 * MIB + 34 * slots,
        'journal': 9 * MIB,
        'hints': min(16 * virtual // cluster, 8 * MIB),
        'index': entries * 23 // 10,
        'bits': 6 * (host // cluster) // 8,
        'maps': 12 * (virtual // cluster * 8 // cluster),
        'quarantine': 48 * (256 * MIB // cluster),
        'requests': 16 * connections * (request + (256 << 10)),
        'malloc': 8 * MIB,
    }


def high_water(pid):
    with open(f'/proc/{pid}/status', encoding='ascii') as f:
        for line in f:
            if line.startswith('VmHWM:'):
                return int(line.split()[1]) * 1024
    raise SystemExit('no VmHWM')


def main():
    pid, *numbers = [int(a) for a in sys.argv[1:]]
    terms = bound(*numbers)
    got, most = high_water(pid), sum(terms.values())
    print(f'{got / MIB:.0f} MiB, at most {most / MIB:.0f}')
    return got > most


if __name__ == '__main__':
    sys.exit(main())
