/** Collections of points; `VortaClient.collections`. */

import type { MessageInitShape } from "@bufbuild/protobuf";

import type { CallOptions, Caller } from "./caller.js";
import { enumValue } from "./enum.js";
import {
  type Distance,
  DistanceSchema,
  type FieldType,
  FieldTypeSchema,
  type Fusion,
  FusionSchema,
  type IndexKind,
  IndexKindSchema,
  type IndexOptionsSchema,
  VectorService,
} from "./gen/vorta/v1/vector_pb.js";
import type {
  CreateCollectionOptions,
  Filter,
  HybridSearchOptions,
  IndexOptions,
  PointInit,
  ScrollOptions,
  SearchOptions,
  Vector,
  WriteOptions,
} from "./options.js";
import { filterMessage, packVector, pointMessage } from "./request.js";
import { collection, hit, hitGroup, point } from "./response.js";
import type { CollectionInfo, Point, SearchResult, WriteResult } from "./result.js";

const RPC = VectorService.method;

/** What to search by: one of these. */
export type Query =
  | { readonly text: string }
  | { readonly vector: Vector }
  /** A point's id; that point is not among the hits. */
  | { readonly id: string };

/** Reads and writes collections. Where a collection is named, an alias does as well, unless said otherwise. */
export class Collections {
  readonly #caller: Caller;

  /** Made by the client. */
  constructor(caller: Caller) {
    this.#caller = caller;
  }

  /** Makes a collection; AlreadyExists when a collection or an alias has the name. */
  async create(name: string, options: CreateCollectionOptions = {}): Promise<CollectionInfo> {
    const schema = Object.entries(options.schema ?? {}).map(([field, type]) => [
      field,
      enumValue<typeof FieldType>(FieldTypeSchema, type, `schema.${field}`),
    ]);
    const request = {
      collection: name,
      dimension: options.dimension,
      distance: enumValue<typeof Distance>(DistanceSchema, options.distance, "distance"),
      index: indexMessage(options.index),
      textFields: [...(options.textFields ?? [])],
      schema: Object.fromEntries(schema) as Record<string, FieldType>,
      embeddingModel: options.embeddingModel,
      description: options.description,
    };
    return collection((await this.#caller.unary(RPC.createCollection, request, options)).collection);
  }

  /** All collections, by name. */
  async list(options: CallOptions = {}): Promise<CollectionInfo[]> {
    return (await this.#caller.unary(RPC.listCollections, {}, options)).collections.map(collection);
  }

  /** A collection's definition and state. */
  async get(name: string, options: CallOptions = {}): Promise<CollectionInfo> {
    return collection((await this.#caller.unary(RPC.getCollection, { collection: name }, options)).collection);
  }

  /** Deletes a collection (its own name, not an alias), its points and its aliases. */
  async delete(name: string, options: CallOptions = {}): Promise<void> {
    await this.#caller.unary(RPC.deleteCollection, { collection: name }, options);
  }

  /** Inserts points, replacing those whose ids exist: all or nothing, at most 10,000. */
  async upsert(name: string, points: readonly PointInit[], options: WriteOptions = {}): Promise<WriteResult> {
    const request = { collection: name, points: points.map(pointMessage), wait: options.wait };
    return writeResult(await this.#caller.unary(RPC.upsert, request, options));
  }

  /** Deletes points by ids (unknown ones are ignored) or by a filter; the count is of those that were there. */
  async deletePoints(
    name: string,
    which: { readonly ids: readonly string[] } | { readonly filter: Filter },
    options: WriteOptions = {},
  ): Promise<WriteResult> {
    const request =
      "ids" in which
        ? { collection: name, ids: [...which.ids], wait: options.wait }
        : { collection: name, filter: filterMessage(which.filter), wait: options.wait };
    return writeResult(await this.#caller.unary(RPC.deletePoints, request, options));
  }

  /** The points most like a query: a text (embedded by the server), a vector or a point's id. */
  async search(name: string, query: Query, options: SearchOptions = {}): Promise<SearchResult> {
    const request = {
      ...searchFields(options),
      ...("vector" in query ? { vectorPacked: packVector(query.vector) } : query),
      collection: name,
    };
    const { hits, groups, strategy } = await this.#caller.unary(RPC.search, request, options);
    return { hits: hits.map(hit), groups: groups.map(hitGroup), strategy };
  }

  /** Searches by vector and by words (BM25) at once, both lists fused. The collection must have text fields. */
  async hybridSearch(name: string, text: string, options: HybridSearchOptions = {}): Promise<SearchResult> {
    const request = {
      ...searchFields(options),
      collection: name,
      text,
      vectorPacked: options.vector === undefined ? undefined : packVector(options.vector),
      fusion: enumValue<typeof Fusion>(FusionSchema, options.fusion, "fusion"),
      denseWeight: options.denseWeight,
      rrfK: options.rrfK,
      numCandidates: options.numCandidates,
    };
    const { hits, groups } = await this.#caller.unary(RPC.hybridSearch, request, options);
    return { hits: hits.map(hit), groups: groups.map(hitGroup), strategy: "hybrid" };
  }

  /** Counts points, exactly. */
  async count(name: string, options: CallOptions & { readonly filter?: Filter } = {}): Promise<number> {
    const request = { collection: name, filter: filterMessage(options.filter) };
    return Number((await this.#caller.unary(RPC.countPoints, request, options)).count);
  }

  /** All points that pass, ordered by id, fetched page by page as they are read; `timeoutMs` is each page's. */
  async *scroll(name: string, options: ScrollOptions = {}): AsyncGenerator<Point, void, undefined> {
    const request = {
      collection: name,
      filter: filterMessage(options.filter),
      limit: options.pageSize,
      withPayload: options.withPayload,
      withVector: options.withVector,
      compact: true,
    };
    for (let pageToken = ""; ; ) {
      const page = await this.#caller.unary(RPC.scrollPoints, { ...request, pageToken }, options);
      yield* page.points.map(point);
      pageToken = page.nextPageToken;
      if (pageToken === "") {
        return;
      }
    }
  }
}

function indexMessage(index: CreateCollectionOptions["index"]): MessageInitShape<typeof IndexOptionsSchema> | undefined {
  if (index === undefined) {
    return undefined;
  }
  const options: IndexOptions = typeof index === "string" ? { kind: index } : index;
  return { ...options, kind: enumValue<typeof IndexKind>(IndexKindSchema, options.kind, "index.kind") };
}

function searchFields(options: SearchOptions) {
  return {
    limit: options.limit,
    offset: options.offset,
    filter: filterMessage(options.filter),
    scoreThreshold: options.scoreThreshold,
    exact: options.exact,
    efSearch: options.efSearch,
    numProbes: options.numProbes,
    withPayload: options.withPayload,
    withVector: options.withVector,
    groupBy: options.groupBy,
    groupSize: options.groupSize,
    compact: true,
  };
}

function writeResult(message: { readonly count: bigint; readonly sequence: bigint }): WriteResult {
  return { count: Number(message.count), sequence: Number(message.sequence) };
}
