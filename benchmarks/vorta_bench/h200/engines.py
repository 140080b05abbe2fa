"""Engines of TensorRT's own runtime: what `vorta compile --target tensorrt --engines` builds is run on the card, its
results against those of the same graph on ONNX Runtime's CPU provider, and its speed.

TensorRT is the package that `vorta_server.compiler.tensorrt_engine` finds; memory is torch's. On a CPU the graphs that
engines would be made of run in their place, which tests shapes, feeds and comparisons.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vorta_bench.h200.providers import LEAST_COSINE, artifact_of, least_cosine
from vorta_bench.h200.recording import Figure
from vorta_bench.h200.stage import Cell, Settings, Skip, once

if TYPE_CHECKING:
    from vorta_server.compiler.tensorrt_plan import EngineSpec

__all__ = ["cells", "parts"]

Arrays = dict[str, Any]
_PRECISIONS = ("fp16", "int8", "int4")
_NUM_TOKENS, _CAPACITY = 64, 128
_NUM_RUNS = 30


class _Run(Protocol):
    def __call__(self, feeds: Mapping[str, Any]) -> tuple[Arrays, Callable[[], float]]:
        """The results by name, and a function that runs once more and returns the seconds of it."""
        ...


def parts(settings: Settings) -> Sequence[str]:
    """A process for each model and precision."""
    return [f"{model}/{precision}" for model in ("encoder", "decoder") for precision in _PRECISIONS]


def cells(settings: Settings, part: str) -> Iterable[Cell]:
    """A cell for each engine of an artifact."""
    model, precision = part.split("/")
    buckets = settings.choose((1, 32), (1, 4))
    names = [f"encode-{batch}" for batch in buckets]
    if model == "decoder":
        names = ["prefill-1", *(f"decode-{batch}" for batch in buckets)]
    built = once(lambda: _built(settings, model, precision, buckets))

    def cell(name: str) -> Cell:
        return Cell(f"{part}/{name}", lambda: _figure(settings, *built(), name), 90)

    return map(cell, names)


def _built(
    settings: Settings, model: str, precision: str, buckets: tuple[int, ...]
) -> tuple[Path, dict[str, tuple[EngineSpec, Path | None]], float]:
    """The artifact, its engines by name (no files in a dry run), and the seconds that building took."""
    artifact = artifact_of(settings, model, precision)
    from vorta.errors import FailedPrecondition
    from vorta_server.compiler.artifact import load_manifest
    from vorta_server.compiler.tensorrt_engine import build_engines
    from vorta_server.compiler.tensorrt_plan import EngineLimits, plan_engines

    limits = EngineLimits(batch_buckets=buckets, max_tokens=_NUM_TOKENS, capacity=_CAPACITY)
    specs = plan_engines(load_manifest(artifact), limits)
    begin_s = time.perf_counter()
    files: Sequence[Path | None] = [None] * len(specs)
    if not settings.is_dry:
        try:
            files = build_engines(artifact, settings.work / "engines", limits=limits)
        except FailedPrecondition as error:
            raise Skip(str(error)) from error
    seconds = time.perf_counter() - begin_s
    return artifact, {spec.name: (spec, file) for spec, file in zip(specs, files, strict=True)}, seconds


def _figure(
    settings: Settings,
    artifact: Path,
    engines: Mapping[str, tuple[EngineSpec, Path | None]],
    build_s: float,
    name: str,
) -> Figure:
    from vorta_server.compiler.artifact import load_manifest
    from vorta_server.compiler.tensorrt_plan import specialise

    spec, file = engines[name]
    manifest = load_manifest(artifact)
    source = artifact / manifest.graphs[0].file
    graph, _ = specialise(source, spec.dims)
    on_cpu = _on_cpu(graph, source)
    feeds = _feeds(graph, spec, manifest.vocab_size)
    expected, _ = on_cpu(feeds)
    got, again_s = (on_cpu if file is None else _on_card(file))(feeds)
    output = "logits" if "logits" in expected else "hidden_states"
    is_real = np.ones(expected[output].shape[:-1], bool)
    if "lengths" in feeds and is_real.ndim > 1:
        is_real = np.arange(is_real.shape[1]) < feeds["lengths"][:, None]
    least = least_cosine(got[output][is_real], expected[output][is_real])
    if not least >= LEAST_COSINE:
        raise AssertionError(f"least cosine {least:.5f}, wanted {LEAST_COSINE}")
    figure: Figure = {"ok": True, "least_cosine": least, "all_engines_built_s": round(build_s, 2)}
    figure["ms"] = round(1e3 * statistics.median(again_s() for _ in range(settings.choose(_NUM_RUNS, 3))), 4)
    if file is not None:
        figure["bytes"] = file.stat().st_size
    return figure


def _feeds(graph: bytes, spec: EngineSpec, vocab_size: int) -> Arrays:
    """Random inputs of the largest batch: ragged texts, or rows with caches of ragged lengths."""
    import onnx
    from onnx.helper import tensor_dtype_to_np_dtype

    rng = np.random.default_rng(0)
    sizes = {name: high for name, (_, _, high) in spec.dims.items()} | {"rows": spec.batch}
    feeds: Arrays = {}
    for value in onnx.load_from_string(graph).graph.input:
        array: Any
        tensor = value.type.tensor_type
        shape = [dim.dim_value or sizes[dim.dim_param] for dim in tensor.shape.dim]
        dtype = tensor_dtype_to_np_dtype(tensor.elem_type)
        if value.name == "input_ids":
            array = rng.integers(4, vocab_size, shape)
        elif value.name == "lengths":
            array = rng.integers(1, _NUM_TOKENS + 1, shape)
            array[0] = _NUM_TOKENS
        elif value.name == "past_lengths":
            array = rng.integers(0, _CAPACITY, shape) if spec.phase == "decode" else np.zeros(shape)
        elif value.name == "output_rows":
            array = np.arange(spec.batch) if spec.phase == "decode" else np.array([_NUM_TOKENS - 1])
        elif value.name.startswith("past_"):
            array = rng.standard_normal(shape)
        else:
            array = np.zeros(shape)
        feeds[value.name] = array.astype(dtype)
    return feeds


def _on_cpu(graph: bytes, source: Path) -> _Run:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(source.parent))
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(feeds: Mapping[str, Any]) -> tuple[Arrays, Callable[[], float]]:
        def again_s() -> float:
            begin_s = time.perf_counter()
            session.run(names, dict(feeds))
            return time.perf_counter() - begin_s

        return dict(zip(names, session.run(names, dict(feeds)), strict=True)), again_s

    return run


def _on_card(file: Path) -> _Run:
    """Runs an engine. K and V that it returns lie where they came from, as TensorRT demands of a cache that grows."""
    import torch

    from vorta_server.compiler.tensorrt_engine import find_tensorrt

    trt = find_tensorrt().module
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(file.read_bytes())
    if engine is None:
        raise RuntimeError(f"TensorRT does not load {file.name}")
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]

    def run(feeds: Mapping[str, Any]) -> tuple[Arrays, Callable[[], float]]:
        held = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in feeds.items()}
        for name in feeds:
            if name not in names:
                raise RuntimeError(f"{file.name} has no input {name}, only {', '.join(names)}")
            if not engine.is_shape_inference_io(name):
                held[name] = held[name].cuda()
            context.set_input_shape(name, tuple(held[name].shape))
        for name in names:
            if name not in held:
                past = held.get(name.replace("present_", "past_", 1))
                dtype = torch.from_numpy(np.empty(0, trt.nptype(engine.get_tensor_dtype(name)))).dtype
                shape = tuple(context.get_tensor_shape(name))
                held[name] = torch.empty(shape, dtype=dtype, device="cuda") if past is None else past
            context.set_tensor_address(name, held[name].data_ptr())
        stream = torch.cuda.current_stream()

        def again_s() -> float:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record(stream)
            if not context.execute_async_v3(stream.cuda_stream):
                raise RuntimeError(f"TensorRT does not run {file.name}")
            end.record(stream)
            end.synchronize()
            return float(begin.elapsed_time(end)) / 1e3

        again_s()
        return {name: held[name].cpu().numpy() for name in names if name not in feeds}, again_s

    return run
