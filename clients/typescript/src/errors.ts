/**
 * The one family of errors, the same as in the server and in the Python client.
 *
 * On the wire an error is a `google.rpc.Status` with one `ErrorInfo` (domain "vorta.dev", a reason of
 * `vorta.v1.ErrorReason` without its prefix, metadata), a `BadRequest` naming the field when there is one, and a
 * `RetryInfo` when the call may be sent again. This module knows neither gRPC nor protobuf; `wire.ts` converts.
 */

/** The parts of an error besides its message. */
export interface ErrorParts {
  /** A name of `vorta.v1.ErrorReason` without its prefix. Default: UNSPECIFIED. */
  readonly reason?: string;
  /** The variable parts of the message. */
  readonly metadata?: Readonly<Record<string, string>>;
  /** The field or setting at fault. */
  readonly field?: string;
  /** Milliseconds after which the same call may succeed; absent when trying again does not help. */
  readonly retryDelayMs?: number;
  /** What was caught. */
  readonly cause?: unknown;
}

/** Base of the family. */
export class VortaError extends Error {
  override readonly name: string = "VortaError";
  /** The google.rpc.Code, equal to the gRPC status code. */
  readonly code: number = 2;
  /** A name of `vorta.v1.ErrorReason` without its prefix. */
  readonly reason: string;
  /** The variable parts of the message. */
  readonly metadata: Readonly<Record<string, string>>;
  /** Milliseconds after which the same call may succeed; undefined when trying again does not help. */
  readonly retryDelayMs: number | undefined;

  constructor(message: string, parts: ErrorParts = {}) {
    super(message, parts.cause === undefined ? undefined : { cause: parts.cause });
    this.reason = parts.reason ?? "UNSPECIFIED";
    this.metadata = parts.field === undefined ? { ...parts.metadata } : { ...parts.metadata, field: parts.field };
    this.retryDelayMs = parts.retryDelayMs;
  }

  /** The field or setting at fault, where there is one. */
  get field(): string | undefined {
    return this.metadata["field"];
  }

  /** Whether the same call may succeed when sent again. */
  get isRetryable(): boolean {
    return this.retryDelayMs !== undefined;
  }
}

/** The caller cancelled. */
export class Cancelled extends VortaError {
  override readonly name = "Cancelled";
  override readonly code = 1;
}

/** A field is missing, malformed or out of range; sending the same again cannot succeed. */
export class InvalidArgument extends VortaError {
  override readonly name = "InvalidArgument";
  override readonly code = 3;
}

/** The call's deadline passed, or could not be met. */
export class DeadlineExceeded extends VortaError {
  override readonly name = "DeadlineExceeded";
  override readonly code = 4;
}

/** What the call names does not exist, or not for this caller. */
export class NotFound extends VortaError {
  override readonly name = "NotFound";
  override readonly code = 5;
}

/** What the call would create exists. */
export class AlreadyExists extends VortaError {
  override readonly name = "AlreadyExists";
  override readonly code = 6;
}

/** The API key may not do this. */
export class PermissionDenied extends VortaError {
  override readonly name = "PermissionDenied";
  override readonly code = 7;
}

/** A queue, a buffer or a budget is full. */
export class ResourceExhausted extends VortaError {
  override readonly name = "ResourceExhausted";
  override readonly code = 8;
}

/** The thing exists but is in the wrong state or of the wrong kind. */
export class FailedPrecondition extends VortaError {
  override readonly name = "FailedPrecondition";
  override readonly code = 9;
}

/** The part asked for is no longer, or not yet, there. */
export class OutOfRange extends VortaError {
  override readonly name = "OutOfRange";
  override readonly code = 11;
}

/** The server does not know this. */
export class Unimplemented extends VortaError {
  override readonly name = "Unimplemented";
  override readonly code = 12;
}

/** A failure of the server's own. */
export class Internal extends VortaError {
  override readonly name = "Internal";
  override readonly code = 13;
}

/** The server, the model or the connection is not there now; try again. */
export class Unavailable extends VortaError {
  override readonly name = "Unavailable";
  override readonly code = 14;
}

/** No API key, or an unknown one. */
export class Unauthenticated extends VortaError {
  override readonly name = "Unauthenticated";
  override readonly code = 16;
}

const CLASSES: ReadonlyMap<number, typeof VortaError> = new Map<number, typeof VortaError>([
  [1, Cancelled],
  [3, InvalidArgument],
  [4, DeadlineExceeded],
  [5, NotFound],
  [6, AlreadyExists],
  [7, PermissionDenied],
  [8, ResourceExhausted],
  [9, FailedPrecondition],
  [11, OutOfRange],
  [12, Unimplemented],
  [13, Internal],
  [14, Unavailable],
  [16, Unauthenticated],
]);

/** The class of a google.rpc.Code; `VortaError` itself for a code that has none (UNKNOWN, DATA_LOSS, ABORTED). */
export function errorClass(code: number): typeof VortaError {
  return CLASSES.get(code) ?? VortaError;
}
