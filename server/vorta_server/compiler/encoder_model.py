"""A text encoder on its way to an artifact: its checkpoint read and checked, its graph written, its manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, cast

from vorta_server.compiler.artifact import ArtifactWriter, FileEntry, GraphEntry, Manifest, SourceEntry
from vorta_server.compiler.checkpoint import Checkpoint, CheckpointError, check_tokenizer
from vorta_server.compiler.config import ConfigReader
from vorta_server.compiler.encoder import EncoderGraph
from vorta_server.compiler.encoder_weight import EncoderWeights
from vorta_server.compiler.family import read_encoder
from vorta_server.compiler.graph import GraphBuilder, WeightFile
from vorta_server.compiler.plan import Kernels, plan_encoder, precisions_of
from vorta_server.compiler.sentence import SentenceSpec, read_max_tokens, read_sentence

__all__ = ["EncoderModel"]

_GRAPH_FILE = "model.onnx"

# Weights that share a scale. A text has many tokens, so scales cost arithmetic and not memory: the more share one, the
# less; and 8 bits are exact enough for 128.
_DEFAULT_BLOCK = 128


class EncoderModel:
    """An encoder to be compiled; see `compile_checkpoint` for the arguments.

    Raises CheckpointError when the checkpoint or an argument is at fault.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: ConfigReader,
        *,
        target: str,
        precision: str,
        kernels: Kernels,
        block: int | None,
        max_model_len: int | None,
    ) -> None:
        self._spec = spec = read_encoder(config)
        available = precisions_of(target, is_encoder=True)
        if precision not in available:
            raise CheckpointError(
                f"precision {precision} is not available for {spec.architecture}, which is a text encoder; "
                f"available: {', '.join(available)}",
                field="precision",
            )
        self._target = target
        self._precision = precision
        self._kernels = kernels
        self._block = block or _DEFAULT_BLOCK
        self._weights = EncoderWeights(checkpoint, spec)
        check_tokenizer(checkpoint, spec.vocab_size)
        self._length = self._model_len(read_max_tokens(checkpoint, spec.max_tokens), max_model_len)
        self._sentence = self._read_sentence(checkpoint)

    def write_graphs(self, writer: ArtifactWriter, weight_file: WeightFile, report: Callable[[float], None]) -> None:
        """Writes the graph, and its weights to the weight file; reports the fraction done, 0 to 1."""
        spec, graph = self._spec, GraphBuilder(weight_file, is_standard=self._target == "tensorrt")
        steps = spec.num_layers + 1
        EncoderGraph(
            graph,
            spec,
            self._weights,
            plan_encoder(self._target, self._precision, self._kernels, self._block),
            max_tokens=self._length,
            dense=self._sentence.dense if self._sentence is not None else (),
            progress=lambda layer: report(layer / steps),
        ).build()
        writer.write(_GRAPH_FILE, graph.model(spec.model_type).SerializeToString())

    def manifest(self, files: dict[str, FileEntry], fingerprint: str, versions: Mapping[str, str]) -> Manifest:
        """What the artifact's manifest says."""
        spec, sentence, head = self._spec, self._sentence, self._spec.head
        hidden_size = spec.hidden_size
        if sentence is not None and sentence.dense:
            hidden_size = len(sentence.dense[-1].weight)
        return Manifest(
            kind="embedding" if head is None else "rerank",
            architecture=spec.architecture,
            model_type=spec.model_type,
            target=self._target,
            precision=self._precision,
            kernels=self._kernels,
            num_parameters=self._weights.num_parameters,
            vocab_size=spec.vocab_size,
            hidden_size=hidden_size,
            num_layers=spec.num_layers,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            max_model_len=self._length,
            bos_token_id=None,
            eos_token_ids=(),
            pad_token_id=spec.pad_token_id,
            kv_dtype="float32",
            pooling=cast(Literal["mean", "cls", "last"], sentence.pooling) if sentence is not None else "",
            normalize=sentence is not None and sentence.normalize,
            prompts=sentence.prompts if sentence is not None else {},
            default_prompt_name=sentence.default_prompt if sentence is not None else "",
            num_labels=head.num_labels if head is not None else 0,
            uses_sigmoid=head is not None and head.uses_sigmoid,
            has_token_types=spec.num_types > 1,
            graphs=(GraphEntry(file=_GRAPH_FILE, min_rows=1),),
            files=files,
            source=SourceEntry(fingerprint=fingerprint),
            versions=dict(versions),
        )

    def _read_sentence(self, checkpoint: Checkpoint) -> SentenceSpec | None:
        """How a text becomes a vector; None for a reranker, which has a head for that."""
        spec = self._spec
        if spec.head is not None:
            return None
        sentence, size = read_sentence(checkpoint, spec.default_pooling), spec.hidden_size
        for dense in sentence.dense:
            if dense.weight.shape[1] != size:
                raise CheckpointError(
                    f"{dense.name} takes {dense.weight.shape[1]} numbers, but there are {size}",
                    field=f"{dense.name}/config.json",
                    path=checkpoint.folder / dense.name,
                )
            size = len(dense.weight)
        return sentence

    def _model_len(self, default: int, wanted: int | None) -> int:
        limit = self._spec.max_tokens
        if wanted is None:
            return default
        if type(wanted) is not int or not 1 <= wanted <= limit:
            raise CheckpointError(f"max_model_len must be between 1 and {limit}, not {wanted!r}", field="max_model_len")
        return wanted
