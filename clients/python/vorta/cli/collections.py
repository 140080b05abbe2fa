"""`vorta collections`: list, create, show, delete and stats; aliases and snapshots."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from vorta.cli.connection import add_connection, connect
from vorta.cli.output import human_bytes, print_fields, print_json, print_table
from vorta.errors import InvalidArgument
from vorta.vector_result import CollectionInfo, CollectionStats, FieldType, IndexKind, IndexOptions

__all__ = ["add_command"]

_INDEX_NUMBERS = tuple(field.name for field in fields(IndexOptions) if field.name != "kind")


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "collections", help="list, make and delete vector collections, their aliases and snapshots"
    )
    parser.set_defaults(run=run_list)
    add_connection(parser)
    actions = parser.add_subparsers(metavar="ACTION", help="default: list")

    def add_action(name: str, run: Any, help: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=help)
        action.set_defaults(run=run)
        add_connection(action, is_action=True)
        return action

    add_action("list", run_list, "the collections of the server")
    create = add_action("create", run_create, "make a collection")
    show = add_action("show", run_show, "a collection's definition and state")
    delete = add_action("delete", run_delete, "delete a collection and its points; snapshots stay")
    stats = add_action("stats", run_stats, "a collection's points, index, memory and disk")
    alias = add_action("alias", run_alias, "list aliases, or point one to a collection")
    snapshots = add_action("snapshots", run_snapshots, "a collection's snapshots, newest first")
    snapshot = add_action("snapshot", run_snapshot, "keep a collection's state on the server's disk")
    restore = add_action("restore", run_restore, "make a collection what a snapshot holds")
    for action in (create, show, delete, stats, snapshots, snapshot, restore):
        action.add_argument("collection", help="its name")

    create.add_argument("--dimension", type=int, metavar="N", help="default: the embedding model's")
    create.add_argument("--distance", choices=("cosine", "dot", "l2"), help="default: cosine")
    create.add_argument(
        "--index", choices=[kind.value for kind in IndexKind if kind is not IndexKind.UNSPECIFIED], help="default: auto"
    )
    for name in _INDEX_NUMBERS:
        create.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help="option of the index")
    create.add_argument("--text-field", action="append", metavar="FIELD", help="search it by words; may be repeated")
    create.add_argument("--schema", action="append", type=_field_type, metavar="FIELD=TYPE", help="may be repeated")
    create.add_argument("--embedding-model", metavar="ID", help="default: the server's")
    create.add_argument("--description", metavar="TEXT", help="for people")

    alias.add_argument("alias", nargs="?", help="the alias; absent: list all")
    alias.add_argument("collection", nargs="?", help="where it shall point")
    alias.add_argument("--delete", action="store_true", help="delete the alias")
    snapshot.add_argument("--delete", metavar="SNAPSHOT", help="delete this snapshot instead of making one")
    restore.add_argument("snapshot", help="the snapshot's name")
    restore.add_argument("--target", metavar="NAME", help="restore to this collection; default: the same")
    restore.add_argument("--replace", action="store_true", default=None, help="replace a collection that exists")


def run_list(arguments: argparse.Namespace) -> None:
    """Runs `vorta collections list`."""
    with connect(arguments) as client:
        collections = client.list_collections()
    if arguments.json:
        print_json({"collections": collections})
        return
    print_table(
        ("COLLECTION", "POINTS", "DIMENSION", "DISTANCE", "INDEX", "MEMORY", "DISK", "ALIASES"),
        (
            (
                entry.name,
                entry.stats.num_points,
                entry.dimension,
                entry.distance,
                entry.index.kind,
                human_bytes(entry.stats.memory_bytes),
                human_bytes(entry.stats.disk_bytes),
                ", ".join(entry.aliases) or "-",
            )
            for entry in collections
        ),
    )


def run_create(arguments: argparse.Namespace) -> None:
    """Runs `vorta collections create`."""
    numbers = {name: getattr(arguments, name) for name in _INDEX_NUMBERS}
    index = None
    if arguments.index is not None or any(number is not None for number in numbers.values()):
        index = IndexOptions(kind=arguments.index or IndexKind.AUTO, **numbers)
    with connect(arguments) as client:
        created = client.create_collection(
            arguments.collection,
            arguments.dimension,
            distance=arguments.distance,
            index=index,
            text_fields=arguments.text_field or (),
            schema=dict(arguments.schema or ()),
            embedding_model=arguments.embedding_model,
            description=arguments.description,
        )
    _print_collection(created, as_json=arguments.json)


def run_show(arguments: argparse.Namespace) -> None:
    """Runs `vorta collections show`."""
    with connect(arguments) as client:
        _print_collection(client.get_collection(arguments.collection), as_json=arguments.json)


def run_delete(arguments: argparse.Namespace) -> None:
    """Runs `vorta collections delete`."""
    with connect(arguments) as client:
        client.delete_collection(arguments.collection)
    _print_done(arguments, f"deleted {arguments.collection}")


def run_stats(arguments: argparse.Namespace) -> None:
    """Runs `vorta collections stats`."""
    with connect(arguments) as client:
        stats = client.collection_stats(arguments.collection)
    if arguments.json:
        print_json(stats)
    else:
        print_fields(_stats_rows(stats))


def run_alias(arguments: argparse.Namespace) -> None:
    """Runs `vorta collections alias`."""
    if arguments.delete and (arguments.alias is None or arguments.collection is not None):
        raise InvalidArgument("--delete takes an alias and no collection", field="alias")
    if arguments.alias is not None and arguments.collection is None and not arguments.delete:
        raise InvalidArgument("an alias needs a collection to point to, or --delete", field="collection")
    with connect(arguments) as client:
        if arguments.delete:
            client.delete_alias(arguments.alias)
            _print_done(arguments, f"deleted the alias {arguments.alias}")
        elif arguments.alias is not None:
            alias = client.swap_alias(arguments.alias, arguments.collection)
            before = f" (before: {alias.previous_collection})" if alias.previous_collection else ""
            if arguments.json:
                print_json(alias)
            else:
                print(f"{alias.alias} -> {alias.collection}{before}")
        else:
            aliases = client.list_aliases()
            if arguments.json:
                print_json({"aliases": aliases})
            else:
                print_table(("ALIAS", "COLLECTION"), ((entry.alias, entry.collection) for entry in aliases))


def run_snapshots(arguments: argparse.Namespace) -> None:
    """Runs `vorta collections snapshots`."""
    with connect(arguments) as client:
        snapshots = client.list_snapshots(arguments.collection)
    if arguments.json:
        print_json({"snapshots": snapshots})
        return
    print_table(
        ("SNAPSHOT", "CREATED", "POINTS", "SIZE"),
        (
            (
                entry.snapshot,
                f"{entry.created_time:%Y-%m-%d %H:%M:%S} UTC",
                entry.num_points,
                human_bytes(entry.size_bytes),
            )
            for entry in snapshots
        ),
    )


def run_snapshot(arguments: argparse.Namespace) -> None:
    """Runs `vorta collections snapshot`."""
    with connect(arguments) as client:
        if arguments.delete is not None:
            client.delete_snapshot(arguments.collection, arguments.delete)
            _print_done(arguments, f"deleted {arguments.delete}")
            return
        snapshot = client.create_snapshot(arguments.collection)
    if arguments.json:
        print_json(snapshot)
    else:
        print(f"{snapshot.snapshot}: {snapshot.num_points} points, {human_bytes(snapshot.size_bytes)}")


def run_restore(arguments: argparse.Namespace) -> None:
    """Runs `vorta collections restore`."""
    with connect(arguments) as client:
        restored = client.restore_snapshot(
            arguments.collection, arguments.snapshot, target=arguments.target, replace=arguments.replace
        )
    _print_collection(restored, as_json=arguments.json)


def _print_done(arguments: argparse.Namespace, text: str) -> None:
    if arguments.json:
        print_json({})
    else:
        print(text)


def _print_collection(info: CollectionInfo, *, as_json: bool) -> None:
    if as_json:
        print_json(info)
        return
    numbers = {name: getattr(info.index, name) for name in _INDEX_NUMBERS}
    options = "".join(f", {name} {number}" for name, number in numbers.items() if number is not None)
    rows: list[tuple[str, object]] = [
        ("collection", info.name),
        ("dimension", info.dimension),
        ("distance", info.distance),
        ("index", f"{info.index.kind}{options}"),
        ("text fields", ", ".join(info.text_fields) or "-"),
        ("embedding model", info.embedding_model or "the server's"),
        ("aliases", ", ".join(info.aliases) or "-"),
        ("created", f"{info.created_time:%Y-%m-%d %H:%M:%S} UTC"),
    ]
    if info.description:
        rows.append(("description", info.description))
    rows += [("field", f"{name}: {kind}") for name, kind in info.schema.items()]
    print_fields([*rows, *_stats_rows(info.stats)])


def _stats_rows(stats: CollectionStats) -> list[tuple[str, object]]:
    building = f", building: {stats.build_progress:.0%}" if stats.is_building else ""
    return [
        ("points", f"{stats.num_points} ({stats.num_deleted} deleted, {stats.num_unindexed} not indexed)"),
        ("index in use", f"{stats.index_kind}, {stats.num_segments} segments{building}"),
        ("last write", f"{stats.sequence} (saved up to {stats.snapshot_sequence})"),
        ("disk", human_bytes(stats.disk_bytes)),
        ("memory", f"{human_bytes(stats.memory_bytes)} (vectors alone: {human_bytes(stats.vector_bytes)})"),
    ]


def _field_type(text: str) -> tuple[str, str]:
    name, _, kind = text.rpartition("=")
    kinds = [entry.value for entry in FieldType if entry is not FieldType.UNSPECIFIED]
    if not name or kind not in kinds:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form FIELD=TYPE, TYPE one of {', '.join(kinds)}")
    return name, kind
