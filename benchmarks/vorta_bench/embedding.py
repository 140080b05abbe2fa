"""Embeddings: what int8 costs, and how fast texts become vectors, against sentence-transformers and CTranslate2.

    python -m vorta_bench.embedding quality    --peer-python PEERS/bin/python
    python -m vorta_bench.embedding throughput --peer-python PEERS/bin/python --out results/embedding.json
    python -m vorta_bench.embedding single     --out results/embedding_single.json
    python -m vorta_bench.embedding lanes      --out results/embedding_lanes.json

`quality`: cosines to sentence-transformers' vectors on 500 texts of 1 to 256 tokens, and how many of the ten nearest
neighbours among 2,000 passages are the same. `throughput`: 32 clients over gRPC, each with a few texts of mixed lengths
at a time, against the peers in process on the same cores, by turns in one run. `single`: one short text over gRPC
against the bare ONNX Runtime call and an empty RPC. `lanes`: what a token costs a core by the tokens of a batch, with
one lane and with all. Without --peer-python there are no peers. The model is the default one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vorta.v1 import embedding_pb2, embedding_pb2_grpc
from vorta_bench.passages import collection, mixed_lengths, passages
from vorta_bench.wire import serving
from vorta_kernels import cpu
from vorta_server.compiler.cache import artifact_for
from vorta_server.embedding.batcher import BatchLimits
from vorta_server.embedding.engine import EncodeJob, EncoderEngine
from vorta_server.registry.source import DEFAULT_EMBEDDING_MODEL, resolve_source
from vorta_server.runners.encoder import OnnxEncoder
from vorta_server.tokenization.encoder_tokenizer import EncoderTokenizer

Vectors = npt.NDArray[np.float32]
NUM_CLIENTS = 32
TEXTS_PER_CALL = 8


class InProcess:
    """Our engine without a server: text to vectors.

    Args:
        precision: "fp32" or "int8".
        cache: Where the compiled model is kept.
    """

    def __init__(self, precision: str, cache: Path) -> None:
        source = resolve_source(DEFAULT_EMBEDDING_MODEL, data_dir=cache)
        kernels = "vorta" if cpu.is_available() else "portable"
        artifact = artifact_for(source, precision=precision, kernels=kernels, cache_dir=cache)  # type: ignore[arg-type]
        self.encoder = OnnxEncoder(artifact)
        self.tokenizer = EncoderTokenizer(artifact, max_tokens=self.encoder.info.max_model_len)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """The vectors, [texts, 384]."""
        results: list[Any] = []
        engine = EncoderEngine(self.encoder, BatchLimits(max_waiting_texts=1 << 20, max_waiting_tokens=1 << 30))
        encoded = self.tokenizer.encode(texts, truncate="right")
        engine.submit(EncodeJob(sequences=[text.token_ids for text in encoded], deliver=results.append))
        engine.drain()
        engine.close()
        vectors: Vectors = results[0]
        return vectors


class Peer:
    """A peer in a process of its own."""

    def __init__(self, python: str, engine: str, model: str) -> None:
        folder = Path(__file__).resolve().parents[1]
        self._process = subprocess.Popen(
            [python, "-m", "vorta_bench.peers.encoder", engine, model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin", "TOKENIZERS_PARALLELISM": "true"},
        )
        self._answer()

    def embed(self, texts: Sequence[str]) -> Vectors:
        """The vectors."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "vectors.npy"
            self._ask({"texts": list(texts), "out": str(out)})
            vectors: Vectors = np.load(out)
            return vectors

    def seconds(self, texts: Sequence[str]) -> float:
        """The time that the vectors take inside the peer."""
        return float(self._ask({"texts": list(texts)})["seconds"])

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a peer ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def _peers(python: str | None, work: Path) -> Iterator[dict[str, Peer]]:
    """The peers by name; none without an interpreter."""
    with ExitStack() as stack:
        found: dict[str, Peer] = {}
        if python is not None:
            # CTranslate2's model is written beside, which an installed package should not have.
            model = work / DEFAULT_EMBEDDING_MODEL
            if not model.exists():
                model.parent.mkdir(parents=True, exist_ok=True)
                model.symlink_to(resolve_source(DEFAULT_EMBEDDING_MODEL, data_dir=work))
            for engine in ("sentence-transformers", "ctranslate2"):
                found[engine] = Peer(python, engine, str(model))
                stack.callback(found[engine].close)
        yield found


def _cosines(ours: Vectors, theirs: Vectors) -> npt.NDArray[np.float64]:
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    cosines: npt.NDArray[np.float64] = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return cosines


def _shared_neighbours(ours: tuple[Vectors, Vectors], theirs: tuple[Vectors, Vectors]) -> float:
    """Share of the ten nearest passages of each query that are the same."""
    tops = [np.argsort(-(queries @ documents.T), axis=1)[:, :10] for queries, documents in (ours, theirs)]
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*(top.tolist() for top in tops), strict=True)]))


def quality(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Cosines and shared neighbours of each precision, against sentence-transformers (or fp32 without it)."""
    texts = [*passages([1] * 20 + mixed_lengths(480, seed=1), seed=1)]
    queries, documents = passages([8] * 200, seed=2), collection(mixed_lengths(2000, seed=3))
    rows: list[dict[str, Any]] = []
    with _peers(arguments.peer_python, arguments.work) as peers:
        sources: dict[str, Callable[[Sequence[str]], Vectors]] = {name: peer.embed for name, peer in peers.items()}
        for precision in ("fp32", "int8"):
            sources[f"vorta {precision}"] = InProcess(precision, arguments.work / "artifacts").embed
        reference = "sentence-transformers" if peers else "vorta fp32"
        found = {name: (embed(texts), embed(queries), embed(documents)) for name, embed in sources.items()}
        for name, (vectors, of_queries, of_documents) in found.items():
            if name == reference:
                continue
            cosines = _cosines(vectors, found[reference][0])
            rows.append(
                {
                    "name": name,
                    "reference": reference,
                    "num_texts": len(texts),
                    "mean_cosine": round(float(cosines.mean()), 6),
                    "min_cosine": round(float(cosines.min()), 6),
                    "num_documents": len(documents),
                    "top10_shared": round(_shared_neighbours((of_queries, of_documents), found[reference][1:]), 4),
                }
            )
            print(rows[-1], flush=True)
    return rows


async def _clients(address: str, texts: Sequence[str]) -> float:
    """Seconds that all clients together take for all texts."""
    calls = [texts[start : start + TEXTS_PER_CALL] for start in range(0, len(texts), TEXTS_PER_CALL)]
    async with grpc.aio.insecure_channel(address) as channel:
        stub = embedding_pb2_grpc.EmbeddingServiceStub(channel)
        left = iter(calls)

        async def client() -> None:
            for call in left:
                request = embedding_pb2.EmbedRequest(
                    inputs=call, encoding=embedding_pb2.VECTOR_ENCODING_PACKED, truncate=True
                )
                reply = await stub.Embed(request)
                assert len(reply.embeddings) == len(call)

        start_s = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(NUM_CLIENTS)))
        return time.perf_counter() - start_s


def throughput(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Texts a second over the wire and in process, and of the peers in process."""
    texts = passages(mixed_lengths(arguments.texts, seed=4), seed=4)
    seconds: dict[str, list[float]] = {}
    with ExitStack() as stack:
        peers = stack.enter_context(_peers(arguments.peer_python, arguments.work))
        measures: dict[str, Callable[[], float]] = {
            name: (lambda peer=peer: peer.seconds(texts))  # type: ignore[misc]
            for name, peer in peers.items()
        }
        tokens = 0
        for precision in ("fp32", "int8"):
            engine = InProcess(precision, arguments.work / "artifacts")
            tokens = sum(len(text.token_ids) for text in engine.tokenizer.encode(texts, truncate="right"))
            measures[f"vorta {precision} in process"] = lambda engine=engine: _timed(engine, texts)  # type: ignore[misc]
            server = stack.enter_context(
                serving(["--model", DEFAULT_EMBEDDING_MODEL, "--precision", precision, "--set", "vector.backend=none"])
            )
            measures[f"vorta {precision} over gRPC"] = (
                lambda address=server.address: asyncio.run(_clients(address, texts))  # type: ignore[misc]
            )
        for number in range(arguments.rounds + 1):
            for name, measure in measures.items():
                taken_s = measure()
                if number:  # the first round warms up
                    seconds.setdefault(name, []).append(taken_s)
                    print(f"{name:28} {len(texts) / taken_s:8.0f} texts/s {tokens / taken_s:9.0f} tokens/s", flush=True)
    rows = []
    for name, taken in seconds.items():
        row: dict[str, Any] = {"name": name, "texts_per_s": round(len(texts) / statistics.median(taken), 1)}
        row["tokens_per_s"] = round(tokens / statistics.median(taken))
        for peer in ("sentence-transformers", "ctranslate2"):
            if peer in seconds and name.startswith("vorta"):
                ratios = [theirs / ours for ours, theirs in zip(taken, seconds[peer], strict=True)]
                row[f"times {peer}"] = round(statistics.median(ratios), 2)
        rows.append(row)
        print(row)
    return rows


def _timed(engine: InProcess, texts: Sequence[str]) -> float:
    start_s = time.perf_counter()
    engine.embed(texts)
    return time.perf_counter() - start_s


async def _single(address: str, text: str, count: int, bare: Callable[[], object]) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {"embed": [], "empty": [], "bare": []}
    async with grpc.aio.insecure_channel(address) as channel:
        stub, health = embedding_pb2_grpc.EmbeddingServiceStub(channel), health_pb2_grpc.HealthStub(channel)
        request = embedding_pb2.EmbedRequest(inputs=[text], encoding=embedding_pb2.VECTOR_ENCODING_PACKED)
        for number in range(count + 50):
            start_s = time.perf_counter()
            await stub.Embed(request)
            embed_s = time.perf_counter() - start_s
            start_s = time.perf_counter()
            await health.Check(health_pb2.HealthCheckRequest(service="vorta.v1.AdminService"))
            empty_s = time.perf_counter() - start_s
            start_s = time.perf_counter()
            bare()
            bare_s = time.perf_counter() - start_s
            if number >= 50:
                for name, value in (("embed", embed_s), ("empty", empty_s), ("bare", bare_s)):
                    seconds[name].append(value)
    return seconds


def single(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One short text: over gRPC, against an empty RPC and the bare call of ONNX Runtime, by turns."""
    text = "how do I read a file line by line"
    rows = []
    for precision in ("fp32", "int8"):
        engine = InProcess(precision, arguments.work / "artifacts")
        sequence = engine.tokenizer.encode([text])[0].token_ids
        options = ["--model", DEFAULT_EMBEDDING_MODEL, "--precision", precision, "--set", "vector.backend=none"]
        with serving(options) as server:
            seconds = asyncio.run(_single(server.address, text, 500, lambda: engine.encoder.run([sequence])))  # noqa: B023
        p50 = {name: statistics.median(values) for name, values in seconds.items()}
        rows.append(
            {
                "precision": precision,
                "embed_p50_us": round(1e6 * p50["embed"]),
                "empty_rpc_p50_us": round(1e6 * p50["empty"]),
                "bare_call_p50_us": round(1e6 * p50["bare"]),
                "ratio": round(p50["embed"] / (p50["empty"] + p50["bare"]), 2),
            }
        )
        print(rows[-1], flush=True)
    return rows


def _batches(sequences: Sequence[npt.NDArray[np.int32]], max_tokens: int) -> list[list[npt.NDArray[np.int32]]]:
    batches: list[list[npt.NDArray[np.int32]]] = [[]]
    for sequence in sequences:
        if batches[-1] and sum(map(len, batches[-1])) + len(sequence) > max_tokens:
            batches.append([])
        batches[-1].append(sequence)
    return batches


def lanes(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Microseconds of a core for a token, by lanes at work and tokens of a batch; the settings by turns."""
    texts = passages(mixed_lengths(arguments.texts, seed=4), seed=4)
    rows: list[dict[str, Any]] = []
    for precision in ("fp32", "int8"):
        engine = InProcess(precision, arguments.work / "artifacts")
        sequences = [text.token_ids for text in engine.tokenizer.encode(texts, truncate="right")]
        found: dict[tuple[int, int], list[float]] = {}
        for number in range(arguments.rounds + 1):
            for max_tokens in (128, 256, 512, 1024):
                for count in (1, engine.encoder.num_lanes):
                    chosen = sequences[: len(sequences) * count // engine.encoder.num_lanes]
                    start_s = time.perf_counter()
                    with ThreadPoolExecutor(count) as pool:
                        for _ in pool.map(
                            lambda batch: engine.encoder.run(batch, beside_others=True),  # noqa: B023
                            _batches(chosen, max_tokens),
                        ):
                            pass
                    taken_s = time.perf_counter() - start_s
                    if number:  # the first round warms up
                        found.setdefault((count, max_tokens), []).append(taken_s * count / sum(map(len, chosen)))
        for (count, max_tokens), taken in found.items():
            core_us = round(1e6 * statistics.median(taken), 1)
            rows.append({"precision": precision, "lanes": count, "batch_tokens": max_tokens, "core_us": core_us})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=["quality", "throughput", "single", "lanes"])
    parser.add_argument("--peer-python", help="interpreter with sentence-transformers and ctranslate2")
    parser.add_argument("--texts", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("data/bench"), help="folder for compiled models")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    arguments = parser.parse_args()
    arguments.work = arguments.work.absolute()
    scenarios = {"quality": quality, "throughput": throughput, "single": single, "lanes": lanes}
    rows = scenarios[arguments.scenario](arguments)
    if arguments.out is not None:
        document = {
            "command": " ".join(["python -m vorta_bench.embedding", *sys.argv[1:]]),
            "machine": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "rows": rows,
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
