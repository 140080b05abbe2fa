/**
 * What calls take. Absent means the server's default, never zero; names, ranges and defaults are the contract's.
 */

import type { JsonObject } from "@bufbuild/protobuf";

import type { BatchOptions } from "./batches.js";
import type { CallOptions } from "./caller.js";
import type { EnumName } from "./enum.js";
import type { EmbedRequest, Pooling, RerankRequest, TruncationSide } from "./gen/vorta/v1/embedding_pb.js";
import type {
  DetokenizeRequest,
  GenerateRequest,
  StreamAnswerRequest,
  TokenizeRequest,
} from "./gen/vorta/v1/inference_pb.js";
import type {
  Distance,
  FieldType,
  FilterJson,
  Fusion,
  HybridSearchRequest,
  IndexKind,
  SearchRequest,
} from "./gen/vorta/v1/vector_pb.js";

/**
 * What the text must be; one of these. A JSON Schema may be JSON text; a grammar is Lark with a rule `start`, or GBNF
 * with a rule `root`.
 */
export type ResponseFormatInit =
  | { readonly jsonObject: true }
  | { readonly jsonSchema: JsonObject | boolean | string }
  | { readonly regex: string }
  | { readonly choice: readonly string[] }
  | { readonly grammar: string };

/** Fields whose types are friendlier than the messages' own. */
interface Loosened {
  /** Seeds the sampler of this request. Default: drawn by the server. */
  readonly seed?: number | bigint;
  /** Strings that end the text where they first appear; one may stand alone. */
  readonly stop?: string | readonly string[];
  /** What the text must be. Default: any text. */
  readonly responseFormat?: ResponseFormatInit;
}

type Fields<M, K extends keyof M> = Readonly<Partial<Pick<M, K>>>;

/** What every way to generate takes. */
type SamplingField =
  | "maxTokens"
  | "minTokens"
  | "temperature"
  | "topP"
  | "topK"
  | "minP"
  | "presencePenalty"
  | "frequencyPenalty"
  | "repetitionPenalty"
  | "logitBias"
  | "stopTokenIds"
  | "includeStop"
  | "ignoreEos"
  | "logprobs"
  | "priority"
  | "deterministic"
  | "skipSpecialTokens"
  | "requestId";

/** How to generate. */
export type Sampling = Loosened & Fields<GenerateRequest, SamplingField | "n" | "promptLogprobs" | "echo">;

/** A prompt: text, or token ids of the model's vocabulary. */
export type Prompt = string | readonly number[];

/** One message of a conversation. */
export interface ChatMessageInit {
  /** Who speaks. */
  readonly role: "system" | "user" | "assistant" | "tool";
  /** The text. */
  readonly content?: string;
  /** Calls that an assistant message makes; `arguments` is JSON text. */
  readonly toolCalls?: readonly { readonly id: string; readonly name: string; readonly arguments: string }[];
  /** For a tool message: the id of the call that it answers. */
  readonly toolCallId?: string;
  /** Name of the speaker or tool, for templates that show it. */
  readonly name?: string;
}

/** A conversation, oldest message first; a string is one user message. */
export type Messages = string | readonly ChatMessageInit[];

/** A function that the model may call. */
export interface ToolInit {
  readonly name: string;
  readonly description?: string;
  /** JSON Schema of its arguments. */
  readonly parameters?: JsonObject;
}

/** Options of generate(). */
export interface GenerateOptions extends Sampling, CallOptions {
  /** Default: the server's default generation model. */
  readonly model?: string;
}

/** Options of chat(). */
export interface ChatOptions extends GenerateOptions {
  /** Functions that the model may call. */
  readonly tools?: readonly ToolInit[];
  /** Whether the answer calls tools, or which one it calls. Default: auto. */
  readonly toolChoice?: "auto" | "none" | "required" | { readonly name: string };
  /** Open the assistant's turn after the last message. Default: yes. */
  readonly addGenerationPrompt?: boolean;
  /** Continue the text of the last message instead. Default: no. */
  readonly continueFinalMessage?: boolean;
}

/** Options of tokenize(). */
export interface TokenizeOptions
  extends CallOptions,
    Fields<TokenizeRequest, "model" | "addSpecialTokens" | "addGenerationPrompt"> {
  /** For the chat template. */
  readonly tools?: readonly ToolInit[];
}

/** Options of detokenize(). */
export interface DetokenizeOptions extends CallOptions, Fields<DetokenizeRequest, "model" | "skipSpecialTokens"> {}

/** What streams take besides. */
export interface StreamOptions {
  /**
   * Seconds for which the request outlives a broken connection, to be resumed. Default 10; 0 turns resuming off.
   */
  readonly resumeWindowS?: number;
}

/** Options of embed(). */
export interface EmbedOptions
  extends CallOptions,
    Fields<EmbedRequest, "normalize" | "truncate" | "dimensions" | "promptName" | "instruction"> {
  /** Default: the server's default embedding model. */
  readonly model?: string;
  /** Which end of a text that is too long is cut. Default: right. */
  readonly truncationSide?: EnumName<typeof TruncationSide>;
  /** How tokens become one vector. Default: the model's own way. */
  readonly pooling?: EnumName<typeof Pooling>;
}

/** Options of streamEmbed(); messages are of 1 to 2,048 texts, 256 by default. */
export interface StreamEmbedOptions extends EmbedOptions, BatchOptions {}

/** Options of rerank() and streamRerank(). */
export interface RerankOptions
  extends CallOptions,
    Fields<RerankRequest, "topN" | "returnDocuments" | "maxTokensPerDoc" | "rawScores"> {
  /** A cross-encoder or an embedding model. Default: the server's. */
  readonly model?: string;
}

/**
 * What points must be, in the contract's JSON: `{must: [{field: "year", range: {gte: 2020}}]}`. Conditions are `match`,
 * `anyOf`, `range`, `datetimeRange`, `exists`, `text`, `geoRadius`, `hasId` and `filter`.
 */
export type Filter = FilterJson;

/** Which points. */
interface Filtered {
  /** Only points that pass. */
  readonly filter?: Filter;
}

/** What of points comes back. */
interface WithParts {
  /** Default: yes. */
  readonly withPayload?: boolean;
  /** Default: no. */
  readonly withVector?: boolean;
}

/** Options of streamAnswer(). */
export interface AnswerOptions
  extends CallOptions,
    Loosened,
    Filtered,
    Fields<
      StreamAnswerRequest,
      SamplingField | "limit" | "scoreThreshold" | "hybrid" | "textField" | "instruction"
    > {
  /** The generation model. Default: the server's. */
  readonly model?: string;
}

/** Numbers in any container. */
export type Vector = ArrayLike<number>;

/** A point to write: with a vector, or with a text that the server embeds. */
export interface PointInit {
  /** 1 to 256 bytes. */
  readonly id: string;
  readonly vector?: Vector;
  /** Also put into the payload, under the collection's first text field or else "text". */
  readonly text?: string;
  /** JSON values; a Date is written as RFC 3339 text. */
  readonly payload?: Readonly<Record<string, unknown>>;
}

/** Options of an index. */
export interface IndexOptions {
  readonly kind?: EnumName<typeof IndexKind>;
  /** HNSW: links a node. */
  readonly m?: number;
  /** HNSW: width while building. */
  readonly efConstruction?: number;
  /** HNSW: width of a search. */
  readonly efSearch?: number;
  /** IVF: cells. */
  readonly numLists?: number;
  /** IVF: cells that a search looks at. */
  readonly numProbes?: number;
}

/** Options of collections.create(). */
export interface CreateCollectionOptions extends CallOptions {
  /** Numbers of each vector. Default: the embedding model's. */
  readonly dimension?: number;
  /** Default: cosine. */
  readonly distance?: EnumName<typeof Distance>;
  /** Default: auto. */
  readonly index?: IndexOptions | EnumName<typeof IndexKind>;
  /** Payload fields whose text is searched by words. */
  readonly textFields?: readonly string[];
  /** Types of payload fields, which writes must keep to; others are inferred. */
  readonly schema?: Readonly<Record<string, EnumName<typeof FieldType>>>;
  /** Default: the server's, at the time of use. */
  readonly embeddingModel?: string;
  /** For people, at most 1,024 bytes. */
  readonly description?: string;
}

/** Options of collections.upsert() and collections.deletePoints(). */
export interface WriteOptions extends CallOptions {
  /** Answer only when the write is on disk and visible. Default: yes. */
  readonly wait?: boolean;
}

/** Options of collections.streamUpsert(); batches are of 1 to 10,000 points, 500 by default. */
export interface StreamUpsertOptions extends CallOptions, BatchOptions {}

/** Options of collections.getPoints(). */
export interface GetPointsOptions extends CallOptions, WithParts {}

/** Options of collections.restoreSnapshot(). */
export interface RestoreSnapshotOptions extends CallOptions {
  /** Name of the collection that gets the snapshot's content. Default: the one that it was made of. */
  readonly target?: string;
  /** Replace a collection of that name, which is otherwise AlreadyExists. Default: no. */
  readonly replace?: boolean;
}

/** Options of collections.search() and collections.batchSearch(). */
export interface SearchOptions
  extends CallOptions,
    Filtered,
    WithParts,
    Fields<
      SearchRequest,
      "limit" | "offset" | "scoreThreshold" | "exact" | "efSearch" | "numProbes" | "groupBy" | "groupSize"
    > {}

/** Options of collections.hybridSearch(). */
export interface HybridSearchOptions
  extends SearchOptions,
    Fields<HybridSearchRequest, "denseWeight" | "rrfK" | "numCandidates"> {
  /** The query's vector. Default: the text, embedded by the server. */
  readonly vector?: Vector;
  /** How both lists become one. Default: rrf. */
  readonly fusion?: EnumName<typeof Fusion>;
}

/** Options of collections.scroll(). */
export interface ScrollOptions extends CallOptions, Filtered, WithParts {
  /** Points of a page, 1 to 10,000. Default 100. */
  readonly pageSize?: number;
}

/** Options of collections.count(). */
export interface CountOptions extends CallOptions, Filtered {}
