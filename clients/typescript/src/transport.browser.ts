/** The transport of browsers: gRPC-Web in its binary form, over fetch. */

import { createGrpcWebTransport } from "@connectrpc/connect-web";

import { InvalidArgument } from "./errors.js";
import type { OpenTransport, TransportKind } from "./transport.js";

/** Opens gRPC-Web, the only kind that browsers have. */
export function openTransport(baseUrl: string, kind: TransportKind = "grpc-web"): OpenTransport {
  if (kind !== "grpc-web") {
    throw new InvalidArgument(`transport must be "grpc-web" in a browser, not ${JSON.stringify(kind)}`, {
      reason: "INVALID_FIELD",
      field: "transport",
    });
  }
  const transport = createGrpcWebTransport({ baseUrl, useBinaryFormat: true });
  return { transport, canStreamRequests: false, close: () => undefined };
}
