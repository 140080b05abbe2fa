/** A TCP proxy that cuts its connections when told to. */

import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";

/** A running proxy. */
export interface Proxy {
  readonly url: string;
  /** Resets every connection. */
  cut(): void;
  /** While true, new connections are reset at once. */
  isDown: boolean;
  /** Connections accepted so far. */
  readonly numConnections: number;
  stop(): Promise<void>;
}

/** Listens on a free port and relays to another one. */
export async function startProxy(port: number): Promise<Proxy> {
  const sockets = new Set<Socket>();
  const state = { isDown: false, numConnections: 0 };
  const server = createServer((inner) => {
    state.numConnections += 1;
    if (state.isDown) {
      inner.resetAndDestroy();
      return;
    }
    const outer = connect(port, "127.0.0.1");
    for (const [socket, other] of [
      [inner, outer],
      [outer, inner],
    ] as const) {
      sockets.add(socket);
      socket.on("error", () => other.destroy());
      socket.on("close", () => {
        sockets.delete(socket);
        other.destroy();
      });
      socket.pipe(other);
    }
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const cut = (): void => sockets.forEach((socket) => void socket.resetAndDestroy());
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    cut,
    get isDown() {
      return state.isDown;
    },
    set isDown(value: boolean) {
      state.isDown = value;
    },
    get numConnections() {
      return state.numConnections;
    },
    async stop() {
      cut();
      server.close();
      await once(server, "close");
    },
  };
}
