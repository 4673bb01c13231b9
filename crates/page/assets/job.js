// One job: figures, plan, problems, snapshots, sessions, and the curve.
import { Chart } from './chart.js';
import { follow } from './stream.js';
import { clock, duration, element, figure, number, plural, say, short, size } from './words.js';

const SHOWN = 12;
const SVG = 'http://www.w3.org/2000/svg';
const id = (name) => document.getElementById(name);
let job = null;
let curve = null;
let offset = 0;
/** The point that is looked at; null: the newest. */
let looked = null;
const open = { snapshots: false, sessions: false };

const now = () => Date.now() + offset;
const ago = (ms) => duration((now() - ms) / 1000);

const chart = new Chart(id('chart'), (n) => look(n));
const cursor = id('cursor');
cursor.addEventListener('input', () => look(Number(cursor.value)));
cursor.addEventListener('blur', () => look(null));

function look(n) {
  looked = n;
  if (!curve) return;
  const newest = curve.points.last.length - 1;
  const at = n ?? newest;
  chart.point(n);
  const text = newest < 0 ? 'no step was made yet' : chart.describe(at);
  say('readout', text);
  cursor.value = at;
  cursor.setAttribute('aria-valuetext', text);
}

function facts(list, pairs) {
  const made = pairs.filter((pair) => pair[1]).flatMap(([name, text]) => [element('dt', { text: name }), element('dd', { text })]);
  const holder = element('dl', {}, ...made);
  // What has not changed stays, with its selection.
  if (id(list).innerHTML !== holder.innerHTML) id(list).replaceChildren(...holder.childNodes);
}

/** A table whose cells know their column's name, for narrow screens. Rows: of [value, class] or of values. */
function table(holder, columns, rows, key) {
  const head = element('tr', {}, ...columns.map(([text, className]) => element('th', { text, className, scope: 'col' })));
  const body = rows.map(({ cells, className }) => {
    const made = cells.map((cell, n) => {
      const td = element('td', { className: columns[n][1], 'data-name': columns[n][0] });
      td.append(cell instanceof Node ? cell : element('span', { text: cell }));
      return td;
    });
    return element('tr', { className }, ...made);
  });
  const shown = key && !open[key] ? body.slice(0, SHOWN) : body;
  const all = [element('table', {}, element('thead', {}, head), element('tbody', {}, ...shown))];
  if (shown.length < body.length) {
    const more = element('button', { className: 'more', type: 'button', text: `Show all ${body.length}` });
    more.addEventListener('click', () => {
      open[key] = true;
      draw();
    });
    all.push(more);
  }
  // What has not changed stays, with its focus and its selection.
  const made = element('div', {}, ...all);
  if (id(holder).innerHTML !== made.innerHTML) id(holder).replaceChildren(...made.childNodes);
}

function problems() {
  const holder = id('problems');
  const wanted = job.problems.join('\n');
  if (holder.dataset.shown === wanted) return;
  holder.dataset.shown = wanted;
  holder.hidden = !wanted;
  holder.replaceChildren(...job.problems.map((text) => element('p', { className: 'problem', text })));
}

function head() {
  document.title = `${job.total_steps ? `${Math.floor((100 * job.step) / job.total_steps)} % ` : ''}${job.name} · ckptd`;
  say('name', job.name);
  say('state', job.state);
  id('state').className = `pill ${job.state}`;
  say('step', number(job.step));
  say('total', job.total_steps ? `of ${number(job.total_steps)} (${((100 * job.step) / job.total_steps).toFixed(1)} %)` : '');
  id('progress').value = job.total_steps ? job.step / job.total_steps : 0;
  const sessions = job.sessions_left ? `, ${plural(job.sessions_left, 'more session')}` : '';
  const isDone = job.state === 'finished';
  const ends = job.ends_ms && !isDone ? `done in ${duration((job.ends_ms - now()) / 1000)}${sessions}` : '';
  say('ends', isDone ? 'the training is complete' : ends || (job.is_live ? '' : 'no session is under way'));
  say('loss', job.is_diverged ? 'not finite' : figure(job.loss));
  id('loss').classList.toggle('alarm', job.is_diverged);
  say('speed', job.tokens_per_second === null ? '–' : number(job.tokens_per_second));
  say('rate', job.learning_rate === null ? '' : `learning rate ${figure(job.learning_rate)}`);
  const saved = job.last_verified;
  say('saved', saved ? `step ${number(saved.step)}` : 'nothing yet');
  const behind = saved ? job.step - saved.step : 0;
  say('saved-age', saved ? `${ago(saved.at_ms)} ago${behind > 0 ? `, ${plural(behind, 'step')} behind` : ''}` : '');
}

function plan() {
  const { began_ms: began, deadline_ms: deadline, last_call_ms: call, source } = job.plan;
  const bar = id('budget');
  bar.hidden = !(job.is_live && began && deadline);
  const rows = [];
  if (job.is_live && began) rows.push(['Began', `${clock(began)}, ${ago(began)} ago`]);
  if (!bar.hidden) {
    const share = (ms) => Math.min(100, Math.max(0, (100 * (ms - began)) / (deadline - began)));
    id('used').style.width = `${share(now())}%`;
    id('reserve').style.width = `${100 - share(call ?? deadline)}%`;
    const left = duration((deadline - now()) / 1000);
    rows.push(['Ends', `${clock(deadline)}, in ${left}${source ? `: ${source}` : ''}`]);
    if (call) rows.push(['Last snapshot', `begins at ${clock(call)}, in ${duration((call - now()) / 1000)} (hatched)`]);
    bar.setAttribute('aria-label', `${share(now()).toFixed(0)} % of the session is over, ${left} are left`);
  } else if (job.is_live) {
    rows.push(['Ends', 'no end is known']);
  }
  const every = job.plan.interval_seconds ? `every ${duration(job.plan.interval_seconds)}` : '';
  rows.push(['Snapshots', [every, job.plan.interval_why].filter(Boolean).join(': ')]);
  const { committed, skipped, failed, quarantined } = job.counts;
  const counted = [[skipped, 'skipped'], [failed, 'failed'], [quarantined, 'in quarantine']];
  const rest = counted.filter(([count]) => count > 0).map(([count, what]) => `, ${count} ${what}`).join('');
  if (job.is_live) rows.push(['Made', `${number(committed)} in this session${rest}`]);
  if (job.remote) {
    const { place, newest, missing, problem } = job.remote;
    const there = newest ? `step ${number(newest.step)}, ${ago(newest.at_ms)} ago` : 'nothing yet';
    rows.push(['Remote', `${place}: ${there}${missing ? `, ${plural(missing, 'snapshot')} not there` : ''}`]);
    if (problem) rows.push(['Its problem', problem]);
  }
  if (!job.is_live) rows.unshift(['State', 'no session is under way']);
  facts('plan', rows);
}

function machine() {
  const { host, daemon_pid: daemon, worker_pid: worker, restarts, ranks, device } = job.machine;
  const stall = job.machine.stall_p50_ms;
  const again = restarts ? `, started again ${plural(restarts, 'time')}` : '';
  facts('machine', [
    ['Host', host],
    ['Daemon', daemon ? `process ${daemon}` : 'none runs'],
    ['Worker', worker ? `process ${worker}${again}` : job.is_live ? `none now${again}` : 'none runs'],
    ['Ranks', ranks > 1 ? `${ranks}` : ''],
    ['Device', device],
    ['Held up', stall === null ? '' : `${short(stall)} ms per snapshot, at most ${short(job.machine.stall_p99_ms)} ms`],
    ['Store', job.store],
  ]);
  say('place', `${job.name} in ${job.store}`);
  say('version', `ckptd ${job.machine.version}`);
}

function snapshots() {
  const columns = [['Step', 'number'], ['State', ''], ['Size', 'number'], ['Loss', 'number'], ['Validation', 'number'], ['Made', 'time'], ['Kept because', '']];
  const rows = job.snapshots.map((row) => {
    const state = row.is_healthy || !['verified', 'committed'].includes(row.state) ? row.state : `${row.state}, unhealthy`;
    return {
      cells: [
        row.step === null ? '–' : number(row.step),
        element('span', { className: `pill ${row.state}`, text: state }),
        size(row.bytes),
        figure(row.loss),
        figure(row.val_loss),
        row.created_ms ? clock(row.created_ms) : '–',
        row.problem ?? (row.kept_because.join(', ') || 'nothing keeps it'),
      ],
    };
  });
  if (rows.length) table('snapshots', columns, rows, 'snapshots');
  else id('snapshots').replaceChildren(element('p', { className: 'quiet', text: 'There are no snapshots yet.' }));
}

function sessions() {
  const columns = [['Session', 'number'], ['Began', 'time'], ['Length', 'time'], ['Steps', 'time'], ['Lost', 'number'], ['Why it ended', '']];
  const rows = job.sessions.map((row) => ({
    className: row.lost_steps ? 'lost' : '',
    cells: [
      number(row.number),
      clock(row.began_ms),
      row.ended_ms ? duration((row.ended_ms - row.began_ms) / 1000) : 'under way',
      `${number(row.from_step)} to ${number(row.step)}`,
      row.lost_steps ? number(row.lost_steps) : '–',
      [row.ended_ms ? row.cause : 'under way', row.failures ? plural(row.failures, 'failure') : ''].filter(Boolean).join(', '),
    ],
  }));
  if (rows.length) table('sessions', columns, rows, 'sessions');
  else id('sessions').replaceChildren(element('p', { className: 'quiet', text: 'There was no session yet.' }));
}

function sign(draw) {
  const svg = document.createElementNS(SVG, 'svg');
  svg.setAttribute('viewBox', '0 0 20 14');
  svg.setAttribute('aria-hidden', 'true');
  for (const [name, attributes] of draw) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    svg.append(made);
  }
  return svg;
}

function legend() {
  const line = (className) => [['path', { class: className, d: 'M1 7H19' }]];
  const tick = (className) => [['line', { class: `tick ${className}`, x1: 10, x2: 10, y1: 1, y2: 13 }]];
  const has = (is) => curve.snapshots.some(is);
  const box = { x: 1, y: 1, width: 18, height: 12 };
  const cross = 'M6 3L14 11M6 11L14 3';
  const isIll = (mark) => ['failed', 'quarantined', 'unhealthy'].includes(mark.fate);
  const all = [
    [true, 'loss: mean, least to greatest', [['rect', { class: 'loss-area', ...box }], ...line('loss-line')]],
    [curve.evaluations.length, 'validation loss', line('val-line')],
    [curve.lost.length, 'trained and lost', [['rect', { class: 'lost-back', ...box }], ['rect', { fill: 'url(#hatch)', ...box }]]],
    [has((mark) => mark.fate === 'verified'), 'verified snapshot', tick('verified')],
    [has((mark) => mark.fate === 'committed'), 'not read back', tick('committed')],
    [has((mark) => mark.is_best), 'best', [['path', { class: 'diamond', d: 'M10 1L15 7L10 13L5 7Z' }]]],
    [has((mark) => mark.is_replicated), 'replicated', [['circle', { class: 'sent', cx: 10, cy: 7, r: 3 }]]],
    [has(isIll), 'quarantined, failed or unhealthy', [['path', { class: 'tick ill', d: cross }]]],
  ];
  const items = all.filter(([is]) => is).map(([, text, draw]) => element('li', {}, sign(draw), element('span', { text })));
  id('legend').replaceChildren(...items);
}

function rows() {
  const { points } = curve;
  const every = Math.max(1, Math.ceil(points.last.length / 24));
  const shown = points.last.map((_, n) => n).filter((n) => n % every === 0 || n === points.last.length - 1);
  const columns = [['Step', 'number'], ['Loss', 'number'], ['Learning rate', 'number'], ['Tokens/s', 'number'], ['When', 'time']];
  const cells = (n) => [number(points.last[n]), figure(points.loss[n]), figure(points.rate[n]), figure(points.speed[n]), clock(points.at_ms[n])];
  table('rows', columns, shown.map((n) => ({ cells: cells(n) })));
}

/** Says what matters to those who do not see it. */
function announce(before) {
  if (!before) return;
  if (before.state !== job.state) say('announce', `The job is ${job.state} now.`);
  else if (job.machine.restarts > before.machine.restarts) say('announce', 'The worker failed and was started again.');
  else if (job.problems.length > before.problems.length) say('announce', job.problems.at(-1));
}

function draw() {
  if (!job) return;
  head();
  problems();
  plan();
  machine();
  snapshots();
  sessions();
}

follow('events', {
  job(data) {
    const before = job;
    job = data;
    offset = job.now_ms - Date.now();
    draw();
    announce(before);
    if (curve && chart.isLive !== job.is_live) chart.show(curve, job.is_live);
  },
  curve(data) {
    curve = data;
    const newest = curve.points.last.length - 1;
    cursor.max = Math.max(0, newest);
    cursor.disabled = newest < 0;
    chart.show(curve, job?.is_live ?? false);
    const last = curve.evaluations.at(-1);
    say('validation', last ? `validation ${figure(last[1])} at step ${number(last[0])}` : '');
    legend();
    if (id('table').open) rows();
    look(looked !== null && looked <= newest ? looked : null);
  },
});
id('table').addEventListener('toggle', () => curve && id('table').open && rows());
setInterval(draw, 1000);
