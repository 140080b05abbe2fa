"""One peer that embeds, behind lines of JSON: `python -m vorta_bench.peers.encoder ENGINE MODEL`.

Each line on standard input is {"texts": [...], "out": FILE or null}; the answer is {"seconds": …}. Vectors go to `out`
as a .npy file. The time is that of text to normalised vectors, tokenization included. Engines: "sentence-transformers",
and "ctranslate2", whose int8 model is made beside MODEL when it is not there.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# What was fastest on mixed lengths among 16, 32, 64 and 128.
_BATCH = 32
_CT2_BATCH_TOKENS = 2048

Embed = Callable[[list[str]], Any]


def sentence_transformers(model: str, threads: int) -> Embed:
    """As its users call it."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    encoder = SentenceTransformer(model, device="cpu")
    return lambda texts: encoder.encode(texts, batch_size=_BATCH, normalize_embeddings=True, show_progress_bar=False)


def ctranslate2(model: str, threads: int) -> Embed:
    """BERT in int8, batches of like lengths, mean pooling in numpy."""
    import ctranslate2 as ct2
    import tokenizers

    folder = Path(f"{model.rstrip('/')}-ctranslate2")
    if not folder.exists():
        ct2.converters.TransformersConverter(model).convert(str(folder), quantization="int8")
    encoder = ct2.Encoder(str(folder), compute_type="int8", intra_threads=threads, inter_threads=1)
    tokenizer = tokenizers.Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)

    def embed(texts: list[str]) -> Any:
        encoded = tokenizer.encode_batch_fast(texts)
        order = sorted(range(len(texts)), key=lambda index: -len(encoded[index].ids))
        vectors = np.empty((len(texts), 384), np.float32)
        start = 0
        while start < len(order):
            size = max(1, _CT2_BATCH_TOKENS // len(encoded[order[start]].ids))
            part = order[start : start + size]
            start += size
            ids = [encoded[index].ids for index in part]
            states = np.array(encoder.forward_batch(ids).last_hidden_state)
            mask = np.arange(states.shape[1]) < np.array([len(one) for one in ids])[:, None]
            pooled = (states * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1)[:, None]
            vectors[part] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return vectors

    return embed


def main() -> None:
    """Answers lines until there are no more."""
    engine, model, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 2
    embed = {"sentence-transformers": sentence_transformers, "ctranslate2": ctranslate2}[engine](model, threads)
    embed(["warm up"] * 8)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        start_s = time.perf_counter()
        vectors = embed(asked["texts"])
        seconds = time.perf_counter() - start_s
        if asked.get("out"):
            np.save(asked["out"], np.asarray(vectors, np.float32))
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
