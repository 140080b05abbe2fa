"""What a worker process is told at its start."""

from __future__ import annotations

import msgspec

__all__ = ["VectorConfig", "WorkerConfig"]


class VectorConfig(msgspec.Struct, kw_only=True, frozen=True):
    """Options of the vector worker.

    Attributes:
        backend: "faiss", or a URL "weaviate://…" (see `vectors.weaviate_config.parse_weaviate_url`).
        data_dir: Folder of the embedded store, and of hot copies.
        api_key: Weaviate's.
        hot: Collections of a Weaviate that FAISS serves from copies; "*" for all, empty for none.
        device: Of the embedded store: "auto", "cpu" or "cuda".
        search_threads, build_threads: Of the embedded store; 0 for its defaults.
        cache_bytes: Filter masks and gathered rows, of each collection.
        max_payload_bytes: Of a point's payload.
    """

    backend: str
    data_dir: str
    api_key: str = ""
    hot: tuple[str, ...] = ()
    device: str = "auto"
    search_threads: int = 0
    build_threads: int = 0
    cache_bytes: int = 256 << 20
    max_payload_bytes: int = 1 << 20


class WorkerConfig(msgspec.Struct, kw_only=True, frozen=True):
    """Options of a worker, passed as JSON.

    Attributes:
        model: The model's id.
        source: Artifact or checkpoint folder; a checkpoint is compiled into `cache_dir` on first use.
        socket_path: Unix socket to listen on.
        runner: "onnx", "cuda" or "fake".
        device: Of the cuda runner, in torch's words: cuda, cuda:1; cpu for tests.
        kv_dtype: Of the cuda runner's cache: "auto" for the activations' type, or "fp8".
        cuda_graphs: Whether the cuda runner runs decode steps as CUDA graphs.
        providers: Names of ONNX Runtime's providers by preference, separated by commas.
        precision: fp32, int8 or int4, and on a GPU fp16, bf16 or (cuda runner) fp8; must equal an artifact's own.
        max_model_len: Context length; None for the model's own.
        threads: Compute threads; 0 for one per core that the process may use.
        max_running_requests: Most sequences computed together.
        max_waiting_requests: Requests that may queue.
        max_batched_tokens: Most tokens of one step.
        max_stall: Prefill of a step may take this many times as long as its decode part.
        max_tokens_cap: Most tokens that one request may generate.
        kv_memory_bytes: KV memory over all sequences; 0 for a quarter of what the machine has free, on a GPU for 4 GiB.
        prefix_cache: Whether prompts reuse the KV of equal prefixes.
        flush_interval_s: Tokens may wait this long for the next ones, so that a message carries several when steps are
            short. First tokens and ends never wait.
        write_interval_per_stream_s, max_write_interval_s: The front's pacing, which the worker follows where it is
            slower: see `workers.pacing.WritePacer`.
        max_batch_tokens: Most tokens of an encoder's batch; a single text may have more.
        max_waiting_texts, max_waiting_tokens: What may wait for an encoder.
        vector: Set for the vector worker, which has no model.
        parent_pid: The worker dies with this process; 0 for a worker that stands alone.
        fake_step_s, fake_row_s, fake_prefill_token_s, fake_eos_every: As in `FakeRunnerConfig`.
    """

    model: str
    source: str
    socket_path: str
    runner: str = "onnx"
    device: str = "cuda"
    kv_dtype: str = "auto"
    cuda_graphs: bool = True
    providers: str = "cpu"
    precision: str = "int8"
    cache_dir: str = ""
    max_model_len: int | None = None
    threads: int = 0
    max_running_requests: int = 32
    max_waiting_requests: int = 256
    max_batched_tokens: int = 512
    max_stall: float = 1.5
    max_tokens_cap: int = 1 << 20
    kv_memory_bytes: int = 0
    prefix_cache: bool = True
    flush_interval_s: float = 0.01
    write_interval_per_stream_s: float = 0.0
    max_write_interval_s: float = 0.0
    max_batch_tokens: int = 1024
    max_waiting_texts: int = 65_536
    max_waiting_tokens: int = 1 << 20
    vector: VectorConfig | None = None
    parent_pid: int = 0
    log_level: str = "INFO"
    fake_step_s: float = 0.0
    fake_row_s: float = 0.0
    fake_prefill_token_s: float = 0.0
    fake_eos_every: int = 0
