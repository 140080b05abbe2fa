/** The page: its header, its tabs, and the views behind them. */

import { render } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";

import { Chat } from "./chat";
import { Collections } from "./collections";
import "./console.css";
import { formatAge } from "./format";
import { Metrics } from "./metrics";
import { Models } from "./models";
import { type Server, useServer } from "./server";
import { type Theme, useTheme } from "./theme";

const TABS = [
  ["chat", "Chat"],
  ["collections", "Collections"],
  ["models", "Models"],
  ["metrics", "Metrics"],
] as const;
type Tab = (typeof TABS)[number][0];

function App() {
  const server = useServer();
  const [tab, setTab] = useTab();
  return (
    <>
      <header class="top">
        <h1 class="brand">
          <Mark />
          Vorta<span class="hidden"> console</span>
        </h1>
        <Tabs tab={tab} onChange={setTab} />
        <div class="tools">
          <Status server={server} />
          <ApiKey server={server} />
          <ThemeToggle />
        </div>
      </header>
      <main>
        {TABS.map(([name]) => (
          <div key={name} id={`panel-${name}`} role="tabpanel" aria-labelledby={`tab-${name}`} hidden={name !== tab}>
            {name === "chat" ? <Chat server={server} isActive={tab === name} /> : null}
            {name === "collections" ? <Collections server={server} isActive={tab === name} /> : null}
            {name === "models" && tab === name ? <Models server={server} /> : null}
            {name === "metrics" && tab === name ? <Metrics server={server} /> : null}
          </div>
        ))}
      </main>
    </>
  );
}

/** The tab, which the address's fragment names. */
function useTab(): [Tab, (tab: Tab) => void] {
  const read = (): Tab => TABS.find(([name]) => `#${name}` === location.hash)?.[0] ?? "chat";
  const [tab, setTab] = useState<Tab>(read);
  useEffect(() => {
    const follow = (): void => setTab(read());
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  return [
    tab,
    (name) => {
      history.replaceState(null, "", `#${name}`);
      setTab(name);
    },
  ];
}

function Tabs({ tab, onChange }: { readonly tab: Tab; readonly onChange: (tab: Tab) => void }) {
  const list = useRef<HTMLDivElement>(null);
  const onKeyDown = (event: KeyboardEvent): void => {
    const place = TABS.findIndex(([name]) => name === tab);
    const last = TABS.length - 1;
    const next = {
      ArrowRight: place === last ? 0 : place + 1,
      ArrowLeft: place === 0 ? last : place - 1,
      Home: 0,
      End: last,
    }[event.key];
    const target = next === undefined ? undefined : TABS[next];
    if (target !== undefined) {
      event.preventDefault();
      onChange(target[0]);
      list.current?.querySelector<HTMLElement>(`#tab-${target[0]}`)?.focus();
    }
  };
  return (
    <div class="tabs" role="tablist" aria-label="Views" ref={list} onKeyDown={onKeyDown}>
      {TABS.map(([name, label]) => (
        <button
          key={name}
          id={`tab-${name}`}
          type="button"
          role="tab"
          aria-selected={name === tab}
          aria-controls={`panel-${name}`}
          tabIndex={name === tab ? 0 : -1}
          onClick={() => onChange(name)}
        >
          {label}
        </button>
      ))}
    </div>
  );
}

function Status({ server }: { readonly server: Server }) {
  const { info, problem } = server;
  if (problem !== undefined) {
    return (
      <span class="state status" data-state="failed" role="status" title={problem.message}>
        {problem.reason === "UNAUTHENTICATED" ? "key needed" : problem.code === 14 ? "unreachable" : problem.reason}
      </span>
    );
  }
  if (info === undefined) {
    return (
      <span class="state status" data-state="loading" role="status">
        connecting
      </span>
    );
  }
  const uptimeS = info.startTime === undefined ? 0 : (Date.now() - info.startTime.getTime()) / 1000;
  return (
    <span class="state status" data-state={info.isDraining ? "draining" : "serving"} role="status">
      {info.isDraining ? "draining" : info.version}
      <span class="muted uptime">up {formatAge(uptimeS)}</span>
    </span>
  );
}

function ApiKey({ server }: { readonly server: Server }) {
  const [draft, setDraft] = useState(server.apiKey);
  const apply = (): void => {
    if (draft.trim() !== server.apiKey) {
      server.setApiKey(draft.trim());
    }
  };
  return (
    <form
      class="api-key"
      onSubmit={(event) => {
        event.preventDefault();
        apply();
      }}
    >
      <input
        type="password"
        autocomplete="off"
        aria-label="API key, kept until this tab is closed"
        placeholder="API key"
        value={draft}
        onInput={(event) => setDraft(event.currentTarget.value)}
        onBlur={apply}
      />
    </form>
  );
}

function ThemeToggle() {
  const [theme, setTheme] = useTheme();
  const next: Theme = theme === "auto" ? "light" : theme === "light" ? "dark" : "auto";
  return (
    <button type="button" class="quiet icon" aria-label={`Theme: ${theme}. Change to ${next}`} title={`Theme: ${theme}`} onClick={() => setTheme(next)}>
      <svg viewBox="0 0 16 16" width="16" height="16" aria-hidden="true">
        <circle cx="8" cy="8" r="5.5" fill={theme === "light" ? "none" : undefined} class="theme-ring" />
        {theme === "auto" ? <path d="M8 2.5a5.5 5.5 0 0 1 0 11z" class="theme-half" /> : null}
        {theme === "dark" ? <circle cx="8" cy="8" r="5.5" class="theme-half" /> : null}
      </svg>
    </button>
  );
}

function Mark() {
  return (
    <svg class="mark" viewBox="0 0 24 24" width="20" height="20" aria-hidden="true">
      <path d="M3 5l6.2 14L12 12.6" />
      <path d="M12 5l2.9 6.4" />
      <path d="M21 5l-6 13.6" />
    </svg>
  );
}

render(<App />, document.getElementById("app") ?? document.body);
