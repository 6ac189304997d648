// The page of one address: is it banned, why, what was done before, what it does now.

import * as api from "./api.js";
import * as dialogs from "./dialogs.js";
import { attr, byId, el, text } from "./dom.js";
import * as format from "./format.js";
import { bar, fill } from "./tables.js";

const STATES = { active: "in force", expired: "ran out", lifted: "lifted by hand", in_past: "over before it was decided" };

/** Shows one address at a time, and keeps it up to date. */
export class IpPage {
  constructor(clock) {
    this.clock = clock;
    this.host = byId("ip-page");
    this.ip = null;
    this.asked = 0;
    this.counters = [];
  }

  /** Opens the page of an address; null closes it. */
  open(ip) {
    this.ip = ip;
    this.host.hidden = ip == null;
    if (ip == null) return;
    this.drawn = "";
    this.counters = [];
    this.host.replaceChildren(this.head(ip, null), el("p", { className: "empty", role: "status" }, "Loading"));
    return this.refresh();
  }

  /** Asks again and draws what came. */
  async refresh() {
    const ip = this.ip;
    if (ip == null) return;
    const asked = ++this.asked;
    try {
      const card = await api.get(`bans/${encodeURIComponent(ip)}`);
      if (this.ip === ip && asked === this.asked) this.draw(card);
    } catch (problem) {
      if (this.ip !== ip || asked !== this.asked || (problem.status === 0 && this.drawn)) return;
      this.drawn = "";
      const again = problem.status !== 400 && el("button", { type: "button", onclick: () => this.open(ip) }, "Try again");
      this.host.replaceChildren(this.head(ip, null), el("div", { className: "card failure", role: "alert" }, el("p", {}, problem.message), again));
    }
  }

  draw(card) {
    // Counters and rates move by themselves; the rest is only made anew when it says something else.
    const still = JSON.stringify([card.ip, card.allowlisted_by, card.bans, card.active, card.now?.banned]);
    if (still !== this.drawn) {
      const open = new Set([...this.host.querySelectorAll("details[open]")].map((d) => d.dataset.key));
      this.drawn = still;
      this.counters = [];
      this.host.replaceChildren(
        this.head(card.ip, card),
        el("div", { className: "ip-grid" }, this.now(card), this.record(card, open)),
      );
    }
    this.live(card);
    this.tick();
  }

  head(ip, card) {
    const active = card?.active ?? [];
    const state = !card
      ? null
      : active.length
        ? this.state("bad", "Banned", active[0])
        : card.allowlisted_by
          ? this.state("good", `Allow-listed by ${card.allowlisted_by}`)
          : this.state("quiet", "Not banned");
    const act = !card
      ? null
      : active.length
        ? el("button", { type: "button", className: "primary", onclick: () => this.then(dialogs.unban(ip)) }, "Unban")
        : !card.allowlisted_by && el("button", { type: "button", className: "danger", onclick: () => this.then(dialogs.ban(ip)) }, "Ban");
    return el(
      "div",
      { className: "ip-head" },
      el("a", { className: "back", href: "#/" }, "← Overview"),
      el("h1", { className: "ip" }, ip),
      state,
      act,
    );
  }

  async then(done) {
    if (await done) this.refresh();
  }

  state(level, words, ban) {
    const node = el("span", { className: `pill ${level}` }, words);
    if (ban) this.counters.push([node, () => (ban.until == null ? "Banned for good" : `Banned, ${this.left(ban.until)}`)]);
    return node;
  }

  left(until) {
    const left = (Date.parse(until) - this.clock()) / 1000;
    return left > 0 ? `${format.countdown(left)} left` : "ending";
  }

  /** What it does now. */
  now(card) {
    this.figures = { rate: el("b", { className: "figure" }), bar: bar("limit-bar"), note: el("p", { className: "note" }), facts: el("p", { className: "note" }) };
    const covered = card.active.map((row) =>
      el(
        "li",
        {},
        el("p", {}, el("b", { className: "ip" }, row.ip), ` by the ${row.origin}, ${row.enforcer}`),
        el("p", { className: "note" }, `${format.exact(row.packets)} packets, ${format.bytes(row.bytes)} dropped since ${format.time(Date.parse(row.since), this.clock())}`),
      ),
    );
    return el(
      "section",
      { className: "card", "aria-labelledby": "ip-now" },
      el("div", { className: "card-head" }, el("h2", { id: "ip-now" }, "Now")),
      el("p", { className: "now" }, this.figures.rate, " req/s"),
      this.figures.bar,
      this.figures.note,
      this.figures.facts,
      covered.length > 0 && [el("h3", {}, "Bans in force"), el("ul", { className: "plain-list" }, covered)],
    );
  }

  live(card) {
    const { now } = card;
    const { rate, bar: track, note, facts } = this.figures;
    text(rate, now ? format.rate(now.rate) : "0.00");
    fill(track, now && now.limit > 0 ? now.rate / now.limit : 0);
    attr(track, "data-level", now && now.rate >= now.limit ? "over" : null);
    text(note, now ? `limit ${format.rate(now.limit)} req/s · z ${now.z_score.toFixed(1)}` : "No requests in the window.");
    text(facts, now ? `${format.exact(now.requests)} requests · ${format.percent(now.error_ratio)} errors · ${format.percent(now.share)} of the site` : "");
  }

  /** Every ban on record. */
  record(card, open) {
    const rows = card.bans.map((ban, i) => this.past(ban, i === 0 || open.has(ban.time), ban.time));
    return el(
      "section",
      { className: "record", "aria-labelledby": "ip-record" },
      el("h2", { id: "ip-record" }, rows.length === 1 ? "1 ban on record" : `${rows.length} bans on record`),
      rows.length ? rows : el("p", { className: "card empty" }, "It has never been banned, as far as the records go back."),
    );
  }

  past(ban, open, key) {
    const at = Date.parse(ban.time);
    const lasted = ban.state === "active" ? null : ban.ended && `ended ${format.time(Date.parse(ban.ended), this.clock())}`;
    const details = el(
      "details",
      { className: "card past", open },
      el(
        "summary",
        {},
        el("span", { className: `dot ${ban.state}`, "aria-hidden": "true" }),
        el("time", { dateTime: ban.time, title: ban.time }, format.time(at, this.clock())),
        el("span", { className: "tag" }, format.rule(ban)),
        el("span", {}, `${format.length(ban.duration_secs)}, ${STATES[ban.state] ?? ban.state}`),
        ban.offence > 1 && el("span", { className: "note" }, `offence ${ban.offence}`),
      ),
      // Where the request rate was the reason, the line below says it all.
      (ban.rate == null || ban.signal || ban.origin === "operator") && el("p", { className: "reason" }, format.reason(ban)),
      ban.rate != null && this.scale(ban),
      el(
        "dl",
        { className: "facts" },
        this.facts([
          ["Banned", ban.ip],
          ["By", ban.origin],
          ["Error surge", ban.error_surge ? "yes: judged by the tightened thresholds" : null],
          ["Signal", ban.signal ? `${ban.signal.replaceAll("_", " ")}: ${format.rate(ban.signal_value)} in the window` : null],
          ["In the window", ban.requests ? `${format.exact(ban.requests)} requests, ${format.exact(ban.errors)} errors` : null],
          ["Until", ban.until ? format.time(Date.parse(ban.until), this.clock()) : "lifted by hand"],
          ["Ended", lasted],
          ["Dropped", `${format.exact(ban.packets)} packets, ${format.bytes(ban.bytes)}`],
        ]),
      ),
      ban.samples.length > 0 && this.samples(ban.samples),
    );
    details.dataset.key = key;
    return details;
  }

  facts(rows) {
    return rows.filter(([, value]) => value != null).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]);
  }

  /** Rate against the baseline, as a line: where it was, what is normal, how far apart. */
  scale(ban) {
    const { mean, stddev, source, scope } = ban.baseline;
    const track = bar("scale");
    fill(track, 1);
    const normal = el("span", { className: "bar-normal" });
    const share = (value) => `${Math.min(100, (Math.max(value, 0) / Math.max(ban.rate, mean + stddev, 0.001)) * 100).toFixed(1)}%`;
    normal.style.width = share(mean + stddev);
    track.firstChild.style.width = share(ban.rate);
    track.append(normal);
    const whose = source === "own" ? "its own history" : scope === "global" ? "the site" : "clients here";
    return el(
      "div",
      { className: "compare" },
      el("p", {}, el("b", {}, format.rate(ban.rate)), ` req/s against ${format.rate(mean)} ± ${format.rate(stddev)} of ${whose}`, el("span", { className: "note" }, ` z ${ban.z_score.toFixed(1)}`)),
      track,
    );
  }

  samples(rows) {
    return el(
      "div",
      { className: "scroll" },
      el(
        "table",
        { className: "samples" },
        el("caption", {}, "Some of its requests"),
        el("thead", {}, el("tr", {}, ["Time", "Method", "Path", "Status"].map((name) => el("th", { scope: "col" }, name)))),
        el(
          "tbody",
          {},
          rows.map((row) =>
            el(
              "tr",
              {},
              el("td", {}, el("time", { dateTime: row.time }, format.time(Date.parse(row.time), this.clock()))),
              el("td", {}, row.method),
              el("td", { className: "path" }, row.path),
              el("td", { className: row.status >= 400 ? "num error-status" : "num" }, row.status ? String(row.status) : "–"),
            ),
          ),
        ),
      ),
    );
  }

  /** Lets the countdown run. */
  tick() {
    for (const [node, words] of this.counters) text(node, words());
  }
}
