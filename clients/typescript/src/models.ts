/** The server's models; `VortaClient.models`. */

import type { CallOptions, Caller } from "./caller.js";
import { Internal } from "./errors.js";
import { AdminService, type Model as ModelMessage } from "./gen/vorta/v1/admin_pb.js";
import { model } from "./response.js";
import type { Model } from "./result.js";

const RPC = AdminService.method;

/** Options of models.load(). */
export interface LoadModelOptions extends CallOptions {
  /** A checkpoint folder, artifact folder or hub id, on the server. Default: where it was loaded from before. */
  readonly source?: string;
  /** fp32, int8 or int4. Default: the server's. */
  readonly precision?: string;
  /** Context length in tokens. Default: the model's own. */
  readonly maxModelLen?: number;
}

/** Looks after models. */
export class Models {
  readonly #caller: Caller;

  /** Made by the client. */
  constructor(caller: Caller) {
    this.#caller = caller;
  }

  /** The models that the server knows, by id. */
  async list(options: CallOptions = {}): Promise<Model[]> {
    return (await this.#caller.unary(RPC.listModels, {}, options)).models.map(model);
  }

  /** One model; NotFound when it is unknown. */
  async get(id: string, options: CallOptions = {}): Promise<Model> {
    return known((await this.#caller.unary(RPC.getModel, { model: id }, options)).model);
  }

  /** Loads a model from a path or hub id on the server, and returns when it serves. */
  async load(id: string, options: LoadModelOptions = {}): Promise<Model> {
    const { source, precision, maxModelLen } = options;
    const request = { model: id, source, precision, maxModelLen };
    return known((await this.#caller.unary(RPC.loadModel, request, options)).model);
  }

  /** Stops a model after what it runs has had `graceS` seconds to finish. Default: the server's drain grace. */
  async unload(id: string, options: CallOptions & { readonly graceS?: number } = {}): Promise<Model> {
    const request = { model: id, graceS: options.graceS };
    return known((await this.#caller.unary(RPC.unloadModel, request, options)).model);
  }
}

function known(message: ModelMessage | undefined): Model {
  if (message === undefined) {
    throw new Internal("the server's reply has no model", { reason: "INTERNAL", field: "model" });
  }
  return model(message);
}
