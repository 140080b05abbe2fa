import { defineConfig } from "vite";

/** The HTTP port of a `vorta serve`, for `npm run dev` and `npm run preview`. */
const target = process.env["VORTA_HTTP_URL"] ?? "http://127.0.0.1:8000";
const proxy = { "^/(vorta\\.v1\\.|metrics)": { target } };

export default defineConfig({
  base: "/console/",
  build: {
    outDir: "../gateway/vorta_gateway/console",
    emptyOutDir: true,
    target: "es2022",
    modulePreload: { polyfill: false },
    license: false,
  },
  server: { proxy },
  preview: {
    proxy,
    headers: {
      // As the gateway's.
      "content-security-policy":
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src *; " +
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    },
  },
});
