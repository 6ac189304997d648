// A real daemon in dry-run, on a log that this writes: an honest site of the last half hour to learn from, live
// traffic, and floods on demand.

import { spawn } from "node:child_process";
import { appendFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { MARKUP } from "./hostile.mjs";

export const TOKEN = "a-token-for-the-browser-tests";
export const ATTACKER = "203.0.113.66";
/** What a hostile client writes wherever it can. */
export const HOSTILE = `/${MARKUP("path")}`;

const BINARY = process.env.ANOMALY_BIN ?? new URL("../../target/debug/anomaly", import.meta.url).pathname;

/** A port that was free a moment ago. */
function freePort() {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}

/** Waits until `probe` gives something. */
export async function until(what, probe, patience = 20_000) {
  const end = Date.now() + patience;
  for (;;) {
    const found = await probe();
    if (found) return found;
    if (Date.now() > end) throw new Error(`waited ${patience} ms for ${what}`);
    await sleep(50);
  }
}

/** Waits until `check` throws nothing; what it threw last is what is wrong. */
export async function eventually(check, patience = 20_000) {
  const end = Date.now() + patience;
  for (;;) {
    try {
      return await check();
    } catch (error) {
      if (Date.now() > end) throw error;
    }
    await sleep(50);
  }
}

export class Daemon {
  /**
   * `listen` is the address to bind; the port is picked. `rate` is what honest clients send, requests per second; with 0
   * there is no history either. `more` is added to the configuration.
   */
  static async start({ listen = "127.0.0.1", token = TOKEN, rate = 10, more = "" } = {}) {
    const daemon = new Daemon();
    daemon.rate = rate;
    daemon.dir = mkdtempSync(join(tmpdir(), "anomaly-browser-"));
    daemon.log = join(daemon.dir, "access.json");
    daemon.port = await freePort();
    daemon.base = `http://127.0.0.1:${daemon.port}`;
    daemon.token = token;
    daemon.rates = new Map();
    const path = (name) => JSON.stringify(join(daemon.dir, name));
    writeFileSync(
      join(daemon.dir, "anomaly.toml"),
      `[log]
paths = [${path("access.json")}]
[enforcer]
backend = "dry-run"
pin_dir = ${path("pins")}
[dashboard]
listen = "${listen}:${daemon.port}"
socket = ${path("anomaly.sock")}
${token ? `token = "${token}"` : ""}
[store]
path = ${path("state.db")}
[audit]
path = ${path("audit.jsonl")}
snapshot_path = ${path("snapshots.log")}
${more}
`,
      { mode: 0o600 },
    );
    daemon.history();
    try {
      await daemon.run();
    } catch (error) {
      // Whoever asked for it has nothing to stop it by.
      daemon.process?.kill("SIGKILL");
      rmSync(daemon.dir, { recursive: true, force: true });
      throw error;
    }
    daemon.timer = setInterval(() => daemon.live(), 100);
    return daemon;
  }

  /** Starts the process and waits until it answers. */
  async run() {
    this.output = "";
    this.process = spawn(BINARY, ["--config", join(this.dir, "anomaly.toml"), "run"], { stdio: ["ignore", "pipe", "pipe"] });
    this.ended = new Promise((resolve) => this.process.once("exit", resolve));
    for (const stream of [this.process.stdout, this.process.stderr]) stream.on("data", (data) => (this.output += data));
    try {
      await until("the daemon to have read its log", async () => {
        if (this.process.exitCode !== null) throw new Error(`the daemon ended: ${this.output}`);
        const status = await this.get("status").catch(() => null);
        return status?.records >= this.rate * 100 && status.backlog_bytes === 0;
      });
    } catch (error) {
      throw new Error(`${error.message}\n${this.output}`);
    }
  }

  /** Ends the process; `run` starts it again on the same port. */
  async halt() {
    this.process.kill("SIGTERM");
    await this.ended;
  }

  async stop() {
    clearInterval(this.timer);
    await this.halt();
    rmSync(this.dir, { recursive: true });
  }

  async get(path) {
    const headers = this.token ? { Authorization: `Bearer ${this.token}` } : {};
    const response = await fetch(`${this.base}/api/v1/${path}`, { headers });
    if (!response.ok) throw new Error(`${path}: ${response.status} ${await response.text()}`);
    return response.json();
  }

  /** Lines of the audit log about this event, of this address where one is given. */
  audited(event, ip) {
    const lines = readFileSync(join(this.dir, "audit.jsonl"), "utf8").split("\n").filter(Boolean);
    return lines.map((line) => JSON.parse(line)).filter((line) => line.event === event && (ip === undefined || line.ip === ip));
  }

  line(at, ip, path = "/", status = 200, more = {}) {
    return `${JSON.stringify({
      ...more,
      source_ip: ip,
      timestamp: new Date(at).toISOString().replace(/\.\d+Z$/, "+00:00"),
      method: "GET",
      path,
      status: String(status),
      response_size: "4711",
    })}\n`;
  }

  /** Half an hour of 60 clients, each with a page now and then. */
  history() {
    const now = Date.now();
    const lines = [];
    for (let s = 1900; s > 0; s--) {
      for (let i = 0; i < this.rate; i++) lines.push(this.honest(now - s * 1000, s * this.rate + i));
    }
    writeFileSync(this.log, lines.join(""));
  }

  honest(at, n) {
    // A generator of its own: every run sees the same site.
    const hash = Math.imul(n ^ 0x9e3779b9, 0x85ebca6b) >>> 0;
    return this.line(at, `198.51.100.${1 + (hash % 60)}`, `/page/${hash % 997}`, hash % 50 === 0 ? 404 : 200);
  }

  /** What happens in a tenth of a second. */
  live() {
    const now = Date.now();
    let text = "";
    for (let i = 0; i < this.rate / 10; i++) {
      this.tick = (this.tick ?? 0) + 1;
      text += this.honest(now, 1_000_000 + this.tick);
    }
    for (const [ip, { rate, path }] of this.rates) {
      for (let i = 0; i < rate / 10; i++) text += this.line(now, ip, path, 200, { user_agent: MARKUP("agent"), http_x_forwarded_for: MARKUP("forwarded") });
    }
    appendFileSync(this.log, text);
  }

  /** Adds lines as they are. */
  write(text) {
    appendFileSync(this.log, text);
  }

  /** Lets an address send so many requests a second; 0 ends it. */
  flood(ip, rate, path = HOSTILE) {
    if (rate) this.rates.set(ip, { rate, path });
    else this.rates.delete(ip);
  }

  /** CPU seconds that the process has used. */
  async cpu() {
    const fields = readFileSync(`/proc/${this.process.pid}/stat`, "utf8").split(") ")[1].split(" ");
    return (Number(fields[11]) + Number(fields[12])) / 100;
  }
}
