/** An answer from a collection as a stream of events. */

import type { MessageInitShape } from "@bufbuild/protobuf";

import type { CallOptions, Caller } from "./caller.js";
import { EventStream } from "./event-stream.js";
import { Internal } from "./errors.js";
import {
  InferenceService,
  type StreamAnswerRequestSchema,
  type StreamAnswerResponse,
} from "./gen/vorta/v1/inference_pb.js";
import { delta, errorOf, finished, hit, started } from "./response.js";
import type { Answer, AnswerEvent, AnswerFinished, Hit, Started } from "./result.js";

/**
 * The events of one answer in order: hits, started, deltas, answerFinished.
 *
 * After the last one, reading throws DeadlineExceeded, Unavailable or the request's own error when the request did not
 * run to its end. It is not resumed: a stream that breaks off throws the call's error.
 */
export class AnswerStream extends EventStream<AnswerEvent> {
  readonly #request: MessageInitShape<typeof StreamAnswerRequestSchema>;
  #hits: readonly Hit[] = [];
  #started: Started | undefined;
  #finished: AnswerFinished | undefined;
  #text = "";

  /** Made by the client. */
  constructor(
    caller: Caller,
    request: MessageInitShape<typeof StreamAnswerRequestSchema> & { readonly requestId: string },
    options: CallOptions,
  ) {
    super(caller, request.requestId, options);
    this.#request = request;
  }

  /** What was found, once it has arrived; passage [1] is the first. */
  get hits(): readonly Hit[] {
    return this.#hits;
  }

  /** The answer so far. */
  get text(): string {
    return this.#text;
  }

  /** Ids of the hits that the answer rests on, once it has ended. */
  get citedIds(): readonly string[] {
    return this.#finished?.citedIds ?? [];
  }

  /** Reads to the end and returns the whole, earlier events included. Throws Internal after an early `close`. */
  async result(): Promise<Answer> {
    await this.drain();
    if (this.#finished === undefined) {
      throw new Internal("the stream was closed before the request had ended", { reason: "INTERNAL" });
    }
    const { finishReason, usage, timings } = this.#finished.result;
    return {
      requestId: this.#started?.requestId ?? this.requestId,
      model: this.#started?.model ?? "",
      text: this.#text,
      hits: this.#hits,
      citedIds: this.#finished.citedIds,
      finishReason,
      usage,
      timings,
    };
  }

  protected override get hasFinished(): boolean {
    return this.#finished !== undefined;
  }

  protected override async *read(signal: AbortSignal): AsyncGenerator<AnswerEvent, void, undefined> {
    const method = InferenceService.method.streamAnswer;
    for await (const message of this.caller.stream(method, this.#request, this.deadline, signal)) {
      const event = this.#accept(message);
      if (event !== undefined) {
        yield event;
      }
    }
    if (this.#finished === undefined) {
      throw new Internal("the server ended the stream without a finished event", { reason: "INTERNAL" });
    }
    const error = errorOf(this.#finished.result);
    if (error !== undefined) {
      throw error;
    }
  }

  protected override cancelFailed(): void {
    this.abort(); // the search still runs, and with it no request that could be named
  }

  /** The message's event; undefined after the end, or for a kind that only newer clients know. */
  #accept(message: StreamAnswerResponse): AnswerEvent | undefined {
    const index = Number(message.index);
    if (this.#finished !== undefined) {
      return undefined;
    }
    switch (message.event.case) {
      case "hits":
        this.#hits = message.event.value.hits.map(hit);
        return { kind: "hits", index, text: "", hits: this.#hits };
      case "started":
        this.#started = started(index, message.event.value);
        this.accepted();
        return this.#started;
      case "delta": {
        const event = delta(index, message.event.value);
        this.#text += event.text;
        return event;
      }
      case "finished": {
        const { result, citedIds } = message.event.value;
        if (result === undefined) {
          return undefined;
        }
        this.#finished = { kind: "answerFinished", index, text: "", result: finished(index, result), citedIds };
        return this.#finished;
      }
      default:
        return undefined;
    }
  }
}
