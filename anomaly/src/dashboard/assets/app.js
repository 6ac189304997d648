// Starts the page: routes, the event stream, and what follows from each second.

import * as api from "./api.js";
import { Banners, Baseline, enforcerWords, system, Vitals } from "./cards.js";
import { Chart } from "./chart.js";
import { announce, attr, byId, el, ipHref, text } from "./dom.js";
import * as format from "./format.js";
import { IpPage } from "./ip.js";
import { Bans, Feed, Top } from "./tables.js";

/** How many bans the page holds; the filter looks through these. */
const MOST_BANS = 200;

/** The daemon's clock against this device's: countdowns follow the daemon's. */
let skew = 0;
const clock = () => Date.now() + skew;

const chart = new Chart(byId("chart"));
const vitals = new Vitals();
const baseline = new Baseline();
const banners = new Banners(clock);
const top = new Top();
const bans = new Bans(clock);
const feed = new Feed(clock);
const page = new IpPage(clock);

let status = null;
let lastHeard = 0;
let route = null;

// ---- routes

function go() {
  const match = location.hash.match(/^#\/ip\/(.+)$/);
  let ip = null;
  try {
    ip = match && decodeURIComponent(match[1]);
  } catch {
    ip = match[1];
  }
  const moved = route !== null && route !== (ip ?? "");
  route = ip ?? "";
  byId("overview").hidden = ip != null;
  document.title = ip ? `${ip} · anomaly` : "anomaly";
  page.open(ip);
  if (ip == null) chart.draw();
  if (moved) {
    byId("main").focus({ preventScroll: true });
    scrollTo(0, 0);
  }
}

byId("lookup").onsubmit = (event) => {
  event.preventDefault();
  const field = byId("lookup-ip");
  const ip = field.value.trim();
  if (!ip) return;
  field.value = "";
  location.hash = ipHref(ip);
};

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches?.("input, select, textarea");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey && !byId("dialog").open) {
    event.preventDefault();
    byId("lookup-ip").focus();
  }
});

// ---- theme

const THEMES = ["auto", "light", "dark"];
function theme(name) {
  attr(document.documentElement, "data-theme", name === "auto" ? null : name);
  text(byId("theme-name"), name);
}
function storedTheme() {
  const name = localStorage.getItem("anomaly-theme");
  return THEMES.includes(name) ? name : "auto";
}
byId("theme").onclick = () => {
  const next = THEMES[(THEMES.indexOf(storedTheme()) + 1) % THEMES.length];
  localStorage.setItem("anomaly-theme", next);
  theme(next);
};

// ---- what is asked for

/** Runs `job` now or, where one is running, once more after it: never two at a time. */
function single(job) {
  let [running, again] = [false, false];
  return async function run() {
    if (running) {
      again = true;
      return;
    }
    running = true;
    try {
      await job();
    } catch (problem) {
      if (problem.status === 401) signIn();
    } finally {
      running = false;
    }
    if (again) {
      again = false;
      run();
    }
  };
}

const loadBans = single(async () => {
  const rows = await api.get(`bans?limit=${MOST_BANS}`);
  bans.show(rows, status?.active_bans ?? rows.length);
});

const loadBaseline = single(async () => baseline.show(await api.get("baseline"), clock()));

const loadHistory = single(async () => {
  const range = chosen;
  try {
    const points = await api.get(`history?range=${range}`);
    if (range === chosen) chart.load(range, points);
  } catch (problem) {
    chart.fail("The graph could not be loaded.");
    throw problem;
  }
});

let chosen = "5m";
for (const button of byId("ranges").children) {
  button.onclick = () => {
    chosen = button.dataset.range;
    for (const other of byId("ranges").children) attr(other, "aria-pressed", other === button);
    loadHistory();
  };
}

// ---- what is told

const on = {
  open() {
    lastHeard = Date.now();
    connected(true);
    loadHistory();
    loadBaseline();
    loadBans();
  },

  event(name, data) {
    lastHeard = Date.now();
    if (name === "status") second(data);
    else if (name === "top") top.show(data);
    else if (name === "recent") feed.reset(data);
    else if (name === "decision") {
      feed.add(data);
      loadBans();
      page.refresh();
    } else if (name === "anomaly") feed.add(data);
    else if (name === "lagged") loadBans();
  },

  async lost(problem, wait) {
    if (problem.status === 401) {
      connected(false);
      await signIn();
      return true;
    }
    connected(false, problem);
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, wait);
      retry = () => {
        clearTimeout(timer);
        resolve();
      };
    });
    return true;
  },
};

let retry = () => {};

/** The figures of this second. */
function second(next) {
  const before = status;
  status = next;
  skew = Date.parse(next.time) - Date.now();
  byId("overview").classList.remove("loading");
  vitals.show(next);
  system(next);
  banners.show(next.degraded);
  banners.set("warmup", next.warmup_left_secs > 0 && {
    level: "note",
    title: "Still learning.",
    detail: `Only the hard limit bans for another ${format.countdown(next.warmup_left_secs)} of log time.`,
  });
  const pill = byId("enforcer");
  pill.hidden = false;
  text(pill, enforcerWords(next));
  pill.className = `pill ${next.enforcer === "dry-run" ? "warn" : next.enforcement_ratio < 1 ? "bad" : "quiet"}`;
  chart.push({
    t: Math.floor(Date.parse(next.time) / 1000),
    rate: next.global_rate,
    error_ratio: next.error_ratio,
    mean: next.baseline.mean,
    stddev: next.baseline.stddev,
    limit: next.baseline.limit,
    bans: next.active_bans,
    dropped: next.dropped_packets,
  });
  if (before && before.active_bans !== next.active_bans) loadBans();
}

function connected(yes, problem) {
  const pill = byId("connection");
  attr(pill, "data-state", yes ? "live" : "lost");
  text(pill, yes ? "Live" : "Disconnected");
  attr(document.body, "data-stale", yes ? null : "yes");
  if (yes) {
    banners.set("connection", null);
    return;
  }
  const since = new Date(lastHeard || Date.now()).toISOString();
  banners.set("connection", {
    level: "bad",
    title: "No connection to the daemon.",
    detail: status ? `${problem?.message ?? ""} What you see is old.` : (problem?.message ?? ""),
    since: lastHeard ? since : null,
    action: { name: "Try now", run: () => retry() },
  });
  announce("The connection to the daemon is lost");
}

// ---- the token, where reading needs it

let signingIn = null;
function signIn() {
  signingIn ??= new Promise((resolve) => {
    const wrong = api.token.get() != null;
    api.token.forget();
    const dialog = byId("dialog");
    const field = el("input", { type: "password", id: "sign-in", autocomplete: "off", required: true });
    const form = el(
      "form",
      { method: "dialog" },
      el("h2", { id: "dialog-title" }, "This dashboard needs its token"),
      el("p", {}, "It listens beyond this host. The token is dashboard.token of its configuration; this tab keeps it until it is closed."),
      wrong && el("p", { className: "error", role: "alert" }, "That token is not the one."),
      el("div", { className: "field" }, el("label", { htmlFor: "sign-in" }, "Token"), field),
      el("div", { className: "actions" }, el("button", { type: "submit", className: "primary" }, "Open")),
    );
    dialog.replaceChildren(form);
    dialog.onclose = () => {
      if (!field.value.trim()) return dialog.showModal();
      api.token.set(field.value.trim());
      signingIn = null;
      tokenKnown();
      resolve();
    };
    if (!dialog.open) dialog.showModal();
  });
  return signingIn;
}

function tokenKnown() {
  byId("forget").hidden = !api.token.get();
}
byId("forget").onclick = () => {
  api.token.forget();
  tokenKnown();
  if (api.needs.read) location.reload();
};
byId("dialog").addEventListener("close", tokenKnown);

// ---- go

theme(storedTheme());
tokenKnown();
addEventListener("hashchange", go);
go();

setInterval(() => {
  bans.tick();
  page.tick();
  text(byId("clock"), status ? `${format.stamp(clock()).slice(11, 19)} UTC` : "");
}, 500);
// Counters of drops and the page of an address move without a decision; a hidden tab asks for nothing.
setInterval(() => {
  if (document.hidden || document.body.dataset.stale) return;
  if (route) page.refresh();
  else if (status?.active_bans) loadBans();
}, 2000);
setInterval(() => {
  if (document.hidden || document.body.dataset.stale) return;
  loadBaseline();
  if (chosen !== "5m") loadHistory();
}, 30_000);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  loadHistory();
  loadBans();
});

if (api.needs.read && !api.token.get()) await signIn();
api.follow(on);
