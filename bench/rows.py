# SPDX-License-Identifier: BSD-3-Clause
"""Defines the measurements, one Row each, and the sizes that they refer to.

A step is a command line of dedup-load without --uri; sizes() defines the names
in braces.  A row runs prep (untimed), baseline, timed, check (untimed), in
this order.
"""
import dataclasses
import math

# name: (unit, True if more is better, decimals)
METRICS = {
    'mib_per_s': ('MiB/s', True, 0),
    'iops': ('IOPS', True, 0),
    'seconds': ('s', False, 3),
    'p999_ms': ('ms', False, 2),
    'rss_mib': ('MiB', False, 1),
}


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    title: str
    metric: str
    timed: str = ''
    kind: str = 'load'          # how to measure it: see the table in run
    disk: str = '{S}'           # virtual size of the image
    prep: tuple = ()
    check: tuple = ()
    # The row is compared, besides with other servers, with a step on the same
    # image ('step'), or with the same row with the server's 'baseline' options
    # on a fresh image ('fresh').
    baseline: str = ''
    baseline_kind: str = ''
    # Targets are the least ratios; limit is the largest value allowed.
    vs_file: float = None
    vs_qemu: float = None
    vs_base: float = None
    limit: float = None
    servers: tuple = ('file', 'dedup', 'qemu4k', 'qemu64k')
    cache: str = ''             # bytes for L2 tables; '': default
    keys: tuple = ()            # parameters of the plugin


FILL = 'seqwrite --size={S}'
WHOLE = 'verify --size={S}'
SECOND = '--offset={S} --size={S} --gen=2'

MAIN = [
    Row('seqread', 'sequential read 1 MiB, 8 in flight', 'mib_per_s',
        prep=(FILL,), timed='seqread --size={S}', check=(WHOLE,),
        vs_file=0.97, vs_qemu=1.8),
    Row('randread32', 'random read 4 KiB, 32 in flight', 'iops',
        prep=(FILL,), timed='randread --size={S} --depth=32',
        vs_file=0.95, vs_qemu=1.4),
    Row('randread1', 'random read 4 KiB, 1 in flight', 'iops',
        prep=(FILL,),
        timed='randread --size={S} --depth=1 --ops={single_ops}',
        vs_file=0.95, vs_qemu=1.2),
    Row('seqwrite', 'sequential write 1 MiB, 8 in flight, new data',
        'mib_per_s', timed=FILL, check=(WHOLE,),
        vs_file=0.85, vs_qemu=1.0),
    Row('dupwrite', 'the same, every block a duplicate', 'mib_per_s',
        disk='{S2}', prep=(FILL,), timed=f'seqwrite {SECOND} --dup=all',
        check=(WHOLE, f'verify {SECOND} --dup=all'),
        vs_file=1.3, vs_qemu=1.5),
    Row('halfwrite', 'the same, half duplicates', 'mib_per_s',
        disk='{S2}', prep=(FILL,), timed=f'seqwrite {SECOND} --dup=half',
        check=(WHOLE, f'verify {SECOND} --dup=half'),
        vs_file=1.0, vs_qemu=1.2),
    Row('randwrite', 'random write 4 KiB, 32 in flight, new data, fresh image',
        'iops', timed='randwrite --size={S}', check=(WHOLE,),
        vs_file=0.85, vs_qemu=1.4),
    Row('rewrite', 'random rewrite 4 KiB of a full image, new data', 'iops',
        prep=(FILL,), timed='randwrite --size={S} --gen=2',
        check=(WHOLE + ' --gen=2',), vs_file=0.8, vs_qemu=1.4),
    Row('syncwrite', 'write 4 KiB + flush, 1 in flight', 'iops',
        timed='syncwrite --size={S} --ops={sync_ops}',
        check=('verify --block=4k --order=random --size={S} '
               '--ops={sync_ops}',),
        vs_file=0.95, vs_qemu=1.7),
    Row('batchsync', '16 writes of 4 KiB, then flush', 'iops',
        timed='batchsync --size={S} --ops={batch_ops}',
        check=('verify --block=4k --order=random --size={S} '
               '--ops={batch_ops}',),
        vs_file=0.85, vs_qemu=1.5),
]

SCATTER = f'{SECOND} --dup=scatter --dup-run=64k'
OVER_BIG = '--size={B} --ops={big_ops}'
RSS_OPS = 'randwrite --ops={rss_ops}'

SCALE = [
    Row('dupread', 'sequential read of data written as duplicates of a '
        'sequential range, against that range', 'mib_per_s', disk='{S2}',
        prep=(FILL, f'seqwrite {SECOND} --dup=all'),
        timed='seqread --offset={S} --size={S}',
        baseline='seqread --size={S}', baseline_kind='step',
        check=(f'verify {SECOND} --dup=all',), vs_base=0.9),
    Row('scatterread', 'sequential read of scattered 64 KiB duplicate runs, '
        'against a plain range', 'mib_per_s', disk='{S2}',
        prep=(FILL, f'seqwrite {SCATTER}'),
        timed='seqread --offset={S} --size={S}',
        baseline='seqread --size={S}', baseline_kind='step',
        check=(f'verify {SCATTER}',), vs_base=0.5),
    Row('discard', 'discard of a fully mapped range, flush', 'seconds',
        disk='{D}', prep=('seqwrite --size={D}',),
        timed='trim --size={D} --block={D_block}',
        check=('verifyzero --size={D}',), limit=1.0),
    Row('zero', 'zeroing of a fully mapped range, flush', 'seconds',
        disk='{D}', prep=('seqwrite --size={D}',),
        timed='zero --size={D} --block={D_block}',
        check=('verifyzero --size={D}',), limit=1.0),
    Row('open', 'start of the server to the first read, image mapped and '
        'closed cleanly', 'seconds', kind='open', disk='{O}',
        prep=('seqwrite --size={O}',),
        timed='randread --size={O} --depth=1 --ops=1',
        check=('verify --size={O}',), limit=0.2),
    Row('open-shared', 'the same, 64 times --size mapped, to the clusters of '
        'the first', 'seconds', kind='open', disk='{S_at[64]}',
        prep=(FILL, *(f'seqwrite --offset={{S_at[{i}]}} --size={{S}} --gen=2 '
                      '--dup=all --block=2M' for i in range(1, 64))),
        timed='randread --offset={S} --size={S} --depth=1 --ops=1',
        check=(WHOLE, 'verify --offset={S_at[63]} --size={S} --gen=2 '
               '--dup=all'), limit=0.2, servers=('dedup',)),
    Row('close', 'end of the server after a random rewrite', 'seconds',
        kind='close', prep=(FILL,), timed='randwrite --size={S} --gen=2',
        limit=2.0),
    Row('copyread', 'nbdcopy from the server, 4 connections, against 1',
        'mib_per_s', kind='copyread', prep=(FILL,), baseline_kind='step',
        vs_base=1.3),
    Row('copywrite', 'nbdcopy to a fresh image, 4 connections, against 1',
        'mib_per_s', kind='copywrite', check=(WHOLE,),
        baseline_kind='fresh', vs_base=1.3),
    Row('latency', 'p99.9 of random write 4 KiB, 8 in flight, against an '
        'image that never freezes nor checkpoints', 'p999_ms', kind='latency',
        timed='randwrite --size={S} --depth=8', baseline_kind='fresh',
        vs_base=1 / 3),
    Row('bigread', 'random read 4 KiB over all of an image, L2 cache of 1/8 '
        'of its tables', 'iops', disk='{B}', cache='{B_cache}',
        prep=(f'randwrite {OVER_BIG}',),
        timed=f'randread {OVER_BIG} --reorder=7', vs_qemu=1.0,
        servers=('file', 'dedup', 'qemu4k')),
    Row('bigwrite', 'random rewrite 4 KiB over all of it, the same cache',
        'iops', disk='{B}', cache='{B_cache}',
        prep=(f'randwrite {OVER_BIG}',),
        timed=f'randwrite {OVER_BIG} --reorder=7 --gen=2',
        check=(f'verify {OVER_BIG} --block=4k --order=random --gen=2',),
        vs_qemu=1.0, servers=('file', 'dedup', 'qemu4k')),
    Row('rss', 'memory after random writes over all of the image',
        'rss_mib', kind='rss', timed=RSS_OPS),
    Row('rss-64g', 'the same, 64 GiB', 'rss_mib', kind='rss', disk='64G',
        timed=RSS_OPS, servers=('dedup', 'qemu4k')),
    Row('rss-64g-8m', 'the same, 64 GiB, L2 cache 8 MiB', 'rss_mib',
        kind='rss', disk='64G', cache='8M', timed=RSS_OPS,
        servers=('dedup', 'qemu4k')),
    Row('rss-1t', 'the same, 1 TiB', 'rss_mib', kind='rss', disk='1T',
        timed=RSS_OPS, servers=('dedup', 'qemu4k')),
]

# For a cold row the server is stopped, the image's pages are dropped from
# memory, and the server is started again.  In a rewritten image every cluster
# lies apart from its neighbours if the format copies on write.
FOUR_K = ('file', 'dedup', 'qemu4k')
COPIES = f'{SECOND} --dup=scatter --dup-run=4k'


def rewrites(number):
    """Steps that fill an image and rewrite it NUMBER times, each time in
    another random order."""
    return (FILL, *(f'randwrite --size={{S}} --gen={i + 1} --seed={i}'
                    for i in range(1, number + 1)))


COLD = [
    Row('coldread', 'cold sequential read 1 MiB, 8 in flight', 'mib_per_s',
        kind='cold', prep=(FILL,), timed='seqread --size={S}',
        check=(WHOLE,), vs_file=0.95, servers=FOUR_K),
    Row('coldrand32', 'cold random read 4 KiB, 32 in flight', 'iops',
        kind='cold', prep=(FILL,),
        timed='randread --size={S} --depth=32 --ops={single_ops}',
        vs_file=0.95, servers=FOUR_K),
    Row('fragread', 'sequential read after three random rewrites in 4 KiB',
        'mib_per_s', prep=rewrites(3), timed='seqread --size={S}',
        check=(WHOLE + ' --gen=4',), vs_qemu=1.0, servers=FOUR_K),
    Row('coldfrag', 'the same, cold', 'mib_per_s', kind='cold',
        prep=rewrites(3), timed='seqread --size={S}',
        check=(WHOLE + ' --gen=4',), vs_qemu=0.9, servers=FOUR_K),
    Row('fragread-idle', 'the same, warm, after it was read once and '
        'defragmented (defragment=idle), against that first read', 'mib_per_s',
        kind='rested', prep=rewrites(3), baseline='seqread --size={S}',
        baseline_kind='step', timed='seqread --size={S}',
        check=(WHOLE + ' --gen=4',), vs_base=1.5, keys=('defragment=idle',),
        servers=('dedup', 'qemu4k')),
    Row('coldfrag-idle', 'the same, cold', 'mib_per_s', kind='coldrested',
        prep=rewrites(3), baseline='seqread --size={S}',
        timed='seqread --size={S}', check=(WHOLE + ' --gen=4',), vs_qemu=0.9,
        keys=('defragment=idle',), servers=('dedup', 'qemu4k')),
    Row('colddup', 'sequential write of copies of random blocks, which are '
        'cold', 'mib_per_s', kind='cold', disk='{S2}', prep=(FILL,),
        timed=f'seqwrite {COPIES}', check=(WHOLE, f'verify {COPIES}'),
        servers=FOUR_K),
]

# The effect of more rewrites; these rows take long.
GROWTH = [
    Row(f'coldfrag{n}', f'cold sequential read after {n} random rewrites',
        'mib_per_s', kind='cold', prep=rewrites(n), timed='seqread --size={S}',
        check=(WHOLE + f' --gen={n + 1}',), servers=('dedup', 'qemu4k'))
    for n in (1, 10, 30)]

GROUPS = {'main': MAIN, 'scale': SCALE, 'cold': COLD, 'growth': GROWTH,
          'all': MAIN + SCALE + COLD}


def select(names):
    """Rows and groups by name, in the order of the tables."""
    known = {r.name: r for r in GROUPS['all'] + GROWTH}
    wanted = set()
    for n in names:
        if n in GROUPS:
            wanted.update(r.name for r in GROUPS[n])
        elif n in known:
            wanted.add(n)
        else:
            raise SystemExit(f'{n} is not a row or group: '
                             + ' '.join([*GROUPS, *known]))
    return [r for r in GROUPS['all'] + GROWTH if r.name in wanted]


# A quarter of the table cache may be changed before a checkpoint is due.
NO_CHECKPOINTS = '256M'


def never_freezes_order(size):
    """Order of a log store (4 entries a bucket) that holds all of SIZE."""
    return max(4, min(20, math.ceil(math.log2(size / 4096 / 4 / 0.8))))


def sizes(size, discard, mapped, big):
    """The values of the names in steps."""
    blocks = size // 4096
    return {
        'S': size, 'S2': 2 * size, 'S_at': [i * size for i in range(65)],
        'D': discard, 'D_block': math.gcd(discard, 1 << 30),
        'O': mapped,
        'B': big, 'B_cache': max(big // 4096 * 8 // 8, 1 << 16),
        'single_ops': blocks // 4,
        'sync_ops': blocks // 32,
        'batch_ops': blocks // 8,
        'big_ops': min(blocks * 2, big // 4096),
        'rss_ops': blocks,
        'order': never_freezes_order(size),
    }
