/** The transports of Node: gRPC over HTTP/2, and gRPC-Web over HTTP/1.1. */

import { createGrpcTransport, createGrpcWebTransport, Http2SessionManager } from "@connectrpc/connect-node";

import { InvalidArgument } from "./errors.js";
import type { OpenTransport, TransportKind } from "./transport.js";

/** Opens the transport of a kind; gRPC where none is named. */
export function openTransport(baseUrl: string, kind: TransportKind = "grpc"): OpenTransport {
  switch (kind) {
    case "grpc": {
      // A connection whose peer is gone without a word is noticed by pings, while calls are open.
      const sessionManager = new Http2SessionManager(baseUrl, { pingIntervalMs: 60_000, pingTimeoutMs: 20_000 });
      const transport = createGrpcTransport({ baseUrl, sessionManager });
      return { transport, canStreamRequests: true, close: () => sessionManager.abort() };
    }
    case "grpc-web": {
      const transport = createGrpcWebTransport({ baseUrl, httpVersion: "1.1" });
      return { transport, canStreamRequests: false, close: () => undefined };
    }
    default:
      throw new InvalidArgument(`transport must be "grpc" or "grpc-web", not ${JSON.stringify(kind)}`, {
        reason: "INVALID_FIELD",
        field: "transport",
      });
  }
}
