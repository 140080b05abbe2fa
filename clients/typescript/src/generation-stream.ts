/** A generation as a stream of events that survives broken connections. */

import { type CallOptions, type Caller, type Deadline, sleep } from "./caller.js";
import { EventStream } from "./event-stream.js";
import { AlreadyExists, Internal, NotFound, OutOfRange, Unavailable, type VortaError } from "./errors.js";
import { InferenceService } from "./gen/vorta/v1/inference_pb.js";
import { errorOf, type StreamMessage, streamEvent } from "./response.js";
import type { Delta, Finished, Generation, GenerationEvent, Started, TokenLogprob } from "./result.js";
import { errorFromCall } from "./wire.js";

/** Opens a stream's own RPC. */
export type OpenStream = (deadline: Deadline, signal: AbortSignal) => AsyncIterable<StreamMessage>;

/** Where a stream begins and how it is resumed. */
export interface GenerationStreamParts {
  readonly caller: Caller;
  readonly requestId: string;
  readonly options: CallOptions;
  /** The request's own RPC; undefined for a stream that only resumes. */
  readonly open: OpenStream | undefined;
  /** For how long after a break resuming makes sense; 0 turns it off. */
  readonly resumeWindowS: number;
  /** The first event wanted. */
  readonly nextIndex: number;
}

/** Which RPC comes next, after waiting. */
interface Step {
  readonly open: OpenStream;
  readonly waitMs: number;
}

/**
 * The events of one request, in order, each exactly once, over as many connections as it takes.
 *
 * The last event is `Finished`. After it, reading throws DeadlineExceeded, Unavailable or the request's own error when
 * the request did not run to its end.
 */
export class GenerationStream extends EventStream<GenerationEvent> {
  readonly #parts: GenerationStreamParts;
  readonly #transcript = new Transcript();
  #nextIndex: number;
  #started: Started | undefined;
  #finished: Finished | undefined;
  #hasEvents = false;
  #numFailures = 0;
  #broken: { readonly error: VortaError; readonly atMs: number } | undefined;

  /** Made by the client. */
  constructor(parts: GenerationStreamParts) {
    super(parts.caller, parts.requestId, parts.options);
    this.#parts = parts;
    this.#nextIndex = parts.nextIndex;
  }

  /** The first event, once it has arrived. */
  get started(): Started | undefined {
    return this.#started;
  }

  /** The last event, once it has arrived. */
  get finished(): Finished | undefined {
    return this.#finished;
  }

  /** Index of the next event: where `VortaClient.resume` would go on. */
  get nextIndex(): number {
    return this.#nextIndex;
  }

  /** Reads to the end and returns the whole, earlier events included. Throws Internal after an early `close`. */
  async result(): Promise<Generation> {
    await this.drain();
    if (this.#finished === undefined) {
      throw new Internal("the stream was closed before the request had ended", { reason: "INTERNAL" });
    }
    return this.#transcript.generation(this.requestId, this.#started, this.#finished);
  }

  protected override get hasFinished(): boolean {
    return this.#finished !== undefined;
  }

  protected override async *read(signal: AbortSignal): AsyncGenerator<GenerationEvent, void, undefined> {
    let open = this.#parts.open ?? this.#resume;
    for (;;) {
      try {
        for await (const message of open(this.deadline, signal)) {
          const event = this.#accept(message);
          if (event !== undefined) {
            yield event;
          }
        }
      } catch (caught) {
        const step = this.#fail(errorFromCall(caught));
        if (step === undefined) {
          return;
        }
        await sleep(step.waitMs, signal);
        open = step.open;
        continue;
      }
      this.#end();
      return;
    }
  }

  protected override cancelFailed(): void {
    // A request that is not known yet is cancelled as soon as a worker has it.
  }

  readonly #resume: OpenStream = (deadline, signal) => {
    const request = { requestId: this.requestId, nextIndex: BigInt(this.#nextIndex) };
    return this.caller.stream(InferenceService.method.resumeGenerate, request, deadline, signal);
  };

  /** The message's event; undefined when it was seen before, or is of a kind that only newer clients know. */
  #accept(message: StreamMessage): GenerationEvent | undefined {
    const index = Number(message.index);
    if (index < this.#nextIndex || this.#finished !== undefined) {
      return undefined;
    }
    this.#nextIndex = index + 1;
    this.#hasEvents = true;
    this.#broken = undefined;
    this.#numFailures = 0;
    const event = streamEvent(message);
    if (event?.kind === "started") {
      this.#started = event;
      this.accepted();
    } else if (event?.kind === "delta") {
      this.#transcript.add(event);
    } else if (event?.kind === "finished") {
      this.#finished = event;
    }
    return event;
  }

  /** The RPC ended well. Throws what the end of the request stands for, Internal when there was none. */
  #end(): void {
    if (this.#finished === undefined) {
      throw new Internal("the server ended the stream without a finished event", { reason: "INTERNAL" });
    }
    const error = errorOf(this.#finished);
    if (error !== undefined) {
      throw error;
    }
  }

  /** The RPC failed: what comes next; undefined when nothing is missing. Throws when it cannot go on. */
  #fail(error: VortaError): Step | undefined {
    if (this.#finished !== undefined) {
      this.#end();
      return undefined;
    }
    const start = this.#hasEvents ? undefined : this.#parts.open;
    if (this.#broken === undefined) {
      if (error.reason !== "CONNECTION_FAILED" || this.#parts.resumeWindowS <= 0) {
        throw error;
      }
      this.#broken = { error, atMs: performance.now() };
      return this.#after(this.#resume, error, this.#broken.atMs);
    }
    const { error: first, atMs } = this.#broken;
    if (error instanceof NotFound && start !== undefined) {
      // The request never arrived, or is over without a trace: nothing of it was seen, so it may begin.
      return this.#after(start, error, atMs);
    }
    if (error instanceof AlreadyExists && !this.#hasEvents) {
      return this.#after(this.#resume, error, atMs);
    }
    if (error instanceof NotFound || error instanceof OutOfRange) {
      throw new Unavailable(`the connection was lost and the request cannot be resumed: ${error.message}`, {
        reason: first.reason,
        metadata: { request_id: this.requestId },
        ...(first.retryDelayMs === undefined ? {} : { retryDelayMs: first.retryDelayMs }),
        cause: error,
      });
    }
    if (!(error instanceof Unavailable)) {
      throw error;
    }
    return this.#after(this.#resume, error, atMs);
  }

  #after(open: OpenStream, error: VortaError, brokenAtMs: number): Step {
    this.#numFailures += 1;
    const { retrier } = this.caller;
    const waitMs = retrier.backoffMs(error, this.#numFailures);
    const elapsedMs = performance.now() - brokenAtMs;
    if (
      this.#numFailures > retrier.policy.maxResumeAttempts ||
      elapsedMs + waitMs > this.#parts.resumeWindowS * 1000 ||
      waitMs >= this.deadline.remainingMs
    ) {
      throw error;
    }
    return { open, waitMs };
  }
}

/** What has arrived, by sequence. */
class Transcript {
  readonly #sequences = new Map<number, { text: string; tokenIds: number[]; logprobs: TokenLogprob[] }>();

  add(delta: Delta): void {
    const sequence = this.#at(delta.sequenceIndex);
    sequence.text += delta.text;
    sequence.tokenIds.push(...delta.tokenIds);
    sequence.logprobs.push(...delta.logprobs);
    this.#sequences.set(delta.sequenceIndex, sequence);
  }

  generation(requestId: string, started: Started | undefined, finished: Finished): Generation {
    return {
      ...this.#at(0),
      requestId,
      model: started?.model ?? "",
      finishReason: finished.finishReason,
      usage: finished.usage,
      timings: finished.timings,
      tokensPerSecond: finished.timings.tokensPerSecond,
      stopMatch: finished.stopMatch,
      promptLogprobs: finished.promptLogprobs,
      sequences: finished.sequences.map((end) => ({ ...end, ...this.#at(end.sequenceIndex) })),
      message: finished.message,
    };
  }

  #at(place: number): { text: string; tokenIds: number[]; logprobs: TokenLogprob[] } {
    return this.#sequences.get(place) ?? { text: "", tokenIds: [], logprobs: [] };
  }
}
