// A hundred dashboards at once.

import assert from "node:assert/strict";
import { get } from "node:http";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Daemon } from "./daemon.mjs";

const DASHBOARDS = 100;
const SECONDS = 15;
/** Share of a core, also for a debug build. */
const MOST = 0.05;

test(`${DASHBOARDS} dashboards cost little and all hear every second`, async () => {
  const daemon = await Daemon.start();
  try {
    daemon.flood("203.0.113.200", 60);
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
    clearInterval(polls);
    const least = Math.min(...heard.map((n, i) => n - before[i]));
    streams.forEach((s) => s.destroy());
    const status = await daemon.get("status");
    console.log(`# ${DASHBOARDS} dashboards: ${((busy - rest) * 100).toFixed(1)} % of a core (${(rest * 100).toFixed(1)} % without them), each heard ${least} of ${SECONDS} seconds`);
    assert.ok(busy - rest < MOST, `${busy - rest} of a core`);
    assert.ok(least >= SECONDS - 2, `one heard ${least} of ${SECONDS} seconds`);
    assert.equal(status.backlog_bytes, 0);
  } finally {
    await daemon.stop();
  }
});

async function share(daemon, seconds) {
  const [cpu, at] = [await daemon.cpu(), performance.now()];
  await sleep(seconds * 1000);
  return ((await daemon.cpu()) - cpu) / ((performance.now() - at) / 1000);
}
