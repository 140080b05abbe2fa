/** The openai package as its users call it, base URL apart. */

import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";

import OpenAI from "openai";

import { type Server, startServer } from "../../clients/typescript/test/server.ts";
import { comesToRun } from "./requests.ts";

const MESSAGES: OpenAI.ChatCompletionMessageParam[] = [
  { role: "system", content: "Be brief." },
  { role: "user", content: [{ type: "text", text: "hello" }] },
];
const SHORT = { model: "m", max_tokens: 12, temperature: 0 } as const;
const TOOLS: OpenAI.ChatCompletionTool[] = [
  {
    type: "function",
    function: {
      name: "weather",
      parameters: {
        type: "object",
        properties: { city: { enum: ["Bern", "Rome"] } },
        required: ["city"],
        additionalProperties: false,
      },
    },
  },
];

describe("openai", () => {
  let server: Server;
  let client: OpenAI;

  before(async () => {
    server = await startServer("--set", "worker.fake_step_s=0.005");
    client = new OpenAI({ baseURL: `${server.httpUrl}/v1`, apiKey: "key", maxRetries: 0 });
  });
  after(async () => server?.stop());

  it("completes chats", async () => {
    const request = { ...SHORT, messages: MESSAGES, n: 2, logprobs: true, top_logprobs: 2 };
    const reply = await client.chat.completions.create(request);
    assert.equal(reply.object, "chat.completion");
    assert.equal(reply.model, "m");
    assert.deepEqual(
      reply.choices.map((choice) => [choice.index, choice.finish_reason, choice.message.role]),
      [
        [0, "length", "assistant"],
        [1, "length", "assistant"],
      ],
    );
    assert.ok(reply.choices[0]?.message.content);
    assert.equal(reply.choices[0].logprobs?.content?.length, 12);
    assert.equal(reply.choices[0].logprobs.content[0]?.top_logprobs.length, 2);
    assert.equal(reply.usage?.completion_tokens, 24);
    assert.equal(reply.usage.total_tokens, reply.usage.prompt_tokens + 24);
  });

  it("streams chats with usage", async () => {
    const whole = await client.chat.completions.create({ ...SHORT, messages: MESSAGES });
    const stream = await client.chat.completions.create({
      ...SHORT,
      messages: MESSAGES,
      stream: true,
      stream_options: { include_usage: true },
    });
    let text = "";
    const reasons: unknown[] = [];
    const usages: OpenAI.CompletionUsage[] = [];
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      reasons.push(...chunk.choices.map((choice) => choice.finish_reason).filter((reason) => reason !== null));
      if (chunk.usage) {
        assert.deepEqual(chunk.choices, []);
        usages.push(chunk.usage);
      }
    }
    assert.equal(text, whole.choices[0]?.message.content);
    assert.deepEqual(reasons, ["length"]);
    assert.deepEqual(usages, [whole.usage]);
  });

  it("streams chats through the package's own accumulator", async () => {
    const stream = client.chat.completions.stream({
      ...SHORT,
      messages: MESSAGES,
      tools: TOOLS,
      stream_options: { include_usage: true },
    });
    let text = "";
    stream.on("content", (delta) => {
      text += delta;
    });
    const streamed = await stream.finalChatCompletion();
    const whole = await client.chat.completions.create({ ...SHORT, messages: MESSAGES, tools: TOOLS });
    assert.equal(text, whole.choices[0]?.message.content);
    assert.equal(streamed.choices[0]?.message.content, text);
    assert.deepEqual(streamed.usage, whole.usage);
  });

  it("takes a conversation with calls of tools and their results", async () => {
    const messages: OpenAI.ChatCompletionMessageParam[] = [
      ...MESSAGES,
      {
        role: "assistant",
        tool_calls: [{ id: "call_1", type: "function", function: { name: "weather", arguments: '{"city":"Bern"}' } }],
      },
      { role: "tool", tool_call_id: "call_1", content: "sunny" },
    ];
    for (const tool_choice of ["auto", "none"] as const) {
      const reply = await client.chat.completions.create({ ...SHORT, messages, tools: TOOLS, tool_choice });
      assert.equal(reply.choices[0]?.finish_reason, "length");
    }
  });

  it("calls the tool that it must call, at once and streamed", async () => {
    const tool_choice = { type: "function", function: { name: "weather" } } as const;
    const request = { ...SHORT, max_tokens: 600, messages: MESSAGES, tools: TOOLS, tool_choice };
    const { choices } = await client.chat.completions.create(request);
    const streamed = await client.chat.completions.stream(request).finalChatCompletion();
    for (const choice of [choices[0], streamed.choices[0]]) {
      assert.equal(choice?.finish_reason, "tool_calls");
      const [call] = choice.message.tool_calls ?? [];
      assert.ok(call?.type === "function" && call.id);
      assert.equal(call.function.name, "weather");
      assert.ok(["Bern", "Rome"].includes(JSON.parse(call.function.arguments).city));
    }
  });

  it("answers in the format that is asked for", async () => {
    const schema = {
      type: "object",
      properties: { colour: { enum: ["red", "green"] } },
      required: ["colour"],
      additionalProperties: false,
    };
    const { choices } = await client.chat.completions.create({
      ...SHORT,
      max_tokens: 600,
      messages: MESSAGES,
      response_format: { type: "json_schema", json_schema: { name: "colour", strict: true, schema } },
    });
    assert.equal(choices[0]?.finish_reason, "stop");
    assert.ok(["red", "green"].includes(JSON.parse(choices[0].message.content ?? "").colour));
  });

  it("completes prompts", async () => {
    const prompt = ["ab", "cd"];
    const reply = await client.completions.create({ ...SHORT, prompt, logprobs: 1 });
    assert.deepEqual(
      reply.choices.map((choice) => [choice.index, choice.finish_reason, choice.logprobs?.tokens?.length]),
      [
        [0, "length", 12],
        [1, "length", 12],
      ],
    );
    const texts = ["", ""];
    for await (const chunk of await client.completions.create({ ...SHORT, prompt, stream: true })) {
      for (const choice of chunk.choices) {
        texts[choice.index] += choice.text;
      }
    }
    assert.deepEqual(
      texts,
      reply.choices.map((choice) => choice.text),
    );
  });

  it("embeds", async () => {
    const input = ["a", "b"];
    const packed = await client.embeddings.create({ model: "e", input }); // base64, which the package decodes
    const plain = await client.embeddings.create({ model: "e", input, encoding_format: "float" });
    assert.equal(plain.data.length, 2);
    assert.ok((plain.usage.prompt_tokens ?? 0) > 0);
    for (const [place, { embedding }] of plain.data.entries()) {
      assert.ok(embedding.every((value, at) => Math.abs(value - (packed.data[place]?.embedding[at] ?? NaN)) < 1e-6));
    }
    assert.notDeepEqual(plain.data[0]?.embedding, plain.data[1]?.embedding);
  });

  it("lists models", async () => {
    const ids: string[] = [];
    for await (const model of client.models.list()) {
      ids.push(model.id);
    }
    assert.deepEqual(ids.sort(), ["e", "m", "r"]);
    assert.equal((await client.models.retrieve("m")).owned_by, "vorta");
  });

  it("throws the package's errors", async () => {
    const unknown = await client.chat.completions
      .create({ model: "nope", messages: MESSAGES })
      .catch((error: unknown) => error);
    assert.ok(unknown instanceof OpenAI.NotFoundError);
    assert.deepEqual([unknown.status, unknown.code, unknown.type], [404, "model_not_found", "not_found_error"]);
    assert.ok(unknown.requestID);
    for (const stream of [false, true]) {
      const wrong = await client.chat.completions
        .create({ ...SHORT, messages: MESSAGES, temperature: -1, stream })
        .catch((error: unknown) => error);
      assert.ok(wrong instanceof OpenAI.BadRequestError);
      assert.deepEqual([wrong.param, wrong.type], ["temperature", "invalid_request_error"]);
      assert.match(wrong.message, /^400 .*temperature/);
    }
    const far = new OpenAI({ baseURL: "http://127.0.0.1:1/v1", apiKey: "key", maxRetries: 0 });
    await assert.rejects(far.models.list(), OpenAI.APIConnectionError);
  });

  it("throws the error that ends a stream", async () => {
    const headers = { "grpc-timeout": "500m" };
    const request = { ...SHORT, prompt: "x", max_tokens: 3000, stream: true } as const;
    await assert.rejects(async () => {
      for await (const chunk of await client.completions.create(request, { headers })) {
        assert.equal(chunk.model, "m");
      }
    }, OpenAI.APIError);
  });

  it("frees the request of a stream that is aborted, and of a loop that is left", async () => {
    const request = { ...SHORT, messages: MESSAGES, max_tokens: 3000, stream: true } as const;
    const aborted = await client.chat.completions.create(request);
    for await (const _ of aborted) {
      await comesToRun(server.httpUrl, true);
      aborted.controller.abort();
    }
    await comesToRun(server.httpUrl, false);
    for await (const _ of await client.chat.completions.create(request)) {
      await comesToRun(server.httpUrl, true);
      break;
    }
    await comesToRun(server.httpUrl, false);
  });

  it("frees the request of a call that is aborted", async () => {
    const abort = new AbortController();
    const request = { ...SHORT, messages: MESSAGES, max_tokens: 3000 };
    const call = client.chat.completions.create(request, { signal: abort.signal });
    const refused = assert.rejects(call, OpenAI.APIUserAbortError);
    await comesToRun(server.httpUrl, true);
    abort.abort();
    await refused;
    await comesToRun(server.httpUrl, false);
  });
});
