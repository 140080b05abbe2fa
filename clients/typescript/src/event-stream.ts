/** What a generation's stream and an answer's have in common: reading, cancelling and closing. */

import type { CallOptions, Caller, Deadline } from "./caller.js";
import { Cancelled } from "./errors.js";
import { InferenceService } from "./gen/vorta/v1/inference_pb.js";

/** How long a cancel waits for the server to confirm it. */
const CANCEL_TIMEOUT_MS = 2_000;

/**
 * The events of one request, in order, each exactly once. It is sent when reading begins.
 *
 * Iterate with `for await`; leaving the loop early, or `close`, cancels a request that is still running.
 */
export abstract class EventStream<E extends { readonly text: string }> implements AsyncIterableIterator<E> {
  /** The request's id. */
  readonly requestId: string;
  protected readonly caller: Caller;
  protected readonly deadline: Deadline;
  readonly #abort = new AbortController();
  readonly #callerSignal: AbortSignal;
  readonly #events: AsyncGenerator<E, void, undefined>;
  #hasBegun = false;
  #isClosed = false;
  #isCancelled = false;

  protected constructor(caller: Caller, requestId: string, options: CallOptions) {
    this.caller = caller;
    this.requestId = requestId;
    this.deadline = caller.deadline(options);
    this.#callerSignal = caller.signal(options);
    this.#events = this.#read();
  }

  /** The next event; done after the last one. Throws when the request did not run to its end. */
  async next(): Promise<IteratorResult<E, void>> {
    return this.#events.next();
  }

  /** Closes the stream: what leaving a `for await` loop does. */
  async return(): Promise<IteratorResult<E, void>> {
    this.close();
    return { done: true, value: undefined };
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  /** The new text of each event that has some. */
  async *texts(): AsyncGenerator<string, void, undefined> {
    for await (const event of this) {
      if (event.text !== "") {
        yield event.text;
      }
    }
  }

  /**
   * Asks the server to stop the request; the stream then ends with finish reason "cancelled". Idempotent, never throws,
   * and without effect on a request that has ended.
   */
  async cancel(): Promise<void> {
    if (!this.#hasBegun) {
      this.close();
    } else if (!this.hasFinished && !this.#isClosed && !this.#isCancelled) {
      this.#isCancelled = true;
      if (!(await this.#sendCancel()) && !this.hasFinished) {
        this.cancelFailed();
      }
    }
  }

  /** Ends the stream without another event; a request that is still running is cancelled. Idempotent. */
  close(): void {
    if (!this.#isClosed) {
      this.#isClosed = true;
      this.#abort.abort(); // ends a read that waits
      void this.#events.return(); // ends one that does not
    }
  }

  /** Whether the last event has arrived. */
  protected abstract get hasFinished(): boolean;

  /** Reads the events, over as many calls as it takes. */
  protected abstract read(signal: AbortSignal): AsyncGenerator<E, void, undefined>;

  /** The server does not know the request (yet), or is out of reach. */
  protected abstract cancelFailed(): void;

  /** Reads to the end. */
  protected async drain(): Promise<void> {
    while ((await this.next()).done !== true);
  }

  /** Tells that a worker has the request: a cancel that came too early is sent again. */
  protected accepted(): void {
    if (this.#isCancelled) {
      void this.#sendCancel();
    }
  }

  /** Ends the call under way with `Cancelled`. */
  protected abort(): void {
    this.#abort.abort(new Cancelled("the request was cancelled", { reason: "CANCELLED" }));
  }

  async *#read(): AsyncGenerator<E, void, undefined> {
    if (this.#isClosed) {
      return;
    }
    this.#hasBegun = true;
    let isLeft = true; // by its reader, or by an aborted signal
    try {
      yield* this.read(AbortSignal.any([this.#callerSignal, this.#abort.signal]));
      isLeft = false;
    } catch (error) {
      isLeft = error instanceof Cancelled;
      if (!this.#isClosed) {
        throw error;
      }
    } finally {
      this.#isClosed = true;
      if (isLeft && !this.hasFinished) {
        void this.#sendCancel(); // else the server would go on until the end of the resume window
      }
    }
  }

  /** Whether the server confirmed it. */
  async #sendCancel(): Promise<boolean> {
    try {
      const options = { timeoutMs: CANCEL_TIMEOUT_MS };
      await this.caller.unary(InferenceService.method.cancelGenerate, { requestId: this.requestId }, options);
      return true;
    } catch {
      return false; // the request has ended, or the server will end it by its resume window
    }
  }
}
