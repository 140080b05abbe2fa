/** The client in a browser: a page on another origin, gRPC-Web over fetch. */

import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { once } from "node:events";
import { createServer, type Server as HttpServer } from "node:http";
import type { AddressInfo } from "node:net";
import { resolve } from "node:path";
import { after, before, describe, it } from "node:test";

import type * as sdk from "@vorta/client";
import { build } from "esbuild";
import puppeteer, { type Browser, type Page } from "puppeteer-core";

import { startProxy } from "./proxy.js";
import { type Server, startServer } from "./server.js";

const CHROMIUM_BIN = process.env["CHROMIUM_BIN"] ?? "/usr/bin/chromium";

/** What the page has. */
declare const vorta: typeof sdk;

describe("browser", { skip: existsSync(CHROMIUM_BIN) ? false : `no browser at ${CHROMIUM_BIN}` }, () => {
  let server: Server;
  let pages: HttpServer;
  let browser: Browser;
  let page: Page;
  const problems: string[] = [];

  before(async () => {
    const root = resolve(import.meta.dirname, "..");
    const bundle = await build({
      stdin: { contents: 'export * from "@vorta/client";', resolveDir: root },
      bundle: true,
      write: false,
      format: "iife",
      globalName: "vorta",
      platform: "browser",
    });
    const script = bundle.outputFiles[0]?.text ?? "";
    assert.ok(!script.includes("node:http2"), "Node's transport is in the browser's bundle");
    pages = createServer((request, response) => {
      const isScript = request.url === "/client.js";
      response.setHeader("content-type", isScript ? "text/javascript" : "text/html");
      response.end(
        isScript ? script : '<!doctype html><link rel="icon" href="data:,"><script src="/client.js"></script>',
      );
    });
    pages.listen(0, "localhost");
    await once(pages, "listening");
    server = await startServer("--set", "worker.fake_step_s=0.01");
    browser = await puppeteer.launch({ executablePath: CHROMIUM_BIN, args: ["--no-sandbox"] });
    page = await browser.newPage();
    page.on("console", (message) => problems.push(message.text()));
    page.on("pageerror", (error) => problems.push(String(error)));
    await page.goto(`http://localhost:${(pages.address() as AddressInfo).port}/`);
  });

  after(async () => {
    await browser?.close();
    await server?.stop();
    pages?.close();
  });

  it("streams as the tokens come", async () => {
    const seen = await page.evaluate(async (baseUrl) => {
      const client = new vorta.VortaClient({ baseUrl, apiKey: "secret" });
      const stream = client.streamChat("hello", { maxTokens: 60, temperature: 0 });
      const times: number[] = [];
      let text = "";
      for await (const event of stream) {
        times.push(performance.now());
        text += event.text;
      }
      const { text: whole, finishReason, usage } = await stream.result();
      const spreadMs = (times.at(-1) ?? 0) - (times[0] ?? 0);
      return { text, whole, finishReason, tokens: usage.completionTokens, events: times.length, spreadMs };
    }, server.httpUrl);
    assert.equal(seen.text, seen.whole);
    assert.equal(seen.finishReason, "length");
    assert.equal(seen.tokens, 60);
    assert.ok(seen.events > 10, `${seen.events} events`);
    assert.ok(seen.spreadMs > 200, `all events came within ${seen.spreadMs} ms`);
  });

  it("cancels", async () => {
    const reason = await page.evaluate(async (baseUrl) => {
      const stream = new vorta.VortaClient({ baseUrl }).streamChat("hello", { maxTokens: 900 });
      for await (const event of stream) {
        if (event.kind === "delta") {
          await stream.cancel();
        }
      }
      return stream.finished?.finishReason;
    }, server.httpUrl);
    assert.equal(reason, "cancelled");
  });

  it("embeds", async () => {
    const dimensions = await page.evaluate(async (baseUrl) => {
      const { vectors } = await new vorta.VortaClient({ baseUrl }).embed("hello");
      return vectors[0]?.length;
    }, server.httpUrl);
    assert.equal(dimensions, 64);
  });

  it("streams texts and points, a call for each batch", async () => {
    const seen = await page.evaluate(async (baseUrl) => {
      const client = new vorta.VortaClient({ baseUrl });
      const stream = client.streamEmbed(["a", "b", "c"], { batchSize: 2 });
      const indexes: number[] = [];
      for await (const { index } of stream) {
        indexes.push(index);
      }
      await client.collections.create("browser", { dimension: 1 });
      const points = ["x", "y", "z"].map((id) => ({ id, vector: [1] }));
      const counts: number[] = [];
      for await (const { count } of client.collections.streamUpsert("browser", points, { batchSize: 2 })) {
        counts.push(count);
      }
      return { indexes, numInputs: (await stream.result()).numInputs, counts };
    }, server.httpUrl);
    assert.deepEqual(seen, { indexes: [0, 1, 2], numInputs: 3, counts: [2, 1] });
  });

  it("throws typed errors", async () => {
    const seen = await page.evaluate(async (baseUrl) => {
      const client = new vorta.VortaClient({ baseUrl });
      const found: unknown[] = [];
      for (const call of [
        () => client.generate("x", { temperature: -1 }),
        () => client.streamGenerate("x", { topP: 2 }).result(),
        () => client.generate("x", { model: "nope" }),
      ]) {
        try {
          await call();
        } catch (error) {
          if (error instanceof vorta.VortaError) {
            found.push([error.name, error.reason, error.field ?? null]);
          }
        }
      }
      try {
        new vorta.VortaClient({ baseUrl, transport: "grpc" });
      } catch (error) {
        found.push((error as sdk.VortaError).field);
      }
      return found;
    }, server.httpUrl);
    assert.deepEqual(seen, [
      ["InvalidArgument", "INVALID_FIELD", "temperature"],
      ["InvalidArgument", "INVALID_FIELD", "top_p"],
      ["NotFound", "MODEL_NOT_FOUND", null],
      "transport",
    ]);
  });

  it("logs nothing", () => {
    assert.deepEqual(problems, []);
  });

  it("resumes a stream whose connection is cut", async () => {
    const proxy = await startProxy(server.httpPort);
    await page.exposeFunction("cut", () => proxy.cut());
    const seen = await page.evaluate(async (baseUrl) => {
      const client = new vorta.VortaClient({ baseUrl });
      const options = { maxTokens: 120, temperature: 0 };
      const stream = client.streamGenerate("resume", options);
      const indexes: number[] = [];
      for await (const event of stream) {
        indexes.push(event.index);
        if (indexes.length === 10) {
          await (globalThis as unknown as { cut(): Promise<void> }).cut();
        }
      }
      const expected = await client.generate("resume", options);
      return { indexes, text: (await stream.result()).text, expected: expected.text };
    }, proxy.url);
    await proxy.stop();
    assert.equal(seen.text, seen.expected);
    assert.deepEqual(seen.indexes, [...new Set(seen.indexes)].sort((a, b) => a - b));
  });
});
