"""Exact match of a checkpoint on the held-out tasks, through the engine that serves it, in each precision.

`python -m vorta_bench.quality CHECKPOINT` compiles the checkpoint as the server would, runs the cases greedily in
batches through `vorta_server.engine`, and prints one column a precision. No torch, but with `--runner cuda`, which has
precisions of its own; `--device cpu` computes with its kernels' references, which round as the kernels do.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from vorta_bench.tasks import VERIFIABLE_TASKS, Case, TaskScore, evaluate, format_table, mean_accuracy
from vorta_server.engine.request import Delta, GenerationRequest, SamplingParams
from vorta_server.workers.config import WorkerConfig
from vorta_server.workers.generation import GenerationModel, build_generation
from vorta_server.workers.protocol import ChatMessage, Prompt, ToolSpec

__all__ = ["EngineCompleter", "main"]

DEFAULT_CHECKPOINT = Path(__file__).resolve().parents[2] / "server" / "vorta_server" / "models" / "vorta-mini"


class EngineCompleter:
    """Completes cases greedily with a model that serves."""

    def __init__(self, model: GenerationModel, *, max_tokens: int = 160) -> None:
        self._model = model
        self._max_tokens = max_tokens
        self._num_requests = 0

    def __call__(self, cases: Sequence[Case]) -> list[str]:
        """The completions, in the order of the cases."""
        engine = self._model.engine
        texts: dict[str, list[str]] = {}
        pending = list(cases)
        order: list[str] = []
        while pending or engine.has_work:
            while pending and engine.num_requests < 64:
                request_id = str(self._num_requests)
                self._num_requests += 1
                order.append(request_id)
                texts[request_id] = []
                engine.submit(
                    GenerationRequest(
                        request_id=request_id,
                        prompt_token_ids=self._model.codec.encode(_prompt(pending.pop(0))),
                        sampling=SamplingParams(temperature=0.0, max_tokens=self._max_tokens),
                        arrival_s=time.monotonic(),
                    )
                )
            for event in engine.step():
                if isinstance(event, Delta):
                    texts[event.request_id].append(event.text)
        return ["".join(texts[request_id]) for request_id in order]


def _prompt(case: Case) -> Prompt:
    if case.kind == "raw":
        return Prompt(text=case.prompt)
    tools = [_tool(tool) for tool in case.tools]
    return Prompt(messages=[ChatMessage(message.role, message.content) for message in case.messages], tools=tools)


def _tool(tool: dict[str, object]) -> ToolSpec:
    function = tool.get("function", tool)
    assert isinstance(function, dict)
    return ToolSpec(str(function["name"]), str(function.get("description", "")), function.get("parameters", {}))


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=DEFAULT_CHECKPOINT, help="default: vorta-mini")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8", "int4"])
    parser.add_argument("--runner", choices=("onnx", "cuda"), default="onnx")
    parser.add_argument("--device", default="cuda", help="of the cuda runner (default: cuda)")
    parser.add_argument("--kv-dtype", choices=("auto", "fp8"), default="auto", help="of the cuda runner")
    parser.add_argument("--tasks", nargs="+", default=[*VERIFIABLE_TASKS])
    parser.add_argument("--num-cases", type=int, default=200, help="held-out cases a task (default %(default)s)")
    parser.add_argument("--show", type=int, default=0, help="wrong answers to print for each task")
    parser.add_argument("--out", type=Path, help="write the scores as JSON")
    arguments = parser.parse_args()
    columns: dict[str, dict[str, TaskScore]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for precision in arguments.precisions:
            config = WorkerConfig(
                model="quality",
                source=str(arguments.checkpoint),
                socket_path="",
                runner=arguments.runner,
                device=arguments.device,
                kv_dtype=arguments.kv_dtype,
                precision=precision,
                cache_dir=folder,
            )
            completer = EngineCompleter(build_generation(config))

            def complete(cases: Sequence[Case], completer: EngineCompleter = completer) -> list[str]:
                texts = completer(cases)
                wrong = [(case, text) for case, text in zip(cases, texts, strict=True) if text.strip() != case.answer]
                for case, text in wrong[: arguments.show]:
                    asked = case.prompt or case.messages[-1].content
                    print(f"{case.task}: {asked[-160:]!r}\n  wanted {case.answer!r}\n  got    {text.strip()!r}")
                return texts

            columns[precision] = evaluate(complete, tasks=arguments.tasks, num_cases=arguments.num_cases)
            print(f"{precision}: mean {100 * mean_accuracy(columns[precision]):.1f} %", flush=True)
    print(format_table(columns))
    if arguments.out is not None:
        scores = {name: {task: asdict(score) for task, score in column.items()} for name, column in columns.items()}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(scores, indent=1) + "\n")


if __name__ == "__main__":
    main()
