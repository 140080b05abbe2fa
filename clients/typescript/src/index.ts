/**
 * Vorta's client for Node and browsers: text generation, embeddings and vector search over gRPC and gRPC-Web.
 *
 * ```ts
 * import { VortaClient } from "@vorta/client";
 *
 * const client = new VortaClient({ baseUrl: "http://localhost:50051" });
 * for await (const event of client.streamChat("What is 17 + 25?")) {
 *   process.stdout.write(event.text);
 * }
 * client.close();
 * ```
 */

export { AnswerStream } from "./answer-stream.js";
export type { BatchOptions, Source } from "./batches.js";
export type { CallOptions, ClientOptions } from "./caller.js";
export { VortaClient } from "./client.js";
export { Collections, type Query } from "./collections.js";
export type { EmbedStream } from "./embed-stream.js";
export * from "./errors.js";
export { GenerationStream } from "./generation-stream.js";
export { type LoadModelOptions, Models } from "./models.js";
export type * from "./options.js";
export type * from "./result.js";
export { ResultStream } from "./result-stream.js";
export type { RetryPolicy } from "./retry.js";
export type { TransportKind } from "./transport.js";
