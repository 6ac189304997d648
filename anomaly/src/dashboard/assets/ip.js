// The page of one address: is it banned, why, what was done before, what it does now.

import * as api from "./api.js";
import * as dialogs from "./dialogs.js";
import { attr, byId, el, ipLink, text } from "./dom.js";
import * as format from "./format.js";
import { Loader } from "./load.js";
import { bar, fill } from "./tables.js";

const STATES = { active: "in force", expired: "ran out", lifted: "lifted by hand", in_past: "over before it was decided" };

/** Shows one address at a time, and keeps it up to date. */
export class IpPage {
  /** `refused(problem)` is told where reading needs another token. */
  constructor(clock, refused) {
    this.clock = clock;
    this.host = byId("ip-page");
    this.ip = null;
    this.drawn = null;
    this.counters = [];
    /** Whether it is no address, and what is said in place of the page. */
    this.refused = false;
    this.said = null;
    this.loader = new Loader(
      () => this.load(),
      (problem) => (problem.status === 401 ? refused(problem) : this.failed(problem)),
    );
  }

  /** Opens the page of an address; null closes it. */
  open(ip) {
    this.ip = ip;
    this.refused = false;
    this.said = null;
    this.host.hidden = ip == null;
    if (ip == null) return;
    this.drawn = null;
    this.counters = [];
    this.host.replaceChildren(this.head(ip, null), el("p", { className: "empty", role: "status", "data-state": "loading" }, "Loading"));
    this.refresh(true);
  }

  /** Asks again, once a second at most unless it is urgent. */
  refresh(urgent = false) {
    if (this.ip != null && !this.refused) this.loader.run(urgent);
  }

  /** A decision may be about this page: where either is a prefix, only the daemon knows. */
  concerns(ip) {
    return this.ip != null && (ip === this.ip || `${ip}${this.ip}`.includes("/"));
  }

  async load() {
    const ip = this.ip;
    if (ip == null) return;
    try {
      const card = await api.get(`bans/${encodeURIComponent(ip)}`);
      if (this.ip === ip) this.draw(card);
    } catch (problem) {
      if (this.ip !== ip) return;
      // Asking again does not make it an address.
      if (problem.status !== 400) throw problem;
      this.refused = true;
      this.instead(problem.message);
    }
  }

  /** It did not come. What is shown already stays, and says that it is old. */
  failed(problem) {
    if (this.drawn == null) this.instead(problem.message, el("button", { type: "button", onclick: () => this.open(this.ip) }, "Try again"));
    else text(this.old, `Not up to date: ${problem.message}`);
  }

  /** Says so in place of the page, once: a button must not be made anew under a finger. */
  instead(words, action) {
    if (this.said === words) return;
    this.said = words;
    this.host.replaceChildren(this.head(this.ip, null), el("div", { className: "card failure", role: "alert" }, el("p", {}, words), action));
  }

  draw(card) {
    // Counters and rates move by themselves, in place; the rest is only made anew when it says something else, so that a
    // button stays under the finger and text can be selected in the middle of a flood.
    const moving = (key, value) => (["packets", "bytes"].includes(key) ? undefined : value);
    const still = JSON.stringify([card.ip, card.allowlisted_by, card.bans, card.active, card.inside], moving);
    if (still !== this.drawn) {
      const open = new Set([...this.host.querySelectorAll("details[open]")].map((d) => d.dataset.key));
      this.drawn = still;
      this.counters = [];
      this.dropped = { active: [], inside: [], bans: [] };
      this.host.replaceChildren(
        this.head(card.ip, card),
        el("div", { className: "ip-grid" }, this.now(card), this.record(card, open)),
      );
    }
    text(this.old, "");
    this.live(card);
    this.tick();
  }

  head(ip, card) {
    // Only what covers it bans it, and only that can be lifted here: what lies inside has a page of its own.
    const [ban] = card?.active ?? [];
    const inside = card?.inside.length ?? 0;
    let state = null;
    let act = null;
    if (ban) {
      state = this.state("bad", "Banned", ban);
      act = el("button", { type: "button", className: "primary", onclick: () => this.after(dialogs.unban(ip)) }, "Unban");
    } else if (card) {
      const allowed = card.allowlisted_by;
      state = allowed
        ? this.state("good", `Allow-listed by ${allowed}`)
        : inside
          ? this.state("warn", `Not banned, but ${inside === 1 ? "a part of it is" : `${format.exact(inside)} parts of it are`}`)
          : this.state("quiet", "Not banned");
      if (!allowed) act = el("button", { type: "button", className: "danger", onclick: () => this.after(dialogs.ban(ip)) }, "Ban");
    }
    this.old = el("p", { className: "error old", role: "status" });
    return el(
      "div",
      { className: "ip-head" },
      el("a", { className: "back", href: "#/" }, "← Overview"),
      el("h1", { className: "ip" }, ip),
      state,
      act,
      this.old,
    );
  }

  async after(done) {
    if (await done) this.refresh(true);
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
    return el(
      "section",
      { className: "card", "aria-labelledby": "ip-now" },
      el("div", { className: "card-head" }, el("h2", { id: "ip-now" }, "Now")),
      el("p", { className: "now" }, this.figures.rate, " req/s"),
      this.figures.bar,
      this.figures.note,
      this.figures.facts,
      this.bans("Bans in force", card.active, this.dropped.active, card.ip),
      this.bans("Bans inside it", card.inside, this.dropped.inside, card.ip),
    );
  }

  /** Bans in force with what they have dropped, which is put into `dropped`. */
  bans(title, rows, dropped, ip) {
    if (rows.length === 0) return null;
    const items = rows.map((row) => {
      const counts = el("span");
      dropped.push(counts);
      return el(
        "li",
        {},
        el("p", {}, row.ip === ip ? el("b", { className: "ip" }, ip) : ipLink(row.ip), ` by the ${row.origin}, ${row.enforcer}`),
        el("p", { className: "note" }, counts, ` dropped since ${this.at(row.since)}`),
      );
    });
    return [el("h3", {}, title), el("ul", { className: "plain-list" }, items)];
  }

  /** A moment in words. */
  at(stamp) {
    return `${format.time(Date.parse(stamp), this.clock())} UTC`;
  }

  live(card) {
    const { now } = card;
    const { rate, bar: track, note, facts } = this.figures;
    text(rate, now ? format.rate(now.rate) : "0.00");
    fill(track, now && now.limit > 0 ? now.rate / now.limit : 0);
    attr(track, "data-level", now && now.rate >= now.limit ? "over" : null);
    text(note, now ? `limit ${format.rate(now.limit)} req/s · z ${now.z_score.toFixed(1)}` : "No requests in the window.");
    text(facts, now ? `${format.exact(now.requests)} requests · ${format.percent(now.error_ratio)} errors · ${format.percent(now.share)} of the site` : "");
    for (const [list, nodes] of Object.entries(this.dropped)) {
      nodes.forEach((node, i) => text(node, `${format.exact(card[list][i].packets)} packets, ${format.bytes(card[list][i].bytes)}`));
    }
  }

  /** Every ban on record. */
  record(card, open) {
    const rows = card.bans.map((ban, i) => this.past(card, ban, i === 0 || open.has(ban.time)));
    return el(
      "section",
      { className: "record", "aria-labelledby": "ip-record" },
      el("h2", { id: "ip-record" }, rows.length === 1 ? "1 ban on record" : `${rows.length} bans on record`),
      rows.length ? rows : el("p", { className: "card empty" }, "It has never been banned, as far as the records go back."),
    );
  }

  past(card, ban, open) {
    const dropped = el("span");
    this.dropped.bans.push(dropped);
    const unit = format.unit(ban);
    const details = el(
      "details",
      { className: "card past", open },
      el(
        "summary",
        {},
        el("span", { className: `dot ${ban.state}`, "aria-hidden": "true" }),
        el("time", { dateTime: ban.time, title: ban.time }, this.at(ban.time)),
        ban.ip !== card.ip && el("span", { className: "ip" }, ban.ip),
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
          ["Signal", ban.signal ? `${format.exact(ban.signal_value)} ${unit}` : null],
          ["Limit", ban.limit > 0 ? `${format.exact(ban.limit)} ${unit}` : null],
          ["In the window", ban.requests ? `${format.exact(ban.requests)} requests, ${format.exact(ban.errors)} errors` : null],
          ["Until", ban.until ? this.at(ban.until) : "lifted by hand"],
          ["Ended", ban.ended ? this.at(ban.ended) : null],
          ["Dropped", dropped],
        ]),
      ),
      ban.samples.length > 0 && this.samples(ban.samples),
    );
    details.dataset.key = ban.time;
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
        el("thead", {}, el("tr", {}, ["Time, UTC", "Method", "Path", "Status"].map((name) => el("th", { scope: "col", className: name === "Status" ? "num" : "" }, name)))),
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
