/** The client. */

import { AnswerStream } from "./answer-stream.js";
import type { Source } from "./batches.js";
import { type CallOptions, Caller, type ClientOptions } from "./caller.js";
import { Collections } from "./collections.js";
import { type EmbedStream, embedStream } from "./embed-stream.js";
import { enumValue } from "./enum.js";
import { AdminService } from "./gen/vorta/v1/admin_pb.js";
import {
  EmbeddingService,
  type Pooling,
  PoolingSchema,
  type StreamRerankResponse,
  type TruncationSide,
  TruncationSideSchema,
  VectorEncoding,
} from "./gen/vorta/v1/embedding_pb.js";
import { InferenceService } from "./gen/vorta/v1/inference_pb.js";
import { GenerationStream } from "./generation-stream.js";
import { Models } from "./models.js";
import type {
  AnswerOptions,
  ChatMessageInit,
  ChatOptions,
  DetokenizeOptions,
  EmbedOptions,
  GenerateOptions,
  Messages,
  Prompt,
  RerankOptions,
  StreamEmbedOptions,
  StreamOptions,
  TokenizeOptions,
} from "./options.js";
import {
  chatMessages,
  DEFAULT_RESUME_WINDOW_S,
  filterMessage,
  newRequestId,
  promptFields,
  samplingFields,
  toolChoiceMessage,
  toolMessages,
} from "./request.js";
import { embeddings, generation, reranking, rerankResult, serverInfo } from "./response.js";
import type { Embeddings, Generation, Reranking, RerankResult, ServerInfo, Tokenization } from "./result.js";
import { type Results, ResultStream } from "./result-stream.js";

const RPC = InferenceService.method;

/**
 * A connection to a Vorta server.
 *
 * Every method throws errors of `VortaError`'s family and no others. Idempotent calls are retried while the server is
 * unavailable; see `RetryPolicy`.
 */
export class VortaClient {
  /** Collections of points. */
  readonly collections: Collections;
  /** The server's models. */
  readonly models: Models;
  readonly #caller: Caller;

  /** Throws InvalidArgument naming an option that makes no sense. */
  constructor(options: ClientOptions) {
    this.#caller = new Caller(options);
    this.collections = new Collections(this.#caller);
    this.models = new Models(this.#caller);
  }

  /** Continues a prompt and returns when all of the text is there. */
  async generate(prompt: Prompt, options: GenerateOptions = {}): Promise<Generation> {
    return generation(await this.#caller.unary(RPC.generate, generateFields(prompt, options), options));
  }

  /** Continues a prompt and returns its events as they happen. */
  streamGenerate(prompt: Prompt, options: GenerateOptions & StreamOptions = {}): GenerationStream {
    const request = { ...generateFields(prompt, options), ...streamFields(options) };
    return new GenerationStream({
      caller: this.#caller,
      options,
      ...streamFields(options, request.requestId),
      nextIndex: 0,
      open: (deadline, signal) => this.#caller.stream(RPC.streamGenerate, request, deadline, signal),
    });
  }

  /** Answers a conversation; the result's `message` has the tool calls. */
  async chat(messages: Messages, options: ChatOptions = {}): Promise<Generation> {
    return generation(await this.#caller.unary(RPC.chat, chatFields(messages, options), options));
  }

  /** Answers a conversation and returns the events as they happen. */
  streamChat(messages: Messages, options: ChatOptions & StreamOptions = {}): GenerationStream {
    const request = { ...chatFields(messages, options), ...streamFields(options) };
    return new GenerationStream({
      caller: this.#caller,
      options,
      ...streamFields(options, request.requestId),
      nextIndex: 0,
      open: (deadline, signal) => this.#caller.stream(RPC.streamChat, request, deadline, signal),
    });
  }

  /** Continues the stream of a running request from an event on; NotFound when its resume window is over. */
  resume(requestId: string, nextIndex = 0, options: CallOptions = {}): GenerationStream {
    return new GenerationStream({
      caller: this.#caller,
      options,
      requestId,
      nextIndex,
      resumeWindowS: DEFAULT_RESUME_WINDOW_S,
      open: undefined,
    });
  }

  /** Cancels a running request; NotFound when there is none of this id. */
  async cancel(requestId: string, options: CallOptions = {}): Promise<void> {
    await this.#caller.unary(RPC.cancelGenerate, { requestId }, options);
  }

  /** Answers a question from a collection: what was found, the answer's tokens, then which hits it rests on. */
  streamAnswer(question: string, collection: string, options: AnswerOptions = {}): AnswerStream {
    const request = {
      ...requestFields(options),
      ...samplingFields(options),
      question,
      collection,
      filter: filterMessage(options.filter),
      requestId: options.requestId || newRequestId(),
    };
    return new AnswerStream(this.#caller, request, options);
  }

  /** Turns texts, at most 2,048, into vectors. All or nothing: one bad text fails the call, and is named. */
  async embed(inputs: string | readonly string[], options: EmbedOptions = {}): Promise<Embeddings> {
    const request = {
      ...embedFields(options),
      model: options.model,
      inputs: typeof inputs === "string" ? [inputs] : [...inputs],
    };
    return embeddings(await this.#caller.unary(EmbeddingService.method.embed, request, options));
  }

  /**
   * Turns any number of texts into vectors as they come; results come as they are computed, each with its text's
   * `index`. A bad text has a failure in its place and the stream goes on. Texts are taken as results are read. Over
   * gRPC-Web each message is a call of its own.
   */
  streamEmbed(texts: Source<string>, options: StreamEmbedOptions = {}): EmbedStream {
    return embedStream(this.#caller, texts, embedFields(options), options);
  }

  /** Ranks up to 2,048 documents by how well they answer a query, best first. */
  async rerank(query: string, documents: readonly string[], options: RerankOptions = {}): Promise<Reranking> {
    const request = { ...requestFields(options), query, documents: [...documents] };
    return reranking(await this.#caller.unary(EmbeddingService.method.rerank, request, options));
  }

  /** Ranks up to 65,536 documents: scores come as they are computed, in no order; `result()` is the ranking. */
  streamRerank(
    query: string,
    documents: readonly string[],
    options: RerankOptions = {},
  ): ResultStream<RerankResult, Reranking> {
    const request = { ...requestFields(options), query, documents: [...documents] };
    return new ResultStream(this.#caller, options, (deadline, signal) =>
      rerankResults(this.#caller.stream(EmbeddingService.method.streamRerank, request, deadline, signal)),
    );
  }

  /** Splits plain text, or a conversation rendered with the model's chat template, into tokens. */
  async tokenize(text: string | readonly ChatMessageInit[], options: TokenizeOptions = {}): Promise<Tokenization> {
    const request = {
      ...requestFields(options),
      ...(typeof text === "string" ? { text } : { messages: chatMessages(text) }),
      tools: toolMessages(options.tools),
    };
    const { tokenIds, tokens, count, maxModelLen } = await this.#caller.unary(RPC.tokenize, request, options);
    return { tokenIds, tokens, count, maxModelLen };
  }

  /** Joins token ids to text. */
  async detokenize(tokenIds: readonly number[], options: DetokenizeOptions = {}): Promise<string> {
    const request = { ...requestFields(options), tokenIds: [...tokenIds] };
    return (await this.#caller.unary(RPC.detokenize, request, options)).text;
  }

  /** The server's version, limits and state. */
  async serverInfo(options: CallOptions = {}): Promise<ServerInfo> {
    return serverInfo(await this.#caller.unary(AdminService.method.getServerInfo, {}, options));
  }

  /** Closes the connections; calls that run end with `Cancelled`. Idempotent. */
  close(): void {
    this.#caller.close();
  }
}

/** The options that are fields of the request. */
function requestFields<T extends CallOptions>(options: T): Omit<T, keyof CallOptions> {
  const { timeoutMs: _timeoutMs, signal: _signal, ...fields } = options;
  return fields;
}

/** The options of embedding; vectors come packed. */
function embedFields(options: EmbedOptions) {
  const { normalize, truncate, dimensions, promptName, instruction } = options;
  return {
    normalize,
    truncate,
    dimensions,
    promptName,
    instruction,
    truncationSide: enumValue<typeof TruncationSide>(TruncationSideSchema, options.truncationSide, "truncationSide"),
    pooling: enumValue<typeof Pooling>(PoolingSchema, options.pooling, "pooling"),
    encoding: VectorEncoding.PACKED,
  };
}

async function* rerankResults(
  messages: AsyncIterable<StreamRerankResponse>,
): AsyncGenerator<Results<RerankResult, Reranking>, void, undefined> {
  for await (const { event } of messages) {
    if (event.case === "batch") {
      yield { items: event.value.results.map(rerankResult) };
    } else if (event.case === "finished") {
      yield { items: [], summary: reranking(event.value) };
    }
  }
}

function generateFields(prompt: Prompt, options: GenerateOptions) {
  return { ...requestFields(options), ...samplingFields(options), ...promptFields(prompt) };
}

function chatFields(messages: Messages, options: ChatOptions) {
  return {
    ...requestFields(options),
    ...samplingFields(options),
    messages: chatMessages(messages),
    tools: toolMessages(options.tools),
    toolChoice: toolChoiceMessage(options.toolChoice),
  };
}

function streamFields(options: StreamOptions & { readonly requestId?: string }, requestId?: string) {
  return {
    resumeWindowS: options.resumeWindowS ?? DEFAULT_RESUME_WINDOW_S,
    requestId: requestId ?? (options.requestId || newRequestId()),
  };
}
