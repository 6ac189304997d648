// Talks to the daemon: JSON requests, the event stream, and the token that may be needed for them.

const KEY = "anomaly-token";

/** A request that was answered with a problem document, or not at all (status 0). */
export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

/** The token of this tab: kept while the tab is open, sent as a header, never in a URL. */
export const token = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** Whether reading needs the token (bound beyond loopback), and whether writing is possible over this address. */
export const needs = {
  read: document.documentElement.dataset.reads === "token",
  write: document.documentElement.dataset.writes === "token",
};

function headers(extra) {
  const sent = { ...extra };
  if (token.get()) sent.Authorization = `Bearer ${token.get()}`;
  return sent;
}

async function send(path, options = {}) {
  let response;
  try {
    response = await fetch(`api/v1/${path}`, {
      cache: "no-store",
      ...options,
      headers: headers(options.headers),
      signal: options.signal ?? AbortSignal.timeout(15_000),
    });
  } catch {
    throw new Problem(0, "The daemon does not answer.");
  }
  if (!response.ok) {
    const body = await response.json().catch(() => null);
    throw new Problem(response.status, body?.detail ?? `The answer was ${response.status}.`);
  }
  return response;
}

/** Reads JSON. */
export async function get(path) {
  return (await send(path)).json();
}

/** Bans; answers the ban's row. */
export async function ban(request) {
  const options = {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(request),
  };
  return (await send("bans", options)).json();
}

/** Lifts every ban that covers the address; answers their rows. */
export async function unban(ip) {
  return (await send(`bans/${encodeURIComponent(ip)}`, { method: "DELETE" })).json();
}

/** Silence after which a stream is given up: the daemon speaks every second. */
const SILENCE_MS = 12_000;

/**
 * Follows the event stream for ever. `on.open`, `on.event(name, data)`, `on.lost(problem, waitMs)`; it is not an
 * EventSource because that cannot send a header.
 */
export async function follow(on) {
  for (let failures = 0; ; ) {
    const abort = new AbortController();
    let watch = 0;
    const alive = () => {
      clearTimeout(watch);
      watch = setTimeout(() => abort.abort(), SILENCE_MS);
    };
    let problem = new Problem(0, "The connection was closed.");
    try {
      alive();
      const response = await send("events", { signal: abort.signal });
      failures = 0;
      on.open();
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        alive();
        const frames = (rest + value).split("\n\n");
        rest = frames.pop();
        for (const frame of frames) deliver(frame, on);
      }
    } catch (error) {
      if (error instanceof Problem) problem = error;
    } finally {
      clearTimeout(watch);
      abort.abort();
    }
    const wait = Math.min(1000 * 2 ** failures, 10_000);
    failures += 1;
    if (!(await on.lost(problem, wait))) return;
  }
}

function deliver(frame, on) {
  let [name, data] = ["message", ""];
  for (const line of frame.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice(7);
    else if (line.startsWith("data: ")) data += line.slice(6);
  }
  if (data) on.event(name, JSON.parse(data));
}
