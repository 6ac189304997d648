// Numbers and times as people read them. Nothing here touches the page.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** Requests/s: two significant decimals where they matter. */
export function rate(value) {
  if (!Number.isFinite(value)) return "–";
  if (value >= 100) return whole.format(value);
  return value.toFixed(value >= 10 ? 1 : 2);
}

/** A count, exact below 10,000, then 12.3k, 4.5M. */
export function count(value) {
  if (!Number.isFinite(value)) return "–";
  if (value < 10_000) return whole.format(value);
  for (const [size, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= size) {
      const scaled = value / size;
      return `${scaled >= 100 ? scaled.toFixed(0) : scaled.toFixed(1)}${unit}`;
    }
  }
  return whole.format(value);
}

/** A count with every digit. */
export function exact(value) {
  return Number.isFinite(value) ? whole.format(value) : "–";
}

/** Bytes in binary units. */
export function bytes(value) {
  if (!Number.isFinite(value)) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value >= 100 || unit === 0 ? value.toFixed(0) : value.toFixed(1)} ${units[unit]}`;
}

/** A share of 0 to 1 as a percentage. */
export function percent(value) {
  if (!Number.isFinite(value)) return "–";
  const p = value * 100;
  if (p > 0 && p < 0.1) return "< 0.1 %";
  return `${p >= 10 || p === 0 ? p.toFixed(0) : p.toFixed(1)} %`;
}

/** Like percent, but never says 100 % when it is not. */
export function ratio(value) {
  if (!Number.isFinite(value)) return "–";
  return `${(Math.floor(value * 1000) / 10).toFixed(value >= 1 ? 0 : 1)} %`;
}

/** Seconds as 45 s, 12 min, 3 h 20 min, 4 d 2 h. */
export function span(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  const [big, small, bigUnit, smallUnit] = s < 86_400 ? [3600, 60, "h", "min"] : [86_400, 3600, "d", "h"];
  const rest = Math.floor((s % big) / small);
  return `${Math.floor(s / big)} ${bigUnit}${rest ? ` ${rest} ${smallUnit}` : ""}`;
}

/** Seconds as a clock that runs down: 9:07, 1:05:00, 3 d 4 h. */
export function countdown(seconds) {
  const s = Math.max(0, Math.ceil(seconds));
  if (s >= 2 * 86_400) return span(s);
  const two = (n) => String(n).padStart(2, "0");
  const [h, m] = [Math.floor(s / 3600), Math.floor((s % 3600) / 60)];
  return h ? `${h}:${two(m)}:${two(s % 60)}` : `${m}:${two(s % 60)}`;
}

/** A length of a ban: null is for ever. */
export function length(seconds) {
  return seconds == null ? "permanent" : span(seconds);
}

// All times of the page are UTC, like those of logs, messages and command line; where they stand, it says so.
const clockFormat = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit", timeZone: "UTC" });
const minuteFormat = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", timeZone: "UTC" });
const dayFormat = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });

/** Milliseconds as time of day, with the day where it is not today's. */
export function time(ms, now) {
  if (!Number.isFinite(ms)) return "–";
  const day = (at) => Math.floor(at / 86_400_000);
  return day(ms) === day(now) ? clock(ms) : `${dayFormat.format(ms)} ${clock(ms)}`;
}

/** Milliseconds as hours and minutes. */
export function minute(ms) {
  return minuteFormat.format(ms);
}

/** Milliseconds as hours, minutes, seconds. */
export function clock(ms) {
  return Number.isFinite(ms) ? clockFormat.format(ms) : "–";
}

const RULES = { z_score: "z-score", rate_multiplier: "rate × mean", hard_limit: "hard limit", floor: "floor" };
const SIGNALS = {
  pages: "pages",
  error_paths: "error paths",
  posts_to_one_path: "POSTs to one path",
  errors: "errors",
};

const IN_THE_WINDOW = new Set(Object.keys(SIGNALS));
const UNITS = { repeated_megabytes: "MB", full_minutes: "minutes" };

/** What a row's rule fired for: "pages", "same answers", "requests". */
function counted(row) {
  return SIGNALS[row.signal] ?? row.signal?.replaceAll("_", " ") ?? "requests";
}

/** What a row's value and limit are in: "pages in the window", or points of a leaky bucket. */
export function unit(row) {
  if (!row.signal || IN_THE_WINDOW.has(row.signal)) return `${counted(row)} in the window`;
  return UNITS[row.signal] ?? "points";
}

/** The reason of a row without the rule's word in front, which is said beside it. */
export function reason(row) {
  const said = row.rule && row.reason?.startsWith(row.rule) ? row.reason.slice(row.rule.length) : row.reason;
  return said?.replace(/^(, error surge)?: /, "") ?? "";
}

/** The rule of a row in a word or two; "by hand" where there is none. */
export function rule(row) {
  const name = RULES[row.rule] ?? row.rule;
  if (!name || row.origin === "operator") return "by hand";
  const signal = row.signal ? `, ${counted(row)}` : "";
  return `${name}${signal}${row.error_surge ? ", error surge" : ""}`;
}
