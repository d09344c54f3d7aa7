#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Looks at pages of qcow2-dedup report in headless Chromium.

usage: browser.py DIR PAGE...

Each page is shown in windows of 400 and 1400 pixels, light and dark.  Nothing is
wider than the window; nothing is loaded but the page; the console stays empty;
text has a contrast of 4.5 to what is behind it, and the colours of drawings have 3,
but for free space, which has a frame; headings of drawings are there.  A screenshot
of each is left in DIR, and shows many colours, in dark mode on a dark ground.

The profile is made in $HOME.  The browser is spoken to through pipes, by the DevTools protocol.  One line for
each thing that is wrong; the exit status is 1 then.
"""
import base64
import json
import os
import struct
import subprocess
import sys
import zlib

SECONDS = 60
LINES = 900                     # of a screenshot that are decoded
# Runs in the page, put there by the protocol.  It has no script of its own.
LOOK = r'''(() => {
  const wrong = [];
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth)
    wrong.push('page is ' + root.scrollWidth + ' wide');
  for (const e of document.querySelectorAll('main *')) {
    if (e.closest('.scroll') && !e.matches('.scroll')) continue;
    const r = e.getBoundingClientRect();
    if (r.width > 0 && (r.right > root.clientWidth + 1 || r.left < -1))
      wrong.push(e.tagName + ' reaches from ' + r.left + ' to ' + r.right);
  }
  const numbers = c => c.match(/[\d.]+/g).map(Number);
  const light = c => {
    const v = c.slice(0, 3).map(x => x / 255).map(
      x => x <= .03928 ? x / 12.92 : Math.pow((x + .055) / 1.055, 2.4));
    return .2126 * v[0] + .7152 * v[1] + .0722 * v[2];
  };
  const contrast = (a, b) => {
    const x = light(a), y = light(b);
    return (Math.max(x, y) + .05) / (Math.min(x, y) + .05);
  };
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = numbers(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let texts = 0;
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || e.matches('title, desc')) continue;
    const s = getComputedStyle(e);
    const c = contrast(numbers(e.matches('svg text') ? s.fill : s.color),
                       behind(e));
    texts++;
    if (c < 4.5)
      wrong.push('contrast ' + c.toFixed(2) + ' of ' + walk.currentNode.data);
    if (parseFloat(s.fontSize) < 8) wrong.push('small: ' + s.fontSize);
  }
  for (const e of document.querySelectorAll('i.key')) {
    if (e.matches('.free, .hole')) continue;
    const c = contrast(numbers(getComputedStyle(e).backgroundColor),
                       behind(e.parentElement));
    if (c < 3) wrong.push('contrast ' + c.toFixed(2) + ' of ' + e.className);
  }
  for (const e of document.querySelectorAll('svg')) {
    const r = e.getBoundingClientRect();
    const hidden = e.closest('details:not([open])');
    if (!hidden && (r.width < 40 || r.height < 5))
      wrong.push('a drawing of ' + r.width + ' by ' + r.height);
  }
  const t = document.querySelector('#heat text');
  if (t && t.getBoundingClientRect().height < 7)
    wrong.push('labels of ' + t.getBoundingClientRect().height + ' px');
  return JSON.stringify({
    wrong: wrong.slice(0, 20), texts: texts, height: root.scrollHeight,
    scripts: document.scripts.length, width: innerWidth,
    ground: light(numbers(getComputedStyle(document.body).backgroundColor)),
  });
})()'''


class Browser:
    def __init__(self):
        to_read, self.out = os.pipe()
        self.into, to_write = os.pipe()
        self.p = subprocess.Popen(
            ['bash', '-c', 'exec chromium --headless --no-sandbox --disable-gpu '
             '--no-first-run --disable-extensions --disable-dev-shm-usage '
             '--user-data-dir="$0" --remote-debugging-pipe about:blank '
             '3<&%d 4>&%d 2>/dev/null' % (to_read, to_write),
             os.path.join(os.environ['HOME'], 'profile')],
            pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL)
        os.close(to_read)
        os.close(to_write)
        self.calls, self.rest, self.events, self.session = 0, b'', [], None

    def receive(self):
        while b'\0' not in self.rest:
            more = os.read(self.into, 1 << 20)
            if not more:
                raise EOFError('the browser ended')
            self.rest += more
        message, self.rest = self.rest.split(b'\0', 1)
        return json.loads(message)

    def call(self, method, **params):
        self.calls += 1
        message = {'id': self.calls, 'method': method, 'params': params}
        if self.session:
            message['sessionId'] = self.session
        os.write(self.out, json.dumps(message).encode() + b'\0')
        while True:
            m = self.receive()
            if m.get('id') == self.calls:
                if 'error' in m:
                    raise RuntimeError('%s: %s' % (method, m['error']))
                return m['result']
            self.events.append(m)

    def begin(self):
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        self.session = self.call('Target.attachToTarget', targetId=target,
                                 flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'Network'):
            self.call(domain + '.enable')

    def show(self, path, width, scheme):
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=900,
                  deviceScaleFactor=1, mobile=False)
        self.call('Emulation.setEmulatedMedia', features=[
            {'name': 'prefers-color-scheme', 'value': scheme}])
        self.events = []
        self.call('Page.navigate', url='file://' + os.path.abspath(path))
        while not any(e['method'] == 'Page.loadEventFired'
                      for e in self.events):
            self.events.append(self.receive())

    def evaluate(self, expression):
        r = self.call('Runtime.evaluate', expression=expression)
        if 'exceptionDetails' in r:
            raise RuntimeError(r['exceptionDetails'])
        return r['result']['value']

    def end(self):
        self.session = None
        try:
            self.call('Browser.close')
        except EOFError:
            pass
        self.p.wait(timeout=SECONDS)


def colours(png):
    """The set of colours in the upper part of a PNG file of 8 bits a channel."""
    at, data, head = 8, b'', None
    while at < len(png):
        length, kind = struct.unpack_from('>I4s', png, at)
        if kind == b'IHDR':
            head = struct.unpack_from('>IIBB', png, at + 8)
        if kind == b'IDAT':
            data += png[at + 8:at + 8 + length]
        at += 12 + length
    width, height, depth, form = head
    bpp = {2: 3, 6: 4}[form]
    assert depth == 8
    raw, line = zlib.decompress(data), width * bpp
    before, found = bytearray(line), set()
    for y in range(min(height, LINES)):
        kind = raw[y * (line + 1)]
        row = bytearray(raw[y * (line + 1) + 1:(y + 1) * (line + 1)])
        for i in range(line):
            a = row[i - bpp] if i >= bpp else 0
            b = before[i]
            c = before[i - bpp] if i >= bpp else 0
            if kind == 1:
                row[i] = row[i] + a & 255
            elif kind == 2:
                row[i] = row[i] + b & 255
            elif kind == 3:
                row[i] = row[i] + (a + b) // 2 & 255
            elif kind == 4:
                p = a + b - c
                near = min((abs(p - a), 0, a), (abs(p - b), 1, b),
                           (abs(p - c), 2, c))
                row[i] = row[i] + near[2] & 255
        found |= {bytes(row[i:i + 3]) for i in range(0, line, bpp * 7)}
        before = row
    return found


def look(browser, path, width, scheme, where):
    browser.show(path, width, scheme)
    seen = json.loads(browser.evaluate(LOOK))
    wrong = list(seen['wrong'])
    if seen['scripts']:
        wrong.append('%d scripts' % seen['scripts'])
    if seen['width'] != width:
        wrong.append('the window is %d wide' % seen['width'])
    if seen['texts'] < 50:
        wrong.append('only %d texts' % seen['texts'])
    if (seen['ground'] > .5) != (scheme == 'light'):
        wrong.append('the ground has a lightness of %.2f' % seen['ground'])
    picture = base64.b64decode(browser.call(
        'Page.captureScreenshot', captureBeyondViewport=True,
        clip={'x': 0, 'y': 0, 'width': width, 'height':
              min(seen['height'], 5000), 'scale': 1})['data'])
    with open(os.path.join(where, '%s-%d-%s.png' % (
            os.path.basename(path).split('.')[0], width, scheme)), 'wb') as f:
        f.write(picture)
    if width == 400 and len(colours(picture)) < 12:
        wrong.append('a screenshot of %d colours' % len(colours(picture)))
    for e in browser.events:
        if e['method'] in ('Log.entryAdded', 'Runtime.consoleAPICalled',
                           'Runtime.exceptionThrown'):
            wrong.append('console: %s' % e['params'])
        if e['method'] == 'Network.requestWillBeSent' and \
                e['params']['request']['url'] != \
                'file://' + os.path.abspath(path):
            wrong.append('loads ' + e['params']['request']['url'][:200])
    return wrong


def main(where, *pages):
    browser, failed = Browser(), False
    browser.begin()
    for path in pages:
        for width in (400, 1400):
            for scheme in ('light', 'dark'):
                for what in look(browser, path, width, scheme, where):
                    print('%s, %d, %s: %s' % (path, width, scheme, what))
                    failed = True
    browser.end()
    sys.exit(failed)


if __name__ == '__main__':
    main(*sys.argv[1:])
