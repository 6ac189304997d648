// Starts the page: routes, the event stream, and what follows from each second.

import * as api from "./api.js";
import { Banners, Baseline, enforcerWords, system, Vitals } from "./cards.js";
import { Chart } from "./chart.js";
import { signIn } from "./dialogs.js";
import { attr, byId, ipHref, text } from "./dom.js";
import * as format from "./format.js";
import { IpPage } from "./ip.js";
import { Kept } from "./keep.js";
import { Loader } from "./load.js";
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
const page = new IpPage(clock, signIn);

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
const kept = new Kept("localStorage", "anomaly-theme");
function storedTheme() {
  const name = kept.get();
  return THEMES.includes(name) ? name : "auto";
}
byId("theme").onclick = () => {
  const next = THEMES[(THEMES.indexOf(storedTheme()) + 1) % THEMES.length];
  kept.set(next);
  theme(next);
};

// ---- what is asked for

/** Loads for a card, which is told where that fails, and how to try again. */
function loader(card, job) {
  const load = new Loader(job, (problem) => {
    if (problem.status === 401) signIn();
    else card.failed(problem, () => load.run(true));
  });
  return load;
}

const loadBans = loader(bans, async () => bans.show(await api.get(`bans?limit=${MOST_BANS}`)));

const loadBaseline = loader(baseline, async () => baseline.show(await api.get("baseline"), clock()));

let range = "5m";
const loadHistory = loader(chart, async () => {
  const asked = range;
  const points = await api.get(`history?range=${asked}`);
  if (asked === range) chart.load(points);
});

for (const button of byId("ranges").children) {
  button.onclick = () => {
    range = button.dataset.range;
    for (const other of byId("ranges").children) attr(other, "aria-pressed", other === button);
    chart.choose(range);
    loadHistory.run(true);
  };
}

/** Everything that the stream does not bring. */
function loadAll() {
  loadHistory.run(true);
  loadBaseline.run(true);
  loadBans.run(true);
  page.refresh(true);
}

// ---- what is told

const on = {
  open() {
    lastHeard = Date.now();
    connected(true);
    loadAll();
  },

  event(name, data) {
    lastHeard = Date.now();
    if (name === "status") second(data);
    else if (name === "top") top.show(data);
    else if (name === "recent") feed.reset(data);
    else if (name === "decision") {
      feed.add(data);
      loadBans.run();
      if (page.concerns(data.ip)) page.refresh();
    } else if (name === "anomaly") feed.add(data);
    else if (name === "lagged") loadBans.run();
  },

  paused() {
    connection("wait", "Paused");
  },

  async lost(problem, wait) {
    if (problem.status === 401) {
      connection("wait", "Needs its token");
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
    title: next.log_time === null ? "Nothing to learn from yet." : "Still learning.",
    detail:
      next.log_time === null
        ? `No request has been logged. From the first one on only the hard limit bans for ${format.countdown(next.warmup_left_secs)}.`
        : `Only the hard limit bans for another ${format.countdown(next.warmup_left_secs)} of log time.`,
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
  const unknown = bans.count(next.active_bans);
  if (unknown || (before && before.active_bans !== next.active_bans)) loadBans.run();
}

/** The pill, and whether what is shown is of now. */
function connection(state, words) {
  const pill = byId("connection");
  attr(pill, "data-state", state);
  text(pill, words);
  attr(document.body, "data-stale", state === "live" ? null : "yes");
}

function connected(yes, problem) {
  connection(yes ? "live" : "lost", yes ? "Live" : "Disconnected");
  banners.set("connection", !yes && {
    level: "bad",
    title: "No connection to the daemon.",
    detail: status ? `${problem?.message ?? ""} These figures are out of date.` : (problem?.message ?? ""),
    since: lastHeard ? new Date(lastHeard).toISOString() : null,
    action: { name: "Try now", run: () => retry() },
  });
}

// ---- the token

api.token.changed = () => {
  byId("forget").hidden = !api.token.get();
};
byId("forget").onclick = () => {
  api.token.forget();
  if (api.needs.read) location.reload();
};

// ---- go

theme(storedTheme());
api.token.changed();
addEventListener("hashchange", go);
go();

setInterval(() => {
  bans.tick();
  page.tick();
  text(byId("clock"), status ? `${format.clock(clock())} UTC` : "");
}, 500);
// Counters of drops and the page of an address move without a decision; a hidden tab asks for nothing.
setInterval(() => {
  if (document.hidden || document.body.dataset.stale) return;
  if (route) page.refresh();
  else if (status?.active_bans) loadBans.run();
}, 2000);
setInterval(() => {
  if (document.hidden || document.body.dataset.stale) return;
  loadBaseline.run();
  if (range !== "5m") loadHistory.run();
}, 30_000);
document.addEventListener("visibilitychange", () => {
  if (document.hidden || document.body.dataset.stale) return;
  loadAll();
});

if (api.needs.read && !api.token.get()) await signIn();
api.follow(on);
