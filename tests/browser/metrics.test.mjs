// promtool over what a daemon exposes, and over the alert rules under compose/.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";
import { Daemon } from "./daemon.mjs";

const RULES = new URL("../../compose/prometheus/", import.meta.url).pathname;

function promtool(args, input) {
  const { status, stdout, stderr } = spawnSync("promtool", args, { input, encoding: "utf8" });
  assert.equal(status, 0, `promtool ${args.join(" ")}: ${stdout}${stderr}`);
  return `${stdout}${stderr}`.trim();
}

test("promtool has nothing to say against the metrics", async () => {
  const daemon = await Daemon.start();
  try {
    const response = await fetch(`${daemon.base}/metrics`);
    assert.equal(promtool(["check", "metrics"], await response.text()), "");
  } finally {
    await daemon.stop();
  }
});

test("the alert rules are sound and fire when they should", () => {
  promtool(["check", "rules", `${RULES}rules.yml`]);
  promtool(["test", "rules", `${RULES}rules.tests.yml`]);
});
