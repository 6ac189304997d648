// Lets schemathesis try everything that the OpenAPI document promises, on a daemon in dry-run.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { Daemon, TOKEN } from "./daemon.mjs";

const REQUIREMENTS = new URL("requirements.txt", import.meta.url).pathname;
const VERSION = createHash("sha256").update(readFileSync(REQUIREMENTS)).digest("hex").slice(0, 12);
const VENV = new URL(`../../target/schemathesis-${VERSION}`, import.meta.url).pathname;

let daemon;

before(async () => {
  if (!existsSync(`${VENV}/bin/schemathesis`)) {
    assert.equal(await run("python3", ["-m", "venv", VENV]), 0, "needs the Debian package python3-venv");
    assert.equal(await run(`${VENV}/bin/pip`, ["install", "--quiet", "--requirement", REQUIREMENTS]), 0);
  }
  daemon = await Daemon.start();
});

after(() => daemon?.stop());

/** Runs a program with our output; its exit status. */
function run(program, args, options = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { stdio: ["ignore", "inherit", "inherit"], ...options });
    child.once("error", reject);
    child.once("exit", resolve);
  });
}

for (const [name, headers] of [
  ["with the token", ["--header", `Authorization: Bearer ${TOKEN}`]],
  ["without the token", []],
]) {
  test(`no answer is against the OpenAPI document, ${name}`, async () => {
    const status = await run(
      `${VENV}/bin/schemathesis`,
      [
        "run",
        `${daemon.base}/api/v1/openapi.json`,
        "--checks=all",
        "--phases=examples,coverage,fuzzing",
        `--max-examples=${process.env.SCHEMATHESIS_EXAMPLES ?? 60}`,
        "--seed=1",
        // A stream has no end that could be waited for.
        "--exclude-path=/api/v1/events",
        "--request-timeout=15",
        "--no-color",
        ...headers,
      ],
      // It writes reports to where it runs.
      { cwd: daemon.dir },
    );
    assert.equal(status, 0);
    assert.ok(await daemon.get("status"), "the daemon answers after all that");
  });
}
