/** The server's models: their state, what they do, loading and unloading. */

import type { Model, VortaError } from "@vorta/client";
import { useEffect, useState } from "preact/hooks";

import { formatBytes, formatCount, formatShare } from "./format";
import { Problem } from "./problem";
import { total } from "./prometheus";
import { type Server, toVortaError } from "./server";

/** For how long a first click on "Unload" waits for the second. */
const CONFIRM_MS = 4_000;

/** A column of the table; what is empty or undefined is shown as a dash. */
interface Column {
  readonly label: string;
  readonly isNumber?: boolean;
  readonly of: (model: Model, server: Server) => string | number | undefined;
}

const COLUMNS: readonly Column[] = [
  { label: "Kind", of: (model) => model.kind },
  { label: "Precision", of: (model) => [model.precision, model.device].filter(Boolean).join(" · ") },
  { label: "Weights", isNumber: true, of: ({ parameterCount: count }) => (count === 0 ? "" : formatCount(count)) },
  { label: "Context", isNumber: true, of: ({ maxModelLen: length }) => (length === 0 ? "" : length) },
  { label: "Memory", isNumber: true, of: memoryOf },
  { label: "Running", isNumber: true, of: ({ load }) => load?.runningRequests },
  { label: "Waiting", isNumber: true, of: ({ load }) => load?.waitingRequests },
  { label: "KV", isNumber: true, of: ({ load, kind }) => (load && kind === "generation" ? formatShare(load.kvUse) : "") },
];

/** The view. */
export function Models({ server }: { readonly server: Server }) {
  const [busy, setBusy] = useState<ReadonlySet<string>>(new Set());
  const [error, setError] = useState<VortaError>();

  const change = async (model: string, call: () => Promise<unknown>): Promise<boolean> => {
    setBusy((models) => new Set(models).add(model));
    setError(undefined);
    try {
      await call();
      return true;
    } catch (caught) {
      setError(toVortaError(caught));
      return false;
    } finally {
      setBusy((models) => new Set([...models].filter((other) => other !== model)));
      await server.refresh();
    }
  };

  const { models } = server;
  return (
    <div class="models">
      <section class="card" aria-labelledby="models-title">
        <header class="card-head">
          <h2 id="models-title">Models</h2>
          <span class="muted">{models === undefined ? "loading…" : `${models.length} known`}</span>
        </header>
        {error === undefined ? null : <Problem error={error} />}
        <table class="table">
          <thead>
            <tr>
              <th scope="col">Model</th>
              <th scope="col">State</th>
              {COLUMNS.map(({ label, isNumber }) => (
                <th key={label} scope="col" class={numberClass(isNumber)}>
                  {label}
                </th>
              ))}
              <th scope="col">
                <span class="hidden">Actions</span>
              </th>
            </tr>
          </thead>
          <tbody>
            {(models ?? []).map((model) => (
              <Row
                key={model.model}
                model={model}
                server={server}
                isBusy={busy.has(model.model)}
                onLoad={() => void change(model.model, () => server.client.models.load(model.model))}
                onUnload={() => void change(model.model, () => server.client.models.unload(model.model))}
              />
            ))}
          </tbody>
        </table>
        {models?.length === 0 ? <p class="empty">The server knows no model yet; load one below.</p> : null}
      </section>
      <LoadForm onLoad={(id, options) => change(id, () => server.client.models.load(id, options))} />
    </div>
  );
}

function Row(props: {
  readonly model: Model;
  readonly server: Server;
  readonly isBusy: boolean;
  readonly onLoad: () => void;
  readonly onUnload: () => void;
}) {
  const { model, isBusy } = props;
  return (
    <tr>
      <th scope="row" title={`${model.architecture} from ${model.source}`}>
        {model.model}
        {model.isDefault ? <span class="tag">default</span> : null}
      </th>
      <td data-label="State">
        <State state={model.state} />
        {model.error === "" ? null : <p class="cell-error">{model.error}</p>}
      </td>
      {COLUMNS.map(({ label, isNumber, of }) => (
        <td key={label} data-label={label} class={numberClass(isNumber)}>
          {shown(of(model, props.server))}
        </td>
      ))}
      <td class="actions">
        {model.state === "unloaded" || model.state === "failed" ? (
          <button type="button" disabled={isBusy} aria-label={`Load ${model.model}`} onClick={props.onLoad}>
            {isBusy ? "Loading…" : "Load"}
          </button>
        ) : (
          <UnloadButton model={model.model} isBusy={isBusy} onUnload={props.onUnload} />
        )}
      </td>
    </tr>
  );
}

/** Unloads at the second click. */
function UnloadButton(props: { readonly model: string; readonly isBusy: boolean; readonly onUnload: () => void }) {
  const [isArmed, setIsArmed] = useState(false);
  useEffect(() => {
    if (isArmed) {
      const timer = setTimeout(() => setIsArmed(false), CONFIRM_MS);
      return () => clearTimeout(timer);
    }
    return undefined;
  }, [isArmed]);
  return (
    <button
      type="button"
      class={isArmed ? "danger" : "quiet"}
      disabled={props.isBusy}
      aria-label={isArmed ? `Really unload ${props.model}?` : `Unload ${props.model}`}
      onClick={() => {
        if (isArmed) {
          props.onUnload();
        }
        setIsArmed(!isArmed);
      }}
    >
      {props.isBusy ? "Unloading…" : isArmed ? "Really?" : "Unload"}
    </button>
  );
}

function LoadForm(props: {
  readonly onLoad: (id: string, options: { source?: string; precision?: string }) => Promise<boolean>;
}) {
  const [id, setId] = useState("");
  const [source, setSource] = useState("");
  const [precision, setPrecision] = useState("");
  const [isLoading, setIsLoading] = useState(false);
  const submit = async (event: Event): Promise<void> => {
    event.preventDefault();
    setIsLoading(true);
    const options = { ...(source === "" ? {} : { source }), ...(precision === "" ? {} : { precision }) };
    if (await props.onLoad(id.trim(), options)) {
      setId("");
      setSource("");
    }
    setIsLoading(false);
  };
  return (
    <form class="card row-form" aria-labelledby="load-title" onSubmit={(event) => void submit(event)}>
      <h2 id="load-title">Load a model</h2>
      <label>
        Id
        <input required value={id} placeholder="my-model" onInput={(event) => setId(event.currentTarget.value)} />
      </label>
      <label class="grow">
        Source
        <input
          value={source}
          placeholder="Folder on the server or hub id; default: the id"
          onInput={(event) => setSource(event.currentTarget.value)}
        />
      </label>
      <label>
        Precision
        <select value={precision} onChange={(event) => setPrecision(event.currentTarget.value)}>
          <option value="">Default</option>
          <option>fp32</option>
          <option>int8</option>
          <option>int4</option>
        </select>
      </label>
      <button type="submit" class="primary" disabled={isLoading || id.trim() === ""}>
        {isLoading ? "Loading…" : "Load"}
      </button>
    </form>
  );
}

/** A model's state: a dot and its name. */
export function State({ state }: { readonly state: string }) {
  return (
    <span class="state" data-state={state}>
      {state}
    </span>
  );
}

function shown(value: string | number | undefined): string | number {
  return value === undefined || value === "" ? "–" : value;
}

function numberClass(isNumber = false): string | undefined {
  return isNumber ? "number" : undefined;
}

function memoryOf(model: Model, server: Server): string | undefined {
  const reading = server.readings.at(-1);
  const bytes = reading && total(reading, "vorta_worker_memory_bytes", model.model);
  return bytes ? formatBytes(bytes) : undefined;
}
