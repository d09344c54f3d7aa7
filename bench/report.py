# SPDX-License-Identifier: BSD-3-Clause
"""Turns raw results into ratios, a table in Markdown and a plot in SVG.

A ratio says how many times as good dedup is, whether more or less of the
metric is better.  Each round gives one ratio, as its runs are neighbours in
time; the result is the median of these ratios.
"""
import statistics
from xml.sax.saxutils import escape

import rows

QEMU = ('qemu4k', 'qemu64k')


class Spread:
    """Median, least and greatest of some numbers."""

    def __init__(self, numbers):
        self.median = statistics.median(numbers)
        self.least = min(numbers)
        self.most = max(numbers)

    def text(self, decimals):
        if self.least == self.most:
            return f'{self.median:.{decimals}f}'
        return (f'{self.median:.{decimals}f} ({self.least:.{decimals}f}-'
                f'{self.most:.{decimals}f})')


def spread(numbers):
    numbers = [n for n in numbers if n is not None]
    return Spread(numbers) if numbers else None


def times_as_good(ours, theirs, more_is_better):
    if ours is None or theirs is None or not ours or not theirs:
        return None
    return ours / theirs if more_is_better else theirs / ours


class Summary:
    """All rounds of one row; RUNS are the raw results of it."""

    def __init__(self, row, runs):
        self.row = row
        self.unit, self.more, self.decimals = rows.METRICS[row.metric]
        self.by_round = {}
        for r in runs:
            self.by_round.setdefault(r['round'], {})[r['server']] = r
        self.servers = list(dict.fromkeys(r['server'] for r in runs))
        self.values = {s: spread(self._of(s, 'value')) for s in self.servers}
        self.rss = {s: spread(self._of(s, 'rss_mib')) for s in self.servers}
        self.base = spread(self._of('dedup', 'base_value'))
        self.ratios = {
            'vs_file': spread(map(self._vs_file, self.by_round.values())),
            'vs_qemu': spread(map(self._vs_qemu, self.by_round.values())),
            'vs_base': spread(map(self._vs_base, self.by_round.values())),
        }

    def _of(self, server, key):
        return [r[server].get(key) for r in self.by_round.values()
                if server in r]

    def _vs(self, by_server, theirs):
        ours = by_server.get('dedup', {}).get('value')
        return times_as_good(ours, theirs, self.more)

    def _vs_file(self, by_server):
        return self._vs(by_server, by_server.get('file', {}).get('value'))

    def _vs_qemu(self, by_server):
        theirs = [by_server[q]['value'] for q in QEMU if q in by_server]
        best = max if self.more else min
        return self._vs(by_server, best(theirs) if theirs else None)

    def _vs_base(self, by_server):
        return self._vs(by_server,
                        by_server.get('dedup', {}).get('base_value'))

    def targets(self):
        """Yields (name, spread, target, whether it is met) of each target."""
        for name, ratio in self.ratios.items():
            target = getattr(self.row, name)
            if target is not None and ratio is not None:
                yield name, ratio, target, ratio.median >= target
        ours = self.values.get('dedup')
        if self.row.limit is not None and ours is not None:
            yield 'limit', ours, self.row.limit, ours.median <= self.row.limit

    def as_json(self):
        def plain(s):
            return s and vars(s)
        return {
            'row': self.row.name, 'title': self.row.title, 'unit': self.unit,
            'values': {s: plain(v) for s, v in self.values.items()},
            'rss_mib': {s: plain(v) for s, v in self.rss.items()},
            'dedup_baseline': plain(self.base),
            'ratios': {n: plain(r) for n, r in self.ratios.items()},
            'targets': [{'name': n, 'target': t, 'met': met}
                        for n, _, t, met in self.targets()],
        }


# --- Markdown ----------------------------------------------------------------

def table(head, lines):
    out = ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
    out += ['| ' + ' | '.join(cells) + ' |' for cells in lines]
    return '\n'.join(out) + '\n'


def ratio_cell(summary, name):
    ratio = summary.ratios[name]
    if ratio is None:
        return ''
    target = getattr(summary.row, name)
    if target is None:
        return ratio.text(2)
    word = 'met' if ratio.median >= target else '**missed**'
    return f'{ratio.text(2)}, {word} (>= {target:.2f})'


def limit_cell(summary):
    for name, value, target, met in summary.targets():
        if name == 'limit':
            word = 'met' if met else '**missed**'
            return f'{value.text(3)}, {word} (<= {target:g} {summary.unit})'
    return ''


def server_names(summaries):
    return list(dict.fromkeys(s for m in summaries for s in m.servers))


def value_table(summaries, names):
    head = ['row', 'unit', *names, 'vs file', 'vs better qemu']
    lines = []
    for m in summaries:
        cells = [m.values[s].text(m.decimals) if m.values.get(s) else ''
                 for s in names]
        lines.append([m.row.name, m.unit, *cells, ratio_cell(m, 'vs_file'),
                      ratio_cell(m, 'vs_qemu')])
    return table(head, lines)


def own_table(summaries):
    """Formats the targets that are against dedup itself, or a plain number."""
    lines = [[m.row.name, m.unit, m.base.text(m.decimals) if m.base else '',
              ratio_cell(m, 'vs_base'), limit_cell(m)]
             for m in summaries if m.base or m.row.limit]
    head = ['row', 'unit', 'baseline', 'vs baseline', 'limit']
    return table(head, lines) if lines else ''


def rss_table(summaries, names):
    lines = [[m.row.name] + [m.rss[s].text(0) if m.rss.get(s) else ''
                             for s in names] for m in summaries]
    return table(['row', *names], lines)


def markdown(meta, summaries):
    names = server_names(summaries)
    facts = ''.join(f' - {k}: {v}\n' for k, v in meta.items())
    titles = ''.join(f' - {m.row.name}: {m.row.title}\n' for m in summaries)
    parts = [
        '# Benchmark results\n', facts,
        'Medians, with the least and the greatest in parentheses. Ratios are '
        'medians of\nthe ratios of each round; above 1, dedup is better.\n',
        value_table(summaries, names)]
    own = own_table(summaries)
    if own:
        parts += ['dedup against its own baseline, and against limits:\n', own]
    parts += ['Peak memory of the server (VmHWM), MiB, fill included:\n',
              rss_table(summaries, names), 'Rows:\n', titles]
    return '\n'.join(parts)


# --- SVG ---------------------------------------------------------------------

LABEL_W, PLOT_W, RIGHT_W = 130, 560, 130
BAND_H, BAR_H, TOP_H = 44, 13, 56
COLORS = {'vs_file': '#3b6fb6', 'vs_qemu': '#c9752d', 'vs_base': '#5b9357'}
NAMES = {'vs_file': 'against file', 'vs_qemu': 'against the better qemu-nbd',
         'vs_base': 'against its own baseline'}


class Plot:
    """Draws horizontal bars of ratios, with whiskers from the least to the
    greatest, a black tick at the target, and a line at 1."""

    def __init__(self, summaries):
        self.summaries = [m for m in summaries if any(m.ratios.values())]
        tops = [max(r.most, getattr(m.row, n) or 0)
                for m in self.summaries for n, r in m.ratios.items() if r]
        # A single long bar must not flatten all others: it is cut at 4.
        self.limit = min(4.0, max([1.2, *tops]) * 1.05)
        self.out = []

    def x(self, ratio):
        return LABEL_W + PLOT_W * min(ratio, self.limit) / self.limit

    def line(self, x1, y1, x2, y2, color, width=1):
        self.out.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" '
                        f'y2="{y2:.1f}" stroke="{color}" '
                        f'stroke-width="{width}"/>')

    def rect(self, x, y, w, h, color):
        self.out.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" '
                        f'height="{h:.1f}" fill="{color}"/>')

    def text(self, x, y, text, anchor='start', color='#222'):
        self.out.append(f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" '
                        f'text-anchor="{anchor}">{escape(text)}</text>')

    def legend(self):
        x = LABEL_W
        used = [n for n in NAMES
                if any(m.ratios[n] for m in self.summaries)]
        for name in used:
            self.rect(x, 12, 12, 12, COLORS[name])
            self.text(x + 17, 22, NAMES[name])
            x += 40 + 7 * len(NAMES[name])
        self.line(x, 11, x, 25, '#000', 3)
        self.text(x + 7, 22, 'target')

    def axis(self, bottom):
        step = 0.5 if self.limit > 1.6 else 0.2
        i = 0
        while i * step <= self.limit:
            at = self.x(i * step)
            self.line(at, TOP_H - 6, at, bottom, '#ddd')
            self.text(at, TOP_H - 10, f'{i * step:.1f}', 'middle', '#666')
            i += 1

    def bar(self, y, ratio, target, color):
        self.rect(LABEL_W, y, self.x(ratio.median) - LABEL_W, BAR_H, color)
        middle = y + BAR_H / 2
        self.line(self.x(ratio.least), middle, self.x(ratio.most), middle,
                  '#444')
        for end in (ratio.least, ratio.most):
            self.line(self.x(end), middle - 3, self.x(end), middle + 3,
                      '#444')
        if target is not None:
            self.line(self.x(target), y - 1, self.x(target), y + BAR_H + 1,
                      '#000', 3)
        self.text(LABEL_W + PLOT_W + 8, y + BAR_H - 2, f'{ratio.median:.2f}')

    def band(self, y, summary):
        self.text(LABEL_W - 8, y + BAND_H / 2 + 1, summary.row.name, 'end')
        for name, ratio in summary.ratios.items():
            if ratio:
                self.bar(y, ratio, getattr(summary.row, name), COLORS[name])
                y += BAR_H + 2

    def heights(self):
        """Returns the height of each band: room for all of its bars, and for
        the usual two at least."""
        return [max(BAND_H, 14 + (BAR_H + 2) * sum(map(bool,
                                                       m.ratios.values())))
                for m in self.summaries]

    def svg(self):
        heights = self.heights()
        bottom = TOP_H + sum(heights)
        width = LABEL_W + PLOT_W + RIGHT_W
        self.rect(0, 0, width, bottom + 12, '#fff')
        self.legend()
        self.axis(bottom)
        y = TOP_H + 6
        for m, h in zip(self.summaries, heights):
            self.band(y, m)
            y += h
        self.line(self.x(1), TOP_H - 6, self.x(1), bottom, '#888')
        self.line(LABEL_W, TOP_H - 6, LABEL_W, bottom, '#444')
        return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" '
                f'height="{bottom + 12}" font-family="sans-serif" '
                'font-size="12">\n' + '\n'.join(self.out) + '\n</svg>\n')


def svg(summaries):
    return Plot(summaries).svg()
