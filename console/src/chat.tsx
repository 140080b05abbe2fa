/** A conversation with a model. */

import type { FinishReason, GenerationStream, Model, VortaError } from "@vorta/client";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";

import { formatCount, formatSeconds } from "./format";
import { Problem } from "./problem";
import { type Server, toVortaError } from "./server";
import { type Arrival, TokenStrip } from "./token-strip";

/** How long a stopped stream may take to end before it is cut. */
const STOP_GRACE_MS = 2_000;

interface Turn {
  readonly question: string;
  readonly text: string;
  readonly arrivals: readonly Arrival[];
  /** Undefined while it streams. */
  readonly end?: TurnEnd;
}

interface TurnEnd {
  readonly finishReason: FinishReason | undefined;
  readonly tokensPerSecond: number | undefined;
  readonly serverTtftS: number | undefined;
  readonly numTokens: number;
  readonly error: VortaError | undefined;
}

/** The view. */
export function Chat({ server, isActive }: { readonly server: Server; readonly isActive: boolean }) {
  const choices = (server.models ?? []).filter((model) => model.kind === "generation");
  const [chosen, setChosen] = useState("");
  const [system, setSystem] = useState("");
  const [temperature, setTemperature] = useState("");
  const [maxTokens, setMaxTokens] = useState("256");
  const [areSettingsOpen, setSettingsOpen] = useState(() => matchMedia("(min-width: 821px)").matches);
  const [draft, setDraft] = useState("");
  const [turns, setTurns] = useState<readonly Turn[]>([]);
  const stream = useRef<GenerationStream | undefined>(undefined);
  const [isStreaming, setIsStreaming] = useState(false);
  const log = useRef<HTMLDivElement>(null);
  const input = useRef<HTMLTextAreaElement>(null);
  const sticks = useRef(true);

  useEffect(() => {
    if (isActive) {
      input.current?.focus({ preventScroll: true });
    }
  }, []); // not at later changes of tabs, whose keys need the focus

  useLayoutEffect(() => {
    if (log.current !== null && sticks.current) {
      log.current.scrollTop = log.current.scrollHeight;
    }
  }, [turns]);

  const stop = (): void => {
    const running = stream.current;
    if (running !== undefined) {
      void running.cancel();
      setTimeout(() => running.close(), STOP_GRACE_MS);
    }
  };

  const send = async (): Promise<void> => {
    const question = draft.trim();
    if (question === "" || isStreaming) {
      return;
    }
    setDraft("");
    sticks.current = true;
    const history = turns.filter((turn) => turn.end?.error === undefined && turn.text !== "");
    const messages = [
      ...(system.trim() === "" ? [] : [{ role: "system" as const, content: system }]),
      ...history.flatMap((turn) => [
        { role: "user" as const, content: turn.question },
        { role: "assistant" as const, content: turn.text },
      ]),
      { role: "user" as const, content: question },
    ];
    setIsStreaming(true);
    const ended = await read(messages, question);
    setTurns((kept) => [...kept.slice(0, -1), ended]);
    stream.current = undefined;
    setIsStreaming(false);
    input.current?.focus({ preventScroll: true });
  };

  /** Reads one answer, showing it as it comes. */
  const read = async (
    messages: readonly { readonly role: "system" | "user" | "assistant"; readonly content: string }[],
    question: string,
  ): Promise<Turn> => {
    const running = server.client.streamChat(messages, {
      ...(chosen === "" ? {} : { model: chosen }),
      ...(temperature === "" ? {} : { temperature: Number(temperature) }),
      ...(maxTokens === "" ? {} : { maxTokens: Number(maxTokens) }),
    });
    stream.current = running;
    const sentMs = performance.now();
    const arrivals: Arrival[] = [];
    let text = "";
    let frame = 0;
    const show = (): void => {
      frame = 0;
      setTurns((kept) => [...kept.slice(0, -1), { question, text, arrivals: [...arrivals] }]);
    };
    setTurns((kept) => [...kept, { question, text, arrivals }]);
    let error: VortaError | undefined;
    try {
      for await (const event of running) {
        if (event.kind === "delta") {
          text += event.text;
          arrivals.push({ atMs: performance.now() - sentMs, numTokens: event.tokenIds.length });
          frame ||= requestAnimationFrame(show);
        }
      }
    } catch (caught) {
      error = toVortaError(caught);
    }
    cancelAnimationFrame(frame);
    const { finished } = running;
    const end: TurnEnd = {
      finishReason: finished?.finishReason,
      tokensPerSecond: finished?.timings.tokensPerSecond,
      serverTtftS: finished?.timings.ttftS,
      numTokens: finished?.usage.completionTokens ?? countTokens(arrivals),
      error,
    };
    return { question, text, arrivals, end };
  };

  const onKeyDown = (event: KeyboardEvent): void => {
    if (event.key === "Escape" && isStreaming) {
      event.preventDefault();
      stop();
    }
  };

  return (
    <div class="chat" onKeyDown={onKeyDown}>
      <details class="settings card" open={areSettingsOpen} onToggle={(event) => setSettingsOpen(event.currentTarget.open)}>
        <summary>Settings</summary>
        <label>
          Model
          <select value={chosen} onChange={(event) => setChosen(event.currentTarget.value)}>
            <option value="">{defaultLabel(server, choices)}</option>
            {choices.map((model) => (
              <option key={model.model} value={model.model} disabled={model.state !== "serving"}>
                {model.model}
                {model.state === "serving" ? "" : ` (${model.state})`}
              </option>
            ))}
          </select>
        </label>
        <label class="wide">
          System prompt
          <textarea
            rows={3}
            value={system}
            placeholder="None"
            onInput={(event) => setSystem(event.currentTarget.value)}
          />
        </label>
        <label>
          Temperature
          <input
            type="number"
            min="0"
            max="100"
            step="0.1"
            value={temperature}
            placeholder="Model’s own"
            onInput={(event) => setTemperature(event.currentTarget.value)}
          />
        </label>
        <label>
          Max tokens
          <input
            type="number"
            min="1"
            step="1"
            value={maxTokens}
            placeholder="What fits"
            onInput={(event) => setMaxTokens(event.currentTarget.value)}
          />
        </label>
        <button type="button" class="quiet" disabled={turns.length === 0 || isStreaming} onClick={() => setTurns([])}>
          New conversation
        </button>
      </details>
      <section class="conversation card" aria-label="Conversation">
        <div
          class="log"
          role="log"
          aria-live="polite"
          aria-label="Messages"
          aria-busy={isStreaming}
          tabIndex={0}
          ref={log}
          onScroll={({ currentTarget: area }) => {
            sticks.current = area.scrollHeight - area.scrollTop - area.clientHeight < 40;
          }}
        >
          {turns.length === 0 ? <Empty /> : null}
          {turns.map((turn, place) => (
            <article key={place} class="turn">
              <p class="question">{turn.question}</p>
              <Answer turn={turn} />
            </article>
          ))}
        </div>
        <form
          class="composer"
          onSubmit={(event) => {
            event.preventDefault();
            void send();
          }}
        >
          <label class="hidden" for="draft">
            Message
          </label>
          <textarea
            id="draft"
            ref={input}
            rows={2}
            value={draft}
            placeholder="Message"
            onInput={(event) => setDraft(event.currentTarget.value)}
            onKeyDown={(event) => {
              if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
                event.preventDefault();
                void send();
              }
            }}
          />
          {isStreaming ? (
            <button type="button" class="stop" onClick={stop}>
              Stop <kbd>Esc</kbd>
            </button>
          ) : (
            <button type="submit" class="primary" disabled={draft.trim() === ""}>
              Send <kbd>↵</kbd>
            </button>
          )}
        </form>
      </section>
    </div>
  );
}

function Empty() {
  return (
    <div class="empty">
      <p>Ask something to see the answer stream, with the timing of each of its tokens.</p>
      <p class="muted">
        <kbd>Enter</kbd> sends, <kbd>Shift</kbd> <kbd>Enter</kbd> makes a new line, <kbd>Esc</kbd> stops.
      </p>
    </div>
  );
}

function Answer({ turn }: { readonly turn: Turn }) {
  const { text, arrivals, end } = turn;
  const first = arrivals[0];
  const last = arrivals.at(-1);
  const numTokens = end?.numTokens ?? countTokens(arrivals);
  const decodeMs = (last?.atMs ?? 0) - (first?.atMs ?? 0);
  const live = decodeMs > 0 ? ((numTokens - (first?.numTokens ?? 0)) / decodeMs) * 1000 : undefined;
  const tokensPerSecond = end?.tokensPerSecond || live;
  return (
    <div class="answer">
      <div class={end === undefined ? "text streaming" : "text"}>{text}</div>
      {end?.error === undefined ? null : <Problem error={end.error} />}
      <footer class="timing" aria-live="off">
        <TokenStrip arrivals={arrivals} />
        <dl>
          <Figure name="TTFT" title={serverTtft(end)} value={first && formatSeconds(first.atMs / 1000)} />
          <Figure name="tok/s" value={tokensPerSecond && formatCount(tokensPerSecond)} />
          <Figure name="tokens" value={String(numTokens)} />
          <Figure name="ended" isBare value={end === undefined ? "…" : (end.finishReason ?? "error")} />
        </dl>
      </footer>
    </div>
  );
}

function Figure(props: {
  readonly name: string;
  readonly value: string | number | undefined;
  readonly title?: string;
  /** Whether the name is read, not shown. */
  readonly isBare?: boolean;
}) {
  return (
    <div title={props.title}>
      <dt class={props.isBare ? "hidden" : undefined}>{props.name}</dt>
      <dd>{props.value || "–"}</dd>
    </div>
  );
}

function serverTtft(end: TurnEnd | undefined): string {
  const seen = "Time to the first token, as this page saw it";
  return end?.serverTtftS ? `${seen}; ${formatSeconds(end.serverTtftS)} on the server` : seen;
}

function countTokens(arrivals: readonly Arrival[]): number {
  return arrivals.reduce((sum, arrival) => sum + arrival.numTokens, 0);
}

function defaultLabel(server: Server, choices: readonly Model[]): string {
  if (server.models === undefined) {
    return "Loading…";
  }
  if (choices.length === 0) {
    return "No model that generates";
  }
  return server.info?.defaultModel ? `Default (${server.info.defaultModel})` : "Default";
}
