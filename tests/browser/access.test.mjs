// Dashboards that need their token to be read, or cannot change anything.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { accessible, launch, picture, visit } from "./browser.mjs";
import { Daemon, TOKEN } from "./daemon.mjs";

let browser;

before(async () => {
  browser = await launch();
});

after(async () => {
  await browser?.close();
});

test("beyond loopback the page asks for the token first, and keeps it to its tab", async () => {
  const daemon = await Daemon.start({ listen: "0.0.0.0" });
  try {
    const page = await visit(browser, daemon.base, { expect: [/401/] });
    const dialog = page.getByRole("dialog", { name: "This dashboard needs its token" });
    await dialog.waitFor();
    await accessible(page, "the page that asks for the token");
    await picture(page, "sign-in");
    // Nothing is behind the dialog yet, and Escape does not lead past it.
    assert.equal(await page.textContent("#v-rate"), "–");
    await page.keyboard.press("Escape");
    await dialog.waitFor();
    await dialog.getByLabel("Token").fill("wrong");
    await page.keyboard.press("Enter");
    await dialog.getByRole("alert").waitFor();
    await dialog.getByLabel("Token").fill(TOKEN);
    await page.keyboard.press("Enter");
    await page.locator("#connection", { hasText: "Live" }).waitFor();
    assert.equal(await page.evaluate(() => document.cookie + JSON.stringify(localStorage)), "{}");
    await page.reload();
    await page.locator("#connection", { hasText: "Live" }).waitFor();
    await page.getByRole("button", { name: "Forget token" }).click();
    await dialog.waitFor();
    await page.leave();
  } finally {
    await daemon.stop();
  }
});

test("without a token the page says how to change things, and offers nothing that fails", async () => {
  const daemon = await Daemon.start({ token: "" });
  try {
    const page = await visit(browser, daemon.base);
    await page.locator("#top button").first().click();
    const dialog = page.getByRole("dialog");
    await dialog.getByText(/^anomaly ban 198\.51\.100\./).waitFor();
    assert.equal(await dialog.getByRole("button").count(), 1);
    await page.keyboard.press("Escape");
    await page.leave();
  } finally {
    await daemon.stop();
  }
});
