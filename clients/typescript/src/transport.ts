/** What the transports of Node and of browsers have in common; `#transport` is the one of the platform. */

import type { Transport } from "@connectrpc/connect";

/** Which protocol a client speaks. */
export type TransportKind = "grpc" | "grpc-web";

/** A transport and how to close its connections. */
export interface OpenTransport {
  readonly transport: Transport;
  /** Whether a call may send more than one message: gRPC-Web's may not. */
  readonly canStreamRequests: boolean;
  readonly close: () => void;
}
