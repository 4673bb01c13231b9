// The training as a picture: loss, learning rate and speed over the steps, with sessions, snapshots and what was lost.
import { clock, element, figure, number, short } from './words.js';

const SVG = 'http://www.w3.org/2000/svg';
const LOGARITHMIC = 30;

function shape(parent, name, attributes = {}, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

/** Values along a line of pixels; `log`: by their logarithms. */
function scale(from, to, start, end, log = false) {
  const of = log ? Math.log : (value) => value;
  const span = of(to) - of(from) || 1;
  const place = (value) => start + ((of(log ? Math.max(value, from / 10) : value) - of(from)) / span) * (end - start);
  return { from, to, log, place, back: (pixel) => from + ((pixel - start) / (end - start || 1)) * (to - from) };
}

function ticks({ from, to, log }, count) {
  if (log) {
    const all = [];
    for (let e = Math.floor(Math.log10(from)); e <= Math.ceil(Math.log10(to)); e += 1) {
      for (const digit of [1, 2, 5]) all.push(digit * 10 ** e);
    }
    const within = all.filter((tick) => tick >= from && tick <= to);
    return within.length > count * 2 ? within.filter((tick) => Math.log10(tick) % 1 === 0) : within;
  }
  const least = (to - from) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(least));
  const step = [1, 2, 2.5, 5, 10].find((digit) => digit * power >= least * (1 - 1e-9)) * power;
  const all = [];
  for (let n = Math.ceil(from / step); n * step <= to * (1 + 1e-12) && all.length < 100; n += 1) all.push(n * step);
  return all;
}

/** A path through points, broken where there is none. */
function path(points) {
  let text = '';
  let isOpen = false;
  for (const [x, y] of points) {
    if (y === null) {
      isOpen = false;
    } else {
      text += `${isOpen ? 'L' : 'M'}${x.toFixed(1)} ${y.toFixed(1)}`;
      isOpen = true;
    }
  }
  return text;
}

function layout(width) {
  const isNarrow = width < 560;
  const top = 38;
  const loss = { top, bottom: top + (isNarrow ? 210 : 290) };
  const marks = loss.bottom + 15;
  const rate = { top: loss.bottom + 34, bottom: loss.bottom + (isNarrow ? 96 : 110) };
  const speed = { top: rate.bottom + 14, bottom: rate.bottom + (isNarrow ? 80 : 98) };
  return { isNarrow, left: isNarrow ? 42 : 56, right: width - 8, loss, marks, rate, speed, height: speed.bottom + 36, width };
}

export class Chart {
  constructor(holder, onMove) {
    this.holder = holder;
    this.onMove = onMove;
    this.curve = null;
    this.isLive = false;
    this.at = null;
    new ResizeObserver(() => this.draw()).observe(holder);
    const point = (event) => {
      if (!this.svg) return;
      const { left } = this.svg.getBoundingClientRect();
      this.onMove(this.nearest(this.x.back(event.clientX - left)));
    };
    holder.addEventListener('pointermove', point);
    holder.addEventListener('pointerdown', point);
    holder.addEventListener('pointerleave', () => this.onMove(null));
  }

  show(curve, isLive) {
    this.curve = curve;
    this.isLive = isLive;
    this.draw();
  }

  /** The point whose steps are nearest to `step`. */
  nearest(step) {
    const { last } = this.curve.points;
    let [low, high] = [0, last.length - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (last[middle] < step) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  draw() {
    this.svg = null;
    const width = Math.floor(this.holder.clientWidth);
    if (!this.curve || width < 100) return;
    const place = layout(width);
    const { points, lost } = this.curve;
    if (!points.last.length && !lost.length) {
      this.holder.replaceChildren(element('p', { className: 'empty', text: 'No step was made yet.' }));
      return;
    }
    const svg = document.createElementNS(SVG, 'svg');
    svg.setAttribute('viewBox', `0 0 ${width} ${place.height}`);
    svg.setAttribute('role', 'img');
    svg.setAttribute('aria-label', this.words());
    const first = points.first.length ? points.first[0] - 1 : 0;
    const ends = [...lost.map((branch) => branch.to), points.last.at(-1) ?? 1];
    this.x = scale(first, Math.max(first + 1, ...ends), place.left, place.right);
    this.place = place;
    this.hatch(svg);
    this.sessions(svg, place);
    this.loss(svg, place);
    this.marks(svg, place);
    this.rateY = this.single(svg, place.rate, points.rate, 'learning rate', 'rate-line');
    this.speedY = this.single(svg, place.speed, points.speed, 'tokens/s', 'speed-line');
    for (const tick of ticks(this.x, place.isNarrow ? 4 : 8)) {
      shape(svg, 'text', { x: this.x.place(tick), y: place.speed.bottom + 16, 'text-anchor': 'middle' }, short(tick));
    }
    const middle = (place.left + place.right) / 2;
    shape(svg, 'text', { x: middle, y: place.speed.bottom + 31, 'text-anchor': 'middle' }, 'step');
    this.svg = svg;
    this.cursor = shape(svg, 'g', { 'aria-hidden': 'true' });
    this.holder.replaceChildren(svg);
    this.point(this.at);
  }

  words() {
    const { points, lost_steps: lost, sessions, total_steps: total } = this.curve;
    const n = points.last.length - 1;
    if (n < 0) return 'No step was made yet.';
    const loss = points.loss[n] === null ? 'not finite' : figure(points.loss[n]);
    const all = total ? ` of ${number(total)}` : '';
    const gone = lost ? ` ${number(lost)} steps were trained and lost.` : '';
    const from = points.loss.find((value) => value !== null);
    return `Loss from ${figure(from)} to ${loss} at step ${number(points.last[n])}${all}, in ${sessions.length} sessions.${gone}`;
  }

  hatch(svg) {
    const pattern = { id: 'hatch', width: 7, height: 7, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)' };
    const made = shape(shape(svg, 'defs'), 'pattern', pattern);
    shape(made, 'line', { class: 'hatch', x1: 0, y1: 0, x2: 0, y2: 7 });
  }

  sessions(svg, { loss, speed, isNarrow }) {
    const { sessions } = this.curve;
    sessions.forEach((session, n) => {
      const [left, right] = [this.x.place(session.from), this.x.place(session.to)];
      if (right - left < 0.5) return;
      if (session.number % 2) {
        shape(svg, 'rect', { class: 'band', x: left, y: 4, width: right - left, height: speed.bottom - 4 });
      }
      if (n > 0) shape(svg, 'line', { class: 'edge', x1: left, x2: left, y1: 4, y2: speed.bottom });
      const room = right - left - 10;
      const name = [`session ${session.number}`, `${session.number}`].find((text) => text.length * 6.2 <= room);
      if (name) shape(svg, 'text', { class: 'name', x: left + 5, y: 16 }, name);
      const isOpen = session.why === null && n === sessions.length - 1 && this.isLive;
      const why = session.why ?? (isOpen ? 'under way' : 'killed');
      const isIll = why === 'killed' || why.startsWith('failed');
      const fit = Math.floor(room / 5.8);
      if (fit < 6 || (isNarrow && fit < 8)) return;
      const text = why.length > fit ? `${why.slice(0, fit - 1)}…` : why;
      shape(svg, 'text', { class: isOpen ? 'good' : isIll ? 'ill' : '', x: left + 5, y: loss.top - 8 }, text);
    });
  }

  frame(svg, { top, bottom }, y, name) {
    const { left, right } = this.place;
    for (const tick of ticks(y, Math.max(2, Math.round((bottom - top) / 48)))) {
      const at = y.place(tick);
      shape(svg, 'line', { class: 'grid', x1: left, x2: right, y1: at, y2: at });
      shape(svg, 'text', { x: left - 7, y: at + 4, 'text-anchor': 'end' }, short(tick));
    }
    shape(svg, 'rect', { class: 'box', x: left, y: top, width: right - left, height: bottom - top });
    shape(svg, 'text', { x: right - 8, y: top + 16, 'text-anchor': 'end' }, name);
  }

  lossScale({ top, bottom }) {
    const { points, lost, evaluations } = this.curve;
    const all = [...points.loss, ...lost.flatMap((b) => b.points.map((p) => p[1])), ...evaluations.map((p) => p[1])];
    const known = all.filter((value) => value !== null);
    if (!known.length) return scale(0, 1, bottom, top);
    const [least, most] = [Math.min(...known), Math.max(...known)];
    if (least > 0 && most / least > LOGARITHMIC) return scale(least / 1.2, most * 1.2, bottom, top, true);
    const room = Math.max((most - least) * 0.07, Math.abs(most) * 1e-3, 1e-6);
    return scale(least - room, most + room * 1.5, bottom, top);
  }

  loss(svg, { loss }) {
    const { points, lost, evaluations } = this.curve;
    const y = this.lossScale(loss);
    this.lossY = y;
    const clip = (value) => Math.min(loss.bottom, Math.max(loss.top, y.place(value)));
    const at = (step, value) => [this.x.place(step), value === null ? null : clip(value)];
    for (const branch of lost) {
      const left = this.x.place(branch.from - 1);
      const box = { x: left, y: loss.top, width: Math.max(2, this.x.place(branch.to) - left), height: loss.bottom - loss.top };
      const gone = shape(svg, 'g', { class: 'lost-branch' });
      shape(gone, 'title', {}, `trained and lost: steps ${number(branch.from)} to ${number(branch.to)}`);
      shape(gone, 'rect', { class: 'lost-back', ...box });
      shape(gone, 'rect', { fill: 'url(#hatch)', ...box });
    }
    this.frame(svg, loss, y, y.log ? 'loss, logarithmic' : 'loss');
    for (const branch of lost) shape(svg, 'path', { class: 'lost-line', d: path(branch.points.map((p) => at(...p))) });
    const upper = points.last.map((step, n) => [step, points.most[n]]).filter((point) => point[1] !== null);
    const lower = points.last.map((step, n) => [step, points.least[n]]).filter((point) => point[1] !== null);
    if (upper.length > 1) {
      shape(svg, 'path', { class: 'loss-area', d: `${path([...upper, ...lower.reverse()].map((p) => at(...p)))}Z` });
    }
    shape(svg, 'path', { class: 'loss-line', d: path(points.last.map((step, n) => at(step, points.loss[n]))) });
    shape(svg, 'path', { class: 'val-line', d: path(evaluations.map((p) => at(...p))) });
    if (evaluations.length <= 80) {
      for (const [step, value] of evaluations.filter((p) => p[1] !== null)) {
        shape(svg, 'circle', { class: 'val-dot', cx: this.x.place(step), cy: clip(value), r: 3.2 });
      }
    }
  }

  marks(svg, { marks: y }) {
    for (const mark of this.curve.snapshots) {
      const x = this.x.place(mark.step);
      if (['failed', 'quarantined', 'unhealthy'].includes(mark.fate)) {
        const d = `M${x - 4} ${y - 4}L${x + 4} ${y + 4}M${x - 4} ${y + 4}L${x + 4} ${y - 4}`;
        shape(svg, 'path', { class: 'tick ill', d });
      } else if (mark.is_best) {
        shape(svg, 'path', { class: 'diamond', d: `M${x} ${y - 7}L${x + 5} ${y}L${x} ${y + 7}L${x - 5} ${y}Z` });
      } else {
        shape(svg, 'line', { class: `tick ${mark.fate}`, x1: x, x2: x, y1: y - 6, y2: y + 5 });
      }
      if (mark.is_replicated) shape(svg, 'circle', { class: 'sent', cx: x, cy: y + 11, r: 2.6 });
    }
  }

  single(svg, panel, values, name, className) {
    const most = Math.max(0, ...values.filter((value) => value !== null));
    const y = scale(0, most > 0 ? most * 1.3 : 1, panel.bottom, panel.top);
    this.frame(svg, panel, y, name);
    const { last } = this.curve.points;
    const at = (step, n) => [this.x.place(step), values[n] === null ? null : y.place(values[n])];
    shape(svg, 'path', { class: className, d: path(last.map(at)) });
    return y;
  }

  /** Shows the cursor at point `n`, or none. */
  point(n) {
    this.at = n;
    if (!this.svg) return;
    this.cursor.replaceChildren();
    const { points } = this.curve;
    if (n === null || n >= points.last.length) return;
    const x = this.x.place(points.last[n]);
    shape(this.cursor, 'line', { class: 'cursor', x1: x, x2: x, y1: this.place.loss.top, y2: this.place.speed.bottom });
    const values = [
      [points.loss[n], this.lossY, ''],
      [points.rate[n], this.rateY, 'rate'],
      [points.speed[n], this.speedY, 'speed'],
    ];
    for (const [value, y, name] of values) {
      if (value !== null) shape(this.cursor, 'circle', { class: `cursor-dot ${name}`, cx: x, cy: y.place(value), r: 4 });
    }
  }

  /** What point `n` says, in words. */
  describe(n) {
    const { points, evaluations } = this.curve;
    if (n === null || n >= points.last.length) return '';
    const step = points.last[n];
    const parts = [`step ${number(step)}`, `loss ${points.loss[n] === null ? 'not finite' : figure(points.loss[n])}`];
    const seen = evaluations.filter((point) => point[0] <= step).at(-1);
    if (seen && seen[1] !== null) parts.push(`validation ${figure(seen[1])} at ${number(seen[0])}`);
    parts.push(`learning rate ${figure(points.rate[n])}`);
    if (points.speed[n] !== null) parts.push(`${number(points.speed[n])} tokens/s`);
    if (points.norm[n] !== null) parts.push(`gradient norm ${figure(points.norm[n])}`);
    parts.push(clock(points.at_ms[n]));
    return parts.join(' · ');
  }
}
