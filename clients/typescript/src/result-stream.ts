/** Results that come as they are computed, and a summary at the end. */

import { type CallOptions, type Caller, type Deadline } from "./caller.js";
import { Internal } from "./errors.js";

/** What a message of the call says. */
export interface Results<T, S> {
  readonly items: readonly T[];
  readonly summary?: S;
}

/**
 * Results in the order in which they are computed: iterate with `for await`; `summary` is there afterwards.
 *
 * The call is sent when reading begins, and not repeated. Reading throws the call's error; leaving the loop, or `close`,
 * ends a call that is still running.
 */
export class ResultStream<T, S> implements AsyncIterableIterator<T> {
  readonly #abort = new AbortController();
  readonly #items: AsyncGenerator<T, void, undefined>;
  #summary: S | undefined;

  /** Made by the client. */
  constructor(
    caller: Caller,
    options: CallOptions,
    read: (deadline: Deadline, signal: AbortSignal) => AsyncGenerator<Results<T, S>, void, undefined>,
  ) {
    const signal = AbortSignal.any([caller.signal(options), this.#abort.signal]);
    this.#items = this.#read(read(caller.deadline(options), signal));
  }

  /** The end of the stream, once it has arrived. */
  get summary(): S | undefined {
    return this.#summary;
  }

  /** Reads to the end and returns the summary. Throws Internal after an early `close`. */
  async result(): Promise<S> {
    while ((await this.next()).done !== true);
    if (this.#summary === undefined) {
      throw new Internal("the stream was closed before its end", { reason: "INTERNAL" });
    }
    return this.#summary;
  }

  /** The next result; done after the last one. */
  async next(): Promise<IteratorResult<T, void>> {
    return this.#items.next();
  }

  /** Closes the stream: what leaving a `for await` loop does. */
  async return(): Promise<IteratorResult<T, void>> {
    this.close();
    return { done: true, value: undefined };
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  /** Ends the stream without another result. Idempotent. */
  close(): void {
    this.#abort.abort(); // ends a read that waits
    void this.#items.return(); // ends one that does not
  }

  async *#read(messages: AsyncGenerator<Results<T, S>, void, undefined>): AsyncGenerator<T, void, undefined> {
    try {
      for await (const { items, summary } of messages) {
        this.#summary = summary ?? this.#summary;
        yield* items;
      }
    } catch (error) {
      if (this.#abort.signal.aborted) {
        return;
      }
      throw error;
    }
    if (this.#summary === undefined && !this.#abort.signal.aborted) {
      throw new Internal("the server ended the stream without a finished event", { reason: "INTERNAL" });
    }
  }
}
