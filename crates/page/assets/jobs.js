// Several jobs, a card each.
import { follow } from './stream.js';
import { duration, element, figure, number } from './words.js';

function card({ n, name, job }) {
  const link = element('a', { className: 'card', href: `jobs/${n}/` });
  const row = element('div', { className: 'row' }, element('h2', { text: name }));
  if (!job) {
    link.append(row, element('p', { className: 'quiet', text: 'nothing is known yet' }));
    return element('li', {}, link);
  }
  row.append(element('span', { className: `pill ${job.state}`, text: job.state }));
  const total = job.total_steps ? ` of ${number(job.total_steps)}` : '';
  const bar = element('progress', { max: 1, value: job.total_steps ? job.step / job.total_steps : 0, 'aria-label': 'done' });
  const facts = [`step ${number(job.step)}${total}`];
  if (job.is_diverged) facts.push('loss not finite');
  else if (job.loss !== null) facts.push(`loss ${figure(job.loss)}`);
  if (job.is_live && job.ends_ms) facts.push(`done in ${duration((job.ends_ms - job.now_ms) / 1000)}`);
  link.append(row, element('p', { text: facts.join(' · ') }), bar);
  const saved = job.last_verified;
  const age = saved && duration((job.now_ms - saved.at_ms) / 1000);
  const safe = saved ? `step ${number(saved.step)} saved and verified ${age} ago` : 'nothing saved yet';
  link.append(element('p', { className: 'quiet', text: safe }));
  for (const problem of job.problems.slice(0, 1)) link.append(element('p', { className: 'wrong', text: problem }));
  return element('li', {}, link);
}

follow('events', {
  jobs(all) {
    const list = document.getElementById('jobs');
    const at = [...list.querySelectorAll('a')].indexOf(document.activeElement);
    list.replaceChildren(...all.map(card));
    if (at >= 0) list.querySelectorAll('a')[at]?.focus();
  },
});
