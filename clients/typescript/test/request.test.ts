/** How options become the contract's messages. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";

import { create, toJson } from "@bufbuild/protobuf";
import { InvalidArgument } from "@vorta/client";

import { ToolChoiceSchema } from "../dist/gen/vorta/v1/common_pb.js";
import { GenerateRequestSchema } from "../dist/gen/vorta/v1/inference_pb.js";
import { samplingFields, toolChoiceMessage } from "../dist/request.js";

describe("requests", () => {
  it("say what the text must be", () => {
    const schema = { type: "object", properties: {} };
    for (const [init, message] of [
      [{ jsonObject: true }, { jsonObject: {} }],
      [{ jsonSchema: schema }, { jsonSchema: JSON.stringify(schema) }],
      [{ jsonSchema: "true" }, { jsonSchema: "true" }],
      [{ regex: "a+" }, { regex: "a+" }],
      [{ choice: ["yes", "no"] }, { choice: { choices: ["yes", "no"] } }],
      [{ grammar: "start: /a/" }, { grammar: "start: /a/" }],
    ] as const) {
      const request = create(GenerateRequestSchema, samplingFields({ responseFormat: init }));
      assert.deepEqual(toJson(GenerateRequestSchema, request), { responseFormat: message });
    }
  });

  it("say which tool to call", () => {
    const message = (choice: Parameters<typeof toolChoiceMessage>[0]) =>
      toJson(ToolChoiceSchema, create(ToolChoiceSchema, toolChoiceMessage(choice)));
    assert.deepEqual(message("required"), { mode: "TOOL_CHOICE_MODE_REQUIRED" });
    assert.deepEqual(message({ name: "f" }), { mode: "TOOL_CHOICE_MODE_REQUIRED", name: "f" });
    assert.equal(toolChoiceMessage(undefined), undefined);
    assert.throws(
      () => toolChoiceMessage("never" as "none"),
      (error) => error instanceof InvalidArgument && error.field === "toolChoice" && /auto, none, required/.test(error.message),
    );
  });
});
