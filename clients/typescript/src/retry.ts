/** When a failed call is sent again, and how long to wait before. It knows no transport: it judges errors. */

import { AlreadyExists, InvalidArgument, Unavailable, type VortaError } from "./errors.js";

/**
 * How often and how fast failed calls are sent again.
 *
 * Only idempotent calls are retried, and only when the server was unavailable. Streams are not sent again but resumed
 * where they broke.
 */
export interface RetryPolicy {
  /** Attempts of a call, the first included. 1 turns retries off. Default 4. */
  readonly maxAttempts: number;
  /** Default 100. */
  readonly initialBackoffMs: number;
  /** Default 2. */
  readonly multiplier: number;
  /** Default 5000. */
  readonly maxBackoffMs: number;
  /** Each wait is drawn between (1 - jitter) and 1 times the back-off. Default 0.5. */
  readonly jitter: number;
  /** Attempts in a row to resume one broken stream without a new event coming through. Default 8. */
  readonly maxResumeAttempts: number;
  /**
   * Retries stop while less than half of this many tokens are left: each failure takes one (gRFC A6's throttling).
   * 0 turns the budget off. Default 20.
   */
  readonly budgetTokens: number;
  /** Tokens that each successful call gives back. Default 0.1. */
  readonly budgetRefill: number;
}

const DEFAULTS: RetryPolicy = {
  maxAttempts: 4,
  initialBackoffMs: 100,
  multiplier: 2,
  maxBackoffMs: 5_000,
  jitter: 0.5,
  maxResumeAttempts: 8,
  budgetTokens: 20,
  budgetRefill: 0.1,
};

const BOUNDS: Readonly<Record<keyof RetryPolicy, readonly [number, number]>> = {
  maxAttempts: [1, 100],
  initialBackoffMs: [0, 3_600_000],
  multiplier: [1, 100],
  maxBackoffMs: [0, 3_600_000],
  jitter: [0, 1],
  maxResumeAttempts: [0, 1_000],
  budgetTokens: [0, 1e9],
  budgetRefill: [0, 1e9],
};

/** One client's retries. */
export class Retrier {
  readonly policy: RetryPolicy;
  #tokens: number;

  /** Throws InvalidArgument naming a value that is out of its range. */
  constructor(policy: Partial<RetryPolicy> = {}) {
    this.policy = { ...DEFAULTS, ...policy };
    for (const [name, [low, high]] of Object.entries(BOUNDS)) {
      const value = this.policy[name as keyof RetryPolicy];
      if (!(value >= low && value <= high)) {
        const field = `retry.${name}`;
        throw new InvalidArgument(`${field} must be between ${low} and ${high}, not ${value}`, {
          reason: "INVALID_FIELD",
          field,
        });
      }
    }
    this.#tokens = this.policy.budgetTokens;
  }

  /**
   * Milliseconds to wait before sending an idempotent call again; undefined to give up.
   *
   * @param numFailures Failures of this call so far, this one included.
   * @param remainingMs What is left of the call's time; a wait that would use it up is not worth it.
   */
  waitMs(error: VortaError, numFailures: number, remainingMs: number): number | undefined {
    if (!isWorthRepeating(error, numFailures) || numFailures >= this.policy.maxAttempts || !this.#take()) {
      return undefined;
    }
    const wait = this.backoffMs(error, numFailures);
    return wait < remainingMs ? wait : undefined;
  }

  /** Milliseconds to wait: the back-off, or the server's own wish when that is longer. */
  backoffMs(error: VortaError, numFailures: number): number {
    const { initialBackoffMs, multiplier, maxBackoffMs, jitter } = this.policy;
    const backoff = Math.min(initialBackoffMs * multiplier ** (numFailures - 1), maxBackoffMs);
    return Math.max(backoff * (1 - jitter * Math.random()), error.retryDelayMs ?? 0);
  }

  /** Tells that a call succeeded. */
  countSuccess(): void {
    this.#tokens = Math.min(this.policy.budgetTokens, this.#tokens + this.policy.budgetRefill);
  }

  /** Counts a failure; whether a retry is within the budget. */
  #take(): boolean {
    this.#tokens = Math.max(0, this.#tokens - 1);
    return this.policy.budgetTokens === 0 || this.#tokens >= this.policy.budgetTokens / 2;
  }
}

function isWorthRepeating(error: VortaError, numFailures: number): boolean {
  if (error instanceof Unavailable) {
    return true;
  }
  // The first attempt's connection broke and the server is still ending that request.
  return numFailures > 1 && error instanceof AlreadyExists && error.reason === "REQUEST_ALREADY_EXISTS";
}
