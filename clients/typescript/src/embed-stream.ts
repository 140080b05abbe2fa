/** Embedding any number of texts, as they come. */

import { create, type MessageInitShape } from "@bufbuild/protobuf";

import { batchesOf, batching, type Source } from "./batches.js";
import type { Caller, Deadline } from "./caller.js";
import { UsageSchema } from "./gen/vorta/v1/common_pb.js";
import { EmbeddingService, type EmbedOptionsSchema, type StreamEmbedResponse } from "./gen/vorta/v1/embedding_pb.js";
import type { StreamEmbedOptions } from "./options.js";
import { embedding, embeddingFailure } from "./response.js";
import type { Embedding, EmbeddingFailure, EmbeddingSummary } from "./result.js";
import { type Results, ResultStream } from "./result-stream.js";

const MAX_INPUTS = 2_048;

/** Vectors as they are computed, each with its text's index. */
export type EmbedStream = ResultStream<Embedding | EmbeddingFailure, EmbeddingSummary>;

/** Opens the stream. Throws InvalidArgument naming an option that makes no sense. */
export function embedStream(
  caller: Caller,
  texts: Source<string>,
  embedOptions: MessageInitShape<typeof EmbedOptionsSchema>,
  options: StreamEmbedOptions,
): EmbedStream {
  const { size, maxInFlight } = batching(options, 256, MAX_INPUTS);
  const exchange = {
    head: { model: options.model, options: embedOptions },
    requests: requests(typeof texts === "string" ? [texts] : texts, size),
    maxWeight: maxInFlight * size,
    weightOf: (request: { readonly inputs?: readonly string[] }) => request.inputs?.length ?? 0,
    answeredBy: numResults,
  };
  return new ResultStream(caller, options, (deadline: Deadline, signal: AbortSignal) =>
    results(caller.exchange(EmbeddingService.method.streamEmbed, exchange, deadline, signal)),
  );
}

async function* requests(texts: Source<string>, size: number) {
  let isEmpty = true;
  for await (const inputs of batchesOf(texts, size)) {
    isEmpty = false;
    yield { inputs };
  }
  if (isEmpty) {
    yield { inputs: [] }; // the server still says who would have computed them
  }
}

/** What the messages of one call, or of several in a row, say. */
async function* results(
  messages: AsyncIterable<StreamEmbedResponse>,
): AsyncGenerator<Results<Embedding | EmbeddingFailure, EmbeddingSummary>, void, undefined> {
  let numInputs = 0; // of the calls that have ended
  let numFailures = 0;
  let numTokens = 0;
  for await (const { event } of messages) {
    if (event.case === "batch") {
      const { embeddings, failures } = event.value;
      yield {
        items: [
          ...embeddings.map((one) => embedding(one, numInputs)),
          ...failures.map((one) => embeddingFailure(one, numInputs)),
        ],
      };
    } else if (event.case === "finished") {
      const { model, dimensions } = event.value;
      numInputs += Number(event.value.numInputs);
      numFailures += Number(event.value.numFailures);
      numTokens += event.value.usage?.promptTokens ?? 0;
      const usage = create(UsageSchema, { promptTokens: numTokens, totalTokens: numTokens });
      yield { items: [], summary: { model, numInputs, numFailures, dimensions, usage } };
    }
  }
}

function numResults({ event }: StreamEmbedResponse): number {
  return event.case === "batch" ? event.value.embeddings.length + event.value.failures.length : 0;
}
