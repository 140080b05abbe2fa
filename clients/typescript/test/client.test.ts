/** Every call of the client against a real server, over gRPC and over gRPC-Web. */

import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";

import {
  AlreadyExists,
  Cancelled,
  DeadlineExceeded,
  InvalidArgument,
  NotFound,
  type TransportKind,
  Unavailable,
  VortaClient,
  VortaError,
} from "@vorta/client";

import { type Proxy, startProxy } from "./proxy.js";
import { type Server, startServer } from "./server.js";

let server: Server;

before(async () => {
  server = await startServer("--set", "worker.fake_step_s=0.01");
});
after(async () => server?.stop());

for (const transport of ["grpc", "grpc-web"] satisfies TransportKind[]) {
  describe(transport, () => {
    let client: VortaClient;
    let proxy: Proxy;
    let proxied: VortaClient;

    before(async () => {
      client = new VortaClient({ baseUrl: transport === "grpc" ? server.grpcUrl : server.httpUrl, transport });
      proxy = await startProxy(transport === "grpc" ? server.grpcPort : server.httpPort);
      proxied = new VortaClient({ baseUrl: proxy.url, transport, retry: { initialBackoffMs: 20 } });
    });
    after(async () => {
      client.close();
      proxied.close();
      await proxy.stop();
    });

    it("generates", async () => {
      const reply = await client.generate("hello", { maxTokens: 8, seed: 1, requestId: `g-${transport}` });
      assert.equal(reply.requestId, `g-${transport}`);
      assert.equal(reply.model, "m");
      assert.equal(reply.finishReason, "length");
      assert.equal(reply.usage.completionTokens, 8);
      assert.equal(reply.tokenIds.length, 8);
      assert.ok(reply.text.length > 0);
      assert.ok(reply.tokensPerSecond > 0);
      assert.ok(reply.timings.totalS > 0);
    });

    it("generates from token ids, several sequences, with log probabilities", async () => {
      const reply = await client.generate([1, 2, 3], { maxTokens: 4, n: 2, logprobs: 2 });
      assert.equal(reply.usage.promptTokens, 3);
      assert.deepEqual(
        reply.sequences.map((sequence) => [sequence.sequenceIndex, sequence.tokenIds.length]),
        [
          [0, 4],
          [1, 4],
        ],
      );
      assert.equal(reply.logprobs.length, 4);
      assert.equal(reply.logprobs[0]?.top.length, 2);
    });

    it("streams a generation, which is the unary one in pieces", async () => {
      const stream = client.streamGenerate("hello", { maxTokens: 24, temperature: 0 });
      const kinds: string[] = [];
      let text = "";
      let lastIndex = -1;
      for await (const event of stream) {
        kinds.push(event.kind);
        text += event.text;
        assert.ok(event.index > lastIndex);
        lastIndex = event.index;
      }
      assert.equal(kinds[0], "started");
      assert.equal(kinds.at(-1), "finished");
      assert.ok(kinds.length > 3);
      const whole = await stream.result();
      const unary = await client.generate("hello", { maxTokens: 24, temperature: 0 });
      assert.equal(text, unary.text);
      assert.equal(whole.text, unary.text);
      assert.deepEqual(whole.tokenIds, unary.tokenIds);
      assert.equal(whole.finishReason, "length");
      assert.equal(whole.usage.completionTokens, 24);
      assert.equal(stream.started?.model, "m");
      assert.equal(stream.nextIndex, lastIndex + 1);
    });

    it("streams n sequences", async () => {
      const whole = await client.streamGenerate("hello", { maxTokens: 6, n: 3, seed: 7 }).result();
      assert.equal(whole.sequences.length, 3);
      assert.ok(whole.sequences.every((sequence) => sequence.tokenIds.length === 6 && sequence.text !== ""));
      assert.equal(whole.text, whole.sequences[0]?.text);
    });

    it("chats, at once and streamed", async () => {
      const reply = await client.chat([{ role: "system", content: "be short" }, { role: "user", content: "hi" }], {
        maxTokens: 6,
      });
      assert.equal(reply.message?.role, "assistant");
      assert.equal(reply.usage.completionTokens, 6);
      const texts: string[] = [];
      for await (const text of client.streamChat("hi", { maxTokens: 6 }).texts()) {
        texts.push(text);
      }
      assert.ok(texts.join("").length > 0);
    });

    it("generates what the format allows", async () => {
      const choice = ["yes", "no"];
      const { text } = await client.generate("hi", { responseFormat: { choice }, seed: 1 });
      assert.ok(choice.includes(text), text);
      const schema = {
        type: "object",
        properties: { colour: { enum: ["red", "green"] } },
        required: ["colour"],
        additionalProperties: false,
      };
      const stream = client.streamChat("hi", { responseFormat: { jsonSchema: schema }, seed: 1 });
      assert.ok(["red", "green"].includes(JSON.parse((await stream.result()).text).colour));
      await assert.rejects(client.generate("hi", { responseFormat: { regex: "(" } }), InvalidArgument);
    });

    it("calls the tool that it must call", async () => {
      const parameters = { type: "object", properties: { day: { enum: ["mon", "tue"] } }, required: ["day"] };
      const tools = [{ name: "other" }, { name: "weather", parameters: { ...parameters, additionalProperties: false } }];
      const { message } = await client.chat("hi", { tools, toolChoice: { name: "weather" }, seed: 1 });
      assert.deepEqual(
        message?.toolCalls.map(({ name }) => name),
        ["weather"],
      );
      assert.ok(["mon", "tue"].includes(JSON.parse(message?.toolCalls[0]?.arguments ?? "").day));
    });

    it("ends a stream at a stop string", async () => {
      const { text } = await client.generate("hello", { maxTokens: 24, temperature: 0 });
      const stop = text.slice(6, 8);
      const reply = await client.streamGenerate("hello", { maxTokens: 24, temperature: 0, stop }).result();
      assert.equal(reply.finishReason, "stop");
      assert.deepEqual(reply.stopMatch, { stop });
      assert.equal(reply.text, text.slice(0, text.indexOf(stop)));
    });

    it("cancels a stream", async () => {
      const stream = client.streamChat("hi", { maxTokens: 900 });
      let count = 0;
      for await (const event of stream) {
        count += event.kind === "delta" ? 1 : 0;
        if (count === 2) {
          await stream.cancel();
        }
      }
      assert.equal(stream.finished?.finishReason, "cancelled");
      const whole = await stream.result();
      assert.ok(whole.usage.completionTokens < 900);
      await stream.cancel(); // nothing is left to cancel
    });

    it("cancels the request of a loop that is left, and of an aborted signal", async () => {
      const left = client.streamGenerate("hi", { maxTokens: 3900, resumeWindowS: 60 });
      for await (const event of left) {
        if (event.kind === "delta") {
          await comesToRun(client, true);
          break;
        }
      }
      await comesToRun(client, false);
      await assert.rejects(client.cancel(left.requestId), NotFound);

      const abort = new AbortController();
      const aborted = client.streamGenerate("hi", { maxTokens: 3900, resumeWindowS: 60, signal: abort.signal });
      await assert.rejects(async () => {
        for await (const event of aborted) {
          if (event.kind === "delta") {
            await comesToRun(client, true);
            abort.abort();
          }
        }
      }, Cancelled);
      await comesToRun(client, false);
      await assert.rejects(client.generate("hi", { signal: abort.signal }), Cancelled);
    });

    it("never sends a stream that is cancelled before it is read", async () => {
      const stream = client.streamGenerate("hi");
      await stream.cancel();
      assert.equal((await stream.next()).done, true);
      await assert.rejects(stream.result(), VortaError);
      await assert.rejects(client.cancel(stream.requestId), NotFound);
    });

    it("resumes a stream whose connection is cut, losing and doubling nothing", async () => {
      const expected = await client.generate("resume", { maxTokens: 120, temperature: 0 });
      const stream = proxied.streamGenerate("resume", { maxTokens: 120, temperature: 0 });
      let text = "";
      let lastIndex = -1;
      let cuts = 0;
      for await (const event of stream) {
        assert.ok(event.index > lastIndex, "an event came twice");
        lastIndex = event.index;
        text += event.text;
        if (event.kind === "delta" && event.index > 10 * (cuts + 1) && cuts < 3) {
          cuts += 1;
          proxy.cut();
        }
      }
      assert.equal(cuts, 3);
      assert.equal(text, expected.text);
      assert.deepEqual((await stream.result()).tokenIds, expected.tokenIds);
    });

    it("does not resume when told not to", async () => {
      const stream = proxied.streamGenerate("resume", { maxTokens: 200, resumeWindowS: 0 });
      await assert.rejects(
        async () => {
          for await (const event of stream) {
            if (event.kind === "delta") {
              proxy.cut();
            }
          }
        },
        (error) => error instanceof Unavailable && error.reason === "CONNECTION_FAILED" && error.isRetryable,
      );
    });

    it("resumes another client's stream", async () => {
      const first = client.streamGenerate("resume", { maxTokens: 60, temperature: 0, resumeWindowS: 30 });
      await first.next();
      const rest = await proxied.resume(first.requestId, first.nextIndex).result();
      assert.equal(rest.usage.completionTokens, 60);
      await assert.rejects(client.resume("no-such-request").result(), NotFound);
    });

    it("retries idempotent calls while the server is unavailable", async () => {
      await proxied.serverInfo();
      proxy.isDown = true;
      await cut(proxy);
      const seen = proxy.numConnections;
      const timer = setInterval(() => {
        proxy.isDown = proxy.numConnections === seen; // until one was refused
      }, 1);
      assert.equal((await proxied.serverInfo()).defaultModel, "m");
      clearInterval(timer);
      assert.ok(proxy.numConnections - seen >= 2);
    });

    it("does not retry calls that are not idempotent", async () => {
      proxy.isDown = true;
      await cut(proxy);
      const seen = proxy.numConnections;
      await assert.rejects(
        proxied.collections.create("never"),
        (error) => error instanceof Unavailable && error.reason === "CONNECTION_FAILED",
      );
      assert.ok(proxy.numConnections - seen <= 1);
      proxy.isDown = false;
    });

    it("embeds", async () => {
      const { vectors, embeddings, dimensions, model } = await client.embed(["a", "b c"]);
      assert.equal(model, "e");
      assert.equal(vectors.length, 2);
      assert.ok(vectors[0] instanceof Float32Array);
      assert.equal(vectors[0].length, dimensions);
      assert.ok(Math.abs(Math.hypot(...vectors[0]) - 1) < 1e-5);
      assert.deepEqual(
        embeddings.map((embedding) => embedding.index),
        [0, 1],
      );
      const short = await client.embed("a", { dimensions: 4, truncate: true, truncationSide: "left" });
      assert.equal(short.vectors[0]?.length, 4);
    });

    it("reranks", async () => {
      const ranking = await client.rerank("query", ["one", "two", "three"], { topN: 2, returnDocuments: true });
      assert.equal(ranking.results.length, 2);
      assert.ok((ranking.results[0]?.relevanceScore ?? 0) >= (ranking.results[1]?.relevanceScore ?? 0));
      assert.ok(["one", "two", "three"].includes(ranking.results[0]?.text ?? ""));
    });

    it("keeps collections", async () => {
      const { collections } = client;
      const name = `notes-${transport}`;
      const made = await collections.create(name, {
        textFields: ["text"],
        schema: { year: "integer" },
        index: "flat",
        distance: "cosine",
        description: "for tests",
      });
      assert.equal(made.name, name);
      assert.equal(made.distance, "cosine");
      assert.equal(made.schema["year"], "integer");
      assert.equal(made.index.kind, "flat");
      await assert.rejects(
        collections.create(name),
        (error) => error instanceof AlreadyExists && error.reason === "COLLECTION_ALREADY_EXISTS",
      );

      const points = Array.from({ length: 12 }, (_, place) => ({
        id: `p${String(place).padStart(2, "0")}`,
        text: `text number ${place}`,
        payload: { year: 2020 + place, when: new Date(0) },
      }));
      assert.equal((await collections.upsert(name, points)).count, 12);
      assert.ok((await collections.list()).some((info) => info.name === name && info.stats.numPoints === 12));
      assert.equal((await collections.get(name)).stats.numPoints, 12);

      const found = await collections.search(name, { text: "text number 3" }, { limit: 3, withVector: true });
      assert.equal(found.hits.length, 3);
      assert.ok(found.hits.every((hit) => hit.vector instanceof Float32Array && hit.score <= (found.hits[0]?.score ?? 0)));
      const [vector] = (await client.embed("text number 3")).vectors;
      assert.ok(vector);
      const [nearest] = (await collections.search(name, { vector })).hits;
      assert.equal(nearest?.id, "p03");
      assert.ok(Math.abs(nearest.score - 1) < 1e-5);
      assert.deepEqual(nearest.payload, { year: 2023, when: "1970-01-01T00:00:00.000Z", text: "text number 3" });
      assert.ok((await collections.search(name, { id: "p03" })).hits.every((hit) => hit.id !== "p03"));

      const recent = { must: [{ field: "year", range: { gte: 2030 } }] };
      assert.equal(await collections.count(name, { filter: recent }), 2);
      const filtered = await collections.search(name, { text: "text" }, { filter: recent });
      assert.deepEqual(filtered.hits.map((hit) => hit.id).sort(), ["p10", "p11"]);

      const hybrid = await collections.hybridSearch(name, "number 7", { limit: 2, fusion: "rrf" });
      assert.equal(hybrid.hits[0]?.id, "p07");
      assert.ok((hybrid.hits[0]?.textScore ?? 0) > 0);

      const scrolled: string[] = [];
      for await (const point of collections.scroll(name, { pageSize: 5 })) {
        scrolled.push(point.id);
      }
      assert.deepEqual(
        scrolled,
        points.map((point) => point.id),
      );

      const answer = client.streamAnswer("what is number 3?", name, { limit: 2, maxTokens: 5 });
      const kinds = new Set<string>();
      for await (const event of answer) {
        kinds.add(event.kind);
      }
      assert.deepEqual([...kinds], ["hits", "started", "delta", "answerFinished"]);
      const whole = await answer.result();
      assert.equal(whole.hits.length, 2);
      assert.equal(whole.usage.completionTokens, 5);
      assert.equal(whole.text, answer.text);

      assert.equal((await collections.deletePoints(name, { ids: ["p00", "p01"] })).count, 2);
      assert.equal((await collections.deletePoints(name, { filter: recent })).count, 2);
      assert.equal(await collections.count(name), 8);
      await collections.delete(name);
      await assert.rejects(
        collections.get(name),
        (error) => error instanceof NotFound && error.reason === "COLLECTION_NOT_FOUND",
      );
    });

    it("splits text and conversations into tokens, and joins them", async () => {
      const { tokenIds, tokens, count, maxModelLen } = await client.tokenize("hello", { addSpecialTokens: false });
      assert.equal(tokens.join(""), "hello");
      assert.equal(tokenIds.length, count);
      assert.ok(maxModelLen > count);
      assert.equal(await client.detokenize(tokenIds), "hello");
      const chat = await client.tokenize([{ role: "user", content: "hello" }]);
      assert.ok(chat.count > count);
      await assert.rejects(client.detokenize([-1]), (error) => error instanceof InvalidArgument && error.field === "token_ids[0]");
    });

    it("embeds any number of texts as they come", async () => {
      async function* texts() {
        for (let place = 0; place < 25; place += 1) {
          yield place === 13 ? "" : `text ${place}`;
        }
      }
      const stream = client.streamEmbed(texts(), { batchSize: 4, maxInFlight: 2, dimensions: 4 });
      const vectors = new Map<number, Float32Array>();
      const failures: unknown[] = [];
      for await (const result of stream) {
        if ("error" in result) {
          failures.push([result.index, result.error.name]);
        } else {
          vectors.set(result.index, result.vector);
        }
      }
      assert.deepEqual(failures, [[13, "InvalidArgument"]]);
      assert.deepEqual(
        [...vectors.keys()].sort((a, b) => a - b),
        Array.from({ length: 25 }, (_, place) => place).filter((place) => place !== 13),
      );
      assert.deepEqual(vectors.get(21), (await client.embed("text 21", { dimensions: 4 })).vectors[0]);
      const { model, numInputs, numFailures, dimensions, usage } = await stream.result();
      assert.deepEqual([model, numInputs, numFailures, dimensions], ["e", 25, 1, 4]);
      assert.ok(usage.promptTokens > 24);
    });

    it("ends a stream of embeddings as it should", async () => {
      const nothing = await client.streamEmbed([]).result();
      assert.deepEqual([nothing.model, nothing.numInputs], ["e", 0]);
      assert.equal((await client.streamEmbed("one text").result()).numInputs, 1);
      await assert.rejects(client.streamEmbed(["a"], { model: "nope" }).result(), NotFound);
      assert.throws(
        () => client.streamEmbed(["a"], { batchSize: 0 }),
        (error) => error instanceof InvalidArgument && error.field === "batchSize",
      );
      function* broken() {
        yield* ["a", "b"];
        throw new RangeError("of the caller");
      }
      await assert.rejects(client.streamEmbed(broken(), { batchSize: 1 }).result(), RangeError);
      let numTaken = 0;
      let isClosed = false;
      function* endless() {
        try {
          for (;;) {
            numTaken += 1;
            yield "again";
          }
        } finally {
          isClosed = true;
        }
      }
      for await (const result of client.streamEmbed(endless(), { batchSize: 2, maxInFlight: 2 })) {
        if (result.index > 20) {
          break;
        }
      }
      assert.ok(numTaken < 100, `${numTaken} texts were taken`);
      await new Promise((resolve) => setImmediate(resolve));
      assert.ok(isClosed);
      const abort = new AbortController();
      const aborted = client.streamEmbed(endless(), { batchSize: 2, signal: abort.signal });
      await aborted.next();
      abort.abort();
      await assert.rejects(aborted.result(), Cancelled);
    });

    it("ranks as scores come", async () => {
      const documents = Array.from({ length: 300 }, (_, place) => `document ${place}`);
      const stream = client.streamRerank("query", documents, { topN: 3, returnDocuments: true });
      const scores = new Map<number, number>();
      for await (const { index, relevanceScore } of stream) {
        scores.set(index, relevanceScore);
      }
      assert.equal(scores.size, 300);
      const { results } = await stream.result();
      assert.equal(results.length, 3);
      assert.equal(results[0]?.relevanceScore, Math.max(...scores.values()));
      assert.ok(results.every(({ index, text }) => text === documents[index]));
    });

    it("upserts any number of points, in batches", async () => {
      const { collections } = client;
      const name = `stream-${transport}`;
      await collections.create(name, { dimension: 2 });
      const point = (place: number) => ({ id: `p${place}`, vector: place === 13 ? [1] : [place, 1] });
      function* points(from: number, to: number) {
        for (let place = from; place < to; place += 1) {
          yield point(place);
        }
      }
      const counts: number[][] = [];
      for await (const { index, count, sequence } of collections.streamUpsert(name, points(0, 10), { batchSize: 4 })) {
        counts.push([index, count]);
        assert.ok(sequence > 0);
      }
      assert.deepEqual(counts, [
        [0, 4],
        [1, 4],
        [2, 2],
      ]);
      let numAcks = 0;
      await assert.rejects(
        async () => {
          for await (const _ of collections.streamUpsert(name, points(10, 20), { batchSize: 2, maxInFlight: 1 })) {
            numAcks += 1;
          }
        },
        (error) => error instanceof InvalidArgument && error.reason === "DIMENSION_MISMATCH",
      );
      assert.equal(numAcks, 1);
      assert.equal((await collections.stats(name)).numPoints, 12);
      for await (const _ of collections.streamUpsert(name, [])) {
        assert.fail("an answer to nothing");
      }

      const found = await collections.getPoints(name, ["p3", "nope", "p1"], { withVector: true });
      assert.deepEqual(
        found.map(({ id }) => id),
        ["p3", "p1"],
      );
      const results = await collections.batchSearch(name, [{ id: "p3" }, { id: "p1" }], { limit: 2 });
      assert.deepEqual(
        results[1]?.hits,
        (await collections.search(name, { id: "p1" }, { limit: 2 })).hits,
      );
      await collections.delete(name);
    });

    it("keeps aliases and snapshots", async () => {
      const { collections } = client;
      const name = `kept-${transport}`;
      const alias = `alias-${transport}`;
      await collections.create(name, { dimension: 2 });
      await collections.upsert(name, [{ id: "a", vector: [1, 2] }]);
      await collections.swapAlias(alias, name);
      assert.ok((await collections.listAliases()).some((one) => one.alias === alias && one.collection === name));
      assert.deepEqual((await collections.get(alias)).aliases, [alias]);
      await collections.deleteAlias(alias);
      await assert.rejects(collections.deleteAlias(alias), (error) => error instanceof NotFound && error.reason === "ALIAS_NOT_FOUND");

      const snapshot = await collections.createSnapshot(name);
      assert.deepEqual([snapshot.collection, snapshot.numPoints], [name, 1]);
      assert.ok(snapshot.sizeBytes > 0 && snapshot.createdTime.getTime() > 0);
      assert.deepEqual(await collections.listSnapshots(name), [snapshot]);
      await collections.deletePoints(name, { ids: ["a"] });
      await assert.rejects(collections.restoreSnapshot(name, snapshot.name), AlreadyExists);
      assert.equal((await collections.restoreSnapshot(name, snapshot.name, { replace: true })).stats.numPoints, 1);
      const copy = await collections.restoreSnapshot(name, snapshot.name, { target: `${name}-copy` });
      assert.equal(copy.name, `${name}-copy`);
      await collections.deleteSnapshot(name, snapshot.name);
      assert.deepEqual(await collections.listSnapshots(name), []);
      await collections.delete(name);
      await collections.delete(copy.name);
    });

    it("cancels an answer", async () => {
      const name = `answers-${transport}`;
      await client.collections.create(name, { textFields: ["text"] });
      await client.collections.upsert(name, [{ id: "a", text: "one" }]);
      const stream = client.streamAnswer("one?", name, { maxTokens: 900 });
      for await (const event of stream) {
        if (event.kind === "delta") {
          await stream.cancel();
        }
      }
      assert.equal((await stream.result()).finishReason, "cancelled");
      await client.collections.delete(name);
    });

    it("tells models and server", async () => {
      const models = await client.models.list();
      assert.deepEqual(
        models.map((model) => [model.model, model.kind, model.state]),
        [
          ["e", "embedding", "serving"],
          ["m", "generation", "serving"],
          ["r", "rerank", "serving"],
        ],
      );
      assert.ok(models.every((model) => model.loadTime instanceof Date));
      assert.ok((models[1]?.load?.workerPid ?? 0) > 0);
      const info = await client.serverInfo();
      assert.equal(info.defaultModel, "m");
      assert.equal(info.defaultEmbeddingModel, "e");
      assert.ok(info.services.includes("vorta.v1.InferenceService"));
      await assert.rejects(
        client.models.get("nope"),
        (error) => error instanceof NotFound && error.reason === "MODEL_NOT_FOUND" && error.metadata["model"] === "nope",
      );
    });

    it("unloads and loads a model", async () => {
      assert.equal((await client.models.unload("r", { graceS: 1 })).state, "unloaded");
      const loaded = await client.models.load("r");
      assert.equal(loaded.state, "serving");
    });

    it("names the field of a refused request", async () => {
      await assert.rejects(
        client.generate("x", { temperature: -1 }),
        (error) =>
          error instanceof InvalidArgument &&
          error.reason === "INVALID_FIELD" &&
          error.field === "temperature" &&
          !error.isRetryable,
      );
      await assert.rejects(
        client.streamGenerate("").result(),
        (error) => error instanceof InvalidArgument && error.field === "prompt",
      );
      await assert.rejects(
        client.generate("x", { maxTokens: 1.5 }),
        (error) => error instanceof InvalidArgument && error.field === "max_tokens",
      );
      await assert.rejects(
        client.streamGenerate("x", { maxTokens: 2 ** 40 }).result(),
        (error) => error instanceof InvalidArgument && error.field === "max_tokens",
      );
      await assert.rejects(
        client.generate("x", { seed: 0.5 }),
        (error) => error instanceof InvalidArgument && error.field === "seed",
      );
      await assert.rejects(
        client.collections.create("x", { distance: "manhattan" as "cosine" }),
        (error) => error instanceof InvalidArgument && error.field === "distance" && /cosine, dot, l2/.test(error.message),
      );
      await assert.rejects(
        client.collections.count("x", { filter: { must: [{ nope: 1 }] } as object }),
        (error) => error instanceof InvalidArgument && error.field === "filter",
      );
      await assert.rejects(
        client.collections.upsert("x", [{ id: "a", payload: { bad: NaN } }]),
        (error) => error instanceof InvalidArgument && error.field === "points[0].payload",
      );
    });

    it("keeps deadlines", async () => {
      await assert.rejects(client.generate("x", { maxTokens: 900, timeoutMs: 60 }), DeadlineExceeded);
      await assert.rejects(client.streamGenerate("x", { maxTokens: 900, timeoutMs: 60 }).result(), DeadlineExceeded);
    });

    it("sends the key", async () => {
      const other = new VortaClient({
        baseUrl: transport === "grpc" ? server.grpcUrl : server.httpUrl,
        transport,
        apiKey: "secret",
      });
      assert.equal((await other.serverInfo()).defaultModel, "m");
      other.close();
      await assert.rejects(other.serverInfo(), Cancelled);
    });
  });
}

/** Waits until the server tells that a request runs, or that none does; what it tells lags behind a little. */
async function comesToRun(client: VortaClient, expected: boolean): Promise<void> {
  for (let attempt = 0; attempt < 600; attempt += 1) {
    const models = await client.models.list();
    if (models.some((model) => (model.load?.runningRequests ?? 0) > 0) === expected) {
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  assert.fail(expected ? "no request runs" : "a cancelled request goes on");
}

/** Cuts the connections and lets the client notice. */
async function cut(proxy: Proxy): Promise<void> {
  proxy.cut();
  await new Promise((resolve) => setTimeout(resolve, 50));
}
