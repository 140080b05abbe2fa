/** Sends calls: bearer key, deadline, cancellation, retries of idempotent ones; throws errors of `errors.ts` only. */

import { create, type DescMessage, type MessageInitShape, type MessageShape } from "@bufbuild/protobuf";
import type { DescMethodBiDiStreaming, DescMethodServerStreaming, DescMethodUnary } from "@bufbuild/protobuf";
import { MethodOptions_IdempotencyLevel } from "@bufbuild/protobuf/wkt";

import { openTransport } from "#transport";

import { Window } from "./batches.js";
import { Cancelled, DeadlineExceeded, InvalidArgument } from "./errors.js";
import { Retrier, type RetryPolicy } from "./retry.js";
import type { OpenTransport, TransportKind } from "./transport.js";
import { cancelMessage, errorFromCall } from "./wire.js";

/** What a client is made with. */
export interface ClientOptions {
  /** The server, such as `http://localhost:50051` for gRPC and `http://localhost:8000` for gRPC-Web. */
  readonly baseUrl: string;
  /** Sent with every call as `authorization: Bearer …`. */
  readonly apiKey?: string;
  /** Default: "grpc" in Node, "grpc-web" in browsers, which have no other. */
  readonly transport?: TransportKind;
  /** Deadline of each call that names none, retries included. Default: none. */
  readonly timeoutMs?: number;
  /** When and how often to retry. */
  readonly retry?: Partial<RetryPolicy>;
}

/** What every call takes besides its request. */
export interface CallOptions {
  /** The call's deadline, retries included. Default: the client's. */
  readonly timeoutMs?: number;
  /** Ends the call with `Cancelled` when it is aborted. */
  readonly signal?: AbortSignal;
}

/** The moment by which a call must have ended. */
export class Deadline {
  readonly #at: number;

  constructor(timeoutMs: number | undefined) {
    this.#at = timeoutMs === undefined ? Infinity : performance.now() + timeoutMs;
  }

  /** Milliseconds left; Infinity without a deadline. */
  get remainingMs(): number {
    return this.#at - performance.now();
  }

  /** What is left as a timeout of one attempt; undefined without a deadline. Throws DeadlineExceeded when it passed. */
  timeoutMs(): number | undefined {
    const remaining = this.remainingMs;
    if (remaining <= 0) {
      throw new DeadlineExceeded("the call's deadline passed", { reason: "DEADLINE_EXCEEDED" });
    }
    return remaining === Infinity ? undefined : Math.max(1, Math.ceil(remaining));
  }
}

/** What an exchange sends, and how much of it may wait for its answers. */
export interface Exchange<I extends DescMessage, O extends DescMessage> {
  /** Fields of a call's first message. */
  readonly head: MessageInitShape<I>;
  /** Taken as there is room; closed when the exchange ends. */
  readonly requests: AsyncGenerator<MessageInitShape<I>, void, undefined>;
  readonly maxWeight: number;
  readonly weightOf: (request: MessageInitShape<I>) => number;
  /** How much of what was sent a message answers. */
  readonly answeredBy: (message: MessageShape<O>) => number;
}

/** One client's way to its server. */
export class Caller {
  readonly retrier: Retrier;
  readonly #open: OpenTransport;
  readonly #timeoutMs: number | undefined;
  readonly #header: Headers;
  readonly #closed = new AbortController();

  constructor(options: ClientOptions) {
    if (!/^https?:\/\//.test(options.baseUrl)) {
      throw new InvalidArgument(`baseUrl must be an http or https URL, not ${JSON.stringify(options.baseUrl)}`, {
        reason: "INVALID_FIELD",
        field: "baseUrl",
      });
    }
    this.retrier = new Retrier(options.retry);
    this.#open = openTransport(options.baseUrl, options.transport);
    this.#timeoutMs = options.timeoutMs;
    this.#header = new Headers(options.apiKey === undefined ? {} : { authorization: `Bearer ${options.apiKey}` });
  }

  /** The deadline of a call that begins now. */
  deadline(options: CallOptions): Deadline {
    return new Deadline(options.timeoutMs ?? this.#timeoutMs);
  }

  /** A signal that is aborted with the caller's, and when the client is closed. */
  signal(options: CallOptions): AbortSignal {
    return options.signal === undefined ? this.#closed.signal : AbortSignal.any([options.signal, this.#closed.signal]);
  }

  /** Sends a unary call, again while it is idempotent and the server is unavailable. */
  async unary<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageInitShape<I>,
    options: CallOptions = {},
  ): Promise<MessageShape<O>> {
    const deadline = this.deadline(options);
    const signal = this.signal(options);
    const message = create(method.input, request);
    const isIdempotent = method.idempotency !== MethodOptions_IdempotencyLevel.IDEMPOTENCY_UNKNOWN;
    for (let numFailures = 1; ; numFailures += 1) {
      try {
        throwIfAborted(signal);
        const header = this.#header;
        const reply = await this.#open.transport.unary(method, signal, deadline.timeoutMs(), header, message);
        this.retrier.countSuccess();
        return reply.message;
      } catch (caught) {
        const error = errorFromCall(caught, signal);
        const wait = isIdempotent ? this.retrier.waitMs(error, numFailures, deadline.remainingMs) : undefined;
        if (wait === undefined) {
          throw error;
        }
        await sleep(wait, signal);
      }
    }
  }

  /** Opens a call whose replies stream, once. It is sent when the first message is asked for. */
  stream<I extends DescMessage, O extends DescMessage>(
    method: DescMethodServerStreaming<I, O>,
    request: MessageInitShape<I>,
    deadline: Deadline,
    signal: AbortSignal,
  ): AsyncGenerator<MessageShape<O>, void, undefined> {
    const message = create(method.input, request);
    return this.#stream(method, only(message), deadline, signal);
  }

  /**
   * Opens a call both of whose sides stream, once; where requests cannot stream, a call for each of them, one after the
   * other. Throws what `requests` throws as it is.
   */
  async *exchange<I extends DescMessage, O extends DescMessage>(
    method: DescMethodBiDiStreaming<I, O>,
    exchange: Exchange<I, O>,
    deadline: Deadline,
    signal: AbortSignal,
  ): AsyncGenerator<MessageShape<O>, void, undefined> {
    const { head, requests, weightOf, answeredBy, maxWeight } = exchange;
    if (!this.#open.canStreamRequests) {
      const single = { ...method, methodKind: "server_streaming" as const };
      for await (const request of requests) {
        yield* this.stream(single, { ...head, ...request }, deadline, signal);
      }
      return;
    }
    const done = new AbortController();
    const window = new Window(maxWeight, done.signal);
    let failure: { readonly error: unknown } | undefined;
    async function* input(): AsyncGenerator<MessageShape<I>, void, undefined> {
      for (let first: MessageInitShape<I> | undefined = head; ; first = undefined) {
        const next = await requests.next().catch((error: unknown) => {
          failure = { error };
          done.abort();
        });
        if (!next || next.done || !(await window.take(weightOf(next.value)))) {
          return;
        }
        yield create(method.input, { ...first, ...next.value });
      }
    }
    try {
      for await (const message of this.#stream(method, input(), deadline, signal, done)) {
        window.give(answeredBy(message));
        yield message;
      }
    } catch (error) {
      throw failure === undefined ? error : failure.error;
    } finally {
      void requests.return(); // not waited for: its source may be waiting for who knows what
    }
  }

  /** `done` ends the call; it is aborted with the call's end, whoever ends it. */
  async *#stream<I extends DescMessage, O extends DescMessage>(
    method: DescMethodServerStreaming<I, O> | DescMethodBiDiStreaming<I, O>,
    input: AsyncIterable<MessageShape<I>>,
    deadline: Deadline,
    signal: AbortSignal,
    done = new AbortController(),
  ): AsyncGenerator<MessageShape<O>, void, undefined> {
    const either = AbortSignal.any([signal, done.signal]);
    try {
      throwIfAborted(signal);
      const timeout = deadline.timeoutMs();
      const reply = await this.#open.transport.stream(method, either, timeout, this.#header, input);
      yield* reply.message;
    } catch (caught) {
      throw errorFromCall(caught, signal);
    } finally {
      done.abort(); // a reader that leaves early ends the call
    }
  }

  /** Ends every call with `Cancelled` and closes the connections. Idempotent. */
  close(): void {
    this.#closed.abort(new Cancelled("the client is closed", { reason: "CANCELLED" }));
    this.#open.close();
  }
}

/** Waits. Throws Cancelled as soon as the signal is aborted. */
export function sleep(durationMs: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    throwIfAborted(signal);
    const stop = (): void => {
      clearTimeout(timer);
      reject(new Cancelled(cancelMessage(signal), { reason: "CANCELLED" }));
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", stop);
      resolve();
    }, durationMs);
    signal.addEventListener("abort", stop, { once: true });
  });
}

async function* only<T>(message: T): AsyncGenerator<T, void, undefined> {
  yield message;
}

function throwIfAborted(signal: AbortSignal): void {
  if (signal.aborted) {
    throw new Cancelled(cancelMessage(signal), { reason: "CANCELLED" });
  }
}
