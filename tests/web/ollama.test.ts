/** The ollama package as its users call it, host apart. */

import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";

import { Ollama } from "ollama";

import { type Server, startServer } from "../../clients/typescript/test/server.ts";
import { comesToRun } from "./requests.ts";

const MESSAGES = [{ role: "user", content: "hello" }];
const SHORT = { model: "m", options: { num_predict: 9, temperature: 0 } };

describe("ollama", () => {
  let server: Server;
  let client: Ollama;

  before(async () => {
    server = await startServer("--set", "worker.fake_step_s=0.005");
    client = new Ollama({ host: server.httpUrl });
  });
  after(async () => server?.stop());

  it("chats, at once and streamed", async () => {
    const whole = await client.chat({ ...SHORT, messages: MESSAGES });
    assert.deepEqual([whole.done, whole.done_reason, whole.eval_count], [true, "length", 9]);
    assert.equal(whole.message.role, "assistant");
    let text = "";
    const ends: boolean[] = [];
    for await (const part of await client.chat({ ...SHORT, messages: MESSAGES, stream: true })) {
      text += part.message.content;
      ends.push(part.done);
    }
    assert.equal(text, whole.message.content);
    assert.ok(ends.length > 1);
    assert.equal(ends.indexOf(true), ends.length - 1);
  });

  it("generates, at once and streamed", async () => {
    const whole = await client.generate({ ...SHORT, prompt: "hello" });
    assert.equal(whole.response, (await client.chat({ ...SHORT, messages: MESSAGES })).message.content);
    let text = "";
    for await (const part of await client.generate({ ...SHORT, prompt: "hello", stream: true })) {
      text += part.response;
    }
    assert.equal(text, whole.response);
    assert.equal((await client.generate({ ...SHORT, prompt: "hello", raw: true })).eval_count, 9);
  });

  it("embeds", async () => {
    const { embeddings } = await client.embed({ model: "e", input: ["a", "b"] });
    assert.deepEqual(
      embeddings.map((vector) => vector.length),
      [64, 64],
    );
  });

  it("tells models", async () => {
    const names = async (listed: Promise<{ models: { name: string }[] }>): Promise<string[]> =>
      (await listed).models.map((model) => model.name).sort();
    assert.deepEqual(await names(client.list()), ["e", "m", "r"]);
    assert.deepEqual(await names(client.ps()), ["e", "m", "r"]);
    assert.ok((await client.show({ model: "m" })).capabilities.includes("completion"));
    assert.match((await client.version()).version, /^\d+\.\d+\.\d+$/);
  });

  it("throws errors with their status", async () => {
    const status = (code: number) => (error: unknown) =>
      error instanceof Error && "status_code" in error && error.status_code === code;
    await assert.rejects(client.chat({ model: "nope", messages: MESSAGES }), status(404));
    await assert.rejects(client.chat({ model: "nope", messages: MESSAGES, stream: true }), status(404));
    await assert.rejects(client.generate({ model: "m", prompt: "x", options: { temperature: -1 } }), status(400));
  });

  it("frees the request of a stream that is aborted", async () => {
    const stream = await client.chat({ ...SHORT, messages: MESSAGES, options: { num_predict: 3000 }, stream: true });
    await assert.rejects(
      async () => {
        for await (const part of stream) {
          assert.equal(part.done, false);
          await comesToRun(server.httpUrl, true);
          stream.abort();
        }
      },
      { name: "AbortError" },
    );
    await comesToRun(server.httpUrl, false);
  });
});
