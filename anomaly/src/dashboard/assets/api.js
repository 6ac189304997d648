// Talks to the daemon: JSON requests, the event stream, and the token that may be needed for them.

import { Kept } from "./keep.js";

/** A request that was answered with a problem document, or not at all (status 0). */
export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

/** The token of this tab: kept while the tab is open, sent as a header, never in a URL. */
export const token = new Kept("sessionStorage", "anomaly-token");

/** Whether reading needs the token (reached from beyond this host), and whether writing is possible over this address. */
export const needs = {
  read: document.documentElement.dataset.reads === "token",
  write: document.documentElement.dataset.writes === "token",
};

/** Sends a request with the token, or with the `candidate` that somebody has just typed. */
async function send(path, options = {}, candidate = null) {
  const proof = candidate ?? token.get();
  let response;
  try {
    response = await fetch(`api/v1/${path}`, {
      cache: "no-store",
      ...options,
      headers: proof ? { ...options.headers, Authorization: `Bearer ${proof}` } : options.headers,
      signal: options.signal ?? AbortSignal.timeout(15_000),
    });
  } catch {
    throw new Problem(0, "The daemon does not answer.");
  }
  if (response.status === 401 && !candidate && !options.method) {
    // Another token has proved right while this one was on its way.
    if (proof !== token.get()) return send(path, options);
    if (proof && !needs.read) {
      // Reading is open here: it is refused only because of a token that is no longer valid.
      token.forget();
      return send(path, options);
    }
  }
  if (!response.ok) {
    const body = await response.json().catch(() => null);
    throw new Problem(response.status, body?.detail ?? `The answer was ${response.status}.`);
  }
  return response;
}

/** Reads JSON. */
export async function get(path, candidate) {
  return (await send(path, {}, candidate)).json();
}

/** Bans; answers the ban's row. */
export async function ban(request, candidate) {
  const options = {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(request),
  };
  return (await send("bans", options, candidate)).json();
}

/** Lifts every ban that covers the address; answers their rows. */
export async function unban(ip, candidate) {
  return (await send(`bans/${encodeURIComponent(ip)}`, { method: "DELETE" }, candidate)).json();
}

/** Silence after which a stream is given up: the daemon speaks every second. */
const SILENCE_MS = 12_000;
/**
 * How long a hidden tab keeps its stream. A browser opens six connections to a host: six forgotten tabs would leave none
 * for the one that is looked at.
 */
const HIDDEN_MS = 5000;

/** Ready when somebody looks at the page. */
function seen() {
  if (!document.hidden) return null;
  return new Promise((resolve) => {
    document.addEventListener("visibilitychange", function shown() {
      if (document.hidden) return;
      document.removeEventListener("visibilitychange", shown);
      resolve();
    });
  });
}

/**
 * Follows the event stream for ever, while somebody looks. `on.open`, `on.event(name, data)`, `on.lost(problem, waitMs)`,
 * `on.paused` for a hidden tab; it is not an EventSource because that cannot send a header.
 */
export async function follow(on) {
  for (let failures = 0; ; ) {
    await seen();
    const abort = new AbortController();
    let [watch, hide, paused] = [0, 0, false];
    const alive = () => {
      clearTimeout(watch);
      watch = setTimeout(() => abort.abort(), SILENCE_MS);
    };
    const hidden = () => {
      clearTimeout(hide);
      if (!document.hidden) return;
      hide = setTimeout(() => {
        paused = true;
        abort.abort();
      }, HIDDEN_MS);
    };
    document.addEventListener("visibilitychange", hidden);
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
      clearTimeout(hide);
      document.removeEventListener("visibilitychange", hidden);
      abort.abort();
    }
    if (paused) {
      failures = 0;
      on.paused();
      continue;
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
