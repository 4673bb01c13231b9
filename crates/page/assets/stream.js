// Events of the server, for as long as the page is open.

const PAUSE_MS = 3000;

/** Calls `handlers[name](data)` for each event, and shows on `#link` whether the connection stands. */
export function follow(url, handlers) {
  const link = document.getElementById('link');
  const show = (className, text) => {
    link.className = `link ${className}`;
    if (link.textContent !== text) link.textContent = text;
  };
  const source = new EventSource(url);
  source.onopen = () => show('live', 'live');
  source.onerror = () => {
    show('gone', 'no connection, trying again');
    if (source.readyState !== EventSource.CLOSED) return;
    setTimeout(() => again(url, handlers), PAUSE_MS);
  };
  for (const [name, handle] of Object.entries(handlers)) {
    source.addEventListener(name, (event) => {
      show('live', 'live');
      handle(JSON.parse(event.data));
    });
  }
}

/** After an answer that was no stream: the token may not count any more. */
async function again(url, handlers) {
  const answer = await fetch('./', { redirect: 'follow' }).catch(() => null);
  if (answer && answer.status === 401) location.reload();
  else follow(url, handlers);
}
