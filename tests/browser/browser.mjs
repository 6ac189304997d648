// Debian's Chromium, and what every test wants to know of a page.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";

const AXE = readFileSync(new URL("node_modules/axe-core/axe.min.js", import.meta.url), "utf8");

export async function launch() {
  return chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: [
      // Chromium looks up names of its makers on its own account. What a page asks for is counted in `visit`.
      "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
      // Root cannot have Chromium's sandbox; the page is ours, and the network is the loopback.
      ...(process.getuid() === 0 ? ["--no-sandbox"] : []),
    ],
  });
}

/**
 * A page that remembers every complaint and every request; `leave()` asserts that there was none to complain about.
 * `expect` are complaints that belong to the test, `prepare(page)` is done before anything is asked for.
 */
export async function visit(browser, url, options = {}) {
  const { expect = [], prepare, ...rest } = options;
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, bypassCSP: false, ...rest });
  const page = await context.newPage();
  const complaints = [];
  const origin = new URL(url).origin;
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) complaints.push(`${message.type()}: ${message.text()}`);
  });
  page.on("pageerror", (error) => complaints.push(`exception: ${error.message}`));
  page.on("dialog", (dialog) => complaints.push(`dialog: ${dialog.message()}`));
  page.on("request", (request) => {
    if (new URL(request.url()).origin !== origin) complaints.push(`request to ${request.url()}`);
  });
  await prepare?.(page);
  await page.goto(url);
  page.leave = async () => {
    const pwned = await page.evaluate(() => window.pwned);
    // First of all: a page that is complained about must not go on asking.
    await context.close();
    assert.equal(pwned, undefined, "text from the log was run");
    const unexpected = complaints.filter((c) => !expect.some((e) => e.test(c)));
    assert.deepEqual(unexpected, []);
  };
  return page;
}

/** Closes what a failed test left open: the next one would find its pages among those that ask the daemon. */
export async function closePages(browser) {
  for (const context of browser.contexts()) await context.close();
}

const PHONE = { viewport: { width: 375, height: 812 }, hasTouch: true, isMobile: true };
/** Devices and tastes that a page is looked at with: name, options of `visit`. */
export const LOOKS = [
  ["light", {}],
  ["dark", { colorScheme: "dark" }],
  ["phone-light", PHONE],
  ["phone-dark", { ...PHONE, colorScheme: "dark" }],
];

/** Asserts that axe finds nothing serious. It is evaluated by the debugger, not by the page: its CSP stays as it is. */
export async function accessible(page, what) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  const grave = violations
    .filter((v) => ["serious", "critical"].includes(v.impact))
    .map((v) => `${v.id}: ${v.help}: ${v.nodes.map((n) => n.target.join(" ")).join(", ")}`);
  assert.deepEqual(grave, [], what);
  return violations.map((v) => `${v.impact} ${v.id}: ${v.nodes.map((n) => n.target.join(" ")).join(", ")}`);
}

/** How far the page is wider than its window. */
export async function overflow(page) {
  return page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
}

/** Where screenshots go; none are taken without it. */
export async function picture(page, name, options = {}) {
  const dir = process.env.ANOMALY_PICTURES;
  if (dir) await page.screenshot({ path: `${dir}/${name}.png`, ...options });
}
