/** Starts `vorta serve` as a user would: a process of its own, real ports, real workers that compute fakes. */

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

const VORTA_BIN = process.env["VORTA_BIN"] ?? resolve(import.meta.dirname, "../../../.venv/bin/vorta");
const START_TIMEOUT_MS = 90_000;

/** A running server. */
export interface Server {
  readonly grpcUrl: string;
  readonly httpUrl: string;
  readonly httpPort: number;
  readonly grpcPort: number;
  stop(): Promise<void>;
}

/** Starts a server and waits until its models serve; `flags` are more flags of `vorta serve`. */
export async function startServer(...flags: readonly string[]): Promise<Server> {
  const folder = await mkdtemp(join(tmpdir(), "vorta-test-"));
  const models = ["--model", "m=fake", "--model", "e=fake-embedding", "--model", "r=fake-rerank"];
  const ports = ["--grpc-port", "0", "--http-port", "0", "--data-dir", folder];
  const child = spawn(VORTA_BIN, ["serve", "--runner", "fake", ...models, ...ports, ...flags], {
    stdio: ["ignore", "ignore", "pipe"],
    // The server refuses VORTA_ variables that are no settings of its own.
    env: Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("VORTA_"))),
  });
  const stop = async (): Promise<void> => {
    if (child.exitCode === null && child.signalCode === null) {
      const ended = once(child, "exit");
      child.kill("SIGTERM");
      await ended;
    }
    await rm(folder, { recursive: true, force: true });
  };
  try {
    const [grpcPort, httpPort] = await listening(child);
    return {
      grpcUrl: `http://127.0.0.1:${grpcPort}`,
      httpUrl: `http://127.0.0.1:${httpPort}`,
      grpcPort,
      httpPort,
      stop,
    };
  } catch (error) {
    await stop();
    throw error;
  }
}

/** The ports, once the models and the vector store serve. */
async function listening(child: ChildProcess): Promise<[number, number]> {
  let log = "";
  return new Promise((fulfil, reject) => {
    const timer = setTimeout(() => reject(new Error(`not serving in time:\n${log}`)), START_TIMEOUT_MS);
    child.once("error", reject);
    child.once("exit", (code) => reject(new Error(`the server ended with ${code}:\n${log}`)));
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      log += text;
      const ports = /serving .* on grpc \S+:(\d+), http:\/\/\S+:(\d+),/.exec(log);
      if (ports !== null && log.includes("model vectors serves")) {
        clearTimeout(timer);
        fulfil([Number(ports[1]), Number(ports[2])]);
      }
    });
  });
}
