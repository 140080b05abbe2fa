/** What calls return: plain values. */

import type { EnumName } from "./enum.js";
import type { VortaError } from "./errors.js";
import type { ModelKind as ModelKindEnum, ModelState as ModelStateEnum } from "./gen/vorta/v1/admin_pb.js";
import type {
  ChatMessage,
  FinishReason as FinishReasonEnum,
  RequestError,
  TokenLogprob,
  Timings,
  Usage,
} from "./gen/vorta/v1/common_pb.js";
import type {
  Distance as DistanceEnum,
  FieldType as FieldTypeEnum,
  IndexKind as IndexKindEnum,
} from "./gen/vorta/v1/vector_pb.js";
import type { IndexOptions } from "./options.js";

export type { ChatMessage, RequestError, TokenLogprob, Timings, Usage };

/** Why a sequence or request ended; "unspecified": not yet, or a reason that this client does not know. */
export type FinishReason = EnumName<typeof FinishReasonEnum>;
/** Where a model is in its life. */
export type ModelState = EnumName<typeof ModelStateEnum>;
/** What a model is for. */
export type ModelKind = EnumName<typeof ModelKindEnum>;
/** How like two vectors are. */
export type Distance = EnumName<typeof DistanceEnum>;
/** How vectors are indexed. */
export type IndexKind = EnumName<typeof IndexKindEnum>;
/** Type of a payload field. */
export type FieldType = EnumName<typeof FieldTypeEnum>;

/** What ended a sequence: a stop string, or a stop or end-of-sequence token. */
export interface StopMatch {
  readonly stop?: string;
  readonly tokenId?: number;
}

/** One of the n sequences of a request. */
export interface SequenceOutput {
  readonly sequenceIndex: number;
  readonly text: string;
  readonly tokenIds: readonly number[];
  readonly finishReason: FinishReason;
  readonly stopMatch: StopMatch | undefined;
  readonly logprobs: readonly TokenLogprob[];
}

/** A finished generation. Text, token ids, finish reason and logprobs are those of the first sequence. */
export interface Generation {
  readonly requestId: string;
  readonly model: string;
  readonly text: string;
  readonly tokenIds: readonly number[];
  readonly finishReason: FinishReason;
  readonly usage: Usage;
  readonly timings: Timings;
  readonly tokensPerSecond: number;
  readonly stopMatch: StopMatch | undefined;
  readonly logprobs: readonly TokenLogprob[];
  readonly promptLogprobs: readonly TokenLogprob[];
  /** All sequences in order when n is greater than 1; empty otherwise. */
  readonly sequences: readonly SequenceOutput[];
  /** From chat(), and from streamChat() with tools: the answer as a message, with its tool calls parsed. */
  readonly message: ChatMessage | undefined;
}

/** The first event of a stream: a worker accepted the request. */
export interface Started {
  readonly kind: "started";
  readonly index: number;
  /** Always empty; every event has a text, so that a loop may print it unseen. */
  readonly text: "";
  readonly requestId: string;
  readonly model: string;
  readonly promptTokens: number;
}

/** New tokens of one sequence. */
export interface Delta {
  readonly kind: "delta";
  readonly index: number;
  readonly text: string;
  readonly tokenIds: readonly number[];
  readonly sequenceIndex: number;
  readonly logprobs: readonly TokenLogprob[];
  /** Set on a sequence's last delta when n is greater than 1. */
  readonly finishReason: FinishReason;
}

/** The last event of a stream. */
export interface Finished {
  readonly kind: "finished";
  readonly index: number;
  /** Always empty, as in `Started`. */
  readonly text: "";
  readonly finishReason: FinishReason;
  readonly usage: Usage;
  readonly timings: Timings;
  readonly stopMatch: StopMatch | undefined;
  readonly promptLogprobs: readonly TokenLogprob[];
  /** How each sequence ended when n is greater than 1, without texts; empty otherwise. */
  readonly sequences: readonly SequenceOutput[];
  /** Why the request failed, when it did. */
  readonly error: RequestError | undefined;
  /** From streamChat() with tools only: the answer as a message, with its tool calls parsed. */
  readonly message: ChatMessage | undefined;
}

/** One event of a stream. `index` grows; `text` is what to print. */
export type GenerationEvent = Started | Delta | Finished;

/** The first event of an answer: what was found. The first hit is passage [1] of the context. */
export interface AnswerHits {
  readonly kind: "hits";
  readonly index: number;
  /** Always empty, as in `Started`. */
  readonly text: "";
  readonly hits: readonly Hit[];
}

/** The last event of an answer. */
export interface AnswerFinished {
  readonly kind: "answerFinished";
  readonly index: number;
  /** Always empty, as in `Started`. */
  readonly text: "";
  /** How generation ended. */
  readonly result: Finished;
  /** Ids of the hits that the answer rests on, in the order of the hits. */
  readonly citedIds: readonly string[];
}

/** One event of an answer. */
export type AnswerEvent = AnswerHits | Started | Delta | AnswerFinished;

/** A finished answer. */
export interface Answer {
  readonly requestId: string;
  readonly model: string;
  readonly text: string;
  /** What was found; the first is passage [1]. */
  readonly hits: readonly Hit[];
  /** Ids of the hits that the answer rests on, in the order of the hits. */
  readonly citedIds: readonly string[];
  readonly finishReason: FinishReason;
  readonly usage: Usage;
  readonly timings: Timings;
}

/** A text as tokens. */
export interface Tokenization {
  readonly tokenIds: readonly number[];
  /** The text of each token; bytes that are not UTF-8 by themselves appear as U+FFFD. */
  readonly tokens: readonly string[];
  readonly count: number;
  /** The model's context length in tokens. */
  readonly maxModelLen: number;
}

/** One text's vector. */
export interface Embedding {
  /** Which input, from 0. */
  readonly index: number;
  /** With pooling "token" the tokens' vectors, one behind the other. */
  readonly vector: Float32Array;
  /** Tokens of the text as computed, special tokens included. */
  readonly numTokens: number;
  /** Tokens that were cut off. */
  readonly numTruncatedTokens: number;
}

/** Vectors of texts, in their order. */
export interface Embeddings {
  readonly model: string;
  readonly embeddings: readonly Embedding[];
  /** The vectors alone. */
  readonly vectors: readonly Float32Array[];
  /** Numbers of each vector. */
  readonly dimensions: number;
  readonly usage: Usage;
}

/** A text of a stream that has no vector, and why. */
export interface EmbeddingFailure {
  /** Which input, from 0. */
  readonly index: number;
  readonly error: VortaError;
}

/** The end of a stream of embeddings. */
export interface EmbeddingSummary {
  readonly model: string;
  readonly numInputs: number;
  readonly numFailures: number;
  /** Numbers of each vector. */
  readonly dimensions: number;
  readonly usage: Usage;
}

/** A document's score; greater is better. */
export interface RerankResult {
  /** Which document, from 0. */
  readonly index: number;
  readonly relevanceScore: number;
  /** The document, when `returnDocuments` is set. */
  readonly text: string | undefined;
}

/** The best documents, best first. */
export interface Reranking {
  readonly model: string;
  readonly results: readonly RerankResult[];
  readonly usage: Usage;
}

/** A collection's definition and state. */
export interface CollectionInfo {
  readonly name: string;
  readonly dimension: number;
  readonly distance: Distance;
  readonly index: IndexOptions;
  readonly textFields: readonly string[];
  /** Types of payload fields, declared or inferred. */
  readonly schema: Readonly<Record<string, FieldType>>;
  /** Empty: the server's default. */
  readonly embeddingModel: string;
  readonly description: string;
  readonly aliases: readonly string[];
  readonly createdTime: Date;
  readonly stats: CollectionStats;
}

/** A collection's state. */
export interface CollectionStats {
  readonly numPoints: number;
  /** Rows of replaced and deleted points that are still in the index. */
  readonly numDeleted: number;
  /** Points that no index holds yet. */
  readonly numUnindexed: number;
  readonly numSegments: number;
  /** What is in use now. */
  readonly indexKind: IndexKind;
  readonly isBuilding: boolean;
  /** 0 to 1. */
  readonly buildProgress: number;
  /** Number of the last write. */
  readonly sequence: number;
  /** Number of the last write that saved segments hold. */
  readonly snapshotSequence: number;
  readonly diskBytes: number;
  /** Vectors, graphs, ids and payload columns, estimated. */
  readonly memoryBytes: number;
  /** The least memory that the vectors need. */
  readonly vectorBytes: number;
}

/** A write is on disk and visible (unless it was not waited for: then both are 0). */
export interface WriteResult {
  /** Points written or deleted. */
  readonly count: number;
  /** Number of the write. */
  readonly sequence: number;
}

/** One batch of a stream is on disk and visible. */
export interface UpsertAck extends WriteResult {
  /** Which batch, from 0. */
  readonly index: number;
}

/** A second name of a collection. */
export interface Alias {
  readonly alias: string;
  /** The collection. */
  readonly collection: string;
}

/** A kept state of a collection. */
export interface Snapshot {
  readonly name: string;
  /** The collection that it was made of. */
  readonly collection: string;
  readonly createdTime: Date;
  readonly numPoints: number;
  /** Number of the last write in it. */
  readonly sequence: number;
  readonly sizeBytes: number;
}

/** A point's payload: JSON values. */
export type Payload = Readonly<Record<string, unknown>>;

/** A point as read, with what was asked for. */
export interface Point {
  readonly id: string;
  readonly payload: Payload;
  readonly vector: Float32Array | undefined;
}

/** A point that was found. */
export interface Hit {
  readonly id: string;
  /** Cosine or dot product (greater is better), squared distance under l2 (less is better), or the fused score. */
  readonly score: number;
  readonly payload: Payload;
  /** When asked for. */
  readonly vector: Float32Array | undefined;
  /** Hybrid search: its score by vector; undefined when it was found by words alone. */
  readonly denseScore: number | undefined;
  /** Hybrid search: its BM25 score; undefined when it was found by vector alone. */
  readonly textScore: number | undefined;
}

/** Hits that share a value of the groupBy field, best first. */
export interface HitGroup {
  readonly value: unknown;
  readonly hits: readonly Hit[];
}

/** What was found, best first. */
export interface SearchResult {
  /** Empty when grouped. */
  readonly hits: readonly Hit[];
  /** By their best hit, when grouped. */
  readonly groups: readonly HitGroup[];
  /** How it was found: exact, filtered_exact, index, filtered_index, text or hybrid. */
  readonly strategy: string;
}

/** What a serving model is doing now. */
export interface ModelLoad {
  readonly runningRequests: number;
  readonly waitingRequests: number;
  /** Share of the KV memory in use, 0 to 1. */
  readonly kvUse: number;
  readonly restartCount: number;
  /** Process id of its worker. */
  readonly workerPid: number;
}

/** A model that the server knows. */
export interface Model {
  /** Its id, which requests name. */
  readonly model: string;
  readonly kind: ModelKind;
  readonly state: ModelState;
  readonly source: string;
  readonly architecture: string;
  readonly precision: string;
  readonly device: string;
  readonly maxModelLen: number;
  readonly vocabSize: number;
  readonly parameterCount: number;
  readonly isDefault: boolean;
  /** Why its state is failed; otherwise empty. */
  readonly error: string;
  readonly loadTime: Date | undefined;
  readonly load: ModelLoad | undefined;
  /** Numbers of an embedding model's vectors; 0 for other kinds. */
  readonly dimension: number;
  /** Names of an embedding model's prompts. */
  readonly promptNames: readonly string[];
}

/** About the server. */
export interface ServerInfo {
  readonly version: string;
  readonly startTime: Date | undefined;
  readonly defaultModel: string;
  readonly defaultEmbeddingModel: string;
  readonly defaultRerankModel: string;
  readonly maxMessageBytes: number;
  readonly isDraining: boolean;
  readonly services: readonly string[];
}
