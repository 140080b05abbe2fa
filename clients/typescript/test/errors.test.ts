/** Options that make no sense, an unreachable server, and the table of reasons. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";

import * as client from "@vorta/client";

import { ErrorReasonSchema } from "../dist/gen/vorta/v1/errors_pb.js";
import { CODES } from "../dist/wire.js";

describe("errors", () => {
  it("knows the code of every reason of the contract", () => {
    const reasons = ErrorReasonSchema.values.filter((value) => value.number !== 0).map((value) => value.localName);
    assert.deepEqual(Object.keys(CODES).sort(), reasons.sort());
  });

  it("refuses options by name", () => {
    const field = (name: string) => (error: unknown) => error instanceof client.InvalidArgument && error.field === name;
    const baseUrl = "http://127.0.0.1:1";
    assert.throws(() => new client.VortaClient({ baseUrl: "localhost:50051" }), field("baseUrl"));
    assert.throws(() => new client.VortaClient({ baseUrl, transport: "rest" as "grpc" }), field("transport"));
    assert.throws(() => new client.VortaClient({ baseUrl, retry: { maxAttempts: 0 } }), field("retry.maxAttempts"));
    assert.throws(() => new client.VortaClient({ baseUrl, retry: { jitter: NaN } }), field("retry.jitter"));
  });

  for (const transport of ["grpc", "grpc-web"] as const) {
    it(`says that there is no server, over ${transport}`, async () => {
      const retry = { maxAttempts: 2, initialBackoffMs: 1 };
      const lost = new client.VortaClient({ baseUrl: "http://127.0.0.1:1", transport, retry });
      const isLost = (error: unknown): boolean =>
        error instanceof client.Unavailable && error.reason === "CONNECTION_FAILED" && error.code === 14;
      await assert.rejects(lost.serverInfo(), isLost);
      await assert.rejects(lost.streamGenerate("x", { resumeWindowS: 0 }).result(), isLost);
      await assert.rejects(lost.streamAnswer("x", "y").result(), isLost);
      lost.close();
    });
  }
});
