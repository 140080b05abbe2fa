/** From callers' arguments to the contract's requests. */

import { create, fromJson, type MessageInitShape } from "@bufbuild/protobuf";

import { enumValue } from "./enum.js";
import { InvalidArgument } from "./errors.js";
import {
  type ChatMessageSchema,
  ChoiceFormatSchema,
  JsonObjectFormatSchema,
  type ResponseFormat,
  ToolChoiceMode,
  ToolChoiceModeSchema,
  type ToolChoiceSchema,
  type ToolSchema,
} from "./gen/vorta/v1/common_pb.js";
import { type Filter as FilterMessage, FilterSchema, type PointSchema } from "./gen/vorta/v1/vector_pb.js";
import type {
  ChatMessageInit,
  ChatOptions,
  Filter,
  Messages,
  PointInit,
  Prompt,
  ResponseFormatInit,
  Sampling,
  ToolInit,
  Vector,
} from "./options.js";

/** For how long a stream's request outlives a broken connection when the caller does not say, in seconds. */
export const DEFAULT_RESUME_WINDOW_S = 10;

/** The fields that say what to continue. */
export function promptFields(prompt: Prompt): { prompt?: string; promptTokenIds?: number[] } {
  return typeof prompt === "string" ? { prompt } : { promptTokenIds: [...prompt] };
}

/** The sampling fields whose types are loosened for callers. */
export function samplingFields(options: Pick<Sampling, "seed" | "stop" | "responseFormat">) {
  const { seed, stop, responseFormat } = options;
  return {
    seed: seed === undefined ? undefined : toInt64(seed, "seed"),
    stop: stop === undefined ? undefined : typeof stop === "string" ? [stop] : [...stop],
    responseFormat: responseFormat && { format: formatOneof(responseFormat) },
  };
}

function formatOneof(init: ResponseFormatInit): ResponseFormat["format"] {
  if ("jsonObject" in init) {
    return { case: "jsonObject", value: create(JsonObjectFormatSchema) };
  }
  if ("jsonSchema" in init) {
    const { jsonSchema } = init;
    return { case: "jsonSchema", value: typeof jsonSchema === "string" ? jsonSchema : JSON.stringify(jsonSchema) };
  }
  if ("choice" in init) {
    return { case: "choice", value: create(ChoiceFormatSchema, { choices: [...init.choice] }) };
  }
  return "regex" in init ? { case: "regex", value: init.regex } : { case: "grammar", value: init.grammar };
}

/** Whether the answer calls tools, and which. */
export function toolChoiceMessage(
  choice: ChatOptions["toolChoice"],
): MessageInitShape<typeof ToolChoiceSchema> | undefined {
  if (typeof choice === "object") {
    return { mode: ToolChoiceMode.REQUIRED, name: choice.name };
  }
  const mode = enumValue<typeof ToolChoiceMode>(ToolChoiceModeSchema, choice, "toolChoice");
  return mode === undefined ? undefined : { mode };
}

/** The messages of a conversation. */
export function chatMessages(messages: Messages): MessageInitShape<typeof ChatMessageSchema>[] {
  const listed: readonly ChatMessageInit[] =
    typeof messages === "string" ? [{ role: "user", content: messages }] : messages;
  return listed.map((message) => ({ ...message, toolCalls: [...(message.toolCalls ?? [])] }));
}

/** The tools of a conversation. */
export function toolMessages(tools: readonly ToolInit[] = []): MessageInitShape<typeof ToolSchema>[] {
  return [...tools];
}

/** A new request id; drawn here, so that a request can be cancelled and resumed before the server's first event. */
export function newRequestId(): string {
  // Not crypto.randomUUID, which pages served over plain http do not have.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A filter's message. Throws InvalidArgument for what is not of the contract. */
export function filterMessage(filter: Filter | undefined): FilterMessage | undefined {
  if (filter === undefined) {
    return undefined;
  }
  try {
    return fromJson(FilterSchema, filter);
  } catch (caught) {
    const why = caught instanceof Error ? caught.message : String(caught);
    throw new InvalidArgument(`filter: ${why}`, { reason: "INVALID_FIELD", field: "filter", cause: caught });
  }
}

/** A vector as bytes: float32, little-endian. */
export function packVector(vector: Vector): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(vector.length * 4);
  const view = new DataView(bytes.buffer);
  for (let place = 0; place < vector.length; place += 1) {
    view.setFloat32(place * 4, vector[place] ?? NaN, true);
  }
  return bytes;
}

/** A point's message, vector packed and payload as JSON text. */
export function pointMessage(point: PointInit, place: number): MessageInitShape<typeof PointSchema> {
  const { id, vector, text, payload } = point;
  return {
    id,
    ...(text === undefined ? {} : { text }),
    ...(vector === undefined ? {} : { vectorPacked: packVector(vector) }),
    ...(payload === undefined ? {} : { payloadJson: payloadJson(payload, `points[${place}].payload`) }),
  };
}

function payloadJson(payload: Readonly<Record<string, unknown>>, field: string): string {
  try {
    return JSON.stringify(payload, (key, value: unknown) => {
      if (typeof value === "number" && !Number.isFinite(value)) {
        throw new RangeError(`${key} is ${value}, which JSON does not have`);
      }
      return value;
    });
  } catch (caught) {
    const why = caught instanceof Error ? caught.message : String(caught);
    throw new InvalidArgument(`${field}: ${why}`, { reason: "INVALID_FIELD", field, cause: caught });
  }
}

function toInt64(value: number | bigint, field: string): bigint {
  if (typeof value === "number" && !Number.isSafeInteger(value)) {
    throw new InvalidArgument(`${field} must be a whole number, not ${value}`, { reason: "INVALID_FIELD", field });
  }
  return BigInt(value);
}
