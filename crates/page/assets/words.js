// Figures and times in words.

export function number(value, digits = 0) {
  return value.toLocaleString('en', { maximumFractionDigits: digits, minimumFractionDigits: digits });
}

/** "3.2145", "0.000321", "3e-4". */
export function figure(value) {
  if (value === null || value === undefined) return '–';
  const size = Math.abs(value);
  if (size === 0) return '0';
  if (size >= 1000) return number(value);
  if (size >= 100) return number(value, 1);
  if (size >= 0.01) return value.toFixed(size >= 10 ? 3 : 4);
  return Number(value.toPrecision(3)).toExponential().replace('e+', 'e');
}

/** As few characters as an axis has room for. */
export function short(value) {
  const size = Math.abs(value);
  const trim = (text) => (text.includes('.') ? text.replace(/\.?0+$/, '') : text);
  if (size === 0) return '0';
  if (size < 0.01) return Number(value.toPrecision(3)).toExponential().replace('e+', 'e');
  if (size >= 999500) return trim((value / 1e6).toFixed(2)) + 'M';
  if (size >= 10000) return trim((value / 1e3).toFixed(1)) + 'k';
  return trim(value.toFixed(2));
}

/** "3 d 4 h", "2 h 5 min", "4 min", "12 s". */
export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const [days, hours, minutes] = [Math.floor(whole / 86400), Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60];
  if (days > 0) return `${days} d${hours ? ` ${hours} h` : ''}`;
  if (hours > 0) return `${hours} h${minutes ? ` ${minutes} min` : ''}`;
  if (minutes > 0) return whole < 600 && whole % 60 ? `${minutes} min ${whole % 60} s` : `${minutes} min`;
  return `${whole} s`;
}

export function size(bytes) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let at = 0;
  let value = bytes;
  while (value >= 1024 && at < units.length - 1) {
    value /= 1024;
    at += 1;
  }
  return `${at ? value.toFixed(value < 10 ? 2 : 1) : value} ${units[at]}`;
}

/** "22:14", or with the day where that is not today. */
export function clock(ms) {
  const at = new Date(ms);
  const time = at.toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', hourCycle: 'h23' });
  const isToday = at.toDateString() === new Date().toDateString();
  return isToday ? time : `${at.toLocaleDateString([], { month: 'short', day: 'numeric' })}, ${time}`;
}

export function plural(count, what) {
  return `${number(count)} ${what}${count === 1 ? '' : 's'}`;
}

/** An element with its class, its text and what is in it. */
export function element(name, { className, text, ...attributes } = {}, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined && text !== null) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Sets the text of the element with this id, where it is another one. */
export function say(id, text) {
  const at = document.getElementById(id);
  if (at.textContent !== text) at.textContent = text;
}
