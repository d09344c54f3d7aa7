#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Checks what qcow2-dedup report writes, without a browser and without our code.

usage: reportpage.py structure PAGE        the page is well-formed and complete
       reportpage.py figures PAGE JSON     the page has the figures of the JSON
       reportpage.py count JSON IMAGE      the JSON has the figures of the image
       reportpage.py tool JSON IMAGE TOOL  and those of info and disk info

"count" reads the tables in the file, each root by itself (poolimg.py).  Each prints
a line for each thing that is wrong; the exit status is 1 then.
"""
import collections
import html
import html.parser
import json
import re
import subprocess
import sys

import poolimg

VOID = ('meta',)
# What could run a script, or load or send something.
FORBIDDEN = ('script', 'link', 'img', 'iframe', 'object', 'embed', 'form', 'base',
             'audio', 'video', 'source', 'use', 'image', 'foreignobject', 'a',
             'animate', 'set')
SECTIONS = ('space', 'disks', 'pairs', 'references', 'growth', 'map', 'scrub',
            'index')
CONFIGURATION = 1 << 17         # bytes of its area
wrong = 0


def say(*what):
    global wrong
    wrong += 1
    print(*what)


class Page(html.parser.HTMLParser):
    """Elements, texts and data of a page."""

    def __init__(self, path):
        super().__init__()
        self.open, self.ids, self.refs = [], collections.Counter(), set()
        self.svgs, self.rows, self.row, self.sections = [], [], None, {}
        self.texts = []
        with open(path, encoding='utf-8') as f:
            self.source = f.read()
        self.feed(self.source)
        self.close()
        if self.open:
            say('not closed:', self.open)

    def handle_startendtag(self, tag, attrs):
        self.attributes(tag, attrs)
        if tag == 'rect':
            self.svgs[-1]['rects'] += 1

    def handle_starttag(self, tag, attrs):
        self.attributes(tag, attrs)
        a = dict(attrs)
        if tag in FORBIDDEN:
            say('element', tag)
        if tag == 'svg':
            self.svgs.append({'refs': a.get('aria-labelledby', '').split(),
                              'role': a.get('role'), 'titled': 0, 'rects': 0})
        if tag == 'rect':
            self.svgs[-1]['rects'] += 1
        if tag == 'title' and self.open[-1] == 'svg':
            self.svgs[-1]['titled'] += 1
        if tag == 'tr':
            self.row = {'id': a.get('id'), 'section': self.section(),
                        'cells': [], 'data': []}
        if tag in ('td', 'th') and self.row:
            self.row['cells'].append('')
        if tag == 'data' and self.row:
            self.row['data'].append(int(a['value']))
        if tag == 'section':
            self.sections[a['id']] = ''
            self.current = a['id']
        self.open.append(tag)

    def section(self):
        return self.current if 'section' in self.open else None

    def attributes(self, tag, attrs):
        for name, value in attrs:
            if name.startswith('on') or name in ('src', 'href', 'action',
                                                 'xlink:href', 'srcset'):
                say('attribute', name, 'of', tag)
            if value and ('url(' in value or 'javascript:' in value):
                say('value', value, 'of', tag)
            if name == 'id':
                self.ids[value] += 1
            if name.startswith('aria-labelledby'):
                self.refs |= set(value.split())

    def handle_endtag(self, tag):
        if not self.open or self.open[-1] != tag:
            say('ends', tag, 'inside', self.open[-3:], self.getpos())
        if self.open:
            self.open.pop()
        if tag == 'tr':
            self.rows.append(self.row)
            self.row = None

    def handle_data(self, text):
        if self.open and self.open[-1] not in ('style', 'title', 'desc'):
            self.texts.append(text)
        if self.row and self.row['cells'] and self.open[-1] not in (
                'title', 'desc'):
            self.row['cells'][-1] += text

    def of(self, section):
        """The rows of a section's tables, without headings."""
        return [r for r in self.rows if r['section'] == section and r['data']]


def structure(path):
    page = Page(path)
    for section in SECTIONS:
        if section not in page.sections:
            say('no section', section)
    for name, n in page.ids.items():
        if n > 1:
            say('id', name, n, 'times')
    for name in page.refs - set(page.ids):
        say('no element has the id', name)
    for svg in page.svgs:
        if svg['role'] != 'img' or svg['titled'] != 1 or not svg['refs']:
            say('a drawing without a title:', svg)
    if len(page.svgs) < 3 or not any(s['rects'] > 3 for s in page.svgs):
        say('only', len(page.svgs), 'drawings')
    for c in page.source:
        if (ord(c) < 32 and c != '\n') or 0x7f <= ord(c) < 0xa0 or \
                c in '\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069' \
                '\u200e\u200f\u061c\ufeff\ufffe\uffff':
            say('character U+%04X' % ord(c))
    style = page.source.split('<style>')[1].split('</style>')[0]
    if '@import' in style or 'url(' in style or '</' in style:
        say('the style loads something')
    if "default-src 'none'; style-src 'unsafe-inline'" not in \
            html.unescape(page.source):
        say('no policy')
    if re.search(r'https?://(?!www\.w3\.org/(2000/svg|1999/xhtml)")',
                 page.source):
        say('an address')


def expect(what, got, want):
    if got != want:
        say(what, 'is', got, 'should be', want)


def printable(name):
    """A name as the page shows it."""
    return re.sub('[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]',
                  lambda m: '[U+%04X]' % ord(m[0]),
                  re.sub('[\x7f-\x9f\ufeff\u2028\u2029]', '\ufffd', name))


def figures(path, j):
    page = Page(path)
    s = j['space']
    for row, key in (('own', 'exclusive'), ('shared', 'shared'),
                     ('tables', 'table'), ('store', 'store'),
                     ('unused', 'unused'), ('free', 'free')):
        got = [r['data'] for r in page.of('space') if r['id'] == row]
        expect(row, got, [[s[key + '-bytes']]])
    shown = [d for d in j['disks'] if d['type'] != 'active'
             or d['mapped-bytes'] or j['pool']['disks'] == 0]
    rows = page.of('disks')
    expect('rows of disks', len(rows), min(len(shown), 50) + (len(shown) > 50))
    for row, d in zip(rows, shown):
        if row['id'] == 'others':
            break
        expect('name', row['cells'][0].strip(), printable(d['name']) or
               'the active disk')
        want = [d['exclusive-bytes'] + d['table-bytes'], d.get('shared-bytes'),
                d['mapped-bytes'], d['virtual-size'],
                d['mapped-bytes'] // d['runs'] if d['runs'] else None]
        expect(d['name'], row['data'], [v for v in want if v is not None])
    if len(shown) > 50:
        expect('others', rows[-1]['data'], [
            sum(d['exclusive-bytes'] + d['table-bytes'] for d in shown[50:]),
            sum(d['mapped-bytes'] for d in shown[50:]),
            sum(d['virtual-size'] for d in shown[50:])])
    cs = j['cluster-size']
    expect('references', [r['data'] for r in page.of('references')],
           [[r['clusters'] * cs, r['references'] * cs]
            for r in j['references']])
    matrix = [r['data'] for r in page.of('pairs') if len(r['data']) > 1]
    busy = [i for i, r in enumerate(j['pairs-bytes']) if r[i]]
    expect('pairs', matrix, [[j['pairs-bytes'][a][b] for b in busy]
                             for a in busy] if len(busy) > 1 else [])
    samples = j['growth']
    rows = min(len(samples), 12)
    expect('samples', [r['data'] for r in page.of('growth')],
           [[s[k] for k in ('logical-bytes', 'stored-bytes', 'free-bytes')
             if k in s] for s in (samples[i * (len(samples) - 1) //
                                          max(rows - 1, 1)]
                                  for i in range(rows))])
    points = re.findall(r'<polyline class="(\w+)" points="([^"]*)"', page.source)
    expect('lines', [c for c, _ in points],
           ['shared', 'own'] if len(samples) > 1 else [])
    for _, line in points:
        xy = [tuple(map(float, p.split(','))) for p in line.split()]
        expect('points', len(xy), len(samples))
        expect('a line inside the drawing', all(
            0 <= x <= 1000 and 0 <= y <= 200 for x, y in xy), True)
        expect('a line to the right', xy == sorted(xy, key=lambda p: p[0]), True)
        expect('first and last', (xy[0][0], xy[-1][0]), (0, 1000))
    rows = [r['cells'] for r in page.rows if r['section'] == 'scrub']
    expect('bad clusters', [c[1].strip() for c in rows if len(c) == 2][1:],
           ['0x%x' % b for b in j['scrub']['bad'][:50]])
    expect('damaged ranges', [[t.strip() for t in c] for c in rows if len(c) == 4][1:],
           [[printable(p['disk']) or 'the active disk', '0x%x' % p['offset'],
             str(p['length']), '0x%x' % p['host-offset']]
            for p in j['scrub']['places'][:50]])
    columns = len(j['map']['columns']) - ('hole-bytes' not in j['host'])
    for i in range(columns):
        expect(j['map']['columns'][i],
               sum(r['data'][i + 1] for r in page.of('map')),
               sum(c[i] for c in j['map']['cells']))
    text = ''.join(page.texts)
    for key in ('deduplicated-bytes', 'dead-bytes'):
        if 'compression' in j['pool']:
            expect(key, 'value="%d"' % j['pool']['compression'][key] in
                   page.source, True)
    expect('the ratio', ('%.2f' % j['pool']['ratio']) in text or
           j['pool']['stored-bytes'] == 0, True)


def count(j, path):
    img = poolimg.Image(path)
    cs, reach, names, tables = img.cluster, [], [], {}
    refs = collections.Counter()
    for root in img.roots:
        if root.name == 'do-not-apply-dedup-anchor':
            continue
        mine = set()
        for e in img.words(root.l1_off, root.l1_entries):
            t = (e & poolimg.OFFSETS) >> img.bits
            if t and t not in tables:
                tables[t] = img.table(t)
            if t:
                mine |= set(tables[t])
                refs.update(tables[t])
        reach.append(mine)
        names.append('' if root.name == 'the active disk' else root.name)
    everything = set().union(*reach)
    expect('stored', j['pool']['stored-bytes'], len(everything) * cs)
    users = collections.Counter(c for mine in reach for c in mine)
    group = {}
    for d in j['disks']:
        i = names.index(d['name'])
        own = sum(users[c] == 1 for c in reach[i]) * cs
        expect('exclusive of ' + d['name'], d['exclusive-bytes'], own)
        if 'shared-bytes' in d:
            expect('shared of ' + d['name'], d['shared-bytes'],
                   len(reach[i]) * cs - own)
        group.setdefault(d['group'], set()).update(reach[i])
    for a, row in enumerate(j['pairs-bytes']):
        for b, n in enumerate(row):
            expect('pair %d %d' % (a, b), n, len(group[a] & group[b]) * cs)
    buckets = {}
    for n in refs.values():
        k = (n - 1).bit_length()
        clusters, all_refs = buckets.get(k, (0, 0))
        buckets[k] = clusters + 1, all_refs + n
    expect('references', [(r['at-most'], r['clusters'], r['references'])
                          for r in j['references']],
           [(1 << k, *v) for k, v in sorted(buckets.items())])
    used, _ = img.refcounts()
    size = j['host']['file-bytes']
    expect('free', j['space']['free-bytes'], size - len(used) * cs)
    expect('parts', sum(j['space'][k + '-bytes'] for k in (
        'data', 'table', 'store', 'unused', 'free')), size)
    cells = j['map']['cells']
    for i, c in enumerate(cells):
        at = i * j['map']['cell-bytes']
        end = min(at + j['map']['cell-bytes'], size)
        expect('cell %d' % i, sum(c[:5]), end - at)
        expect('data in cell %d' % i, c[0], cs * sum(
            n in everything for n in range(at // cs, end // cs)))


def count_compressed(j, path):
    """Counts what is compressed, byte by byte."""
    img = poolimg.Image(path)
    entries, live, clusters, plain = set(), bytearray(img.size), set(), set()
    for root in img.roots:
        if root.name == 'do-not-apply-dedup-anchor':
            continue
        for e in img.words(root.l1_off, root.l1_entries):
            if e & poolimg.OFFSETS:
                for entry in img.l2_entries((e & poolimg.OFFSETS) >> img.bits):
                    if entry & poolimg.COMPRESSED:
                        entries.add(entry)
                    else:
                        plain |= set(img.named(entry))
    for entry in entries:
        clusters |= set(img.named(entry))
        for b in img.packed(entry):
            live[b:b + 1] = b'x'
    expect('compression', 'compression' in j['pool'], bool(entries))
    if not entries:
        return
    c, cs = j['pool']['compression'], img.cluster
    expect('pieces', c['pieces'], len(entries))
    expect('packed', c['packed-bytes'], len(clusters) * cs)
    expect('dead', c['dead-bytes'], len(clusters) * cs - live.count(b'x'))
    expect('shared dead', c['shared-dead-bytes'], 0)    # no disk is being deleted
    expect('stored', c['stored-bytes'], len(clusters | plain) * cs)
    unpacked = (len(plain - clusters) + len(entries)) * cs
    expect('deduplicated', c['deduplicated-bytes'], unpacked)
    expect('ratios', [round(c[k], 6) for k in ('dedup-ratio', 'compression-ratio')],
           [round(v, 6) for v in (j['pool']['logical-bytes'] / unpacked,
                                  unpacked / c['stored-bytes'])])


def tool(j, path, program):
    def ask(*args):
        return json.loads(subprocess.run(
            [program, *args], check=True, stdout=subprocess.PIPE).stdout)
    info = ask('info', '--output=json', path)
    pool = ask('disk', 'info', '--output=json', path)
    if 'pool' not in info:
        expect('compression', j['pool'].get('compression'),
               info.get('compression'))
    for k in ('disks', 'snapshots', 'logical-bytes', 'stored-bytes', 'ratio',
              'logical-bytes-with-snapshots', 'pending', 'compression'):
        expect(k, j['pool'].get(k), pool.get(k))
        if 'pool' in info:
            expect(k, j['pool'].get(k), info['pool'].get(k))
    for k in ('index-entries', 'log-store-entries', 'tombstones',
              'index-disk-bytes', 'journal-bytes', 'lookups', 'hits', 'hash'):
        if info['store']:
            expect(k, j['index'][k], info[k])
    if info['store']:
        expect('store', j['space']['store-bytes'], CONFIGURATION +
               info['journal-bytes'] + info['index-disk-bytes'])
        tables = j['index']['tables']
        expect('runs', sum(t['type'] == 'run' for t in tables), info['runs'])
        expect('entries of runs', sum(t['entries'] for t in tables
                                      if t['type'] == 'run'),
               info['run-entries'])
    for d in j['disks']:
        if d['type'] == 'active' or d['type'] == 'deleted':
            continue
        one = ask('disk', 'info', '--output=json', path, d['name'])
        for k in d:
            if k not in ('runs', 'group'):
                expect('%s of %s' % (k, d['name']), d[k], one[k])


def main(what, *args):
    if what == 'structure':
        structure(args[0])
    else:
        with open(args[1] if what == 'figures' else args[0],
                  encoding='utf-8') as f:
            j = json.load(f)
        if what == 'figures':
            figures(args[0], j)
        else:
            if what == 'count':
                count_compressed(j, args[1])
            {'count': count, 'tool': tool}[what](j, *args[1:])
    sys.exit(wrong > 0)


if __name__ == '__main__':
    main(*sys.argv[1:])
