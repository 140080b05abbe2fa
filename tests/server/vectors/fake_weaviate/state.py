"""What the fake holds, and the rules of Weaviate that the adapter depends on."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from typing import Any

CLASS_NAME = re.compile(r"[A-Z][_0-9A-Za-z]{0,254}")
PROPERTY_NAME = re.compile(r"[_A-Za-z][_0-9A-Za-z]{0,230}")

HNSW_DEFAULTS: dict[str, Any] = {
    "cleanupIntervalSeconds": 300,
    "distance": "cosine",
    "dynamicEfMin": 100,
    "dynamicEfMax": 500,
    "dynamicEfFactor": 8,
    "ef": -1,
    "efConstruction": 128,
    "flatSearchCutoff": 40000,
    "maxConnections": 32,
    "skip": False,
    "vectorCacheMaxObjects": 1_000_000_000_000,
}


class Refused(Exception):
    """Weaviate says no."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Stored:
    """An object."""

    uuid: str
    properties: dict[str, Any]
    vectors: dict[str, bytes]


@dataclass
class WeaviateClass:
    """A class and its objects."""

    schema: dict[str, Any]
    objects: dict[str, Stored] = field(default_factory=dict)

    def data_type(self, name: str) -> str | None:
        """A property's type; None where the class has no such property."""
        for prop in self.schema["properties"]:
            if prop["name"] == name:
                return str(prop["dataType"][0])
        return None

    def property(self, name: str) -> dict[str, Any]:
        """A property's definition."""
        return next(prop for prop in self.schema["properties"] if prop["name"] == name)


class State:
    """Classes and aliases. Use under `lock`."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.classes: dict[str, WeaviateClass] = {}
        self.aliases: dict[str, str] = {}
        self.backups: dict[str, WeaviateClass] = {}
        self.polls: dict[str, int] = {}
        self.damaged: set[str] = set()

    def backup_status(self, key: str) -> dict[str, Any]:
        """What a backup, or a restoration, has come to; it takes a few looks to be over."""
        name = key.removesuffix("/restore")
        if name not in self.backups:
            raise Refused(404, "backup not found")
        self.polls[key] = self.polls.get(key, 0) + 1
        status = "STARTED" if self.polls[key] < 3 else "FAILED" if key in self.damaged else "SUCCESS"
        return {"id": name, "path": "/fake", "status": status, "size": 0.5, "error": ""}

    def get(self, name: str) -> WeaviateClass:
        """The class of a name or an alias, as the gRPC calls take it."""
        found = self.classes.get(self.aliases.get(name, name))
        if found is None:
            raise Refused(404, f"could not find class {name} in schema")
        return found

    def create(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Makes a class."""
        name = schema["class"]
        if not CLASS_NAME.fullmatch(name):
            raise Refused(422, f"'{name}' is not a valid class name")
        for known in (*self.classes, *self.aliases):
            if known.lower() == name.lower():
                raise Refused(422, f"class name {name} already exists")
        schema.setdefault("invertedIndexConfig", {"bm25": {"b": 0.75, "k1": 1.2}})
        properties, schema["properties"] = schema.get("properties") or [], []
        for config in schema.get("vectorConfig", {}).values():
            index = HNSW_DEFAULTS | config.get("vectorIndexConfig", {})
            if "pq" in index:
                encoder = {"type": "kmeans", "distribution": "log-normal"}
                index["pq"] = index["pq"] | {"encoder": encoder | index["pq"].get("encoder", {})}
            config["vectorIndexConfig"] = index
        self.classes[name] = WeaviateClass(schema)
        for prop in properties:
            self.add_property(name, prop)
        return schema

    def add_property(self, name: str, prop: dict[str, Any]) -> None:
        """Adds a property to a class."""
        target = self.classes.get(name)
        if target is None:
            raise Refused(404, "not found")
        if not PROPERTY_NAME.fullmatch(prop["name"]):
            raise Refused(422, f"'{prop['name']}' is not a valid property name")
        if target.data_type(prop["name"]) is not None:
            raise Refused(422, f"property {prop['name']} already exists")
        is_text = prop["dataType"][0].startswith("text")
        if prop.get("indexSearchable") and not is_text:
            raise Refused(422, "`indexSearchable` is allowed only for text/text[] data types")
        prop = {"indexFilterable": True, "indexSearchable": is_text} | {k: v for k, v in prop.items() if v is not None}
        if is_text:
            prop.setdefault("tokenization", "word")
        target.schema["properties"].append(prop)

    def delete(self, name: str) -> None:
        """Deletes a class; unknown ones are ignored, as Weaviate does."""
        self.classes.pop(name, None)

    def point_alias(self, alias: str, target: str, *, is_new: bool) -> None:
        """Makes or moves an alias."""
        if target not in self.classes:
            raise Refused(422, f"class {target} does not exist")
        if is_new:
            if not CLASS_NAME.fullmatch(alias):
                raise Refused(422, f"'{alias}' is not a valid alias name")
            if any(known.lower() == alias.lower() for known in (*self.classes, *self.aliases)):
                raise Refused(422, f"alias {alias} already exists")
        elif alias not in self.aliases:
            raise Refused(404, "alias not found")
        self.aliases[alias] = target
