// Figures of now, the baseline, the daemon, and faults.

import { alarm, attr, byId, el, Placeholder, text } from "./dom.js";
import * as format from "./format.js";

const SOURCES = {
  rolling: "rolling history",
  hour: "this hour on other days",
  long: "longer memory",
  own: "own history",
  floor: "configured floors",
};

/** The words of `degraded`, as a heading each; those that cost protection are serious. */
const DEGRADED = {
  fallback: "A fallback enforces the bans",
  slack: "Slack does not get its messages",
  webhook: "The webhook does not get its messages",
  store: "The state database cannot be used",
  store_damaged: "The state database was damaged and started anew",
  audit: "The audit log cannot be written",
  log_silent: "The log is silent",
  log_missing: "The log is missing",
  log_format: "No line of the log can be read",
  rejected: "Log lines cannot be read",
  late: "Log lines come too late",
  not_effective: "A ban has no effect",
  enforcement: "Bans are not all enforced",
  map_full: "The ban map is full",
  braked: "The brake holds bans back",
  dashboard: "The dashboard's port or socket is taken",
  off: "Nothing is dropped",
  config: "The configuration file is refused",
};
const SERIOUS = new Set(["log_silent", "log_missing", "log_format", "not_effective", "enforcement", "store", "store_damaged", "off"]);

/** Six figures that say how it is. */
export class Vitals {
  constructor() {
    /** Dropped packets of the newest seconds, oldest first. */
    this.dropped = [];
    this.pps = 0;
  }

  show(status) {
    const { baseline } = status;
    const times = baseline.mean > 0 ? status.global_rate / baseline.mean : 0;
    this.set("rate", `${format.rate(status.global_rate)}`, status.warmup_left_secs > 0 ? "still learning what is normal" : `${times.toFixed(times < 10 ? 2 : 0)} × mean · ${format.exact(status.last_second)} in the last second`);
    mark("rate", status.warmup_left_secs === 0 && status.global_rate > baseline.limit ? "bad" : null);
    this.set("errors", format.percent(status.error_ratio), `normally ${format.percent(baseline.error_rate)}`);
    mark("errors", status.error_ratio > Math.max(3 * baseline.error_rate, 0.05) ? "warn" : null);
    const enforced = status.active_bans === 0 ? "nothing to enforce" : `${format.ratio(status.enforcement_ratio)} enforced`;
    this.set("bans", format.exact(status.active_bans), status.enforcer === "dry-run" ? "dry run: not enforced" : enforced);
    mark("bans", status.enforcement_ratio < 1 ? "bad" : null);
    this.drops(status);
    this.set("dropped", format.count(status.dropped_packets), status.enforcer === "dry-run" ? "dry run: nothing is dropped" : `packets · ${format.rate(this.pps)}/s now`);
    this.set("clients", format.count(status.tracked_ips), `limit for new ones ${format.rate(status.ip_limit)}/s`);
    this.set("cpu", format.percent(status.cpu), `of a core · ${format.bytes(status.memory_bytes)}`);
  }

  /** Packets/s over at least a second: pictures come every 100 ms when much happens, and counters move once a second. */
  drops(status) {
    const sample = { at: Date.parse(status.time), packets: status.dropped_packets };
    const last = this.dropped.at(-1);
    // Another daemon, or a clock that was set.
    if (last && (sample.at < last.at || sample.packets < last.packets)) this.dropped = [];
    this.dropped.push(sample);
    while (this.dropped.length > 1 && sample.at - this.dropped[1].at >= 1000) this.dropped.shift();
    const [first] = this.dropped;
    const seconds = (sample.at - first.at) / 1000;
    if (seconds >= 1) this.pps = (sample.packets - first.packets) / seconds;
  }

  set(name, figure, note) {
    text(byId(`v-${name}`), figure);
    text(byId(`v-${name}-note`), note);
  }
}

function mark(name, level) {
  attr(byId(`v-${name}`), "data-level", level);
}

/** What the limits follow from, and how the hours of the day differ. */
export class Baseline {
  constructor() {
    this.levels = byId("levels");
    this.hours = byId("hours");
    this.note = byId("hours-note");
    this.host = byId("baseline");
    this.placeholder = new Placeholder(byId("baseline-placeholder"));
  }

  /** It did not come. What is shown of a minute ago is as good. */
  failed(problem, retry) {
    if (this.host.hidden) this.placeholder.failed(`The baseline could not be loaded: ${problem.message}`, retry);
  }

  show(baseline, now) {
    this.host.hidden = false;
    this.placeholder.clear();
    const left = baseline.warmup_left_secs;
    text(byId("baseline-hint"), left > 0 ? `learning takes another ${format.countdown(left)} of log time` : "");
    this.levels.replaceChildren(this.level("The site", baseline.global), this.level("A client", baseline.ip));
    const hour = new Date(now).getUTCHours();
    const most = Math.max(...baseline.hours.map((slot) => slot?.mean ?? 0), 1e-9);
    const known = baseline.hours.filter(Boolean).length;
    this.hours.replaceChildren(
      ...baseline.hours.map((slot, h) => {
        const name = `${String(h).padStart(2, "0")}:00`;
        const words = slot ? `${name}: ${format.rate(slot.mean)} ± ${format.rate(slot.stddev)} req/s, ${format.count(slot.samples)} samples` : `${name}: nothing learned yet`;
        const cell = el("li", { className: slot ? "" : "none", title: words }, el("span", { className: "unseen" }, words));
        if (slot) cell.style.setProperty("--heat", (slot.mean / most).toFixed(3));
        if (h === hour) attr(cell, "aria-current", "time");
        if (h % 6 === 0) cell.append(el("span", { className: "tick", "aria-hidden": "true" }, String(h)));
        return cell;
      }),
    );
    text(this.note, known ? `${known} of 24 hours known; the busiest has ${format.rate(most)} req/s` : "No hour of the day is known yet.");
  }

  level(name, level) {
    return el(
      "div",
      { className: "level" },
      el("h3", {}, name),
      el("p", { className: "sum" }, el("b", {}, format.rate(level.mean)), ` ± ${format.rate(level.stddev)} req/s`),
      el("p", { className: "note" }, `${level.limit > 0 ? `limit ${format.rate(level.limit)}` : "no limit yet"} · errors ${format.percent(level.error_rate)}`),
      el("p", { className: "note" }, `${SOURCES[level.source] ?? level.source}, ${format.count(level.samples)} samples`),
    );
  }
}

/** Facts about the daemon and what drops packets. */
export function system(status) {
  const rows = [
    ["Enforcer", enforcerWords(status)],
    ...status.interfaces.map((i) => [`Interface ${i.name}`, i.reason ? `${i.mode}: ${i.reason}` : i.mode]),
    ["Enforced", status.enforcer === "dry-run" ? "nothing: dry run" : status.active_bans === 0 ? "no bans" : `${format.ratio(status.enforcement_ratio)} of ${format.exact(status.active_bans)} ${status.active_bans === 1 ? "ban" : "bans"}`],
    ["Records", `${format.count(status.records)} read · ${format.count(status.blocked)} of banned clients`],
    ["Rejected lines", `${format.count(status.rejected)} · late ${format.count(status.late)}`],
    ["Backlog", status.backlog_bytes ? `${format.bytes(status.backlog_bytes)} not read yet` : "none"],
    ["Newest record", status.log_time ? `${format.span((Date.parse(status.time) - Date.parse(status.log_time)) / 1000)} ago` : "none yet"],
    ["Uptime", format.span(status.uptime_secs)],
    ["Host", `CPU ${format.percent(status.host_cpu)} · memory ${format.percent(status.host_memory)}`],
  ];
  const list = byId("system");
  if (list.childElementCount !== rows.length * 2) {
    list.replaceChildren(...rows.flatMap(() => [el("dt"), el("dd")]));
  }
  rows.forEach(([name, value], i) => {
    text(list.children[2 * i], name);
    text(list.children[2 * i + 1], value);
  });
}

/** `XDP native`, `iptables`, `dry run`. */
export function enforcerWords(status) {
  const names = { xdp: "XDP", iptables: "iptables", "xdp+iptables": "XDP + iptables", "dry-run": "dry run" };
  const name = names[status.enforcer] ?? status.enforcer;
  return status.xdp_mode ? `${name}, ${status.xdp_mode}` : name;
}

/** Every fault, on top of the page; the most serious first. */
export class Banners {
  constructor(clock) {
    this.clock = clock;
    this.host = byId("banners");
    this.own = new Map();
    this.degraded = [];
    this.shown = new Map();
  }

  /** A banner of the page itself (connection, warm-up); null takes it away. */
  set(name, banner) {
    if (banner) this.own.set(name, { key: name, ...banner });
    else this.own.delete(name);
    this.draw();
  }

  show(degraded) {
    const keys = new Map();
    this.degraded = degraded.map(({ what, reason, since }) => {
      // Two logs may have gone missing in the same moment.
      const key = `${what} ${since}`;
      const nth = keys.get(key) ?? 0;
      keys.set(key, nth + 1);
      return {
        key: `${key} ${nth}`,
        level: SERIOUS.has(what) ? "bad" : "warn",
        title: `${DEGRADED[what] ?? what.replaceAll("_", " ")}.`,
        detail: reason,
        since,
      };
    });
    this.draw();
  }

  draw() {
    const order = { bad: 0, warn: 1, note: 2 };
    const rows = [...this.own.values(), ...this.degraded].sort((a, b) => order[a.level] - order[b.level]);
    const wanted = new Set(rows.map((row) => row.key));
    for (const [key, { root }] of this.shown) {
      if (wanted.has(key)) continue;
      root.remove();
      this.shown.delete(key);
    }
    const fresh = [];
    rows.forEach((row, i) => {
      let banner = this.shown.get(row.key);
      if (!banner) {
        banner = this.make(row);
        this.shown.set(row.key, banner);
        if (row.level !== "note") fresh.push(row.title);
      }
      // Reasons count seconds: only their text changes, so that it can be selected, and a button keeps the focus.
      text(banner.detail, row.detail ?? "");
      if (this.host.children[i] !== banner.root) this.host.insertBefore(banner.root, this.host.children[i] ?? null);
    });
    if (fresh.length) alarm(fresh.join(" "));
  }

  make(row) {
    const detail = el("span");
    const root = el(
      "div",
      { className: `banner ${row.level}` },
      el("p", {}, el("b", {}, row.title), " ", detail),
      row.since && el("time", { dateTime: row.since, title: row.since }, `since ${format.time(Date.parse(row.since), this.clock())} UTC`),
      row.action && el("button", { type: "button", className: "small", onclick: row.action.run }, row.action.name),
    );
    return { root, detail };
  }
}
