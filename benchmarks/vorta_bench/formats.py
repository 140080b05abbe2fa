"""What formats of outputs cost: `python -m vorta_bench.formats [--model FOLDER] [--json FILE]`.

Three tables. Decode: microseconds of an engine's step with 1, 8 and 32 rows, of which none or all must write JSON of a
schema; both kinds alternate, on one model in this process. Sampling: the same of the sampler alone on one thread, masks
and all, over random logits. Masks: what a row's mask and its token's acceptance take by themselves, along a random text
of the schema; and what is paid once. Times are told by their 10th percentile too, in which other work on the machine
shows least.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import vorta_server
from vorta_bench.random_model import write_tokenizer
from vorta_kernels import cpu
from vorta_kernels.sampling import SamplingKernel
from vorta_server.engine.constraint import Grammar, MaskFiller, RowMask, num_words
from vorta_server.engine.engine import Engine
from vorta_server.engine.request import GenerationRequest, SamplingParams
from vorta_server.engine.row_state import RowState
from vorta_server.engine.sampler import Sampler
from vorta_server.tokenization.grammar import GrammarCompiler
from vorta_server.tokenization.tokenizer import Tokenizer
from vorta_server.workers.config import WorkerConfig
from vorta_server.workers.generation import build_generation
from vorta_server.workers.protocol import OutputFormat

MINI = Path(vorta_server.__file__).parent / "models" / "vorta-mini"
ROWS = (1, 8, 32)
VOCABULARIES = (4096, 32_000, 151_936)
TOKENS = 160
ROUNDS = 7

# Long enough that no text comes to its end.
SCHEMA = OutputFormat(
    "json_schema",
    text=json.dumps(
        {
            "type": "array",
            "minItems": 2000,
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "maxLength": 20},
                    "age": {"type": "integer", "minimum": 0, "maximum": 120},
                    "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 4},
                },
                "required": ["name", "age", "tags"],
                "additionalProperties": False,
            },
        }
    ),
)


def step_us(engine: Engine, num_rows: int, grammar: Grammar | None) -> list[float]:
    """Microseconds of each step that decodes all rows."""
    for row in range(num_rows):
        prompt = np.random.default_rng(row).integers(300, 4000, 32).tolist()
        sampling = SamplingParams(temperature=0.8, seed=row, max_tokens=TOKENS, ignore_eos=True)
        engine.submit(
            GenerationRequest(request_id=str(row), prompt_token_ids=prompt, sampling=sampling, grammar=grammar)
        )
    times: list[float] = []
    while engine.has_work:
        before = engine.counters.batch_size_sum
        start = time.perf_counter()
        engine.step(hold=True)
        elapsed = time.perf_counter() - start
        if engine.counters.batch_size_sum - before == num_rows and not engine.num_waiting:
            times.append(elapsed * 1e6)
    return times[num_rows:]  # the first may still be prefills


def measure_decode(source: Path) -> list[dict[str, object]]:
    """The first table."""
    figures: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        model = build_generation(WorkerConfig(model="m", source=str(source), socket_path="", cache_dir=folder))
        grammar = model.formats.compile(SCHEMA)
        for num_rows in ROWS:
            times: dict[str, list[float]] = {"text": [], "json": []}
            for _ in range(ROUNDS):
                for kind, asked in (("text", None), ("json", grammar)):
                    times[kind] += step_us(model.engine, num_rows, asked)
            for percent in (10, 50):
                text, constrained = (float(np.percentile(times[kind], percent)) for kind in ("text", "json"))
                figures.append(
                    {"rows": num_rows, "percent": percent, "text_us": round(text, 1), "json_us": round(constrained, 1)}
                )
                print(
                    f"{num_rows:3d} rows  {percent} %: text {text:8.1f} us a step  json {constrained:8.1f} us"
                    f"  {(constrained / text - 1) * 100:+6.1f} %  {(constrained - text) / num_rows:6.1f} us a row",
                    flush=True,
                )
        model.formats.close()
    return figures


def measure_sampling(vocab_size: int) -> list[dict[str, object]]:
    """Rows of the second table. The thread that samples fills the masks; the engine has another do it where it pays."""
    figures: list[dict[str, object]] = []
    kernel = SamplingKernel(1) if cpu.is_available() else None
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), vocab_size)
        tokenizer = Tokenizer(folder)
        compiler = GrammarCompiler(tokenizer, vocab_size=vocab_size)
        grammar = compiler.compile(SCHEMA)
        compiler.close()
    logits = np.random.default_rng(0).standard_normal((32, vocab_size), np.float32)
    for num_rows in ROWS:
        us = {}
        for kind, asked in (("text", None), ("json", grammar)):
            rows = [
                RowState(
                    SamplingParams(temperature=0.8, ignore_eos=True),
                    seed=row,
                    prompt_token_ids=[1],
                    vocab_size=vocab_size,
                    eos_token_ids=tokenizer.eos_token_ids,
                    constraint=None if asked is None else asked.start(),
                )
                for row in range(num_rows)
            ]
            sampler = Sampler(vocab_size, kernel)
            sampler._masks = _Idle(vocab_size)
            times: list[float] = []
            for number in range(200):
                fresh = np.roll(logits[:num_rows], 7 * number, axis=1)
                _timed(lambda fresh=fresh, sampler=sampler, rows=rows: sampler.sample(fresh, rows), times)  # type: ignore[misc]
            us[kind] = float(np.percentile(times, 10))
        figures.append({"vocab": vocab_size, "rows": num_rows, **{f"{kind}_us": round(us[kind], 1) for kind in us}})
        print(
            f"{vocab_size:7d} tokens  {num_rows:3d} rows  text {us['text']:8.1f} us  json {us['json']:8.1f} us"
            f"  {(us['json'] - us['text']) / num_rows:6.1f} us a row",
            flush=True,
        )
    return figures


class _Idle(MaskFiller):
    """Leaves masks to whoever needs them."""

    def begin(self, masks: Sequence[RowMask]) -> None:
        """Does nothing."""


def _timed(work: Callable[[], object], times: list[float]) -> None:
    start = time.perf_counter()
    work()
    times.append((time.perf_counter() - start) * 1e6)


def measure_masks(vocab_size: int) -> dict[str, object]:
    """A row of the third table."""
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), vocab_size)
        compiler = GrammarCompiler(Tokenizer(folder), vocab_size=vocab_size)
        start = time.perf_counter()
        compiler.compile(OutputFormat("json_object"))
        first_s = time.perf_counter() - start
        start = time.perf_counter()
        grammar = compiler.compile(SCHEMA)
        compile_s = time.perf_counter() - start
    generator, mask = np.random.default_rng(0), np.zeros(num_words(vocab_size), np.int32)
    fills: list[float] = []
    accepts: list[float] = []
    for _ in range(5):
        state = grammar.start()
        for _ in range(200):
            _timed(lambda state=state: state.fill_mask(mask), fills)  # type: ignore[misc]
            allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
            token_id = int(generator.choice(allowed))
            _timed(lambda state=state, token_id=token_id: state.accept(token_id), accepts)  # type: ignore[misc]
    compiler.close()
    fill_us, fill_p99_us = statistics.median(fills), float(np.percentile(fills, 99))
    print(
        f"{vocab_size:7d} tokens  mask {fill_us:6.1f} us (99 %: {fill_p99_us:7.1f})  accept "
        f"{statistics.median(accepts):5.1f} us  schema {compile_s * 1e3:5.1f} ms  first format {first_s * 1e3:6.1f} ms",
        flush=True,
    )
    return {
        "vocab": vocab_size,
        "mask_us": round(fill_us, 1),
        "mask_p99_us": round(fill_p99_us, 1),
        "accept_us": round(statistics.median(accepts), 1),
        "schema_ms": round(compile_s * 1e3, 2),
        "first_format_ms": round(first_s * 1e3, 1),
    }


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MINI, help="checkpoint or artifact; default: vorta-mini")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    figures = {
        "decode": measure_decode(arguments.model),
        "sampling": [entry for vocab_size in VOCABULARIES for entry in measure_sampling(vocab_size)],
        "masks": [measure_masks(vocab_size) for vocab_size in VOCABULARIES],
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
