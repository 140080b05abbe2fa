"""`vorta models`: list, get, load, unload."""

from __future__ import annotations

import argparse

from vorta.cli.connection import add_connection, connect, positive_seconds
from vorta.cli.output import print_json, print_table
from vorta.result import Model

__all__ = ["add_command"]


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("models", help="list, show, load and unload models")
    parser.set_defaults(run=run_list)
    add_connection(parser)
    actions = parser.add_subparsers(metavar="ACTION", help="default: list")

    listing = actions.add_parser("list", help="the models that the server knows")
    listing.set_defaults(run=run_list)

    get = actions.add_parser("get", help="one model in full")
    get.set_defaults(run=run_get)

    load = actions.add_parser("load", help="load a model and wait until it serves")
    load.add_argument("--source", metavar="PATH|ID", help="on the server; default: the model's id")
    precisions = ("fp32", "fp16", "bf16", "fp8", "int8", "int4")
    load.add_argument("--precision", choices=precisions, help="default: the server's")
    load.add_argument("--max-model-len", type=int, metavar="N", help="context length in tokens")
    load.set_defaults(run=run_load)

    unload = actions.add_parser("unload", help="stop a model and free its memory")
    unload.add_argument("--grace", type=positive_seconds, metavar="SECONDS", help="for what it still runs")
    unload.set_defaults(run=run_unload)

    for action in (get, load, unload):
        action.add_argument("model", help="the model's id")
    for action in (listing, get, load, unload):
        add_connection(action, is_action=True)


def run_list(arguments: argparse.Namespace) -> None:
    """Runs `vorta models list`."""
    with connect(arguments) as client:
        models = client.models()
    if arguments.json:
        print_json({"models": models})
        return
    print_table(
        ("MODEL", "STATE", "KIND", "PRECISION", "DEVICE", "CONTEXT", "WEIGHTS"),
        (
            (
                f"{model.model}{' *' if model.is_default else ''}",
                model.state,
                model.kind,
                model.precision or "-",
                model.device or "-",
                model.max_model_len or "-",
                _count(model.parameter_count),
            )
            for model in models
        ),
    )


def run_get(arguments: argparse.Namespace) -> None:
    """Runs `vorta models get`."""
    with connect(arguments) as client:
        _print_model(client.model(arguments.model), as_json=arguments.json)


def run_load(arguments: argparse.Namespace) -> None:
    """Runs `vorta models load`."""
    with connect(arguments) as client:
        model = client.load_model(
            arguments.model,
            source=arguments.source,
            precision=arguments.precision,
            max_model_len=arguments.max_model_len,
        )
    _print_model(model, as_json=arguments.json)


def run_unload(arguments: argparse.Namespace) -> None:
    """Runs `vorta models unload`."""
    with connect(arguments) as client:
        model = client.unload_model(arguments.model, grace_s=arguments.grace)
    _print_model(model, as_json=arguments.json)


def _print_model(model: Model, *, as_json: bool) -> None:
    if as_json:
        print_json(model)
        return
    rows: list[tuple[str, object]] = [
        ("model", model.model),
        ("state", model.state),
        ("kind", model.kind),
        ("source", model.source),
        ("architecture", model.architecture),
        ("precision", model.precision),
        ("device", model.device),
        ("context", f"{model.max_model_len} tokens"),
        ("vocabulary", f"{model.vocab_size} tokens"),
        ("weights", _count(model.parameter_count)),
        ("default", "yes" if model.is_default else "no"),
    ]
    if model.error:
        rows.append(("error", model.error))
    if model.load is not None:
        load = model.load
        rows.append(("requests", f"{load.running_requests} running, {load.waiting_requests} waiting"))
        rows.append(("KV memory", f"{load.kv_use:.0%} in use"))
    for name, value in rows:
        print(f"{name:<14}{value}")


def _count(number: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number) if number else "-"
