"""Collections and aliases in Weaviate, and what this process knows of them.

Imports the weaviate package: import this module only where that is installed.
"""

from __future__ import annotations

import copy
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import msgspec
from weaviate import WeaviateClient
from weaviate.classes.config import (
    Configure,
    ConsistencyLevel,
    DataType,
    Property,
    StopwordsPreset,
    Tokenization,
    VectorDistances,
)
from weaviate.classes.query import FilterReturn
from weaviate.collections import Collection as WeaviateCollection
from weaviate.exceptions import UnexpectedStatusCodeError, WeaviateInvalidInputError

from vorta.errors import AlreadyExists, InvalidArgument, NotFound, Unavailable, VortaError
from vorta_server.vectors.operation import (
    Aliases,
    AliasInfo,
    Collection,
    CollectionInfo,
    Collections,
    CollectionStats,
    CreateCollection,
    DeleteAlias,
    DeleteCollection,
    Done,
    GetCollection,
    ListAliases,
    ListCollections,
    SwapAlias,
)
from vorta_server.vectors.weaviate_checks import check_collection, check_name
from vorta_server.vectors.weaviate_client import connect
from vorta_server.vectors.weaviate_config import WeaviateConfig
from vorta_server.vectors.weaviate_schema import (
    FIELDS,
    ID,
    ORDER,
    PAYLOAD,
    Definition,
    class_name,
    collection_name,
    property_field,
    property_name,
)

__all__ = ["Catalog", "Known"]

_CONNECT_PAUSE_S = 1.0
_DISTANCES = {"cosine": VectorDistances.COSINE, "dot": VectorDistances.DOT, "l2": VectorDistances.L2_SQUARED}
_TYPES = {
    "keyword": DataType.TEXT_ARRAY,
    "text": DataType.TEXT_ARRAY,
    "integer": DataType.INT_ARRAY,
    "float": DataType.NUMBER_ARRAY,
    "bool": DataType.BOOL_ARRAY,
    "datetime": DataType.DATE_ARRAY,
    "geo": DataType.GEO_COORDINATES,
}


@dataclass(kw_only=True)
class Known:
    """A collection as it was when its definition was read last."""

    definition: Definition
    objects: WeaviateCollection[dict[str, Any], None]
    properties: set[str]
    read_s: float
    fields: dict[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fields = fields_of(self.collection, self.properties)

    @property
    def collection(self) -> Collection:
        """The definition as the caller gave it."""
        return self.definition.collection

    @property
    def types(self) -> dict[str, str]:
        """Declared types."""
        return self.collection.schema | dict.fromkeys(self.collection.text_fields, "text")


def fields_of(collection: Collection, properties: set[str]) -> dict[str, set[str]]:
    """The kinds of values that each payload field is declared to have, or has had."""
    fields: dict[str, set[str]] = {}
    for path, kind in collection.schema.items():
        fields.setdefault(path, set()).add(kind)
    for path in collection.text_fields:
        fields.setdefault(path, set()).add("text")
    for name in properties:
        found = property_field(name)
        if found is not None:
            fields.setdefault(found[0], set()).add(found[1])
    return fields


class Catalog:
    """Makes, finds and deletes collections and aliases; holds the connection."""

    def __init__(self, config: WeaviateConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._client: WeaviateClient | None = None
        self._failure: tuple[float, VortaError] | None = None
        self._known: dict[str, Known] = {}
        self._property_lock = threading.Lock()

    def close(self) -> None:
        """Closes the connections. Idempotent."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    # Collections

    def create(self, operation: CreateCollection) -> CollectionInfo:
        collection = operation.collection
        check_collection(collection)
        client = self.connected()
        name = class_name(collection.name)
        if client.collections.exists(name) or client.alias.exists(alias_name=name):
            raise _taken(collection.name)
        definition = Definition(collection=collection, created_s=time.time())
        kinds = collection.schema | dict.fromkeys(collection.text_fields, "text")
        properties = [
            Property(name=ID, data_type=DataType.TEXT, index_filterable=False, index_searchable=False),
            _keyword_property(ORDER, DataType.TEXT),
            Property(name=PAYLOAD, data_type=DataType.TEXT, index_filterable=False, index_searchable=False),
            _keyword_property(FIELDS, DataType.TEXT_ARRAY),
        ]
        properties += [_typed_property(kind, path) for path, kind in kinds.items()]
        properties += [_typed_property("keyword", path) for path, kind in kinds.items() if kind in ("text", "datetime")]
        client.collections.create(
            name,
            description=msgspec.json.encode(definition).decode(),
            properties=properties,
            inverted_index_config=Configure.inverted_index(
                bm25_b=0.75, bm25_k1=1.2, stopwords_preset=StopwordsPreset.NONE
            ),
            vector_config=Configure.Vectors.self_provided(vector_index_config=_index(collection)),
        )
        self.forget(collection.name)
        return self._info(self.resolve(collection.name), [])

    def get_collection(self, operation: GetCollection) -> CollectionInfo:
        known = self.resolve(operation.collection, max_age_s=0.0)
        aliases = self.connected().alias.list_all(collection=class_name(known.collection.name))
        return self._info(known, [found for name in aliases if (found := collection_name(name)) is not None])

    def list_collections(self, operation: ListCollections) -> Collections:
        client = self.connected()
        aliases: dict[str, list[str]] = {}
        for item in self._aliases():
            aliases.setdefault(item.collection, []).append(item.alias)
        infos = []
        for name, config in client.collections.list_all(simple=True).items():
            known = self._read(name, config.description, {prop.name for prop in config.properties})
            if known is not None:
                infos.append(self._info(known, aliases.get(known.collection.name, [])))
        return Collections(collections=sorted(infos, key=lambda info: info.collection.name))

    def delete_collection(self, operation: DeleteCollection) -> Done:
        known = self.resolve(operation.collection, max_age_s=0.0)
        name = known.collection.name
        if name != operation.collection:
            raise InvalidArgument(f"{operation.collection} is an alias of {name}.", field="collection")
        client = self.connected()
        # First the aliases: one that points nowhere would keep its name taken.
        for alias in client.alias.list_all(collection=class_name(name)):
            client.alias.delete(alias_name=alias)
        client.collections.delete(class_name(name))
        self.forget(name)
        return Done()

    def _info(self, known: Known, aliases: list[str]) -> CollectionInfo:
        collection = known.collection
        num_points = self.number(known, None)
        schema = {path: _shown_type(kinds) for path, kinds in sorted(known.fields.items())}
        return CollectionInfo(
            collection=msgspec.structs.replace(collection, schema=schema | known.types),
            stats=CollectionStats(
                num_points=num_points,
                index_kind="flat" if collection.index.kind == "flat" else "hnsw",
                vector_bytes=4 * collection.dimension * num_points,
            ),
            aliases=sorted(aliases),
            created_s=known.definition.created_s,
        )

    # Aliases

    def swap_alias(self, operation: SwapAlias) -> AliasInfo:
        check_name(operation.alias, "alias")
        target = self.resolve(operation.collection, max_age_s=0.0)
        if target.collection.name != operation.collection:
            raise NotFound(
                f"{operation.collection} is an alias, not a collection.",
                reason="COLLECTION_NOT_FOUND",
                metadata={"collection": operation.collection},
            )
        client = self.connected()
        alias, name = class_name(operation.alias), class_name(operation.collection)
        before = client.alias.get(alias_name=alias)
        if before is not None:
            client.alias.update(alias_name=alias, new_target_collection=name)
        elif client.collections.exists(alias):
            raise _taken(operation.alias)
        else:
            client.alias.create(alias_name=alias, target_collection=name)
        self.forget(operation.alias)
        previous = "" if before is None else collection_name(before.collection) or ""
        return AliasInfo(alias=operation.alias, collection=operation.collection, previous=previous)

    def delete_alias(self, operation: DeleteAlias) -> Done:
        check_name(operation.alias, "alias")
        deleted = self.connected().alias.delete(alias_name=class_name(operation.alias))
        self.forget(operation.alias)
        if not deleted:
            raise NotFound(
                f"There is no alias {operation.alias}.", reason="ALIAS_NOT_FOUND", metadata={"alias": operation.alias}
            )
        return Done()

    def list_aliases(self, operation: ListAliases) -> Aliases:
        return Aliases(aliases=self._aliases())

    def _aliases(self) -> list[AliasInfo]:
        found = []
        for item in self.connected().alias.list_all().values():
            alias, target = collection_name(item.alias), collection_name(item.collection)
            if alias is not None and target is not None:
                found.append(AliasInfo(alias=alias, collection=target))
        return sorted(found, key=lambda info: info.alias)

    # What is known

    def connected(self) -> WeaviateClient:
        """The client, connected at the first call.

        Raises:
            Unavailable: Weaviate cannot be reached. Said for a second without trying again, for those who waited while
                another thread tried.
            FailedPrecondition: It is too old, or refuses the API key.
        """
        with self._lock:
            if self._client is None:
                if self._failure is not None and time.monotonic() - self._failure[0] < _CONNECT_PAUSE_S:
                    raise copy.copy(self._failure[1])
                try:
                    self._client = connect(self._config)
                except Unavailable as error:
                    self._failure = (time.monotonic(), error)
                    raise
            return self._client

    def resolve(self, name: str, *, max_age_s: float | None = None) -> Known:
        """The collection of a name or an alias."""
        check_name(name, "collection")
        known = self._known.get(name)
        max_age_s = self._config.definition_ttl_s if max_age_s is None else max_age_s
        if known is not None and time.monotonic() - known.read_s < max_age_s:
            return known
        client = self.connected()
        target = class_name(name)
        config = _config_of(client, target)
        if config is None and (alias := client.alias.get(alias_name=target)) is not None:
            config = _config_of(client, alias.collection)
        known = None
        if config is not None:
            known = self._read(config.name, config.description, {prop.name for prop in config.properties})
        if known is None:
            self.forget(name)
            raise NotFound(
                f"There is no collection or alias {name}.",
                reason="COLLECTION_NOT_FOUND",
                metadata={"collection": name},
            )
        self._known[name] = known
        return known

    def _read(self, name: str, description: str | None, properties: set[str]) -> Known | None:
        """A class as a collection of ours; None for classes that others made."""
        if collection_name(name) is None:
            return None
        try:
            definition = msgspec.json.decode(description or "", type=Definition)
        except msgspec.DecodeError:
            return None
        objects = self.connected().collections.use(name)
        return Known(
            definition=definition,
            objects=objects.with_consistency_level(ConsistencyLevel[self._config.consistency]),
            properties=properties,
            read_s=time.monotonic(),
        )

    def forget(self, name: str) -> None:
        """Forgets a name, and aliases of what it named."""
        gone = self._known.pop(name, None)
        real = name if gone is None else gone.collection.name
        for key, known in list(self._known.items()):
            if known.collection.name == real:
                self._known.pop(key, None)

    def add_properties(self, known: Known, names: set[str]) -> None:
        """Makes the properties that a write needs and the class lacks."""
        missing = names - known.properties
        if not missing:
            return
        with self._property_lock:
            for name in sorted(missing - known.properties):
                found = property_field(name)
                assert found is not None
                try:
                    known.objects.config.add_property(_typed_property(found[1], found[0]))
                except (WeaviateInvalidInputError, UnexpectedStatusCodeError) as error:
                    # Another process may have been faster.
                    if "already" not in str(error):
                        raise
                known.properties.add(name)
            known.fields = fields_of(known.collection, known.properties)

    def number(self, known: Known, where: FilterReturn | None) -> int:
        return known.objects.aggregate.over_all(filters=where, total_count=True).total_count or 0


def _config_of(client: WeaviateClient, name: str) -> Any:
    try:
        return client.collections.use(name).config.get(simple=True)
    except UnexpectedStatusCodeError as error:
        if error.status_code == 404:
            return None
        raise


def _keyword_property(name: str, data_type: DataType) -> Property:
    return Property(
        name=name,
        data_type=data_type,
        tokenization=Tokenization.FIELD,
        index_filterable=True,
        index_searchable=False,
    )


def _typed_property(kind: str, path: str) -> Property:
    name = property_name(kind, path)
    assert name is not None
    if kind == "keyword":
        return _keyword_property(name, _TYPES[kind])
    if kind == "text":
        return Property(
            name=name,
            data_type=_TYPES[kind],
            tokenization=Tokenization.WORD,
            index_filterable=True,
            index_searchable=True,
        )
    return Property(name=name, data_type=_TYPES[kind], index_filterable=True)


def _index(collection: Collection) -> Any:
    index, distance = collection.index, _DISTANCES[collection.distance]
    if index.kind == "flat":
        return Configure.VectorIndex.flat(distance_metric=distance)
    quantizer: Any = None
    if index.kind == "sq8":
        quantizer = Configure.VectorIndex.Quantizer.sq()
    elif index.kind == "ivf_pq":
        # Weaviate has no inverted lists; what it has for as little memory is a graph over product-quantised vectors.
        quantizer = Configure.VectorIndex.Quantizer.pq()
    return Configure.VectorIndex.hnsw(
        distance_metric=distance,
        max_connections=index.m,
        ef_construction=index.ef_construction,
        ef=index.ef_search,
        quantizer=quantizer,
    )


def _shown_type(kinds: set[str]) -> str:
    """One type for a field that may have several: the one that says most."""
    return next(kind for kind in ("text", "datetime", "geo", "float", "integer", "bool", "keyword") if kind in kinds)


def _taken(name: str) -> AlreadyExists:
    return AlreadyExists(
        f"A collection or alias {name} exists.", reason="COLLECTION_ALREADY_EXISTS", metadata={"collection": name}
    )
