/** Errors on the wire: from what a transport throws, and from the end of a stream, to the family of `errors.ts`. */

import { Code, ConnectError } from "@connectrpc/connect";

import { Cancelled, errorClass, InvalidArgument, Unavailable, VortaError } from "./errors.js";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";

const DOMAIN = "vorta.dev";

/** What a broken or refused connection suggests waiting before the next attempt. */
export const CONNECTION_RETRY_DELAY_MS = 100;

/** The google.rpc.Code that errors.proto states for each reason; a test holds the two together. */
export const CODES: Readonly<Record<string, Code>> = Object.fromEntries(
  (
    [
      [
        Code.InvalidArgument,
        "INVALID_FIELD MISSING_FIELD CONFLICTING_FIELDS CONTEXT_LENGTH_EXCEEDED MALFORMED_MESSAGE DIMENSION_MISMATCH " +
          "FILTER_FIELD_UNKNOWN FIELD_TYPE_MISMATCH INPUT_TOO_LONG",
      ],
      [
        Code.NotFound,
        "MODEL_NOT_FOUND REQUEST_NOT_FOUND COLLECTION_NOT_FOUND ALIAS_NOT_FOUND POINT_NOT_FOUND SNAPSHOT_NOT_FOUND",
      ],
      [Code.AlreadyExists, "REQUEST_ALREADY_EXISTS ALREADY_LOADED COLLECTION_ALREADY_EXISTS"],
      [
        Code.FailedPrecondition,
        "MODEL_KIND_MISMATCH CHECKPOINT_INVALID SETTINGS_INVALID SNAPSHOT_INVALID STORE_CORRUPT STORE_LOCKED " +
        "DEVICE_MISSING TARGET_MISMATCH",
      ],
      [Code.ResourceExhausted, "MESSAGE_TOO_LARGE QUEUE_FULL SLOW_READER DISK_FULL"],
      [Code.Unavailable, "MODEL_NOT_READY DRAINING WORKER_DIED CONNECTION_FAILED"],
      [Code.DeadlineExceeded, "DEADLINE_EXCEEDED"],
      [Code.Canceled, "CANCELLED"],
      [Code.OutOfRange, "RESUME_GONE"],
      [Code.Unauthenticated, "UNAUTHENTICATED"],
      [Code.PermissionDenied, "PERMISSION_DENIED"],
      [Code.Unimplemented, "UNIMPLEMENTED VECTORS_DISABLED"],
      [Code.Internal, "INTERNAL"],
    ] satisfies [Code, string][]
  ).flatMap(([code, reasons]) => reasons.split(" ").map((reason) => [reason, code])),
);

/** Codes that imply their reason; MODEL_NOT_FOUND for NOT_FOUND, say, would be a guess. */
const IMPLIED_REASONS: ReadonlyMap<Code, string> = new Map([
  [Code.Canceled, "CANCELLED"],
  [Code.DeadlineExceeded, "DEADLINE_EXCEEDED"],
  [Code.Unauthenticated, "UNAUTHENTICATED"],
  [Code.PermissionDenied, "PERMISSION_DENIED"],
  [Code.Unimplemented, "UNIMPLEMENTED"],
  [Code.Internal, "INTERNAL"],
]);

/**
 * The error that a failed call stands for.
 *
 * @param caught What the transport threw.
 * @param signal The caller's signal: when it is aborted, the error is `Cancelled`.
 */
export function errorFromCall(caught: unknown, signal?: AbortSignal): VortaError {
  if (caught instanceof VortaError) {
    return caught;
  }
  const error = ConnectError.from(caught);
  if (signal?.aborted === true) {
    return new Cancelled(cancelMessage(signal), { reason: "CANCELLED", cause: caught });
  }
  const encoding = /cannot encode field (\S+) to binary: (.*)$/s.exec(error.rawMessage);
  if (encoding !== null) {
    const [, path = "", why = ""] = encoding;
    const field = path.slice(path.lastIndexOf(".") + 1);
    return new InvalidArgument(`${field}: ${why}`, { reason: "INVALID_FIELD", field, cause: caught });
  }
  if (!error.metadata.has("grpc-status") && isConnectionFailure(error)) {
    return new Unavailable(`no connection to the server: ${error.rawMessage || Code[error.code]}`, {
      reason: "CONNECTION_FAILED",
      retryDelayMs: CONNECTION_RETRY_DELAY_MS,
      cause: caught,
    });
  }
  return errorFromStatus(error);
}

/** The error that the RequestError of a stream's end stands for; its class follows from the reason. */
export function errorFromReason(reason: string, message: string, retryable: boolean): VortaError {
  return new (errorClass(CODES[reason] ?? Code.Internal))(message || "the request failed", {
    reason: reason || "UNSPECIFIED",
    ...(retryable ? { retryDelayMs: CONNECTION_RETRY_DELAY_MS } : {}),
  });
}

/** The message of a `Cancelled` that stands for an aborted signal. */
export function cancelMessage(signal: AbortSignal): string {
  return signal.reason instanceof VortaError ? signal.reason.message : "the caller cancelled";
}

function errorFromStatus(error: ConnectError): VortaError {
  const info = error.findDetails(ErrorInfoSchema).find((detail) => detail.domain === DOMAIN);
  const field = error.findDetails(BadRequestSchema)[0]?.fieldViolations[0]?.field;
  const delay = error.findDetails(RetryInfoSchema)[0]?.retryDelay;
  const metadata = { ...info?.metadata };
  if (field !== undefined && field !== "" && metadata["field"] === undefined) {
    metadata["field"] = field;
  }
  return new (errorClass(error.code))(error.rawMessage || `the call failed with status ${Code[error.code]}`, {
    reason: info?.reason || IMPLIED_REASONS.get(error.code) || "UNSPECIFIED",
    metadata,
    ...(delay === undefined ? {} : { retryDelayMs: Math.max(0, Number(delay.seconds) * 1000 + delay.nanos / 1e6) }),
    cause: error,
  });
}

/**
 * Whether an error that no server sent is a connection that was refused, lost or cut.
 *
 * Transports report it as a code of their own, as the failure of `fetch` or of a socket that they caught, as an HTTP/2
 * stream that was reset, or as a body that ended before its trailers.
 */
function isConnectionFailure(error: ConnectError): boolean {
  if (error.code === Code.Unavailable || error.code === Code.Aborted) {
    return true;
  }
  return error.cause instanceof Error || /^http\/2 |trailer|premature|incomplete|missing message/.test(error.rawMessage);
}
