// Top sources and bans.

import { announce, attr, byId, el, ipLink, Placeholder, Table, text } from "./dom.js";
import * as dialogs from "./dialogs.js";
import * as format from "./format.js";

/** A bar from 0 to 1, with a mark where it ends. */
export function bar(className) {
  return el("span", { className: `bar-track ${className}`, "aria-hidden": "true" }, el("span", { className: "bar-fill" }));
}

/** Sets a bar. */
export function fill(track, value) {
  const share = Math.min(Math.max(value, 0), 1);
  const width = `${(share * 100).toFixed(1)}%`;
  if (track.firstChild.style.width !== width) track.firstChild.style.width = width;
}

/** Busiest clients of the window, each with its way to the limit. */
export class Top {
  constructor() {
    this.table = new Table(byId("top"), {
      caption: "Busiest clients in the newest 60 seconds",
      key: (row) => row.ip,
      columns: [
        { name: "Address", className: "who", make: (row) => ipLink(row.ip) },
        {
          name: "Rate",
          className: "num wide",
          make: () => [el("span", { className: "value" }), bar("limit-bar")],
          update: (cell, row) => {
            text(cell.firstChild, `${format.rate(row.rate)}/s`);
            fill(cell.lastChild, row.limit > 0 ? row.rate / row.limit : 0);
            attr(cell, "title", `${format.exact(row.requests)} requests in the window; limit ${format.rate(row.limit)} req/s`);
            attr(cell.lastChild, "data-level", row.rate >= row.limit ? "over" : row.rate >= 0.7 * row.limit ? "near" : null);
          },
        },
        { name: "Errors", className: "num", update: (cell, row) => text(cell, format.percent(row.error_ratio)) },
        { name: "z", className: "num", update: (cell, row) => text(cell, row.z_score.toFixed(1)) },
        { name: "Share", className: "num", update: (cell, row) => text(cell, format.percent(row.share)) },
        {
          name: "Action",
          className: "act",
          unseen: true,
          make: (row) => el("button", { type: "button", className: "small" }, el("span", {}), el("span", { className: "unseen" }, ` ${row.ip}`)),
          update: (cell, row) => {
            const button = cell.firstChild;
            text(button.firstChild, row.banned ? "Unban" : "Ban");
            button.onclick = () => (row.banned ? dialogs.unban(row.ip) : dialogs.ban(row.ip));
          },
        },
      ],
    });
  }

  show(rows) {
    const held = this.table.show(rows.slice(0, matchMedia("(max-width: 760px)").matches ? 8 : 15), (row) => (row.banned ? "banned" : ""));
    if (rows.length === 0) this.table.placeholder.none("No requests in the newest 60 seconds.");
    else this.table.placeholder.clear();
    text(byId("top-hint"), held ? "order held while you are here" : "in the newest 60 s");
  }
}

/** Bans in force, newest first, with what they cost the attacker and how long they last. */
export class Bans {
  constructor(clock) {
    this.clock = clock;
    this.rows = [];
    /** How many there are in all, by the newest figures. */
    this.total = 0;
    this.loaded = false;
    /** Why the newest list did not come, and what asks for it again. */
    this.trouble = null;
    this.filter = byId("bans-filter");
    this.filter.oninput = () => this.draw();
    this.table = new Table(byId("bans"), {
      caption: "Bans in force, newest first",
      key: (row) => `${row.ip} ${row.since}`,
      columns: [
        { name: "Address", className: "who", make: (row) => ipLink(row.ip) },
        {
          name: "Why",
          className: "why",
          make: (row) => [el("span", { className: "tag", textContent: format.rule(row) }), el("span", { className: "reason", textContent: format.reason(row), title: row.reason })],
        },
        {
          name: "Since, UTC",
          className: "num since",
          make: (row) => el("time", { dateTime: row.since, title: row.since }),
          update: (cell, row) => text(cell.firstChild, format.time(Date.parse(row.since), this.clock())),
        },
        {
          name: "Ends in",
          className: "num wide",
          make: () => [el("span", { className: "value" }), bar("time-bar")],
          update: (cell, row) => this.left(cell, row),
        },
        { name: "Offence", className: "num", update: (cell, row) => text(cell, String(row.offence ?? "–")) },
        {
          name: "Dropped",
          className: "num",
          make: () => [el("span", {}), el("span", { className: "spare" })],
          update: (cell, row) => {
            text(cell.firstChild, format.count(row.packets));
            text(cell.lastChild, ` · ${format.bytes(row.bytes)}`);
            attr(cell, "title", `${format.exact(row.packets)} packets, ${format.exact(row.bytes)} bytes since the ban`);
          },
        },
        {
          name: "Action",
          className: "act",
          unseen: true,
          make: (row) => el("button", { type: "button", className: "small", onclick: () => dialogs.unban(row.ip) }, "Unban", el("span", { className: "unseen" }, ` ${row.ip}`)),
        },
      ],
    });
  }

  left(cell, row) {
    const [value, track] = cell.childNodes;
    if (row.until == null) {
      text(value, "permanent");
      fill(track, 1);
      return;
    }
    const [since, until] = [Date.parse(row.since), Date.parse(row.until)];
    const left = (until - this.clock()) / 1000;
    text(value, left > 0 ? format.countdown(left) : "ending");
    fill(track, left / ((until - since) / 1000));
    attr(cell, "title", `until ${row.until}`);
  }

  /** New rows, oldest first as the API gives them. */
  show(rows) {
    this.rows = rows.toReversed();
    this.loaded = true;
    this.trouble = null;
    this.draw();
  }

  /** They did not come. */
  failed(problem, retry) {
    this.trouble = { words: `The bans could not be loaded: ${problem.message}`, retry };
    this.draw();
  }

  /** How many there are in all; whether the list knows of none of them. */
  count(total) {
    const moved = this.total !== total;
    this.total = total;
    if (moved) this.draw();
    return this.rows.length === 0 && total > 0;
  }

  draw() {
    const wanted = this.filter.value.trim().toLowerCase();
    const found = wanted ? this.rows.filter((row) => row.ip.toLowerCase().includes(wanted) || row.reason.toLowerCase().includes(wanted)) : this.rows;
    this.table.show(found);
    const { placeholder } = this.table;
    if (this.trouble) placeholder.failed(this.trouble.words, this.trouble.retry);
    else if (found.length) placeholder.clear();
    else if (wanted && this.rows.length) placeholder.none("No ban matches.");
    // Nobody is said to be banned while figures say otherwise.
    else if (!this.loaded || this.total > 0) placeholder.loading();
    else placeholder.none("Nobody is banned.");
    const shown = found.length;
    const all = Math.max(this.total, this.rows.length);
    text(byId("bans-hint"), wanted ? `${shown} of the newest ${this.rows.length}` : shown && all > shown ? `newest ${shown} of ${format.exact(all)}` : "");
  }

  /** Lets the countdowns run. */
  tick() {
    for (const { cells, row } of this.table.rows.values()) this.left(cells[3], row);
  }
}

/** Decisions and anomalies as they happen, newest first. */
export class Feed {
  constructor(clock) {
    this.clock = clock;
    this.list = byId("feed");
    this.placeholder = new Placeholder(byId("feed-placeholder"));
  }

  /** Everything anew. */
  reset(rows) {
    this.list.replaceChildren();
    rows.forEach((row) => this.add(row, false));
    this.list.parentElement.hidden = rows.length === 0;
    if (rows.length === 0) this.placeholder.none("No decision since the daemon started. Bans, unbans and anomalies appear here as they happen.");
  }

  add(row, fresh = true) {
    const at = Date.parse(row.time);
    const [kind, words] = {
      ban: ["ban", `banned, ${format.length(row.duration_secs)}${row.offence > 1 ? `, offence ${row.offence}` : ""}`],
      unban: ["unban", "unbanned"],
      global_anomaly: ["anomaly", "site anomaly"],
      braked: ["anomaly", "held back by the brake"],
      level_accepted: ["other", "new level accepted"],
    }[row.action] ?? ["other", row.action];
    const item = el(
      "li",
      { className: kind },
      el("time", { dateTime: row.time, title: row.time }, format.time(at, this.clock())),
      el("span", { className: "what" }, row.ip && ipLink(row.ip), row.ip && " ", el("b", {}, words), row.reason && el("span", { className: "reason" }, row.reason.startsWith(row.rule) ? `${format.rule(row)}: ${format.reason(row)}` : row.reason)),
    );
    this.list.prepend(item);
    while (this.list.childElementCount > 100) this.list.lastElementChild.remove();
    this.list.parentElement.hidden = false;
    this.placeholder.clear();
    if (fresh) {
      item.classList.add("fresh");
      announce(row.ip ? `${row.ip} ${words}` : `${words}: ${row.reason}`);
    }
  }
}
