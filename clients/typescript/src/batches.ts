/** Cuts what comes one by one into batches, and holds a sender back while too much waits for its answer. */

import { InvalidArgument } from "./errors.js";

/** Things that are there, or come. */
export type Source<T> = Iterable<T> | AsyncIterable<T>;

/** How a stream of requests is cut. */
export interface BatchOptions {
  /** Things of a message. */
  readonly batchSize?: number;
  /** Messages that may wait for their answers; over gRPC-Web always 1. Default 4. */
  readonly maxInFlight?: number;
}

/** A stream's batch size and how many messages may wait. Throws InvalidArgument naming what is out of its range. */
export function batching(
  { batchSize, maxInFlight = 4 }: BatchOptions,
  defaultSize: number,
  maxSize: number,
): { readonly size: number; readonly maxInFlight: number } {
  const size = batchSize ?? defaultSize;
  checkWhole("batchSize", size, maxSize);
  checkWhole("maxInFlight", maxInFlight, 10_000);
  return { size, maxInFlight };
}

/** Lists of `size` things, the last one maybe shorter, none empty; things are taken as lists are asked for. */
export async function* batchesOf<T>(source: Source<T>, size: number): AsyncGenerator<T[], void, undefined> {
  let batch: T[] = [];
  for await (const item of source) {
    batch.push(item);
    if (batch.length === size) {
      yield batch;
      batch = [];
    }
  }
  if (batch.length > 0) {
    yield batch;
  }
}

/** Room for so many things on their way. */
export class Window {
  #numFree: number;
  #wake: (() => void) | undefined;
  readonly #signal: AbortSignal;

  /** One sender waits at a time, and no longer when the signal is aborted. */
  constructor(size: number, signal: AbortSignal) {
    this.#numFree = size;
    this.#signal = signal;
    signal.addEventListener("abort", () => this.#wake?.(), { once: true });
  }

  /** Waits for room for `num` things, and takes it; false when the signal is aborted. */
  async take(num: number): Promise<boolean> {
    while (this.#numFree < num && !this.#signal.aborted) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    this.#numFree -= num;
    return !this.#signal.aborted;
  }

  /** Gives room back. */
  give(num: number): void {
    this.#numFree += num;
    this.#wake?.();
  }
}

function checkWhole(field: string, value: number, max: number): void {
  if (!(Number.isInteger(value) && value >= 1 && value <= max)) {
    throw new InvalidArgument(`${field} must be a whole number between 1 and ${max}, not ${value}`, {
      reason: "INVALID_FIELD",
      field,
    });
  }
}
