// A hundred dashboards at once, on a site with some traffic: while nothing happens, and while ban follows ban.

import assert from "node:assert/strict";
import { get } from "node:http";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Daemon, until } from "./daemon.mjs";

const DASHBOARDS = 100;
const SECONDS = 15;
/** Share of a core, also for a debug build. */
const MOST = 0.05;
/** Bans in the same time, and the share of a core that each of a hundred lists of 200 bans a second may cost a debug build. */
const BURST = 150;
const MOST_IN_BURST = 0.25;
/** Honest requests per second. */
const RATE = 100;
/** From the first request of a flood to its ban, dashboards or not. */
const BANNED_WITHIN_MS = 5000;

test(`${DASHBOARDS} dashboards cost little and all hear every second`, async () => {
  const daemon = await Daemon.start({ rate: RATE });
  const open = new Dashboards(daemon);
  try {
    const quiet = await detection(daemon, "203.0.113.200");
    const rest = await share(daemon, SECONDS);
    open.open();
    await sleep(1500);
    const before = [...open.heard];
    const busy = await share(daemon, SECONDS);
    const least = Math.min(...open.heard.map((n, i) => n - before[i]));
    const crowded = await detection(daemon, "203.0.113.201");
    const status = await daemon.get("status");
    console.log(`# ${DASHBOARDS} dashboards: ${((busy - rest) * 100).toFixed(1)} % of a core (${(rest * 100).toFixed(1)} % without them), each heard ${least} of ${SECONDS} seconds`);
    console.log(`# a flood of 50 req/s was banned after ${crowded} ms (${quiet} ms without them)`);
    assert.ok(crowded < BANNED_WITHIN_MS, `banned only after ${crowded} ms`);
    assert.ok(busy - rest < MOST, `${busy - rest} of a core`);
    assert.ok(least >= SECONDS - 2, `one heard ${least} of ${SECONDS} seconds`);
    assert.equal(status.backlog_bytes, 0);
  } finally {
    open.close();
    await daemon.stop();
  }
});

test(`a burst of ${BURST} bans, watched by ${DASHBOARDS} dashboards`, async () => {
  const daemon = await Daemon.start({ rate: RATE });
  const open = new Dashboards(daemon);
  /** What the burst itself costs is asked for one by one, and no part of what the dashboards cost. */
  const burst = async (net) => {
    const began = performance.now();
    for (let n = 0; n < BURST; n++) {
      const response = await fetch(`${daemon.base}/api/v1/bans`, {
        method: "POST",
        headers: { Authorization: `Bearer ${daemon.token}`, "Content-Type": "application/json" },
        body: JSON.stringify({ ip: `203.0.${net}.${n}`, duration_secs: 3600 }),
      });
      assert.equal(response.status, 201);
      await sleep(Math.max(0, began + (n * SECONDS * 1000) / BURST - performance.now()));
    }
  };
  try {
    const [rest] = await Promise.all([share(daemon, SECONDS), burst(112)]);
    open.open();
    await sleep(1500);
    open.asked = 0;
    const [busy] = await Promise.all([share(daemon, SECONDS), burst(114)]);
    const asked = open.asked / DASHBOARDS / SECONDS;
    const crowded = await detection(daemon, "203.0.113.201");
    console.log(`# ${DASHBOARDS} dashboards during ${BURST} bans: ${((busy - rest) * 100).toFixed(1)} % of a core more, ${asked.toFixed(1)} lists a second each`);
    console.log(`# a flood of 50 req/s was banned after ${crowded} ms`);
    assert.ok(asked > 0.3, "they looked");
    assert.ok(busy - rest < MOST_IN_BURST, `${busy - rest} of a core`);
    assert.ok(crowded < BANNED_WITHIN_MS, `banned only after ${crowded} ms`);
    const missed = open.decisions.filter((n) => n < BURST);
    assert.deepEqual(missed, [], "each heard of every ban");
  } finally {
    open.close();
    await daemon.stop();
  }
});

/** What as many pages ask as are open: a stream each, and the list of bans every two seconds, or a second after a decision. */
class Dashboards {
  constructor(daemon) {
    this.daemon = daemon;
    this.heard = Array(DASHBOARDS).fill(0);
    this.decisions = Array(DASHBOARDS).fill(0);
    this.asked = 0;
    this.streams = [];
    this.timers = [];
  }

  open() {
    for (let i = 0; i < DASHBOARDS; i++) {
      let wanted = false;
      let turn = 0;
      const stream = get(`${this.daemon.base}/api/v1/events`, { agent: false }, (response) => {
        response.setEncoding("utf8");
        response.on("error", () => {});
        response.on("data", (text) => {
          this.heard[i] += text.split("event: status").length - 1;
          const decided = text.split("event: decision").length - 1;
          this.decisions[i] += decided;
          wanted ||= decided > 0;
        });
      });
      this.streams.push(stream.on("error", () => {}));
      const ask = () => {
        turn += 1;
        if (!wanted && turn % 2) return;
        wanted = false;
        this.asked += 1;
        this.daemon.get("bans?limit=200").catch(() => {});
      };
      // Not all in the same moment, as people open them.
      this.timers.push(setTimeout(() => this.timers.push(setInterval(ask, 1000)), (1000 * i) / DASHBOARDS));
    }
  }

  close() {
    this.timers.forEach(clearInterval);
    this.streams.forEach((stream) => stream.destroy());
  }
}

/** Milliseconds from the first request of a flood to its ban. */
async function detection(daemon, ip) {
  const began = Date.now();
  daemon.flood(ip, 50);
  await until(`the ban of ${ip}`, () => daemon.audited("ban", ip).length > 0);
  daemon.flood(ip, 0);
  return Date.now() - began;
}

async function share(daemon, seconds) {
  const [cpu, at] = [await daemon.cpu(), performance.now()];
  await sleep(seconds * 1000);
  return ((await daemon.cpu()) - cpu) / ((performance.now() - at) / 1000);
}
