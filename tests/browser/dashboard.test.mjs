// The dashboard in a real browser, over a real daemon in dry-run, during a flood.

import assert from "node:assert/strict";
import { after, afterEach, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { LOOKS, accessible, closePages, launch, overflow, picture, visit } from "./browser.mjs";
import { ATTACKER, Daemon, TOKEN, eventually, until } from "./daemon.mjs";

let daemon;
let browser;

before(async () => {
  [daemon, browser] = await Promise.all([Daemon.start(), launch()]);
});

afterEach(() => closePages(browser));

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
  // What was typed is not the page's token before it has proved right: its other questions would be refused.
  const stored = () => page.evaluate(() => sessionStorage.getItem("anomaly-token"));
  await page.route("**/api/v1/bans/*", async (route) => {
    assert.equal(await stored(), null);
    await route.continue();
  });
  await dialog.getByLabel(/^Token/).fill("not the token");
  await dialog.getByRole("button", { name: "Unban" }).click();
  await dialog.getByRole("alert").waitFor();
  await dialog.getByLabel(/^Token/).fill(TOKEN);
  await dialog.getByRole("button", { name: "Unban" }).click();
  await dialog.waitFor({ state: "hidden" });
  assert.equal(await stored(), TOKEN);
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
  const [evidence] = (await daemon.get(`bans/${ip}`)).bans;
  assert.ok(evidence.limit > 0);
  assert.equal(await page.locator(".past dt", { hasText: "Limit" }).locator("+ dd").textContent(), `${Math.round(evidence.limit)} points`);
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

test("the graph draws rate, mean, band and limit over each of its spans", async () => {
  const end = Math.floor(Date.now() / 1000);
  const asked = [];
  const page = await visit(browser, daemon.base, {
    prepare: (page) =>
      page.route("**/api/v1/history?*", (route) => {
        const range = new URL(route.request().url()).searchParams.get("range");
        asked.push(range);
        const [span, step] = { "5m": [300, 1], "1h": [3600, 5], "24h": [86_400, 60] }[range];
        const points = [];
        for (let t = end - span; t <= end; t += step) {
          points.push({ t, rate: 12 + (t % 7), error_ratio: 0.01, mean: 10, stddev: 2, limit: 30, bans: t > end - span / 2 ? 100 : 0, dropped: 0 });
        }
        return route.fulfill({ json: points });
      }),
  });
  for (const [name, words] of [["1 h", "1 h"], ["24 h", "1 d"], ["5 min", "5 min"]]) {
    await page.getByRole("button", { name, exact: true }).click();
    await page.getByRole("button", { name, exact: true, pressed: true }).waitFor();
    await page.locator(`.plot[aria-label^='Requests per second over the last ${words}: ']`).waitFor();
    const plot = await page.locator(".plot").boundingBox();
    const box = async (part) => {
      const found = await page.locator(`.plot .${part}`).boundingBox();
      assert.ok(found && found.width > 0.8 * plot.width, `${part} over ${name}: ${JSON.stringify(found)} in ${JSON.stringify(plot)}`);
      return found;
    };
    const [limit, line, mean, band] = [await box("limit"), await box("line"), await box("mean"), await box("band")];
    // Up is more: the limit of 30, a rate of 12 to 18, a mean of 10 in a band of 8 to 12.
    assert.ok(limit.y < line.y && line.y < mean.y, `over ${name}`);
    assert.ok(band.y < mean.y && mean.y < band.y + band.height, `over ${name}`);
    const height = (part) => page.locator(`.plot .${part}`).evaluate((path) => path.ownerSVGElement.viewBox.baseVal.height - 24 - Number(path.getAttribute("d").match(/^M[\d.]+ ([\d.]+)/)[1]));
    const times = (await height("limit")) / (await height("mean"));
    assert.ok(Math.abs(times - 3) < 0.02, `the limit is three means and drawn at ${times}, over ${name}`);
    assert.ok((await page.locator(".plot .marks path").count()) === 1, `the ban's mark, over ${name}`);
  }
  assert.deepEqual([...new Set(asked)], ["5m", "1h", "24h"]);
  await page.leave();
});

test("every column of the list of sources is the API's figure", async () => {
  const page = await visit(browser, daemon.base);
  await page.locator("#top tbody tr").first().waitFor();
  // Without log there is no log time: the window stands still, and page and API agree as soon as both have all of it.
  clearInterval(daemon.timer);
  const busy = "198.51.100.200";
  for (let n = 0; n < 30; n++) daemon.write(daemon.line(Date.now(), busy, `/page/${n}`, n % 3 ? 200 : 404));
  try {
    const number = (text) => Number(text.match(/-?[\d.]+/)[0]);
    const near = (shown, value, step) => assert.ok(Math.abs(number(shown) - value) <= step, `${shown} of ${value}`);
    await eventually(async () => {
      const rows = await daemon.get("top?limit=15");
      const cells = await page.locator("#top tbody tr").evaluateAll((all) => all.map((tr) => [...tr.cells].map((td) => td.innerText)));
      assert.deepEqual([rows[0].ip, rows[0].requests, rows[0].error_ratio], [busy, 30, 0.333]);
      assert.deepEqual(cells.map(([ip]) => ip), rows.map((row) => row.ip));
      for (const [n, row] of rows.entries()) {
        const [, rate, errors, z, share, act] = cells[n];
        near(rate, row.rate, 0.006);
        near(errors, row.error_ratio * 100, 0.51);
        near(z, row.z_score, 0.051);
        near(share, row.share * 100, 0.51);
        assert.match(act, /^Ban/);
      }
    });
    assert.deepEqual(await page.locator("#top th").allInnerTexts(), ["Address", "Rate", "Errors", "z", "Share", "Action"]);
  } finally {
    daemon.timer = setInterval(() => daemon.live(), 100);
  }
  await page.leave();
});

test("the hours of the day are as warm as they were busy", async () => {
  const hour = new Date().getUTCHours();
  const busiest = (hour + 3) % 24;
  const page = await visit(browser, daemon.base, {
    prepare: (page) =>
      page.route("**/api/v1/baseline", async (route) => {
        const response = await route.fetch();
        const json = await response.json();
        json.hours = json.hours.map((_, h) => (h === (hour + 1) % 24 ? null : { ...json.global, mean: h === busiest ? 40 : 10 }));
        await route.fulfill({ response, json });
      }),
  });
  const cell = (h) => page.locator("#hours li").nth(h % 24);
  await cell(0).waitFor();
  const heat = (h) => cell(h).evaluate((node) => getComputedStyle(node).getPropertyValue("--heat"));
  assert.deepEqual([await heat(busiest), await heat(hour + 4)], ["1.000", "0.250"]);
  const color = (h) => cell(h).evaluate((node) => getComputedStyle(node).backgroundColor);
  assert.notEqual(await color(busiest), await color(hour + 4));
  const two = (h) => String(h % 24).padStart(2, "0");
  assert.match(await cell(busiest).innerText(), new RegExp(`^${two(busiest)}:00: 40\\.0 ± `));
  assert.match(await cell(hour + 1).innerText(), new RegExp(`^${two(hour + 1)}:00: nothing learned yet`));
  assert.equal(await page.locator("#hours [aria-current=time]").innerText().then((t) => t.slice(0, 2)), two(hour));
  assert.equal(await page.textContent("#hours-note"), "23 of 24 hours known; the busiest has 40.0 req/s");
  await page.leave();
});

test("the page of an address stands still under the finger while its counters run", async () => {
  const ip = "203.0.113.120";
  let packets = 1000;
  const page = await visit(browser, `${daemon.base}/#/ip/${ip}`, {
    prepare: (page) =>
      page.route("**/api/v1/bans/*", async (route) => {
        const response = await route.fetch();
        const json = await response.json();
        // A dry run drops nothing.
        packets += 1000;
        for (const row of [...json.active, ...json.bans]) Object.assign(row, { packets, bytes: 60 * packets });
        await route.fulfill({ response, json });
      }),
  });
  const button = page.getByRole("button", { name: "Unban" });
  await button.focus();
  await page.evaluate(() => {
    window.held = [document.activeElement, document.querySelector(".samples td.path")];
    getSelection().selectAllChildren(window.held[1]);
  });
  const path = await page.evaluate(() => String(getSelection()));
  const counts = () => page.locator("#ip-page").getByText(/[\d,]+ packets, /).allInnerTexts();
  const seen = new Set();
  await until("three counts", async () => {
    const [now, record] = await counts();
    if (now === record) seen.add(now);
    return seen.size >= 3;
  });
  assert.ok(await page.evaluate(() => window.held.every((node) => node.isConnected) && document.activeElement === window.held[0]));
  assert.equal(await page.evaluate(() => String(getSelection())), path);
  await page.leave();
});

test("a prefix with a ban inside is not banned itself, and leads to what is", async () => {
  const page = await visit(browser, `${daemon.base}/#/ip/203.0.113.96%2F27`);
  await page.locator(".ip-head .pill.warn", { hasText: /^Not banned, but (a part of it is|2 parts of it are)$/ }).waitFor();
  assert.deepEqual(await page.locator(".ip-head button").allInnerTexts(), ["Ban"]);
  await page.locator(".past summary .ip", { hasText: "203.0.113.120" }).first().waitFor();
  const list = page.locator("h3", { hasText: "Bans inside it" }).locator("+ ul");
  await accessible(page, "the page of a prefix");
  await picture(page, "ip-inside");
  await list.getByRole("link", { name: "203.0.113.120", exact: true }).click();
  await page.getByText(/^Banned, \d+:\d\d left$/).waitFor();
  assert.deepEqual(await page.locator(".ip-head button").allInnerTexts(), ["Unban"]);
  await page.leave();
});

test("times are UTC wherever the reader is, and say so", async () => {
  const { since } = (await daemon.get("bans")).find((b) => b.ip === "203.0.113.120");
  const at = since.slice(11, 19);
  const page = await visit(browser, daemon.base, { timezoneId: "Asia/Kathmandu", viewport: { width: 1500, height: 900 } });
  const shown = row(page, "203.0.113.120").locator(".since");
  await shown.waitFor();
  assert.ok((await shown.innerText()).endsWith(at), `${await shown.innerText()} is not ${at}`);
  assert.equal(await page.locator("#bans th.since").innerText(), "Since, UTC");
  assert.ok((await page.locator("#feed time").first().innerText()).match(/\d\d:\d\d:\d\d$/));
  await page.locator("#feed li", { hasText: "203.0.113.120" }).locator("time", { hasText: at }).waitFor();
  await page.locator(".plot .zone", { hasText: "UTC" }).waitFor();
  await page.evaluate(() => (location.hash = "#/ip/203.0.113.120"));
  await page.locator(".past summary time", { hasText: `${at} UTC` }).waitFor();
  await page.leave();
});

test("a browser that blocks storage shows the page and can ban", async () => {
  const ip = "198.51.100.9";
  const page = await visit(browser, `${daemon.base}/#/ip/${ip}`, {
    prepare: (page) =>
      page.addInitScript(() => {
        for (const name of ["localStorage", "sessionStorage"]) {
          Object.defineProperty(window, name, { get: () => { throw new DOMException("blocked", "SecurityError"); } });
        }
      }),
  });
  await page.locator("#connection", { hasText: "Live" }).waitFor();
  await page.getByRole("button", { name: /^Theme/ }).click();
  assert.equal(await page.getAttribute("html", "data-theme"), "light");
  await page.getByRole("button", { name: "Ban", exact: true }).click();
  await page.getByLabel(/^Token/).fill(TOKEN);
  await page.getByRole("dialog").getByRole("button", { name: "Ban" }).click();
  await page.getByText(/^Banned, /).waitFor();
  // The token is known for as long as the page is.
  await page.getByRole("button", { name: "Unban" }).click();
  assert.equal(await page.getByLabel(/^Token/).isVisible(), false);
  await page.getByRole("dialog").getByRole("button", { name: "Unban" }).click();
  await page.getByText("Not banned").waitFor();
  await page.leave();
});

test("a token that is not the one any more is forgotten where reading needs none", async () => {
  const page = await visit(browser, daemon.base, {
    expect: [/401/],
    prepare: (page) => page.addInitScript(() => sessionStorage.setItem("anomaly-token", "of yesterday")),
  });
  await page.locator("#connection", { hasText: "Live" }).waitFor();
  await row(page, "203.0.113.120").waitFor();
  assert.equal(await page.evaluate(() => sessionStorage.getItem("anomaly-token")), null);
  assert.equal(await page.getByRole("dialog").count(), 0);
  await page.leave();
});

test("a hidden tab gives its connection back, and is up to date when it is seen again", async () => {
  const page = await visit(browser, daemon.base);
  await page.locator("#connection", { hasText: "Live" }).waitFor();
  const look = (hidden) =>
    page.evaluate((value) => {
      Object.defineProperty(document, "hidden", { configurable: true, get: () => value });
      document.dispatchEvent(new Event("visibilitychange"));
    }, hidden);
  const streams = async () => Number((await (await fetch(`${daemon.base}/metrics`)).text()).match(/^anomaly_http_event_streams (\d+)/m)[1]);
  await until("its stream", async () => (await streams()) === 1);
  await look(true);
  await until("no stream", async () => (await streams()) === 0);
  await page.locator("#connection", { hasText: "Paused" }).waitFor();
  await look(false);
  await page.locator("#connection", { hasText: "Live" }).waitFor();
  assert.equal(await page.locator(".banner").count(), 0);
  assert.equal(await streams(), 1);
  await page.leave();
});

test("a banner's words change in place, and a new one is said aloud", async () => {
  const page = await visit(browser, daemon.base);
  await page.locator("#connection", { hasText: "Live" }).waitFor();
  const [same, words, said] = await page.evaluate(async () => {
    const { Banners } = await import("/assets/cards.js");
    const banners = new Banners(() => Date.now());
    const silent = (secs) => ({ what: "log_silent", reason: `no request for ${secs} s`, since: "2026-04-27T09:25:51Z" });
    banners.show([silent(61)]);
    const node = document.querySelector(".banner");
    const said = [document.querySelector("#alarm").textContent];
    banners.show([silent(62), { what: "slack", reason: "429", since: "2026-04-27T09:26:00Z" }]);
    said.push(document.querySelector("#alarm").textContent);
    banners.show([silent(63)]);
    return [node.isConnected, node.innerText, said];
  });
  assert.ok(same);
  assert.match(words, /The log is silent\. no request for 63 s/);
  assert.deepEqual(said, ["The log is silent.", "Slack does not get its messages."]);
  await page.leave();
});

test("packets a second are those of at least a second", async () => {
  const page = await visit(browser, daemon.base);
  const rates = await page.evaluate(async () => {
    const { Vitals } = await import("/assets/cards.js");
    const vitals = new Vitals();
    const rates = [];
    // Pictures every 100 ms of a counter that moves by 500 once a second.
    for (let ms = 0; ms <= 5000; ms += 100) {
      vitals.drops({ time: new Date(1_777_281_951_000 + ms).toISOString(), dropped_packets: 500 * Math.floor(ms / 1000) });
      if (ms >= 1000) rates.push(vitals.pps);
    }
    return rates;
  });
  assert.deepEqual([...new Set(rates)], [500]);
  await page.leave();
});

test("a burst of bans is one question a second", async () => {
  const asked = { list: [], card: [] };
  // The overview and the page of somebody else.
  const [page, other] = [await visit(browser, daemon.base), await visit(browser, `${daemon.base}/#/ip/198.51.100.1`)];
  await page.locator("#connection", { hasText: "Live" }).waitFor();
  await other.getByText("Not banned").waitFor();
  page.on("request", (r) => r.url().includes("/bans?") && asked.list.push(performance.now()));
  other.on("request", (r) => r.url().includes("/bans/") && asked.card.push(performance.now()));
  const began = performance.now();
  const headers = { Authorization: `Bearer ${TOKEN}`, "Content-Type": "application/json" };
  const send = (method, path, body) => fetch(`${daemon.base}/api/v1/${path}`, { method, headers, body });
  for (let n = 0; n < 40; n++) {
    await send("POST", "bans", JSON.stringify({ ip: `203.0.113.${150 + n}`, duration_secs: 600 }));
    await sleep(50);
  }
  await row(page, "203.0.113.189").waitFor();
  const seconds = (performance.now() - began) / 1000;
  // As many as there were seconds, one that was due, and one by the clock.
  assert.ok(asked.list.length <= seconds + 2, `${asked.list.length} lists in ${seconds} s`);
  assert.ok(asked.card.length <= seconds / 2 + 2, `${asked.card.length} cards in ${seconds} s`);
  for (let n = 0; n < 40; n++) await send("DELETE", `bans/203.0.113.${150 + n}`);
  await row(page, "203.0.113.189").waitFor({ state: "detached" });
  await page.leave();
  await other.leave();
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
  await page.locator("#connection", { hasText: "Live" }).waitFor();
  await page.locator(".banner", { hasText: "No connection" }).waitFor({ state: "detached" });
  await row(page, "203.0.113.120").waitFor();
  await page.leave();
});
