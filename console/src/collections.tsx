/** Embeddings of two texts, and searches in collections. */

import type { CollectionInfo, Hit, VortaError } from "@vorta/client";
import { useEffect, useState } from "preact/hooks";

import { formatBytes, formatCount, formatNumber } from "./format";
import { Problem } from "./problem";
import { type Server, toVortaError } from "./server";

/** The view. */
export function Collections({ server, isActive }: { readonly server: Server; readonly isActive: boolean }) {
  const [collections, setCollections] = useState<readonly CollectionInfo[]>();
  const [chosen, setChosen] = useState("");
  const [error, setError] = useState<VortaError>();
  const { client } = server;

  useEffect(() => {
    if (!isActive) {
      return undefined;
    }
    const abort = new AbortController();
    client.collections.list({ signal: abort.signal }).then(
      (listed) => {
        setCollections(listed);
        setError(undefined);
      },
      (caught: unknown) => {
        if (!abort.signal.aborted) {
          setError(toVortaError(caught));
        }
      },
    );
    return () => abort.abort();
  }, [client, isActive]);

  const current = collections?.find((info) => info.name === chosen) ?? collections?.[0];
  return (
    <div class="collections">
      <div class="column">
        <Similarity server={server} />
        <section class="card" aria-labelledby="collections-title">
          <header class="card-head">
            <h2 id="collections-title">Collections</h2>
            <span class="muted">{collections === undefined ? "" : collections.length}</span>
          </header>
          {error === undefined ? null : <Problem error={error} />}
          {collections?.length === 0 ? (
            <p class="empty">
              None yet. <code>vorta ingest docs/ --collection docs --create</code> makes one.
            </p>
          ) : null}
          <ul class="picks">
            {collections?.map((info) => (
              <li key={info.name}>
                <button
                  type="button"
                  class="pick"
                  aria-pressed={info.name === current?.name}
                  onClick={() => setChosen(info.name)}
                >
                  <strong>{info.name}</strong>
                  <span>{formatCount(info.stats.numPoints)} points</span>
                  <span class="muted">
                    {info.dimension} × {info.distance} · {info.stats.indexKind} · {formatBytes(info.stats.memoryBytes)}
                  </span>
                </button>
              </li>
            ))}
          </ul>
        </section>
      </div>
      {current === undefined ? null : <Search key={current.name} server={server} collection={current} />}
    </div>
  );
}

function Similarity({ server }: { readonly server: Server }) {
  const [first, setFirst] = useState("");
  const [second, setSecond] = useState("");
  const [cosine, setCosine] = useState<{ readonly value: number; readonly note: string }>();
  const [error, setError] = useState<VortaError>();
  const compare = async (event: Event): Promise<void> => {
    event.preventDefault();
    setError(undefined);
    try {
      const { vectors, model, dimensions, usage } = await server.client.embed([first, second], { normalize: true });
      const [a = new Float32Array(), b = new Float32Array()] = vectors;
      const value = a.reduce((sum, number, place) => sum + number * (b[place] ?? 0), 0);
      setCosine({ value, note: `${model} · ${dimensions} dimensions · ${usage.promptTokens} tokens` });
    } catch (caught) {
      setCosine(undefined);
      setError(toVortaError(caught));
    }
  };
  return (
    <form class="card similarity" aria-labelledby="similarity-title" onSubmit={(event) => void compare(event)}>
      <header class="card-head">
        <h2 id="similarity-title">Similarity</h2>
      </header>
      <label>
        First text
        <input required value={first} onInput={(event) => setFirst(event.currentTarget.value)} />
      </label>
      <label>
        Second text
        <input required value={second} onInput={(event) => setSecond(event.currentTarget.value)} />
      </label>
      <button type="submit" class="primary">
        Embed both
      </button>
      <div class="result" aria-live="polite">
        {cosine === undefined ? null : (
          <>
            <div class="score-line">
              <span class="muted">cosine</span>
              <Bar share={Math.max(0, cosine.value)} />
              <output>{cosine.value.toFixed(4)}</output>
            </div>
            <p class="muted small">{cosine.note}</p>
          </>
        )}
        {error === undefined ? null : <Problem error={error} />}
      </div>
    </form>
  );
}

interface Found {
  readonly hits: readonly Hit[];
  readonly strategy: string;
  readonly tookMs: number;
}

function Search({ server, collection }: { readonly server: Server; readonly collection: CollectionInfo }) {
  const hasWords = collection.textFields.length > 0;
  const [text, setText] = useState("");
  const [mode, setMode] = useState<"vector" | "hybrid">("vector");
  const [limit, setLimit] = useState("10");
  const [found, setFound] = useState<Found>();
  const [error, setError] = useState<VortaError>();
  const [isBusy, setIsBusy] = useState(false);
  const search = async (event: Event): Promise<void> => {
    event.preventDefault();
    setIsBusy(true);
    setError(undefined);
    const startedMs = performance.now();
    try {
      const options = { limit: Number(limit) };
      const { collections } = server.client;
      const result =
        mode === "hybrid"
          ? await collections.hybridSearch(collection.name, text, options)
          : await collections.search(collection.name, { text }, options);
      setFound({ ...result, tookMs: performance.now() - startedMs });
    } catch (caught) {
      setFound(undefined);
      setError(toVortaError(caught));
    }
    setIsBusy(false);
  };
  return (
    <section class="card search" aria-labelledby="search-title">
      <header class="card-head">
        <h2 id="search-title">Search {collection.name}</h2>
        <span class="muted">
          {collection.embeddingModel || server.info?.defaultEmbeddingModel || "no embedding model"}
          {collection.description === "" ? "" : ` · ${collection.description}`}
        </span>
      </header>
      <form class="row-form" role="search" onSubmit={(event) => void search(event)}>
        <label class="grow">
          Text
          <input
            type="search"
            required
            value={text}
            placeholder="What to look for"
            onInput={(event) => setText(event.currentTarget.value)}
          />
        </label>
        <label>
          By
          <select value={mode} onChange={(event) => setMode(event.currentTarget.value as "vector" | "hybrid")}>
            <option value="vector">vector</option>
            <option value="hybrid" disabled={!hasWords}>
              vector and words
            </option>
          </select>
        </label>
        <label class="narrow">
          Limit
          <input
            type="number"
            min="1"
            max="100"
            value={limit}
            onInput={(event) => setLimit(event.currentTarget.value)}
          />
        </label>
        <button type="submit" class="primary" disabled={isBusy}>
          {isBusy ? "Searching…" : "Search"}
        </button>
      </form>
      {error === undefined ? null : <Problem error={error} />}
      <div aria-live="polite">
        {found === undefined ? null : (
          <p class="muted small">
            {found.hits.length} hits · {found.strategy} · {formatNumber(found.tookMs)} ms
          </p>
        )}
      </div>
      {found === undefined ? (
        <p class="empty">Hits appear here, best first, with their payloads.</p>
      ) : (
        <ol class="hits">
          {found.hits.map((hit, place) => (
            <HitRow key={hit.id} hit={hit} place={place} share={shareOf(hit, found.hits, collection, mode)} />
          ))}
        </ol>
      )}
    </section>
  );
}

function HitRow({ hit, place, share }: { readonly hit: Hit; readonly place: number; readonly share: number }) {
  const sides = [
    hit.denseScore === undefined ? "" : `vector ${hit.denseScore.toFixed(3)}`,
    hit.textScore === undefined ? "" : `words ${hit.textScore.toFixed(2)}`,
  ].filter(Boolean);
  return (
    <li class="hit">
      <div class="score-line">
        <span class="rank">{place + 1}</span>
        <strong class="hit-id">{hit.id}</strong>
        <Bar share={share} />
        <output>{hit.score.toFixed(4)}</output>
      </div>
      {sides.length === 0 ? null : <p class="muted small">{sides.join(" · ")}</p>}
      <p class="snippet">{snippet(hit)}</p>
      <details>
        <summary>Payload</summary>
        <pre>{JSON.stringify(hit.payload, null, 2)}</pre>
      </details>
    </li>
  );
}

/** A bar from 0 to 1; the number beside it says the same. */
function Bar({ share }: { readonly share: number }) {
  return (
    <span class="bar" aria-hidden="true">
      <span style={{ width: `${Math.min(1, Math.max(0, share)) * 100}%` }} />
    </span>
  );
}

/** The longest text of the payload. */
function snippet(hit: Hit): string {
  const texts = Object.values(hit.payload).filter((value) => typeof value === "string");
  return texts.reduce((longest, text) => (text.length > longest.length ? text : longest), "");
}

/** How long a hit's bar is: a cosine is its own share, other scores are compared with the best hit's. */
function shareOf(hit: Hit, hits: readonly Hit[], collection: CollectionInfo, mode: string): number {
  const best = hits[0]?.score ?? 0;
  if (mode === "vector" && collection.distance === "cosine") {
    return hit.score;
  }
  if (mode === "vector" && collection.distance === "l2") {
    return hit.score <= 0 ? 1 : best / hit.score;
  }
  return best === 0 ? 0 : hit.score / best;
}
