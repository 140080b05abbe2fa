"""Every setting of the server, in one place: flags over environment over a TOML file over defaults.

Environment variables are `VORTA_<FIELD>` and `VORTA_<SECTION>__<FIELD>`; a VORTA_ variable that is none of them is
refused, as is any unknown key and every value out of its range, by name. Nothing else in the server reads the
environment.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from pydantic import StringConstraints, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings.exceptions import SettingsError

from vorta.errors import FailedPrecondition

__all__ = [
    "DrainSettings",
    "EmbeddingSettings",
    "FrontSettings",
    "GenerationSettings",
    "GrpcSettings",
    "HttpSettings",
    "LogSettings",
    "ResumeSettings",
    "Settings",
    "VectorSettings",
    "WorkerSettings",
    "load_settings",
]

PREFIX = "VORTA_"
DELIMITER = "__"

Port = Annotated[int, Ge(0), Le(65535)]
Count = Annotated[int, Ge(1)]
NumBytes = Annotated[int, Ge(1024)]
Seconds = Annotated[float, Ge(0)]
PositiveSeconds = Annotated[float, Gt(0)]

_PROVIDER = "(cpu|cuda|tensorrt)(executionprovider)?"
Providers = Annotated[str, StringConstraints(pattern=f"(?i)^{_PROVIDER}(,{_PROVIDER})*$")]
"""Names of ONNX Runtime's providers, separated by commas; see `runners.providers`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcSettings:
    """The gRPC port; see `vorta_server.front.server.GrpcConfig`."""

    port: Port = 50051
    max_request_bytes: NumBytes = 16 * 1024 * 1024
    max_reply_bytes: NumBytes = 64 * 1024 * 1024
    min_ping_interval_s: PositiveSeconds = 10.0
    keepalive_s: PositiveSeconds = 60.0
    keepalive_timeout_s: PositiveSeconds = 20.0
    max_connection_age_s: PositiveSeconds = 600.0
    max_connection_age_grace_s: PositiveSeconds = 3600.0
    reflection: bool = True
    channelz: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """The HTTP port: REST, gRPC-Web, the OpenAI API, the console, /metrics, /healthz and /readyz.

    Attributes:
        max_body_bytes: Of a request's body, decompressed.
        max_connections: Connections at once; more are answered with 503.
        cors_origins: Origins whose pages may call; `*` stands for any text within one, and alone for every origin.
    """

    port: Port = 8000
    max_body_bytes: NumBytes = 16 * 1024 * 1024
    max_connections: Count = 4096
    cors_origins: tuple[str, ...] = ("http://localhost:*", "http://127.0.0.1:*")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontSettings:
    """Limits of the front.

    Attributes:
        max_concurrent_requests: Calls in flight; more are refused.
        max_buffered_bytes_per_stream: Events that may wait for a slow reader before its stream ends.
        write_cost_s: About what a streamed message costs, in CPU seconds.
        write_share: Of this machine's CPUs, what all streams together may spend on messages.
        max_write_interval_s: The longest that a token waits for others; see `workers.pacing.WritePacer`.
    """

    max_concurrent_requests: Count = 1024
    max_buffered_bytes_per_stream: NumBytes = 1024 * 1024
    write_cost_s: Seconds = 500e-6
    write_share: Annotated[float, Gt(0), Le(1)] = 0.01
    max_write_interval_s: Annotated[float, Ge(0), Le(1)] = 0.05

    @property
    def write_interval_per_stream_s(self) -> float:
        """Seconds between two messages of a stream that is alone; of N, N times as much."""
        num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.write_cost_s / (self.write_share * num_cpus)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeSettings:
    """Memory of the logs of resumable streams: of all together, and of one."""

    max_bytes: NumBytes = 64 * 1024 * 1024
    max_bytes_per_request: NumBytes = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """Limits of generation.

    Attributes:
        max_tokens_cap: Most tokens that a request may ask for, and its default where the context has more room.
    """

    max_tokens_cap: Annotated[int, Ge(1), Le(1 << 20)] = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """Workers, as in `workers.config.WorkerConfig` and `workers.supervisor.RestartConfig`."""

    runner: Literal["onnx", "cuda", "fake"] = "onnx"
    device: Annotated[str, StringConstraints(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cuda"
    kv_dtype: Literal["auto", "fp8"] = "auto"
    cuda_graphs: bool = True
    providers: Providers = "cpu"
    threads: Annotated[int, Ge(0), Le(1024)] = 0
    max_model_len: Count | None = None
    max_running_requests: Annotated[int, Ge(1), Le(4096)] = 32
    max_waiting_requests: Annotated[int, Ge(0), Le(1_000_000)] = 256
    max_batched_tokens: Count = 512
    max_stall: Annotated[float, Gt(0)] = 1.5
    kv_memory_bytes: Annotated[int, Ge(0)] = 0
    prefix_cache: bool = True
    flush_interval_s: Annotated[float, Ge(0), Le(1)] = 0.01
    start_timeout_s: PositiveSeconds = 900.0
    restart_delay_s: PositiveSeconds = 1.0
    max_restart_delay_s: PositiveSeconds = 30.0
    stable_s: PositiveSeconds = 60.0
    max_quick_deaths: Count = 5
    stall_timeout_s: PositiveSeconds = 30.0
    stall_kill_s: PositiveSeconds = 120.0
    fake_step_s: Seconds = 0.0
    fake_row_s: Seconds = 0.0
    fake_prefill_token_s: Seconds = 0.0
    fake_eos_every: Annotated[int, Ge(0)] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingSettings:
    """Workers of embedding models and rerankers, as in `workers.config.WorkerConfig`."""

    max_batch_tokens: Annotated[int, Ge(1), Le(1 << 20)] = 1024
    max_waiting_texts: Count = 65_536
    max_waiting_tokens: Count = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorSettings:
    """The vector store, as in `workers.config.VectorConfig`.

    Attributes:
        backend: "faiss" (embedded, in the data folder), "weaviate://host[:port]" or "none".
        api_key: Weaviate's.
        hot: Collections of a Weaviate that FAISS serves from copies, separated by commas; "*" for all.
        device: Where the embedded store compares: "cuda" needs a FAISS built for GPUs, "auto" takes one that is there.
        search_threads, build_threads, cache_bytes, max_payload_bytes: Of the embedded store.
    """

    backend: Annotated[str, StringConstraints(pattern=r"^(faiss|none|weaviates?://.+)$")] = "faiss"
    api_key: str = ""
    hot: str = ""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    search_threads: Annotated[int, Ge(0), Le(1024)] = 0
    build_threads: Annotated[int, Ge(0), Le(1024)] = 0
    cache_bytes: Annotated[int, Ge(0)] = 256 << 20
    max_payload_bytes: Annotated[int, Ge(2), Le(64 << 20)] = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainSettings:
    """Shutting down: seconds that running requests get."""

    grace_s: Annotated[float, Ge(0), Le(3600)] = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """The log on standard error."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["text", "json"] = "text"


class Settings(BaseSettings):
    """All settings; build them with `load_settings`.

    Attributes:
        host: Address that the ports listen on.
        data_dir: Pulled models, compiled artifacts, and whatever else outlives the process.
        models: Sources of the models to serve by id: an artifact, a checkpoint or a pulled hub id.
        default_model, default_embedding_model, default_rerank_model: For requests that name none. Empty: the first of
            `models` that is of the kind.
        precision: Of checkpoints that are compiled on first use; fp16, bf16 and fp8 are for GPUs. None: see
            `default_precision`.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter=DELIMITER, extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    data_dir: Path = Path("~/.local/share/vorta")
    models: dict[str, str] = {}
    default_model: str = ""
    default_embedding_model: str = ""
    default_rerank_model: str = ""
    precision: Literal["fp32", "fp16", "bf16", "fp8", "int8", "int4"] | None = None
    grpc: GrpcSettings = GrpcSettings()
    http: HttpSettings = HttpSettings()
    front: FrontSettings = FrontSettings()
    resume: ResumeSettings = ResumeSettings()
    generation: GenerationSettings = GenerationSettings()
    worker: WorkerSettings = WorkerSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    vector: VectorSettings = VectorSettings()
    drain: DrainSettings = DrainSettings()
    log: LogSettings = LogSettings()

    @property
    def default_precision(self) -> str:
        """Of models that name none: `precision`, or what the runner is usually used with."""
        return self.precision or ("bf16" if self.worker.runner == "cuda" else "int8")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags and the file, merged by `load_settings`, around the environment."""
        assert isinstance(init_settings, InitSettingsSource)
        values = dict(init_settings.init_kwargs)
        file = InitSettingsSource(settings_cls, values.pop("_file", {}))
        return InitSettingsSource(settings_cls, values), env_settings, file


def load_settings(
    flags: Mapping[str, Any] | None = None,
    *,
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """The settings of this start.

    Args:
        flags: Values by field, sections as nested mappings.
        config: A TOML file, one table per section.
        environ: Names to check; the process's environment by default.

    Raises:
        FailedPrecondition: A name is unknown, or a value malformed or out of range (SETTINGS_INVALID, naming the
            first such field in `field` and all of them in the message).
    """
    _check_names(os.environ if environ is None else environ)
    values: dict[str, Any] = {**(flags or {}), "_file": _read_toml(config) if config else {}}
    try:
        return Settings(**values)
    except ValidationError as error:
        problems = [(_field(item["loc"]), str(item["msg"])) for item in error.errors(include_url=False)]
        message = "; ".join(f"{field}: {text[:1].lower()}{text[1:]}" for field, text in problems)
        raise _invalid(problems[0][0], message) from None
    except SettingsError as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise _invalid("environment", f"{error}{cause}") from None


def known_names() -> frozenset[str]:
    """The environment variables that mean something."""
    names = set()
    for field, info in Settings.model_fields.items():
        names.add(f"{PREFIX}{field}".upper())
        if is_dataclass(info.annotation):
            names |= {f"{PREFIX}{field}{DELIMITER}{sub.name}".upper() for sub in fields(info.annotation)}
    return frozenset(names)


def _check_names(environ: Mapping[str, str]) -> None:
    known = known_names()
    unknown = sorted(name for name in environ if name.upper().startswith(PREFIX) and name.upper() not in known)
    if unknown:
        raise _invalid(unknown[0], f"unknown environment variable: {', '.join(unknown)}")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise _invalid("config", f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _invalid("config", f"{path} is not TOML: {error}") from None


def _field(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "settings"


def _invalid(field: str, message: str) -> FailedPrecondition:
    return FailedPrecondition(message, reason="SETTINGS_INVALID", field=field)
