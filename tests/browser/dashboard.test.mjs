// The dashboard in a real browser, over a real daemon in dry-run, during a flood.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { LOOKS, accessible, launch, overflow, picture, visit } from "./browser.mjs";
import { ATTACKER, Daemon, TOKEN, until } from "./daemon.mjs";

let daemon;
let browser;

before(async () => {
  [daemon, browser] = await Promise.all([Daemon.start(), launch()]);
});

after(async () => {
  await browser?.close();
  await daemon?.stop();
});

const row = (page, ip) => page.locator("#bans tr", { has: page.getByRole("link", { name: ip, exact: true }) });

test("figures are there within two seconds and move", async () => {
  const page = await visit(browser, daemon.base);
  await page.locator("#connection", { hasText: "Live" }).waitFor({ timeout: 2000 });
  await page.waitForFunction(() => !document.querySelector("#overview").classList.contains("loading"), null, { timeout: 2000 });
  const seen = new Set();
  await until("three different clocks and graphs", async () => {
    seen.add(`${await page.textContent("#clock")} ${await page.getAttribute(".plot .line", "d")}`);
    return seen.size >= 3;
  }, 6000);
  assert.match(await page.textContent("#v-rate"), /^\d/);
  assert.match(await page.textContent("#system"), /dry run/);
  await page.leave();
});

test("a ban appears within two seconds, counts down, and is lifted by its button", async () => {
  const page = await visit(browser, daemon.base, { expect: [/401/] });
  await page.locator("#connection", { hasText: "Live" }).waitFor();
  await page.getByText("Nobody is banned.").waitFor();
  await picture(page, "empty");

  daemon.flood(ATTACKER, 50);
  const decided = until("the ban", async () => (await daemon.get("bans")).find((b) => b.ip === ATTACKER)).then(() => Date.now());
  const shown = row(page, ATTACKER).waitFor({ timeout: 30_000 }).then(() => Date.now());
  const delay = (await shown) - (await decided);
  assert.ok(delay < 2000, `shown ${delay} ms after the API had it`);
  console.log(`# the ban was shown ${delay} ms after the API had it`);
  await page.locator("#feed .ban", { hasText: ATTACKER }).waitFor({ timeout: 2000 });
  await picture(page, "attack-light", { fullPage: true });

  const left = row(page, ATTACKER).locator(".value").last();
  const first = await left.textContent();
  assert.match(first, /^\d+:\d\d$/);
  await until("the countdown to run", async () => (await left.textContent()) !== first, 3000);

  daemon.flood(ATTACKER, 0);
  await row(page, ATTACKER).getByRole("button").click();
  const dialog = page.getByRole("dialog");
  await dialog.getByLabel(/^Token/).fill("not the token");
  await dialog.getByRole("button", { name: "Unban" }).click();
  await dialog.getByRole("alert").waitFor();
  await dialog.getByLabel(/^Token/).fill(TOKEN);
  await dialog.getByRole("button", { name: "Unban" }).click();
  await dialog.waitFor({ state: "hidden" });
  await row(page, ATTACKER).waitFor({ state: "detached", timeout: 3000 });
  await page.locator("#feed .unban", { hasText: ATTACKER }).waitFor({ timeout: 3000 });
  assert.deepEqual(await daemon.get("bans"), []);
  await page.leave();
});

test("an address is banned by its button, with length and reason", async () => {
  const page = await visit(browser, daemon.base);
  await page.evaluate((t) => sessionStorage.setItem("anomaly-token", t), TOKEN);
  const ip = "198.51.100.7";
  await page.goto(`${daemon.base}/#/ip/${ip}`);
  await page.getByRole("button", { name: "Ban", exact: true }).click();
  const dialog = page.getByRole("dialog");
  await dialog.getByLabel("For how long").selectOption({ label: "1 hour" });
  await dialog.getByLabel(/^Why/).fill("scrapes the catalogue <b>daily</b>");
  await picture(page, "ban-dialog");
  await accessible(page, "the dialog");
  await dialog.getByRole("button", { name: "Ban" }).click();
  await page.getByText(/^Banned, (1:00:00|59:\d\d) left$/).waitFor();
  // The list is a picture of at most a second ago.
  const ban = await until("the ban in the list", async () => (await daemon.get("bans")).find((b) => b.ip === ip));
  assert.deepEqual([ban.ip, ban.duration_secs, ban.reason, ban.origin], [ip, 3600, "scrapes the catalogue <b>daily</b>", "operator"]);
  await page.locator(".record", { hasText: "scrapes the catalogue <b>daily</b>" }).waitFor();
  await page.getByRole("button", { name: "Unban" }).click();
  await dialog.getByRole("button", { name: "Unban" }).click();
  await page.getByText("Not banned").waitFor();
  await page.leave();
});

test("the page of an address says why, and text of a hostile client is only text", async () => {
  // The grace after the unban above has to be outrun: another address.
  const ip = "203.0.113.99";
  daemon.flood(ip, 50);
  await until("the ban", async () => (await daemon.get("bans")).find((b) => b.ip === ip));
  daemon.flood(ip, 0);
  const page = await visit(browser, `${daemon.base}/#/ip/${ip}`);
  await page.getByText(/^Banned, \d+:\d\d left$/).waitFor();
  await page.locator(".samples .path", { hasText: "<script>window.pwned=\"path\"</script>" }).first().waitFor();
  await page.locator(".compare", { hasText: "req/s against" }).waitFor();
  assert.equal(await page.locator("main script, main img").count(), 0);
  await picture(page, "ip-light");
  await accessible(page, "the page of an address");

  // Whatever is in the address bar is looked up or refused, never run.
  for (const hash of ["#/ip/%3Cscript%3Ewindow.pwned=1%3C/script%3E", "#/ip/%ff", "#/ip/..%2F..%2Fstatus", "#/ip/2001:db8::%2F64"]) {
    await page.evaluate((h) => (location.hash = h), hash);
    await page.locator("#ip-page h1").waitFor();
    await page.locator(".failure, .record").first().waitFor();
  }
  await page.leave().catch((error) => {
    // The browser reports the 400s that these deserve; nothing else may be wrong.
    if (!/400/.test(error.message) || /pwned|exception|dialog|request to/.test(error.message)) throw error;
  });
});

test("a screen reader, a keyboard, a phone and a dark room are served", async () => {
  daemon.flood("203.0.113.120", 60);
  await until("a ban to show", async () => (await daemon.get("bans")).some((b) => b.ip === "203.0.113.120"));
  daemon.flood("203.0.113.120", 0);
  for (const [name, options] of [...LOOKS, ["tablet", { viewport: { width: 820, height: 1180 } }]]) {
    const page = await visit(browser, daemon.base, options);
    await row(page, "203.0.113.120").waitFor();
    await sleep(1200);
    assert.ok((await overflow(page)) <= 0, `${name} is wider than its window`);
    const minor = await accessible(page, `the overview, ${name}`);
    if (minor.length) console.log(`# ${name}: ${minor.join("; ")}`);
    await picture(page, name, { fullPage: true });
    await page.evaluate(() => (location.hash = "#/ip/203.0.113.120"));
    await page.locator(".record .past").waitFor();
    assert.ok((await overflow(page)) <= 0, `the page of an address, ${name}, is wider than its window`);
    await accessible(page, `the page of an address, ${name}`);
    await picture(page, `ip-${name}`, { fullPage: true });
    await page.leave();
  }
});

test("the keyboard reaches everything and knows where it is", async () => {
  const page = await visit(browser, daemon.base);
  await row(page, "203.0.113.120").waitFor();
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Skip to content");
  await page.keyboard.press("/");
  assert.equal(await page.evaluate(() => document.activeElement.id), "lookup-ip");
  await page.keyboard.type("203.0.113.120");
  await page.keyboard.press("Enter");
  await page.locator(".record .past").waitFor();
  assert.equal(await page.evaluate(() => document.activeElement.id), "main");
  assert.match(await page.title(), /^203\.0\.113\.120/);
  await page.goBack();
  await row(page, "203.0.113.120").waitFor();

  // The graph is read point by point.
  await page.focus(".plot");
  await page.keyboard.press("ArrowLeft");
  await page.locator(".tip", { hasText: "rate" }).waitFor();
  await page.keyboard.press("Escape");
  await page.locator(".tip").waitFor({ state: "hidden" });

  // A button keeps the focus while the seconds go by, and its row its place.
  const button = row(page, "203.0.113.120").getByRole("button");
  await button.focus();
  await sleep(2500);
  assert.equal(await button.evaluate((b) => b === document.activeElement), true);
  await page.keyboard.press("Enter");
  await page.getByRole("dialog").waitFor();
  await page.keyboard.press("Escape");
  await page.getByRole("dialog").waitFor({ state: "hidden" });
  assert.equal(await button.evaluate((b) => b === document.activeElement), true);
  await page.leave();
});

test("the graph has three spans", async () => {
  const page = await visit(browser, daemon.base);
  for (const name of ["1 h", "24 h", "5 min"]) {
    await page.getByRole("button", { name, exact: true }).click();
    await page.getByRole("button", { name, exact: true, pressed: true }).waitFor();
  }
  await page.locator(".plot[aria-label^='Requests per second over the last ']").waitFor();
  await page.leave();
});

test("a lost daemon is said at once, and found again", async () => {
  const page = await visit(browser, daemon.base, { expect: [/ERR_CONNECTION_REFUSED|ERR_INCOMPLETE_CHUNKED_ENCODING|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET/] });
  await page.locator("#connection", { hasText: "Live" }).waitFor();
  await daemon.halt();
  await page.locator("#connection", { hasText: "Disconnected" }).waitFor({ timeout: 3000 });
  await page.locator(".banner.bad", { hasText: "No connection to the daemon." }).waitFor();
  await picture(page, "lost");
  await accessible(page, "the page without a daemon");
  await daemon.run();
  await page.locator("#connection", { hasText: "Live" }).waitFor({ timeout: 12_000 });
  await page.locator(".banner", { hasText: "No connection" }).waitFor({ state: "detached" });
  await row(page, "203.0.113.120").waitFor();
  await page.leave();
});
