/** Collections of points; `VortaClient.collections`. */

import type { MessageInitShape } from "@bufbuild/protobuf";

import { batchesOf, batching, type Source } from "./batches.js";
import type { CallOptions, Caller } from "./caller.js";
import { enumValue } from "./enum.js";
import { Internal } from "./errors.js";
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
  CountOptions,
  CreateCollectionOptions,
  Filter,
  GetPointsOptions,
  HybridSearchOptions,
  IndexOptions,
  PointInit,
  RestoreSnapshotOptions,
  ScrollOptions,
  SearchOptions,
  StreamUpsertOptions,
  Vector,
  WriteOptions,
} from "./options.js";
import { filterMessage, packVector, pointMessage } from "./request.js";
import { collection, collectionStats, hit, hitGroup, point, searchResult, snapshot } from "./response.js";
import type {
  Alias,
  CollectionInfo,
  CollectionStats,
  Point,
  SearchResult,
  Snapshot,
  UpsertAck,
  WriteResult,
} from "./result.js";

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

  /** A collection's state: points, index, memory, disk. */
  async stats(name: string, options: CallOptions = {}): Promise<CollectionStats> {
    return collectionStats((await this.#caller.unary(RPC.getCollectionStats, { collection: name }, options)).stats);
  }

  /** Deletes a collection (its own name, not an alias), its points and its aliases; snapshots stay. */
  async delete(name: string, options: CallOptions = {}): Promise<void> {
    await this.#caller.unary(RPC.deleteCollection, { collection: name }, options);
  }

  /** Points an alias to a collection, at once: no call sees neither. Makes the alias if need be. */
  async swapAlias(alias: string, name: string, options: CallOptions = {}): Promise<void> {
    await this.#caller.unary(RPC.swapAlias, { alias, collection: name }, options);
  }

  /** Deletes an alias; the collection stays. */
  async deleteAlias(alias: string, options: CallOptions = {}): Promise<void> {
    await this.#caller.unary(RPC.deleteAlias, { alias }, options);
  }

  /** All aliases, by name. */
  async listAliases(options: CallOptions = {}): Promise<Alias[]> {
    const { aliases } = await this.#caller.unary(RPC.listAliases, {}, options);
    return aliases.map(({ alias, collection }) => ({ alias, collection }));
  }

  /** Keeps a collection's state as a snapshot on the server's disk. */
  async createSnapshot(name: string, options: CallOptions = {}): Promise<Snapshot> {
    return snapshot((await this.#caller.unary(RPC.createSnapshot, { collection: name }, options)).snapshot);
  }

  /** A collection's snapshots, newest first. */
  async listSnapshots(name: string, options: CallOptions = {}): Promise<Snapshot[]> {
    return (await this.#caller.unary(RPC.listSnapshots, { collection: name }, options)).snapshots.map(snapshot);
  }

  /** Deletes a snapshot. */
  async deleteSnapshot(name: string, snapshotName: string, options: CallOptions = {}): Promise<void> {
    await this.#caller.unary(RPC.deleteSnapshot, { collection: name, snapshot: snapshotName }, options);
  }

  /** Makes a collection what a snapshot of `name` holds; a damaged snapshot is refused and changes nothing. */
  async restoreSnapshot(
    name: string,
    snapshotName: string,
    options: RestoreSnapshotOptions = {},
  ): Promise<CollectionInfo> {
    const { target, replace } = options;
    const request = { collection: name, snapshot: snapshotName, target, replace };
    return collection((await this.#caller.unary(RPC.restoreSnapshot, request, options)).collection);
  }

  /** Inserts points, replacing those whose ids exist: all or nothing, at most 10,000; more with `streamUpsert`. */
  async upsert(name: string, points: readonly PointInit[], options: WriteOptions = {}): Promise<WriteResult> {
    const request = { collection: name, points: points.map(pointMessage), wait: options.wait };
    return writeResult(await this.#caller.unary(RPC.upsert, request, options));
  }

  /**
   * Inserts any number of points in batches, each all or nothing, and yields an answer for each that is on disk, in
   * order. Points are taken as answers are read. The first batch that fails ends the stream with its error: what was
   * answered stays. Over gRPC-Web each batch is a call of its own.
   */
  async *streamUpsert(
    name: string,
    points: Source<PointInit>,
    options: StreamUpsertOptions = {},
  ): AsyncGenerator<UpsertAck, void, undefined> {
    const { size, maxInFlight } = batching(options, 500, 10_000);
    let numBatches = 0;
    let index = 0;
    async function* requests() {
      for await (const batch of batchesOf(points, size)) {
        const first = numBatches * size;
        numBatches += 1;
        yield { points: batch.map((init, place) => pointMessage(init, first + place)) };
      }
    }
    const exchange = {
      head: { collection: name },
      requests: requests(),
      maxWeight: maxInFlight,
      weightOf: () => 1,
      answeredBy: () => 1,
    };
    const deadline = this.#caller.deadline(options);
    const signal = this.#caller.signal(options);
    for await (const message of this.#caller.exchange(RPC.streamUpsert, exchange, deadline, signal)) {
      yield { index, ...writeResult(message) };
      index += 1;
    }
    if (index < numBatches) {
      throw new Internal(`the server ended the stream after ${index} of ${numBatches} batches`, { reason: "INTERNAL" });
    }
  }

  /** Points by id, in that order, at most 10,000; unknown ids are left out. */
  async getPoints(name: string, ids: readonly string[], options: GetPointsOptions = {}): Promise<Point[]> {
    const { withPayload, withVector } = options;
    const request = { collection: name, ids: [...ids], withPayload, withVector, compact: true };
    return (await this.#caller.unary(RPC.getPoints, request, options)).points.map(point);
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
    const request = { ...searchFields(options), ...queryFields(query), collection: name };
    return searchResult(await this.#caller.unary(RPC.search, request, options));
  }

  /** Up to 1,024 searches with the same options, computed together; all queries by text, by vector or by id. */
  async batchSearch(name: string, queries: readonly Query[], options: SearchOptions = {}): Promise<SearchResult[]> {
    const request = { ...searchFields(options), collection: name, queries: queries.map(queryFields) };
    return (await this.#caller.unary(RPC.batchSearch, request, options)).results.map(searchResult);
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
  async count(name: string, options: CountOptions = {}): Promise<number> {
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

function queryFields(query: Query) {
  return "vector" in query ? { vectorPacked: packVector(query.vector) } : query;
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
