/**
 * The console in Chromium, against a real server: as the gateway serves it, or, where it does not, as `vite preview` does.
 */

import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { resolve } from "node:path";
import { after, before, describe, it } from "node:test";

import { VortaClient } from "@vorta/client";
import puppeteer, { type Browser, type Page } from "puppeteer-core";
import { preview, type PreviewServer } from "vite";

import { type Server, startServer } from "../../clients/typescript/test/server.ts";

const CHROMIUM_BIN = process.env["CHROMIUM_BIN"] ?? "/usr/bin/chromium";

/** What the page has once its script is in. */
declare const axe: typeof import("axe-core");

describe("console", { skip: existsSync(CHROMIUM_BIN) ? false : `no browser at ${CHROMIUM_BIN}` }, () => {
  let server: Server;
  let previewer: PreviewServer | undefined;
  let browser: Browser;
  let page: Page;
  const problems: string[] = [];

  before(async () => {
    server = await startServer("--set", "worker.fake_step_s=0.02");
    const client = new VortaClient({ baseUrl: server.httpUrl, transport: "grpc-web" });
    await client.collections.create("notes", { textFields: ["text"] });
    await client.collections.upsert(
      "notes",
      ["The sun is a star.", "Bread needs flour.", "Rain falls from clouds."].map((text, place) => ({
        id: `note-${place}`,
        text,
        payload: { place },
      })),
    );
    let url = `${server.httpUrl}/console/`;
    if (!(await fetch(url)).ok) {
      process.env["VORTA_HTTP_URL"] = server.httpUrl;
      const root = resolve(import.meta.dirname, "..");
      previewer = await preview({ root, logLevel: "warn", preview: { host: "localhost", port: 0 } });
      url = previewer.resolvedUrls?.local[0] ?? "";
    }
    browser = await puppeteer.launch({ executablePath: CHROMIUM_BIN, args: ["--no-sandbox"] });
    page = await browser.newPage();
    await page.setViewport({ width: 1280, height: 800 });
    page.on("console", (message) => problems.push(`${message.type()}: ${message.text()}`));
    page.on("pageerror", (error) => problems.push(String(error)));
    page.on("response", (response) => {
      if (response.status() >= 400) {
        problems.push(`${response.status()} ${response.url()}`);
      }
    });
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "light" }]);
    await page.goto(url);
    await page.waitForSelector('.status[data-state="serving"]');
  });

  after(async () => {
    await browser?.close();
    await previewer?.close();
    await server?.stop();
  });

  /** What the page computes. */
  const text = (selector: string): Promise<string> =>
    page.$eval(selector, (element) => (element as HTMLElement).innerText);
  const fill = async (selector: string, value: string): Promise<void> => {
    await page.click(selector, { clickCount: 3 });
    await page.keyboard.press("Backspace");
    await page.type(selector, value);
  };

  it("streams an answer, with its timings", async () => {
    await fill('.settings input[placeholder="What fits"]', "120");
    await page.type("#draft", "hello");
    await page.keyboard.press("Enter");
    await page.waitForFunction(
      () =>
        document.querySelector(".turn .streaming:not(:empty)") !== null &&
        document.querySelector(".log")?.getAttribute("aria-busy") === "true",
    );
    await page.waitForFunction(() => document.querySelector(".log")?.getAttribute("aria-busy") === "false");
    assert.match(await text(".turn .timing"), /TTFT\s+[\d.]+ m?s\s+tok\/s\s+[\d.k]+\s+tokens\s+120\s+ended\s+length/);
    assert.ok((await page.$$(".turn .strip-bar")).length === 119);
    assert.match(
      await page.$eval(".strip", (strip) => strip.getAttribute("aria-label") ?? ""),
      /first token .* then 119 tokens/,
    );
    assert.ok(await page.$eval("#draft", (draft) => draft === document.activeElement), "the input has lost the focus");
  });

  it("makes a new line at shift and enter", async () => {
    await page.type("#draft", "a");
    await page.keyboard.down("Shift");
    await page.keyboard.press("Enter");
    await page.keyboard.up("Shift");
    await page.type("#draft", "b");
    assert.equal(await page.$eval("#draft", (draft) => (draft as HTMLTextAreaElement).value), "a\nb");
    await fill("#draft", " ");
  });

  for (const how of ["escape", "button"] as const) {
    it(`stops an answer by ${how}`, async () => {
      await fill('.settings input[placeholder="What fits"]', "900");
      await page.type("#draft", `stop by ${how}`);
      await page.keyboard.press("Enter");
      await page.waitForFunction(
        () => (document.querySelector(".turn:last-child .streaming")?.textContent ?? "").length > 5,
      );
      if (how === "escape") {
        await page.keyboard.press("Escape");
      } else {
        await page.click("button.stop");
      }
      await page.waitForFunction(() => document.querySelector(".streaming") === null);
      assert.match(await text(".turn:last-child .timing"), /ended\s+cancelled/);
    });
  }

  it("names the field of a refused request, and goes on", async () => {
    await fill('.settings input[placeholder="Model’s own"]', "101");
    await page.type("#draft", "too hot");
    await page.keyboard.press("Enter");
    await page.waitForSelector(".turn:last-child .problem");
    assert.match(await text(".turn:last-child .problem"), /InvalidArgument · INVALID_FIELD · temperature/);
    await page.click(".settings button");
    assert.equal(await page.$(".turn"), null);
  });

  it("moves between tabs by keys", async () => {
    await page.focus("#tab-chat");
    const selected = (): Promise<string> => text('[role="tab"][aria-selected="true"]');
    for (const [key, tab] of [
      ["ArrowRight", "Collections"],
      ["End", "Metrics"],
      ["ArrowRight", "Chat"],
      ["ArrowLeft", "Metrics"],
      ["Home", "Chat"],
    ] as const) {
      await page.keyboard.press(key);
      assert.equal(await selected(), tab);
      assert.equal(await page.evaluate(() => document.activeElement?.textContent), tab);
      assert.equal((await page.$$('[role="tabpanel"]:not([hidden])')).length, 1);
    }
  });

  it("compares two texts", async () => {
    await page.click("#tab-collections");
    const [first, second] = await page.$$(".similarity input");
    await first?.type("the same");
    await second?.type("the same");
    await page.keyboard.press("Enter");
    await page.waitForSelector(".similarity output");
    assert.equal(await text(".similarity output"), "1.0000");
  });

  it("searches a collection and shows payloads", async () => {
    assert.match(await text(".pick"), /notes\s+3 points/);
    await page.type('.search input[type="search"]', "sun");
    await page.keyboard.press("Enter");
    await page.waitForSelector(".hit");
    assert.equal((await page.$$(".hit")).length, 3);
    await page.select(".search select", "hybrid");
    await page.click(".search button");
    await page.waitForFunction(() => /hybrid/.test(document.querySelector(".search")?.textContent ?? ""));
    assert.match(await text(".hit"), /note-0[\s\S]*words [\d.]+[\s\S]*The sun is a star\./);
    await page.click(".hit summary");
    assert.match(await text(".hit pre"), /"place": 0/);
  });

  it("unloads a model at the second click and loads it again", async () => {
    await page.click("#tab-models");
    await page.waitForSelector('button[aria-label="Unload r"]');
    assert.equal((await page.$$(".table tbody tr")).length, 3);
    await page.click('button[aria-label="Unload r"]');
    await page.click('button[aria-label="Really unload r?"]');
    await page.waitForSelector('button[aria-label="Load r"]');
    await page.click('button[aria-label="Load r"]');
    await page.waitForSelector('button[aria-label="Unload r"]');
  });

  it("draws metrics", async () => {
    await page.click("#tab-metrics");
    await page.waitForFunction(() =>
      [...document.querySelectorAll(".chart svg")].some((chart) =>
        /^TTFT.*p50 [\d.]+ m?s, at most/.test(chart.getAttribute("aria-label") ?? ""),
      ),
    );
    assert.equal((await page.$$(".chart")).length, 6);
    assert.ok((await page.$$eval(".line", (lines) => lines.filter((line) => line.getAttribute("d")))).length >= 4);
  });

  it("changes the theme, and keeps it", async () => {
    const ground = (): Promise<string> => page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor);
    const light = await ground();
    await page.click('button[aria-label="Theme: auto. Change to light"]');
    assert.equal(await ground(), light);
    await page.click('button[aria-label="Theme: light. Change to dark"]');
    const dark = await ground();
    assert.notEqual(dark, light);
    await page.reload();
    await page.waitForSelector('button[aria-label="Theme: dark. Change to auto"]');
    assert.equal(await ground(), dark);
    await page.click('button[aria-label="Theme: dark. Change to auto"]');
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "dark" }]);
    assert.equal(await ground(), dark);
  });

  it("keeps the key for the session alone", async () => {
    await page.type(".api-key input", "secret");
    const sent = page.waitForRequest((request) => request.headers()["authorization"] === "Bearer secret");
    await page.keyboard.press("Enter");
    await sent;
    const stored = await page.evaluate(() => [JSON.stringify(sessionStorage), JSON.stringify(localStorage)]);
    assert.match(stored[0] ?? "", /secret/);
    assert.doesNotMatch(stored[1] ?? "", /secret/);
  });

  it("fits a width of 360 pixels", async () => {
    await page.setViewport({ width: 360, height: 740 });
    for (const tab of ["chat", "collections", "models", "metrics"]) {
      await page.click(`#tab-${tab}`);
      const overflow = await page.evaluate(
        () => Math.max(...[...document.querySelectorAll("#app, main, [role=tabpanel]:not([hidden])")].map((e) => e.scrollWidth)),
      );
      assert.ok(overflow <= 360, `${tab} is ${overflow} pixels wide`);
    }
  });

  for (const theme of ["light", "dark"] as const) {
    it(`passes axe's rules of accessibility, ${theme}`, async () => {
      await page.setViewport({ width: 1280, height: 800 });
      await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: theme }]);
      await page.evaluate(await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8"));
      for (const tab of ["chat", "collections", "models", "metrics"]) {
        await page.click(`#tab-${tab}`);
        const broken = await page.evaluate(async () => {
          const { violations } = await axe.run();
          return violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(", ")}`);
        });
        assert.deepEqual(broken, [], tab);
      }
    });
  }

  it("has logged nothing", () => {
    assert.deepEqual(problems, []);
  });
});
