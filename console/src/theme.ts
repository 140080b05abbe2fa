/** Light, dark, or as the system has it; remembered on this machine. */

import { useLayoutEffect, useState } from "preact/hooks";

/** A theme. */
export type Theme = "auto" | "light" | "dark";

const ITEM = "vorta.theme";

/** The theme, and how to change it. */
export function useTheme(): [Theme, (theme: Theme) => void] {
  const [theme, setTheme] = useState<Theme>(() => {
    const stored = localStorage.getItem(ITEM);
    return stored === "light" || stored === "dark" ? stored : "auto";
  });
  useLayoutEffect(() => {
    document.documentElement.dataset["theme"] = theme;
    localStorage.setItem(ITEM, theme);
  }, [theme]);
  return [theme, setTheme];
}
