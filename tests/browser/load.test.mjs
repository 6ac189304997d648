// A hundred dashboards at once, on a site with some traffic.

import assert from "node:assert/strict";
import { get } from "node:http";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Daemon, until } from "./daemon.mjs";

const DASHBOARDS = 100;
const SECONDS = 15;
/** Share of a core, also for a debug build. */
const MOST = 0.05;
/** Honest requests per second. */
const RATE = 100;
/** From the first request of a flood to its ban, dashboards or not. */
const BANNED_WITHIN_MS = 5000;

test(`${DASHBOARDS} dashboards cost little and all hear every second`, async () => {
  const daemon = await Daemon.start({ rate: RATE });
  try {
    const quiet = await detection(daemon, "203.0.113.200");
    const rest = await share(daemon, SECONDS);
    const heard = [];
    const streams = [];
    for (let i = 0; i < DASHBOARDS; i++) {
      heard[i] = 0;
      streams.push(
        get(`${daemon.base}/api/v1/events`, { agent: false }, (response) => {
          response.setEncoding("utf8");
          response.on("data", (text) => (heard[i] += text.split("event: status").length - 1));
          response.on("error", () => {});
        }).on("error", () => {}),
      );
    }
    // What the page asks beside the stream, every two seconds each.
    const polls = setInterval(() => daemon.get("bans?limit=200").catch(() => {}), 2000 / DASHBOARDS);
    await sleep(1500);
    const before = [...heard];
    const busy = await share(daemon, SECONDS);
    const least = Math.min(...heard.map((n, i) => n - before[i]));
    const crowded = await detection(daemon, "203.0.113.201");
    clearInterval(polls);
    streams.forEach((s) => s.destroy());
    const status = await daemon.get("status");
    console.log(`# ${DASHBOARDS} dashboards: ${((busy - rest) * 100).toFixed(1)} % of a core (${(rest * 100).toFixed(1)} % without them), each heard ${least} of ${SECONDS} seconds`);
    console.log(`# a flood of 50 req/s was banned after ${crowded} ms (${quiet} ms without them)`);
    assert.ok(crowded < BANNED_WITHIN_MS, `banned only after ${crowded} ms`);
    assert.ok(busy - rest < MOST, `${busy - rest} of a core`);
    assert.ok(least >= SECONDS - 2, `one heard ${least} of ${SECONDS} seconds`);
    assert.equal(status.backlog_bytes, 0);
  } finally {
    await daemon.stop();
  }
});

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
