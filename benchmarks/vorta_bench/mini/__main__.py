"""`python -m vorta_bench.mini train | export | average | evaluate`."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from random import Random
from shutil import copyfile

import torch
from tokenizers import Tokenizer

from vorta_bench.mini.checkpoint import load_checkpoint, model_from_state, save_checkpoint
from vorta_bench.mini.corpus import draw_documents
from vorta_bench.mini.generation import TorchCompleter
from vorta_bench.mini.model import ModelConfig
from vorta_bench.mini.tokenizer import save_tokenizer, train_tokenizer
from vorta_bench.mini.train import TrainConfig, train
from vorta_bench.tasks import VERIFIABLE_TASKS, TaskScore, evaluate, format_table

PRECISIONS = ("fp32", "int8", "int4")


def _make_tokenizer(out: Path, num_documents: int) -> Path:
    path = out / "tokenizer.json"
    if not path.exists():
        documents = draw_documents(Random("tokenizer"), num_documents)
        texts = ("".join(text for text, _ in parts) for parts in documents)
        save_tokenizer(train_tokenizer(texts), out, ModelConfig().max_length)
    return path


def _train(arguments: argparse.Namespace) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.resume is not None and not (arguments.out / "tokenizer.json").exists():
        source = arguments.resume if arguments.resume.is_dir() else arguments.resume.parent
        for name in ("tokenizer.json", "tokenizer_config.json"):
            copyfile(source / name, arguments.out / name)
    tokenizer_path = _make_tokenizer(arguments.out, arguments.tokenizer_documents)
    config = TrainConfig(
        time_budget_s=arguments.time_budget_s,
        max_steps=arguments.max_steps,
        batch_tokens=arguments.batch_tokens,
        num_workers=arguments.num_workers,
        num_replicas=arguments.num_replicas,
        warmup_steps=arguments.warmup_steps,
        seed=arguments.seed,
        decay_from=arguments.decay_from,
        quantize_from=arguments.quantize_from,
        all_tasks_from=arguments.all_tasks_from,
        last_tasks_from=arguments.last_tasks_from,
        peak=arguments.peak,
        compile=not arguments.no_compile,
    )
    sizes = ModelConfig()
    (arguments.out / "rendezvous").unlink(missing_ok=True)
    others = [
        get_context("spawn").Process(
            target=train, args=(sizes, config, tokenizer_path, arguments.out, arguments.resume, device, rank)
        )
        for rank in range(1, config.num_replicas)
    ]
    for process in others:
        process.start()
    model = train(sizes, config, tokenizer_path, arguments.out, arguments.resume, device)
    for process in others:
        process.join()
    save_checkpoint(model.cpu(), Tokenizer.from_file(str(tokenizer_path)), arguments.out)
    if arguments.num_cases:
        _print_scores(arguments.out, arguments.num_cases, None)


def _export(arguments: argparse.Namespace) -> None:
    model = model_from_state(arguments.state)
    save_checkpoint(model, Tokenizer.from_file(str(arguments.state.parent / "tokenizer.json")), arguments.out)


def _average(arguments: argparse.Namespace) -> None:
    if not 0 <= arguments.share <= 1:
        raise SystemExit(f"--share must be between 0 and 1, not {arguments.share}")
    (first, tokenizer), (second, _) = load_checkpoint(arguments.first), load_checkpoint(arguments.second)
    with torch.no_grad():
        for mine, other in zip(first.parameters(), second.parameters(), strict=True):
            mine.lerp_(other, arguments.share)
    save_checkpoint(first, tokenizer, arguments.out)


def _evaluate(arguments: argparse.Namespace) -> None:
    _print_scores(
        arguments.checkpoint, arguments.num_cases, arguments.json, arguments.precisions, arguments.tasks, arguments.show
    )


def _print_scores(
    checkpoint: Path,
    num_cases: int,
    json_path: Path | None,
    precisions: list[str] | None = None,
    tasks: list[str] | None = None,
    num_shown: int = 0,
) -> None:
    model, tokenizer = load_checkpoint(checkpoint)
    if torch.cuda.is_available():
        model.cuda()
    columns: dict[str, dict[str, TaskScore]] = {}
    start = time.monotonic()
    for name in precisions or PRECISIONS:
        # "int4+a8" also rounds the inputs of the linear layers to 8 bits a row.
        weights, _, inputs = name.partition("+")
        model.set_precision(weights, quantizes_input=bool(inputs))  # type: ignore[arg-type]
        completer = TorchCompleter(model, tokenizer)
        shown: dict[str, int] = {}

        def complete(cases, completer=completer, shown=shown):  # type: ignore[no-untyped-def]
            texts = completer(cases)
            for case, text in zip(cases, texts, strict=True):
                if text.strip() != case.answer and shown.get(case.task, 0) < num_shown:
                    shown[case.task] = shown.get(case.task, 0) + 1
                    asked = case.prompt or case.messages[-1].content
                    print(f"{case.task}: …{asked[-160:]!r}\n   wanted {case.answer!r}\n   got    {text.strip()!r}")
            return texts

        columns[name] = evaluate(complete, tasks=tasks or (*VERIFIABLE_TASKS, "about"), num_cases=num_cases)
    print(format_table(columns))
    print(f"evaluated in {time.monotonic() - start:.0f} s")
    if json_path is not None:
        scores = {name: {task: asdict(score) for task, score in column.items()} for name, column in columns.items()}
        json_path.write_text(json.dumps(scores, indent=2) + "\n")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m vorta_bench.mini", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("train", help="tokenizer, training, export and evaluation")
    command.add_argument("--out", type=Path, required=True, help="folder for the checkpoint and state.pt")
    command.add_argument("--time-budget-s", type=float, default=7000.0)
    command.add_argument("--max-steps", type=int, default=1_000_000)
    command.add_argument("--batch-tokens", type=int, default=4096)
    command.add_argument("--num-workers", type=int, default=1, help="processes that make the corpus")
    command.add_argument("--num-replicas", type=int, default=1, help="processes that share each batch (CPU)")
    command.add_argument("--warmup-steps", type=int, default=100)
    command.add_argument("--seed", type=int, default=1)
    command.add_argument(
        "--decay-from", type=float, default=0.45, help="share of the budget after which the rate falls"
    )
    command.add_argument(
        "--quantize-from", type=float, default=0.75, help="share of the budget after which weights are fake int4"
    )
    command.add_argument(
        "--all-tasks-from",
        type=float,
        default=0.2,
        help="share of the budget after which all tasks have their full weight",
    )
    command.add_argument(
        "--last-tasks-from",
        type=float,
        default=0.85,
        help="share of the budget after which the hardest tasks get more weight",
    )
    command.add_argument("--peak", type=float, default=1.0, help="scale of the learning rates")
    command.add_argument("--resume", type=Path, help="a state.pt or a checkpoint folder to start from")
    command.add_argument("--tokenizer-documents", type=int, default=40_000)
    command.add_argument("--num-cases", type=int, default=200, help="held-out cases a task at the end; 0 for none")
    command.add_argument("--no-compile", action="store_true", help="run eagerly")
    command.set_defaults(run=_train)
    command = commands.add_parser("export", help="a checkpoint from a training state")
    command.add_argument("state", type=Path)
    command.add_argument("--out", type=Path, required=True)
    command.set_defaults(run=_export)
    command = commands.add_parser("average", help="the weighted mean of two checkpoints of one run")
    command.add_argument("first", type=Path)
    command.add_argument("second", type=Path)
    command.add_argument("--share", type=float, default=0.5, help="of the second")
    command.add_argument("--out", type=Path, required=True)
    command.set_defaults(run=_average)
    command = commands.add_parser("evaluate", help="exact match on held-out cases")
    command.add_argument("checkpoint", type=Path)
    command.add_argument("--num-cases", type=int, default=200)
    command.add_argument("--precisions", nargs="+", help="fp32, int8, int4; int8+a8 also quantises activations")
    command.add_argument("--tasks", nargs="+")
    command.add_argument("--show", type=int, default=0, help="wrong answers to print for each task")
    command.add_argument("--json", type=Path)
    command.set_defaults(run=_evaluate)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
