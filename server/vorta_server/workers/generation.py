"""Puts a generation model together: artifact, runner, tokenizer, engine. The only place that names concrete runners."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from vorta.errors import FailedPrecondition
from vorta_kernels import cpu
from vorta_kernels.sampling import SamplingKernel
from vorta_server.compiler.artifact import Manifest
from vorta_server.engine.engine import Engine, EngineConfig
from vorta_server.engine.runner import ModelRunner
from vorta_server.engine.scheduler import SchedulerConfig
from vorta_server.runners.fake import FakeRunner, FakeRunnerConfig
from vorta_server.runners.providers import choose_providers, parse_providers
from vorta_server.tokenization.codec import Codec
from vorta_server.tokenization.grammar import GrammarCompiler
from vorta_server.tokenization.tokenizer import Tokenizer
from vorta_server.workers.artifact import device_of, engine_folder, is_on_gpu, served_artifact
from vorta_server.workers.config import WorkerConfig
from vorta_server.workers.protocol import GenerationDefaults, ModelCard

__all__ = ["GenerationModel", "build_generation", "write_byte_tokenizer"]

_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

# Of a GPU's memory for KV where the setting names none: what is free there is not known before weights are loaded.
_GPU_KV_BYTES = 4 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationModel:
    """A model ready to serve."""

    engine: Engine
    codec: Codec
    card: ModelCard
    formats: GrammarCompiler


class _Vocabulary(Tokenizer):
    """A tokenizer whose end tokens are the artifact's, which took them from the checkpoint's configuration."""

    def __init__(self, folder: Path, eos_token_ids: tuple[int, ...]) -> None:
        super().__init__(folder)
        self._model_eos_token_ids = eos_token_ids

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a text."""
        return self._model_eos_token_ids or super().eos_token_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    runner: ModelRunner
    vocabulary: Tokenizer
    architecture: str
    precision: str
    parameter_count: int
    device: str | None = None
    kv_capacity_tokens: int | None = None
    min_prefill_tokens: int = 16


def build_generation(config: WorkerConfig) -> GenerationModel:
    """Compiles the checkpoint if need be, loads the model and its tokenizer.

    Raises:
        VortaError: Naming the setting or the part of the checkpoint at fault.
    """
    parts = {"fake": _build_fake, "cuda": _build_cuda}.get(config.runner, _build_onnx)(config)
    info, vocabulary = parts.runner.info, parts.vocabulary
    capacity = parts.kv_capacity_tokens
    if capacity is None:
        capacity = _kv_capacity_tokens(config, info.kv_bytes_per_token, info.num_slots * info.max_model_len)
    engine = Engine(
        parts.runner,
        vocabulary,
        EngineConfig(
            scheduler=SchedulerConfig(
                max_running_requests=config.max_running_requests,
                max_batched_tokens=config.max_batched_tokens,
                max_stall=config.max_stall,
                unseen_step_s=config.max_write_interval_s / 2,
                min_prefill_tokens=min(parts.min_prefill_tokens, config.max_batched_tokens),
                prefix_cache=config.prefix_cache,
            ),
            max_waiting_requests=config.max_waiting_requests,
            kv_capacity_tokens=max(capacity, info.max_model_len + 64),
            max_tokens_cap=config.max_tokens_cap,
        ),
        draw_kernel=SamplingKernel(config.threads) if cpu.is_available() else None,
    )
    defaults = vocabulary.generation_defaults
    card = ModelCard(
        model=config.model,
        kind="generation",
        architecture=parts.architecture,
        precision=parts.precision,
        device=parts.device or device_of(config),
        max_model_len=info.max_model_len,
        vocab_size=info.vocab_size,
        parameter_count=parts.parameter_count,
        eos_token_ids=list(vocabulary.eos_token_ids),
        has_chat_template=vocabulary.has_chat_template,
        max_running_requests=config.max_running_requests,
        kv_capacity_tokens=engine.kv_capacity_tokens,
        defaults=GenerationDefaults(
            temperature=defaults.temperature,
            top_p=defaults.top_p,
            top_k=defaults.top_k,
            repetition_penalty=defaults.repetition_penalty,
        ),
    )
    codec = Codec(vocabulary, vocab_size=info.vocab_size, max_model_len=info.max_model_len)
    formats = GrammarCompiler(vocabulary, vocab_size=info.vocab_size)
    return GenerationModel(engine=engine, codec=codec, card=card, formats=formats)


def _build_onnx(config: WorkerConfig) -> _Parts:
    # Before a checkpoint is compiled for them.
    providers = choose_providers(parse_providers(config.providers))
    source, manifest = served_artifact(config)
    if config.max_model_len is not None and config.max_model_len > manifest.max_model_len:
        raise FailedPrecondition(
            f"max_model_len is {config.max_model_len}; the model's context is {manifest.max_model_len}",
            reason="SETTINGS_INVALID",
            field="max_model_len",
        )
    kv_bytes = 2 * manifest.num_layers * manifest.num_kv_heads * manifest.head_dim * _ELEMENT_BYTES[manifest.kv_dtype]
    num_slots = 2 * config.max_running_requests + 1
    length = config.max_model_len or manifest.max_model_len
    # On the cpu slots cost what is written to them; elsewhere all of them are taken at the start.
    sharers = num_slots if manifest.target == "tensorrt" else 1
    affordable = _kv_capacity_tokens(config, kv_bytes, 1 << 40) // sharers - 64
    if config.max_model_len is None:
        length = min(length, affordable)
    if length > affordable or length < 2:
        raise FailedPrecondition(
            f"kv_memory_bytes holds {max(affordable, 0)} tokens, less than one sequence of {length}",
            reason="SETTINGS_INVALID",
            field="kv_memory_bytes",
        )
    return _Parts(
        runner=_open_runner(config, source, manifest, providers, num_slots, length),
        vocabulary=_Vocabulary(source, manifest.eos_token_ids),
        architecture=manifest.architecture,
        precision=manifest.precision,
        parameter_count=manifest.num_parameters,
    )


def _open_runner(
    config: WorkerConfig, source: Path, manifest: Manifest, providers: tuple[str, ...], num_slots: int, length: int
) -> ModelRunner:
    from vorta_server.runners.onnx import OnnxRunner
    from vorta_server.runners.opset import OpsetRunner
    from vorta_server.runners.session import check_target

    if manifest.target != "tensorrt":
        check_target(manifest, source, providers)
        return OnnxRunner(source, num_slots=num_slots, max_model_len=length, threads=config.threads)
    return OpsetRunner(
        source,
        num_slots=num_slots,
        providers=providers,
        max_model_len=length,
        max_chunk=config.max_batched_tokens,
        threads=config.threads,
        cache_dir=engine_folder(config) if is_on_gpu(config) else None,
    )


def _build_cuda(config: WorkerConfig) -> _Parts:
    from vorta_server.workers.cuda import build_cuda

    model = build_cuda(config)
    return _Parts(
        runner=model.runner,
        vocabulary=_Vocabulary(Path(config.source), model.eos_token_ids),
        architecture=model.architecture,
        precision=model.precision,
        parameter_count=model.parameter_count,
        device=model.device,
        kv_capacity_tokens=model.kv_capacity_tokens,
        # Most of a mixed step's time on a GPU is its own, not its tokens': fewer would not make it shorter.
        min_prefill_tokens=256,
    )


def _build_fake(config: WorkerConfig) -> _Parts:
    folder = Path(config.source)
    if not (folder / "tokenizer.json").is_file():
        folder = Path(config.cache_dir) / "byte-tokenizer"
        write_byte_tokenizer(folder)
    vocabulary = Tokenizer(folder)
    runner = FakeRunner(
        config=FakeRunnerConfig(
            vocab_size=vocabulary.vocab_size,
            max_model_len=config.max_model_len or 4096,
            num_slots=2 * config.max_running_requests + 1,
            alphabet=(ord("a"), ord("z") + 1),
            eos_token_id=vocabulary.eos_token_ids[0] if vocabulary.eos_token_ids else 0,
            eos_every=config.fake_eos_every,
            step_s=config.fake_step_s,
            row_s=config.fake_row_s,
            prefill_token_s=config.fake_prefill_token_s,
        )
    )
    return _Parts(runner=runner, vocabulary=vocabulary, architecture="Fake", precision="fp32", parameter_count=0)


def write_byte_tokenizer(folder: Path) -> None:
    """Writes a tokenizer of 256 bytes (token id = byte) and ChatML's special tokens into a folder."""
    # GPT-2's map of bytes to printable characters, which the ByteLevel pre-tokenizer applies.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(rest)}
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={characters[byte]: byte for byte in range(256)}, merges=[])
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    # Of a pair, the second text's tokens are of type 1.
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="$A", pair="$A:0 $B:1")
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    folder.mkdir(parents=True, exist_ok=True)
    configuration = {"eos_token": "<|im_end|>", "chat_template": _CHATML}
    contents = {
        "tokenizer_config.json": json.dumps(configuration),
        "generation_config.json": json.dumps({"eos_token_id": [256, 258]}),
        "tokenizer.json": tokenizer.to_str(),
    }
    for name, text in contents.items():  # whole at once: another worker may read them
        part = folder / f"{name}.{os.getpid()}"
        part.write_text(text)
        part.replace(folder / name)


def _kv_capacity_tokens(config: WorkerConfig, bytes_per_token: int, limit: int) -> int:
    budget = config.kv_memory_bytes or (_GPU_KV_BYTES if is_on_gpu(config) else _available_bytes() // 4)
    return min(budget // bytes_per_token, limit)


def _available_bytes() -> int:
    """Memory that can be had without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
