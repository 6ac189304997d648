// promtool over what a daemon exposes, and over the alert rules under compose/.

import { spawnSync } from "node:child_process";
import { readdirSync } from "node:fs";
import { Daemon } from "./daemon.mjs";

const compose = new URL("../../compose/prometheus/", import.meta.url).pathname;
let failed = false;

function promtool(args, input) {
  const { status, stdout, stderr } = spawnSync("promtool", args, { input, encoding: "utf8" });
  const said = `${stdout}${stderr}`.trim();
  console.log(`promtool ${args.join(" ")}: ${status === 0 ? "ok" : "FAILED"}${said ? `\n${said}` : ""}`);
  failed ||= status !== 0;
}

const daemon = await Daemon.start();
try {
  const response = await fetch(`${daemon.base}/metrics`);
  promtool(["check", "metrics"], await response.text());
} finally {
  await daemon.stop();
}
for (const file of readdirSync(compose)) {
  if (file.endsWith("rules.yml")) promtool(["check", "rules", compose + file]);
  if (file.endsWith("tests.yml")) promtool(["test", "rules", compose + file]);
}
process.exitCode = failed ? 1 : 0;
