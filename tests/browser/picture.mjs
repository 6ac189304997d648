// Takes the picture for the docs from a running dashboard (`cargo xtask demo` leaves one up):
//   node picture.mjs http://127.0.0.1:8081 ../../anomaly/docs/dashboard.png

import assert from "node:assert/strict";
import { statSync } from "node:fs";
import { launch } from "./browser.mjs";

const [url, file] = process.argv.slice(2);
assert.ok(url && file, "node picture.mjs URL FILE");
const browser = await launch();
try {
  const page = await browser.newPage({ viewport: { width: 1440, height: 960 } });
  await page.goto(url);
  await page.locator("#connection", { hasText: "Live" }).waitFor();
  // A few seconds of figures, and no fresh event still lit.
  await page.waitForTimeout(4000);
  await page.screenshot({ path: file });
} finally {
  await browser.close();
}
assert.ok(statSync(file).size <= 300 * 1024, "pictures for the docs have 300 KB at most");
