"""The runner of text encoders: an artifact's graph through ONNX Runtime, a batch of texts at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vorta.errors import Internal
from vorta_server.compiler.artifact import ArtifactError, Manifest, load_manifest
from vorta_server.embedding.encoder import EncoderInfo
from vorta_server.runners.providers import CPU, Profile, ProviderChoice, choose_providers
from vorta_server.runners.session import check_target, kernel_library, open_session

__all__ = ["OnnxEncoder"]

Int32Array = NDArray[np.int32]
Float32Array = NDArray[np.float32]

_KINDS = ("embedding", "rerank")

# Batches that are computed at once at most; of more cores each lane has several.
_MOST_LANES = 8

# Tokens of a lane's batch: more of them read the weights less often, fewer leave more of what is computed in the
# caches. Measured in benchmarks/results/embedding.md.
_LANE_TOKENS = {"fp32": 1024, "int8": 512}

# Texts of a batch that TensorRT plans for; with more it plans anew. Tokens likewise, up to the model's length.
_USUAL_TEXTS, _MOST_TEXTS = 8, 64
_USUAL_TOKENS = 128


class OnnxEncoder:
    """Computes batches on an artifact that `vorta compile` wrote of a text encoder, for the cpu or for TensorRT.

    Args:
        artifact: The artifact's folder.
        threads: Threads of a batch, the calling one included; 0 for one per core.
        providers: Of ONNX Runtime, see `runners.providers`; any but the cpu needs an artifact for TensorRT.
        cache_dir: Where TensorRT's provider keeps its engines; None for nowhere.
        verify: Check the content of the artifact's files against its manifest, beside their sizes.

    Raises:
        ArtifactError: The folder is no artifact of an encoder, or damaged.
        ValueError: A number is out of range.
        vorta.errors.FailedPrecondition: A provider is missing, or the artifact is not for it.
        vorta.errors.Internal: ONNX Runtime refuses the graph.
    """

    def __init__(
        self,
        artifact: Path,
        *,
        threads: int = 0,
        verify: bool = False,
        providers: Sequence[str] = CPU,
        cache_dir: Path | None = None,
    ) -> None:
        if threads < 0:
            raise ValueError(f"threads ({threads}) must not be negative")
        self._manifest = manifest = load_manifest(artifact, verify=verify)
        if manifest.kind not in _KINDS:
            raise ArtifactError(f"{artifact} is a {manifest.kind} model, no encoder", path=artifact, field="kind")
        check_target(manifest, artifact, providers)
        self._is_packed = manifest.kernels == "vorta"
        self._output = "hidden_states" if manifest.kind == "embedding" else "logits"
        library = kernel_library(artifact) if self._is_packed else None
        choice = ProviderChoice(
            names=choose_providers(providers),
            cache_dir=cache_dir,
            precision=manifest.precision,
            profile=_profile(manifest),
        )
        file = artifact / manifest.graphs[0].file
        cores = threads or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        self._num_lanes = min(cores, _MOST_LANES) if self._is_packed else 1
        has_lanes = self._num_lanes > 1
        self._session = open_session(file, threads, library, has_siblings=has_lanes, providers=choice)
        # Weights are mapped into memory from the artifact, so a second session costs none.
        self._lane_session = (
            open_session(file, cores // self._num_lanes, library, has_siblings=True) if has_lanes else None
        )
        self._info = EncoderInfo(
            kind=manifest.kind,
            hidden_size=manifest.hidden_size,
            num_labels=manifest.num_labels,
            max_model_len=manifest.max_model_len,
            vocab_size=manifest.vocab_size,
            pad_token_id=manifest.pad_token_id or 0,
            pooling=manifest.pooling or "mean",
            normalize=manifest.normalize,
            prompts=dict(manifest.prompts),
            default_prompt=manifest.default_prompt_name,
            is_packed=self._is_packed,
            has_token_types=manifest.has_token_types,
            uses_sigmoid=manifest.uses_sigmoid,
            lane_tokens=_LANE_TOKENS.get(manifest.precision, 512),
        )

    @property
    def info(self) -> EncoderInfo:
        """The model's sizes and its authors' defaults."""
        return self._info

    @property
    def manifest(self) -> Manifest:
        """The artifact's manifest."""
        return self._manifest

    @property
    def num_lanes(self) -> int:
        """One for each core, on our kernels. See `Encoder.num_lanes`."""
        return self._num_lanes

    def run(
        self,
        sequences: Sequence[Int32Array],
        token_types: Sequence[Int32Array] | None = None,
        *,
        beside_others: bool = False,
    ) -> Float32Array:
        """Computes a batch. See `Encoder.run`."""
        session = self._lane_session if beside_others and self._lane_session is not None else self._session
        if session is None:
            raise RuntimeError("the encoder is closed")
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        if not len(lengths):
            size = self._info.hidden_size if self._info.kind == "embedding" else self._info.num_labels
            return np.empty((0, size), np.float32)
        self._check_lengths(lengths)
        ids = np.concatenate(sequences, dtype=np.int32)
        if int(ids.min()) < 0 or int(ids.max()) >= self._info.vocab_size:
            raise ValueError(f"token ids {ids.min()} to {ids.max()}, a vocabulary of {self._info.vocab_size}")
        inputs = {"input_ids": ids}
        if self._info.has_token_types:
            inputs["token_types"] = self._joined_types(token_types, lengths)
        feed = _packed(inputs, lengths) if self._is_packed else _padded(inputs, lengths)
        try:
            (result,) = session.run([self._output], feed)
        except Exception as error:  # ONNX Runtime raises its own types, with RuntimeError as their only common base
            raise Internal(f"ONNX Runtime failed: {error}") from error
        output: Float32Array = result
        if self._is_packed or self._info.kind == "rerank":
            return output
        return output[np.arange(output.shape[1]) < lengths[:, None]]

    def close(self) -> None:
        """Drops the session and the weights. Idempotent."""
        self._session = self._lane_session = None

    def _check_lengths(self, lengths: NDArray[np.int64]) -> None:
        shortest, longest = int(lengths.min()), int(lengths.max())
        if shortest < 1 or longest > self._info.max_model_len:
            raise ValueError(f"inputs of {shortest} to {longest} tokens; 1 to {self._info.max_model_len} are taken")

    def _joined_types(self, token_types: Sequence[Int32Array] | None, lengths: NDArray[np.int64]) -> Int32Array:
        if token_types is None:
            return np.zeros(int(lengths.sum()), np.int32)
        types = np.concatenate(token_types, dtype=np.int32)
        if list(map(len, token_types)) != lengths.tolist():
            raise ValueError("token types and tokens differ in number")
        return types


def _profile(manifest: Manifest) -> Profile:
    """The shapes of padded batches that TensorRT prepares for."""
    usual_step = min(_USUAL_TOKENS, manifest.max_model_len)
    texts = ([1, 1], [_USUAL_TEXTS, usual_step], [_MOST_TEXTS, manifest.max_model_len])
    names = ["input_ids", *(["token_types"] if manifest.has_token_types else [])]
    return {**dict.fromkeys(names, texts), "lengths": ([1], [_USUAL_TEXTS], [_MOST_TEXTS])}


def _packed(inputs: dict[str, Int32Array], lengths: NDArray[np.int64]) -> dict[str, NDArray[np.int32]]:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return {**inputs, "offsets": offsets}


def _padded(inputs: dict[str, Int32Array], lengths: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    is_real = np.arange(lengths.max()) < lengths[:, None]
    feed = {"lengths": lengths}
    for name, values in inputs.items():
        feed[name] = np.zeros(is_real.shape, np.int64)
        feed[name][is_real] = values
    return feed
