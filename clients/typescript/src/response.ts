/** From the contract's messages to the values that calls return. */

import { create, toJson } from "@bufbuild/protobuf";
import { type Timestamp, timestampDate, ValueSchema } from "@bufbuild/protobuf/wkt";

import { enumName } from "./enum.js";
import { DeadlineExceeded, Unavailable, type VortaError } from "./errors.js";
import { type Model as ModelMessage, ModelKindSchema, ModelStateSchema } from "./gen/vorta/v1/admin_pb.js";
import type { GetServerInfoResponse } from "./gen/vorta/v1/admin_pb.js";
import {
  FinishReasonSchema,
  type SequenceOutput as SequenceMessage,
  type StopMatch as StopMatchMessage,
  type StreamDelta,
  type StreamFinished,
  type StreamStarted,
  TimingsSchema,
  type Usage,
  UsageSchema,
} from "./gen/vorta/v1/common_pb.js";
import type {
  Embedding as EmbeddingMessage,
  EmbedResponse,
  InputFailure,
  RerankResponse,
  RerankResult as RerankResultMessage,
} from "./gen/vorta/v1/embedding_pb.js";
import type { ChatResponse, GenerateResponse } from "./gen/vorta/v1/inference_pb.js";
import {
  type Collection,
  type CollectionStats as StatsMessage,
  CollectionStatsSchema,
  DistanceSchema,
  FieldTypeSchema,
  type Hit as HitMessage,
  type HitGroup as HitGroupMessage,
  type IndexOptions as IndexMessage,
  IndexKindSchema,
  type Point as PointMessage,
  type SearchResponse,
  type Snapshot as SnapshotMessage,
} from "./gen/vorta/v1/vector_pb.js";
import type { IndexOptions } from "./options.js";
import type {
  CollectionInfo,
  CollectionStats,
  Delta,
  Embedding,
  EmbeddingFailure,
  Embeddings,
  Finished,
  FinishReason,
  Generation,
  GenerationEvent,
  Hit,
  HitGroup,
  Model,
  Payload,
  Point,
  Reranking,
  RerankResult,
  SearchResult,
  SequenceOutput,
  ServerInfo,
  Snapshot,
  Started,
  StopMatch,
} from "./result.js";
import { errorFromReason } from "./wire.js";

/** Of a GenerateResponse or a ChatResponse. */
export function generation(response: GenerateResponse | ChatResponse): Generation {
  return {
    requestId: response.requestId,
    model: response.model,
    text: response.text,
    tokenIds: response.tokenIds,
    finishReason: finishReason(response.finishReason),
    usage: usage(response.usage),
    timings: response.timings ?? create(TimingsSchema),
    tokensPerSecond: response.tokensPerSecond,
    stopMatch: stopMatch(response.stopMatch),
    logprobs: response.logprobs,
    promptLogprobs: response.promptLogprobs,
    sequences: response.sequences.map(sequence),
    message: "message" in response ? response.message : undefined,
  };
}

/** A message of a generation stream, of any of its three RPCs. */
export interface StreamMessage {
  readonly index: bigint;
  readonly event:
    | { readonly case: "started"; readonly value: StreamStarted }
    | { readonly case: "delta"; readonly value: StreamDelta }
    | { readonly case: "finished"; readonly value: StreamFinished }
    | { readonly case: undefined; readonly value?: undefined };
}

/** Of a stream's message; undefined for an event of a kind that only newer clients know. */
export function streamEvent(message: StreamMessage): GenerationEvent | undefined {
  const index = Number(message.index);
  switch (message.event.case) {
    case "started":
      return started(index, message.event.value);
    case "delta":
      return delta(index, message.event.value);
    case "finished":
      return finished(index, message.event.value);
    default:
      return undefined;
  }
}

/** Of a StreamStarted. */
export function started(index: number, message: StreamStarted): Started {
  const { requestId, model, promptTokens } = message;
  return { kind: "started", index, text: "", requestId, model, promptTokens };
}

/** Of a StreamDelta. */
export function delta(index: number, message: StreamDelta): Delta {
  const { text, tokenIds, sequenceIndex, logprobs } = message;
  const reason = finishReason(message.finishReason);
  return { kind: "delta", index, text, tokenIds, sequenceIndex, logprobs, finishReason: reason };
}

/** Of a StreamFinished. */
export function finished(index: number, message: StreamFinished): Finished {
  return {
    kind: "finished",
    index,
    text: "",
    finishReason: finishReason(message.finishReason),
    usage: usage(message.usage),
    timings: message.timings ?? create(TimingsSchema),
    stopMatch: stopMatch(message.stopMatch),
    promptLogprobs: message.promptLogprobs,
    sequences: message.sequences.map(sequence),
    error: message.error,
    message: message.message,
  };
}

/** The error that a stream's end stands for; undefined when it ran to its end or was cancelled. */
export function errorOf(end: Finished): VortaError | undefined {
  switch (end.finishReason) {
    case "deadline":
      return new DeadlineExceeded("the request's deadline passed", { reason: "DEADLINE_EXCEEDED" });
    case "draining":
      return new Unavailable("the server shut down before the request could finish", {
        reason: "DRAINING",
        retryDelayMs: 1_000,
      });
    case "error":
      return errorFromReason(end.error?.reason ?? "INTERNAL", end.error?.message ?? "", end.error?.retryable ?? false);
    default:
      return undefined;
  }
}

/** Of an Embedding with a packed vector; `first` inputs came in calls before this one. */
export function embedding(message: EmbeddingMessage, first = 0): Embedding {
  return {
    index: first + Number(message.index),
    vector: unpackVector(message.packed),
    numTokens: message.numTokens,
    numTruncatedTokens: message.numTruncatedTokens,
  };
}

/** Of an InputFailure; `first` as in `embedding`. */
export function embeddingFailure(message: InputFailure, first = 0): EmbeddingFailure {
  const { reason = "INTERNAL", message: text = "", retryable = false } = message.error ?? {};
  return { index: first + Number(message.index), error: errorFromReason(reason, text, retryable) };
}

/** Of an EmbedResponse with packed vectors. */
export function embeddings(response: EmbedResponse): Embeddings {
  const listed = response.embeddings.map((message) => embedding(message));
  return {
    model: response.model,
    embeddings: listed,
    vectors: listed.map((one) => one.vector),
    dimensions: response.dimensions,
    usage: usage(response.usage),
  };
}

/** Of a RerankResult. */
export function rerankResult({ index, relevanceScore, document }: RerankResultMessage): RerankResult {
  return { index, relevanceScore, text: document?.text };
}

/** Of a RerankResponse. */
export function reranking(response: RerankResponse): Reranking {
  return { model: response.model, results: response.results.map(rerankResult), usage: usage(response.usage) };
}

/** Of a Collection. */
export function collection(message: Collection | undefined): CollectionInfo {
  const fields = Object.entries(message?.schema ?? {});
  return {
    name: message?.collection ?? "",
    dimension: message?.dimension ?? 0,
    distance: enumName(DistanceSchema, message?.distance ?? 0),
    index: indexOptions(message?.index),
    textFields: message?.textFields ?? [],
    schema: Object.fromEntries(fields.map(([field, type]) => [field, enumName(FieldTypeSchema, type)])),
    embeddingModel: message?.embeddingModel ?? "",
    description: message?.description ?? "",
    aliases: message?.aliases ?? [],
    createdTime: new Date((message?.createdTimeS ?? 0) * 1000),
    stats: collectionStats(message?.stats),
  };
}

/** Of a CollectionStats; zeros for none. */
export function collectionStats(stats: StatsMessage | undefined): CollectionStats {
  const message = stats ?? create(CollectionStatsSchema);
  return {
    numPoints: Number(message.numPoints),
    numDeleted: Number(message.numDeleted),
    numUnindexed: Number(message.numUnindexed),
    numSegments: message.numSegments,
    indexKind: enumName(IndexKindSchema, message.indexKind),
    isBuilding: message.isBuilding,
    buildProgress: message.buildProgress,
    sequence: Number(message.sequence),
    snapshotSequence: Number(message.snapshotSequence),
    diskBytes: Number(message.diskBytes),
    memoryBytes: Number(message.memoryBytes),
    vectorBytes: Number(message.vectorBytes),
  };
}

/** Of a Snapshot. */
export function snapshot(message: SnapshotMessage | undefined): Snapshot {
  return {
    name: message?.snapshot ?? "",
    collection: message?.collection ?? "",
    createdTime: new Date((message?.createdTimeS ?? 0) * 1000),
    numPoints: Number(message?.numPoints ?? 0),
    sequence: Number(message?.sequence ?? 0),
    sizeBytes: Number(message?.sizeBytes ?? 0),
  };
}

/** Of a SearchResponse. */
export function searchResult({ hits, groups, strategy }: SearchResponse): SearchResult {
  return { hits: hits.map(hit), groups: groups.map(hitGroup), strategy };
}

/** Of a Hit whose payload and vector are compact. */
export function hit(message: HitMessage): Hit {
  return {
    id: message.id,
    score: message.score,
    payload: payload(message),
    vector: vector(message),
    denseScore: message.denseScore,
    textScore: message.textScore,
  };
}

/** Of a HitGroup. */
export function hitGroup(message: HitGroupMessage): HitGroup {
  const value = message.value === undefined ? null : toJson(ValueSchema, message.value);
  return { value, hits: message.hits.map(hit) };
}

/** Of a Point whose payload and vector are compact. */
export function point(message: PointMessage): Point {
  return { id: message.id, payload: payload(message), vector: vector(message) };
}

/** Of a Model. */
export function model(message: ModelMessage): Model {
  const load = message.load;
  return {
    model: message.model,
    kind: enumName(ModelKindSchema, message.kind),
    state: enumName(ModelStateSchema, message.state),
    source: message.source,
    architecture: message.architecture,
    precision: message.precision,
    device: message.device,
    maxModelLen: message.maxModelLen,
    vocabSize: message.vocabSize,
    parameterCount: Number(message.parameterCount),
    isDefault: message.isDefault,
    error: message.error,
    loadTime: date(message.loadTime),
    load: load && {
      runningRequests: load.runningRequests,
      waitingRequests: load.waitingRequests,
      kvUse: load.kvUse,
      restartCount: load.restartCount,
      workerPid: Number(load.workerPid),
    },
    dimension: message.dimension,
    promptNames: message.promptNames,
  };
}

/** Of a GetServerInfoResponse. */
export function serverInfo(message: GetServerInfoResponse): ServerInfo {
  return {
    version: message.version,
    startTime: date(message.startTime),
    defaultModel: message.defaultModel,
    defaultEmbeddingModel: message.defaultEmbeddingModel,
    defaultRerankModel: message.defaultRerankModel,
    maxMessageBytes: message.maxMessageBytes,
    isDraining: message.isDraining,
    services: message.services,
  };
}

/** Of a Usage; zeros for none. */
export function usage(message: Usage | undefined): Usage {
  return message ?? create(UsageSchema);
}

/** Float32 numbers from little-endian bytes. */
export function unpackVector(bytes: Uint8Array): Float32Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const vector = new Float32Array(bytes.byteLength >> 2);
  for (let place = 0; place < vector.length; place += 1) {
    vector[place] = view.getFloat32(place * 4, true);
  }
  return vector;
}

function finishReason(value: number): FinishReason {
  return enumName(FinishReasonSchema, value);
}

function stopMatch(message: StopMatchMessage | undefined): StopMatch | undefined {
  switch (message?.match.case) {
    case "stop":
      return { stop: message.match.value };
    case "tokenId":
      return { tokenId: message.match.value };
    default:
      return undefined;
  }
}

function sequence(message: SequenceMessage): SequenceOutput {
  const { sequenceIndex, text, tokenIds, logprobs } = message;
  return {
    sequenceIndex,
    text,
    tokenIds,
    logprobs,
    finishReason: finishReason(message.finishReason),
    stopMatch: stopMatch(message.stopMatch),
  };
}

function indexOptions(message: IndexMessage | undefined): IndexOptions {
  const { m, efConstruction, efSearch, numLists, numProbes } = message ?? {};
  return { kind: enumName(IndexKindSchema, message?.kind ?? 0), m, efConstruction, efSearch, numLists, numProbes };
}

function payload(message: HitMessage | PointMessage): Payload {
  return message.payloadJson === "" ? (message.payload ?? {}) : (JSON.parse(message.payloadJson) as Payload);
}

function vector(message: HitMessage | PointMessage): Float32Array | undefined {
  if (message.vectorPacked.length > 0) {
    return unpackVector(message.vectorPacked);
  }
  return message.vector.length > 0 ? Float32Array.from(message.vector) : undefined;
}

function date(stamp: Timestamp | undefined): Date | undefined {
  return stamp === undefined ? undefined : timestampDate(stamp);
}
