// Lets schemathesis try everything that the OpenAPI document promises, on a daemon in dry-run, with and without the token.

import { spawnSync } from "node:child_process";
import { Daemon, TOKEN } from "./daemon.mjs";

const daemon = await Daemon.start();
let failed = false;
try {
  for (const [name, headers] of [
    ["with the token", ["--header", `Authorization: Bearer ${TOKEN}`]],
    ["without it", []],
  ]) {
    console.log(`-- ${name}`);
    const { status } = spawnSync(
      process.env.SCHEMATHESIS_BIN,
      [
        "run",
        `${daemon.base}/api/v1/openapi.json`,
        "--checks",
        "all",
        "--phases",
        "examples,coverage,fuzzing",
        "--max-examples",
        process.env.SCHEMATHESIS_EXAMPLES ?? "60",
        "--seed",
        "1",
        // A stream has no end that could be waited for.
        "--exclude-path",
        "/api/v1/events",
        "--request-timeout",
        "15",
        "--no-color",
        ...headers,
      ],
      { stdio: "inherit", cwd: daemon.dir },
    );
    failed ||= status !== 0;
  }
  await daemon.get("status");
} finally {
  await daemon.stop();
}
process.exitCode = failed ? 1 : 0;
