// What the page says when things are not as they should be, or have not begun: of a real daemon that is in that state.

import assert from "node:assert/strict";
import { renameSync } from "node:fs";
import { after, before, test } from "node:test";
import { LOOKS, accessible, launch, overflow, picture, visit } from "./browser.mjs";
import { Daemon, until } from "./daemon.mjs";
import { MARKUP } from "./hostile.mjs";

const [PHONE, DARK_PHONE] = ["phone-light", "phone-dark"].map((name) => LOOKS.find(([look]) => look === name)[1]);
/** The part of a webhook's URL that nobody may see. */
const SECRET = "T0SECRET-B0SECRET";

let browser;

before(async () => {
  browser = await launch();
});

after(async () => {
  await browser?.close();
});

const banner = (page, title) => page.locator(".banner", { hasText: title });

test("a daemon that has seen nothing yet says so, and is healthy", async () => {
  const daemon = await Daemon.start({ rate: 0 });
  try {
    assert.equal((await fetch(`${daemon.base}/healthz`)).status, 200);
    for (const [name, options] of [["", {}], ["-phone", PHONE]]) {
      const page = await visit(browser, daemon.base, options);
      await page.locator("#connection", { hasText: "Live" }).waitFor();
      await banner(page, "Nothing to learn from yet.").waitFor();
      await page.getByText("No requests in the newest 60 s").waitFor();
      await page.getByText("Nobody is banned.").waitFor();
      await page.getByText("No hour of the day is known yet.").waitFor();
      await page.getByText(/^No decision since the daemon started/).waitFor();
      assert.equal(await page.textContent("#v-rate"), "0.00");
      assert.doesNotMatch(await page.textContent("body"), /NaN|undefined|Infinity/);
      assert.ok((await overflow(page)) <= 0);
      await accessible(page, "the page of a daemon that has seen nothing");
      await picture(page, `first-start${name}`, { fullPage: true });
      await page.leave();
    }
  } finally {
    await daemon.stop();
  }
});

test("whatever is wrong is on top of the page, the worst first, and goes when it is over", async () => {
  const daemon = await Daemon.start({ more: `[notify.slack]\nwebhook_url = "http://127.0.0.1:9/services/${SECRET}"` });
  try {
    const page = await visit(browser, daemon.base);
    await page.locator("#connection", { hasText: "Live" }).waitFor();
    assert.equal(await page.locator(".banner").count(), 0);

    // A ban that Slack is not told, lines that say nothing (whatever they contain), and lines of an hour ago.
    daemon.flood("203.0.113.77", 50);
    // Many, because they are measured against the half hour that was just read as well.
    let lines = "";
    for (let i = 0; i < 4000; i++) lines += daemon.line(Date.now(), MARKUP("source_ip"), `/${MARKUP("path")}`, 200, { user_agent: MARKUP("agent") });
    // Not too many in a row: that would say that the clock was wrong.
    for (let i = 0; i < 4000; i++) lines += daemon.line(Date.now() - (i % 20 ? 3_600_000 : 0), "198.51.100.3");
    daemon.write(lines);
    await banner(page, "Slack does not get its messages").waitFor({ timeout: 20_000 });
    await banner(page, "Log lines cannot be read").waitFor();
    await banner(page, "Log lines come too late").waitFor();
    daemon.flood("203.0.113.77", 0);

    clearInterval(daemon.timer);
    renameSync(daemon.log, `${daemon.log}.gone`);
    await banner(page, "The log is missing").waitFor({ timeout: 20_000 });
    assert.match(await page.locator(".banner").first().getAttribute("class"), /bad/);
    const health = await fetch(`${daemon.base}/healthz`);
    assert.equal(health.status, 503);
    assert.match(await health.text(), /access\.json does not exist/);
    const { degraded } = await daemon.get("status");
    assert.deepEqual(degraded.map((d) => d.what).sort(), ["late", "log_missing", "rejected", "slack"]);
    assert.doesNotMatch(JSON.stringify(degraded) + (await page.textContent("body")), new RegExp(SECRET));
    // Told as well as shown: the audit log has each of them.
    for (const what of ["late", "log_missing", "rejected", "slack"]) {
      await until(`${what} in the audit log`, () => daemon.audited("degraded").some((line) => line.what === what && !line.ok));
    }
    await accessible(page, "the page of a daemon in trouble");
    await picture(page, "degraded", { fullPage: true });
    const phone = await visit(browser, daemon.base, DARK_PHONE);
    await banner(phone, "The log is missing").waitFor();
    assert.ok((await overflow(phone)) <= 0);
    await picture(phone, "degraded-phone");
    await phone.leave();

    renameSync(`${daemon.log}.gone`, daemon.log);
    await banner(page, "The log is missing").waitFor({ state: "detached", timeout: 20_000 });
    assert.equal((await fetch(`${daemon.base}/healthz`)).status, 200);
    await until("the end in the audit log", () => daemon.audited("degraded").some((line) => line.what === "log_missing" && line.recovered));
    await page.leave();
  } finally {
    await daemon.stop();
  }
});

test("what is awaited, or did not come, is neither nothing nor nobody", async () => {
  const daemon = await Daemon.start();
  const ip = "203.0.113.88";
  try {
    daemon.flood(ip, 50);
    await until("the ban", async () => (await daemon.get("bans")).some((b) => b.ip === ip));
    daemon.flood(ip, 0);
    let answer;
    const answered = new Promise((resolve) => (answer = resolve));
    const busy = { status: 503, contentType: "application/problem+json", body: JSON.stringify({ status: 503, detail: "the daemon is busy" }) };
    const page = await visit(browser, daemon.base, {
      expect: [/503/],
      prepare: (page) =>
        page.route(/\/api\/v1\/(bans|history|baseline)/, async (route) => {
          await answered;
          await route.fulfill(busy);
        }),
    });
    const row = page.locator("#bans tr", { has: page.getByRole("link", { name: ip, exact: true }) });
    const card = (place) => page.locator(`${place} .empty`);
    await page.waitForFunction(() => document.querySelector("#v-bans").textContent === "1");
    for (const place of ["#bans", "#chart", ".baseline-card"]) assert.equal(await card(place).innerText(), "Loading", place);
    assert.equal(await page.locator(".plot .grid").isVisible(), false, "axes of nothing");
    await picture(page, "loading");

    answer();
    await card("#bans").getByText("The bans could not be loaded: the daemon is busy").waitFor();
    await card("#chart").getByText("The graph could not be loaded: the daemon is busy").waitFor();
    await card(".baseline-card").getByText("The baseline could not be loaded: the daemon is busy").waitFor();
    // Seconds that go by change none of it.
    const clocks = new Set();
    await until("four seconds to go by", async () => clocks.add(await page.textContent("#clock")).size > 4);
    await card("#chart").getByText("The graph could not be loaded").waitFor();
    assert.doesNotMatch(await page.textContent("body"), /Nobody is banned|Collecting the first points/);
    await accessible(page, "the page without its cards");
    await picture(page, "failed");

    await page.unroute(/\/api\/v1\/(bans|history|baseline)/);
    await card("#bans").getByRole("button", { name: "Try again" }).click();
    await row.waitFor({ timeout: 2000 });
    // The rest comes by itself.
    await card("#chart").waitFor({ state: "hidden", timeout: 40_000 });
    await page.locator("#hours li").first().waitFor({ timeout: 40_000 });
    await page.leave();

    // The page of an address, too: what it shows stays, and says that it is old.
    const other = await visit(browser, `${daemon.base}/#/ip/${ip}`, { expect: [/503/] });
    await other.getByRole("button", { name: "Unban" }).waitFor();
    await other.route("**/api/v1/bans/*", (route) => route.fulfill(busy));
    await other.getByText("Not up to date: the daemon is busy").waitFor();
    assert.ok(await other.getByRole("button", { name: "Unban" }).isVisible());
    await other.unroute("**/api/v1/bans/*");
    await other.getByText("Not up to date").waitFor({ state: "detached" });
    await other.leave();
  } finally {
    await daemon.stop();
  }
});
