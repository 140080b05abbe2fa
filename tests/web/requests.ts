/** What the server computes, asked over REST. */

/** Waits until the server tells that a request runs, or that none does; what it tells lags behind a little. */
export async function comesToRun(url: string, expected: boolean): Promise<void> {
  for (let attempt = 0; attempt < 250; attempt += 1) {
    const reply = await fetch(`${url}/v1/admin/models`);
    const { models } = (await reply.json()) as { models: { load?: { running_requests?: number } }[] };
    if (models.some((model) => (model.load?.running_requests ?? 0) > 0) === expected) {
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(expected ? "no request runs" : "the request goes on");
}
