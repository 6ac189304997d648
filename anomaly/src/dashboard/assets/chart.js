// The graph of traffic against its baseline, as SVG made by hand.

import { attr, el, Placeholder, text } from "./dom.js";
import * as format from "./format.js";

const SPANS = { "5m": [300, 1], "1h": [3600, 5], "24h": [86_400, 60] };
const SVG = "http://www.w3.org/2000/svg";
const PAD = { top: 12, right: 12, bottom: 24, left: 44 };

function svg(tag, className, parent) {
  const node = document.createElementNS(SVG, tag);
  if (className) node.setAttribute("class", className);
  parent?.append(node);
  return node;
}

/** A round step that gives about `wanted` lines up to `max`. */
export function step(max, wanted) {
  const rough = max / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough) ?? power * 10;
}

/** Draws points of the history; keeps the newest ones up to date from the status of each second. */
export class Chart {
  constructor(host) {
    this.points = [];
    this.range = "5m";
    this.root = svg("svg", "plot");
    attr(this.root, "role", "img");
    attr(this.root, "tabindex", "0");
    this.grid = svg("g", "grid", this.root);
    this.band = svg("path", "band", this.root);
    this.area = svg("path", "area", this.root);
    this.mean = svg("path", "mean", this.root);
    this.limit = svg("path", "limit", this.root);
    this.line = svg("path", "line", this.root);
    this.marks = svg("g", "marks", this.root);
    this.beyond = svg("text", "beyond", this.root);
    this.cursor = svg("g", "cursor", this.root);
    this.rule = svg("line", "", this.cursor);
    this.dot = svg("circle", "", this.cursor);
    attr(this.dot, "r", 4);
    attr(this.cursor, "visibility", "hidden");
    this.tip = el("div", { className: "tip", hidden: true, role: "status" });
    this.placeholder = new Placeholder(el("p", { className: "empty over" }));
    /** Whether the points are those of the span: before they are there, single seconds say nothing. */
    this.loaded = false;
    host.replaceChildren(this.root, this.tip, this.placeholder.node);
    new ResizeObserver(() => this.draw()).observe(host);
    this.root.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.root.addEventListener("pointerleave", () => this.point(null));
    this.root.addEventListener("blur", () => this.point(null));
    this.root.addEventListener("keydown", (event) => this.key(event));
  }

  /** Another span was chosen: its points are on their way. */
  choose(range) {
    this.range = range;
    this.points = [];
    this.loaded = false;
    this.placeholder.loading();
    this.draw();
  }

  /** The points of the span. */
  load(points) {
    this.points = points;
    this.loaded = true;
    this.draw();
  }

  /** They did not come. Where there are some already, the seconds go on. */
  failed(problem, retry) {
    if (!this.loaded) this.placeholder.failed(`The graph could not be loaded: ${problem.message}`, retry);
  }

  /** Adds the figures of this second. */
  push(point) {
    if (!this.loaded) return;
    const [span, size] = SPANS[this.range];
    const slot = { ...point, t: Math.floor(point.t / size) * size };
    const last = this.points.at(-1);
    if (last && last.t === slot.t) {
      this.points[this.points.length - 1] = { ...slot, rate: Math.max(last.rate, slot.rate) };
    } else if (!last || last.t < slot.t) {
      this.points.push(slot);
    }
    while (this.points.length && this.points[0].t < slot.t - span) this.points.shift();
    this.draw();
  }

  draw() {
    const { width, height } = this.root.parentElement.getBoundingClientRect();
    if (width < 50 || height < 50) return;
    const points = this.points;
    if (points.length > 1) this.placeholder.clear();
    else if (this.loaded) this.placeholder.none("Collecting the first points");
    // Axes of nothing would say something.
    attr(this.root, "data-empty", points.length < 2);
    attr(this.root, "viewBox", `0 0 ${Math.round(width)} ${Math.round(height)}`);

    const [longest, size] = SPANS[this.range];
    const end = points.at(-1)?.t ?? 0;
    // A daemon that started a minute ago has a minute to show, not an empty day.
    const span = Math.min(longest, Math.max(end - (points[0]?.t ?? 0), 60));
    const start = end - span;
    const most = (of) => points.reduce((max, p) => Math.max(max, of(p)), 0);
    const body = Math.max(most((p) => p.rate), most((p) => p.mean + p.stddev), 0.1);
    const limit = most((p) => p.limit);
    // A limit far above everything would press the traffic flat: then it is named instead of drawn.
    const far = limit > 3 * body;
    const top = Math.max(body, far ? 0 : limit) * 1.12;
    const x = (t) => PAD.left + ((t - start) / span) * (width - PAD.left - PAD.right);
    const y = (v) => height - PAD.bottom - (Math.min(v, top) / top) * (height - PAD.top - PAD.bottom);
    this.scale = { x, y, start, span, width, height };

    // Seconds without the daemon are gaps: a path starts anew behind each.
    const runs = [];
    points.forEach((p, i) => {
      if (i === 0 || p.t - points[i - 1].t > 3 * size) runs.push([]);
      runs.at(-1).push(p);
    });
    const at = (p, v) => `${x(p.t).toFixed(1)} ${y(v).toFixed(1)}`;
    const path = (run, of) => (run.length ? `M${run.map((p) => at(p, of(p))).join("L")}` : "");
    const line = (of) => runs.map((run) => path(run, of)).join("");
    // There is no limit before something has been learned.
    const learned = (of) => runs.map((run) => path(run.filter((p) => of(p) > 0), of)).join("");
    const between = (upper, lower) =>
      runs.map((run) => `M${run.map((p) => at(p, upper(p))).join("L")}L${run.toReversed().map((p) => at(p, lower(p))).join("L")}Z`).join("");
    attr(this.band, "d", between((p) => p.mean + p.stddev, (p) => Math.max(0, p.mean - p.stddev)));
    attr(this.area, "d", between((p) => p.rate, () => 0));
    attr(this.mean, "d", line((p) => p.mean));
    attr(this.limit, "d", far ? "" : learned((p) => p.limit));
    attr(this.line, "d", line((p) => p.rate));
    text(this.beyond, far && points.length ? `limit ${format.rate(points.at(-1).limit)} ↑` : "");
    attr(this.beyond, "x", width - PAD.right);
    attr(this.beyond, "y", PAD.top + 8);

    this.marks.replaceChildren();
    points.forEach((p, i) => {
      if (i === 0 || p.bans <= points[i - 1].bans) return;
      const mark = svg("path", "", this.marks);
      attr(mark, "d", `M${x(p.t).toFixed(1)} ${height - PAD.bottom + 1}l-4 7h8z`);
    });
    this.axes(top);
    if (this.at != null) this.show(this.at);
    const last = points.at(-1);
    attr(
      this.root,
      "aria-label",
      last
        ? `Requests per second over the last ${format.span(span)}: now ${format.rate(last.rate)}, highest ${format.rate(most((p) => p.rate))}, ` +
            `mean ${format.rate(last.mean)} plus or minus ${format.rate(last.stddev)}, limit ${format.rate(last.limit)}. Arrow keys read single points.`
        : "No points yet",
    );
  }

  axes(top) {
    const { x, y, start, span, width, height } = this.scale;
    const label = (className, left, bottom, words) => {
      const node = svg("text", className, this.grid);
      attr(node, "x", left);
      attr(node, "y", bottom);
      node.textContent = words;
    };
    this.grid.replaceChildren();
    const rise = step(top, Math.max(2, Math.floor(height / 56)));
    for (let v = 0; v <= top; v += rise) {
      const rule = svg("line", "", this.grid);
      attr(rule, "x1", PAD.left);
      attr(rule, "x2", width - PAD.right);
      attr(rule, "y1", y(v));
      attr(rule, "y2", y(v));
      label("left", PAD.left - 8, y(v) + 4, v >= 10_000 ? format.count(v) : String(Number(v.toPrecision(3))));
    }
    const every = [10, 30, 60, 120, 300, 600, 1200, 3600, 10_800, 21_600].find((s) => (span / s) * 80 <= width) ?? 43_200;
    label("zone", 0, height - 6, "UTC");
    for (let t = Math.ceil(start / every) * every; t <= start + span; t += every) {
      if (x(t) < PAD.left + 14 || x(t) > width - PAD.right - 14) continue;
      label("bottom", x(t), height - 6, every < 60 ? format.clock(t * 1000) : format.minute(t * 1000));
    }
  }

  /** Puts the cursor at the point nearest to a place; null takes it away. */
  point(left) {
    if (left == null || !this.scale || !this.points.length) {
      this.at = null;
      this.tip.hidden = true;
      attr(this.cursor, "visibility", "hidden");
      return;
    }
    const { start, span, width } = this.scale;
    const t = start + ((left - PAD.left) / (width - PAD.left - PAD.right)) * span;
    const nearest = this.points.reduce((a, b) => (Math.abs(b.t - t) < Math.abs(a.t - t) ? b : a));
    this.show(nearest.t);
  }

  key(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") this.point(null);
    if (move == null || !this.points.length) return;
    event.preventDefault();
    const now = this.at == null ? this.points.length - 1 : this.points.findIndex((p) => p.t >= this.at);
    const next = Math.min(Math.max(now + move, 0), this.points.length - 1);
    this.show(this.points[next].t);
  }

  show(t) {
    const p = this.points.find((q) => q.t >= t);
    if (!p) return this.point(null);
    this.at = p.t;
    const { x, y, width, height } = this.scale;
    for (const [name, value] of [["x1", x(p.t)], ["x2", x(p.t)], ["y1", PAD.top], ["y2", height - PAD.bottom]]) attr(this.rule, name, value);
    attr(this.dot, "cx", x(p.t));
    attr(this.dot, "cy", y(p.rate));
    attr(this.cursor, "visibility", "visible");
    const row = (name, value) => el("span", { className: "pair" }, el("span", {}, name), el("b", {}, value));
    this.tip.replaceChildren(
      el("span", { className: "when" }, `${format.clock(p.t * 1000)} UTC`),
      row("rate", format.rate(p.rate)),
      row("mean", `${format.rate(p.mean)} ± ${format.rate(p.stddev)}`),
      row("limit", p.limit > 0 ? format.rate(p.limit) : "–"),
      row("errors", format.percent(p.error_ratio)),
      row("bans", format.exact(p.bans)),
    );
    this.tip.hidden = false;
    const wide = this.tip.offsetWidth;
    this.tip.style.left = `${Math.max(0, x(p.t) + wide + 14 > width ? x(p.t) - wide - 12 : x(p.t) + 12)}px`;
  }
}
