/** What the whole console shares: the client, the key, and what is polled from the server. */

import { type Model, type ServerInfo, VortaClient, VortaError } from "@vorta/client";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";

import { parseMetrics, type Reading } from "./prometheus";

const KEY_ITEM = "vorta.apiKey";
const MODELS_INTERVAL_MS = 2_000;
const METRICS_INTERVAL_MS = 2_000;
/** Readings kept: five minutes. */
export const MAX_READINGS = 150;

/** The server as the views see it. */
export interface Server {
  readonly client: VortaClient;
  readonly apiKey: string;
  setApiKey(key: string): void;
  /** All models; undefined until they are known. */
  readonly models: readonly Model[] | undefined;
  /** Asks for the models at once. */
  refresh(): Promise<void>;
  readonly info: ServerInfo | undefined;
  /** Why the last poll failed; undefined when it did not. */
  readonly problem: VortaError | undefined;
  /** Oldest first. */
  readonly readings: readonly Reading[];
  /** Why the last reading of metrics failed. */
  readonly metricsProblem: string | undefined;
}

/** The server that served the page. */
export function useServer(): Server {
  const [apiKey, setKey] = useState(() => sessionStorage.getItem(KEY_ITEM) ?? "");
  const client = useMemo(
    () => new VortaClient({ baseUrl: location.origin, retry: { maxAttempts: 2 }, ...(apiKey === "" ? {} : { apiKey }) }),
    [apiKey],
  );
  const [models, setModels] = useState<readonly Model[]>();
  const [info, setInfo] = useState<ServerInfo>();
  const [problem, setProblem] = useState<VortaError>();
  const [readings, setReadings] = useState<readonly Reading[]>([]);
  const [metricsProblem, setMetricsProblem] = useState<string>();

  const refresh = async (): Promise<void> => {
    try {
      const options = { timeoutMs: 5_000 };
      const [listed, about] = await Promise.all([client.models.list(options), client.serverInfo(options)]);
      setModels(listed);
      setInfo(about);
      setProblem(undefined);
    } catch (error) {
      setProblem(toVortaError(error));
    }
  };
  usePolling(refresh, MODELS_INTERVAL_MS, client);

  usePolling(
    async () => {
      try {
        const headers: HeadersInit = apiKey === "" ? {} : { authorization: `Bearer ${apiKey}` };
        const reply = await fetch("/metrics", { headers, signal: AbortSignal.timeout(5_000) });
        if (!reply.ok) {
          throw new Error(`GET /metrics: ${reply.status} ${reply.statusText}`);
        }
        const reading = parseMetrics(await reply.text(), performance.now());
        setReadings((kept) => [...kept.slice(1 - MAX_READINGS), reading]);
        setMetricsProblem(undefined);
      } catch (error) {
        setMetricsProblem(error instanceof Error ? error.message : String(error));
      }
    },
    METRICS_INTERVAL_MS,
    client,
  );

  return {
    client,
    apiKey,
    setApiKey(key) {
      if (key === "") {
        sessionStorage.removeItem(KEY_ITEM);
      } else {
        sessionStorage.setItem(KEY_ITEM, key);
      }
      setKey(key);
    },
    models,
    refresh,
    info,
    problem,
    readings,
    metricsProblem,
  };
}

/** An error as one of the family. */
export function toVortaError(error: unknown): VortaError {
  return error instanceof VortaError ? error : new VortaError(error instanceof Error ? error.message : String(error));
}

/** Calls at once, whenever `subject` changes, and again some time after each call; not while the page is hidden. */
function usePolling(poll: () => Promise<void>, intervalMs: number, subject: unknown): void {
  const latest = useRef(poll);
  latest.current = poll;
  useEffect(() => {
    let timer: ReturnType<typeof setTimeout> | undefined;
    let isOver = false;
    const turn = async (): Promise<void> => {
      if (!document.hidden) {
        await latest.current();
      }
      if (!isOver) {
        timer = setTimeout(() => void turn(), intervalMs);
      }
    };
    void turn();
    return () => {
      isOver = true;
      clearTimeout(timer);
    };
  }, [intervalMs, subject]);
}
