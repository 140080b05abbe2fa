"""The Prometheus metrics of a server, in a registry of its own.

Names are `vorta_<noun>_<unit>`. Per-request values come from the end of each request, per-worker values from the
worker's `Stats`; nothing is counted per token in the front.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from vorta_server.engine.request import Finished, FinishReason
from vorta_server.workers.protocol import Stats

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
_FREE_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """Every metric of the server. Loop thread only."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self._rpc_calls = Counter("vorta_rpc_calls", "Calls by outcome.", ["method", "code"], registry=registry)
        self._rpc_s = Histogram(
            "vorta_rpc_duration_seconds", "Time of a call.", ["method"], buckets=_LATENCY_S, registry=registry
        )
        self._rpc_children: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        self._ttft_s = Histogram(
            "vorta_ttft_seconds",
            "From a request's arrival to its first token.",
            ["model"],
            buckets=_LATENCY_S,
            registry=registry,
        )
        self._tpot_s = Histogram(
            "vorta_tpot_seconds",
            "Time per output token after the first, mean of a request.",
            ["model"],
            buckets=_TOKEN_S,
            registry=registry,
        )
        self._queue_s = Histogram(
            "vorta_queue_time_seconds",
            "From a request's arrival to its first scheduling.",
            ["model"],
            buckets=_LATENCY_S,
            registry=registry,
        )
        self._e2e_s = Histogram(
            "vorta_e2e_latency_seconds",
            "From a request's arrival to its end.",
            ["model"],
            buckets=_LATENCY_S,
            registry=registry,
        )
        self._finished = Counter(
            "vorta_finished_requests", "Requests by finish reason.", ["model", "reason"], registry=registry
        )
        self._cancel_to_free_s = Histogram(
            "vorta_cancel_to_free_seconds",
            "From a cancellation to its KV memory being free.",
            ["model"],
            buckets=_FREE_S,
            registry=registry,
        )
        self._running = Gauge("vorta_running_requests", "Requests being computed.", ["model"], registry=registry)
        self._waiting = Gauge("vorta_waiting_requests", "Requests in the queue.", ["model"], registry=registry)
        self._kv_use = Gauge("vorta_kv_use_ratio", "Share of KV memory in use.", ["model"], registry=registry)
        self._rss = Gauge("vorta_worker_memory_bytes", "Resident memory of the worker.", ["model"], registry=registry)
        self._batch_size = Gauge(
            "vorta_batch_size_sequences",
            "Sequences per step, mean since the worker's last report.",
            ["model"],
            registry=registry,
        )
        self._restarts = Counter(
            "vorta_worker_restarts", "Starts of a worker after its first.", ["model"], registry=registry
        )
        counters = {
            "step_count": ("vorta_steps", "Steps computed."),
            "batch_size_sum": ("vorta_step_sequences", "Sequences summed over all steps."),
            "step_s_sum": ("vorta_step_seconds", "Time spent in steps."),
            "preemption_count": ("vorta_preemptions", "Requests that lost their KV memory to others."),
            "prompt_token_count": ("vorta_prompt_tokens", "Prompt tokens computed or found in the prefix cache."),
            "cached_prompt_token_count": ("vorta_cached_prompt_tokens", "Prompt tokens from the prefix cache."),
            "generated_token_count": ("vorta_generated_tokens", "Tokens generated."),
        }
        self._counters = {
            field: Counter(name, text, ["model"], registry=registry) for field, (name, text) in counters.items()
        }

    def observe_rpc(self, method: str, code: str, duration_s: float) -> None:
        """Counts a call that ended."""
        # Looking a child up by its labels costs more than counting.
        found = self._rpc_children.get((method, code))
        if found is None:
            found = self._rpc_children[method, code] = (
                self._rpc_calls.labels(method, code),
                self._rpc_s.labels(method),
            )
        calls, seconds = found
        calls.inc()
        seconds.observe(duration_s)

    def observe_finished(self, model: str, finished: Finished) -> None:
        """Counts a request that ended."""
        self._finished.labels(model, FinishReason(finished.finish_reason).name).inc()
        if finished.completion_tokens == 0:
            return
        self._queue_s.labels(model).observe(finished.queue_s)
        self._ttft_s.labels(model).observe(finished.ttft_s)
        self._e2e_s.labels(model).observe(finished.total_s)
        tokens_after_first = finished.completion_tokens - max(1, len(finished.sequences))
        if tokens_after_first > 0:
            self._tpot_s.labels(model).observe(finished.decode_s / tokens_after_first)

    def observe_stats(self, model: str, stats: Stats, previous: Stats | None) -> None:
        """Takes a worker's report; `previous` is the same worker process's report before it."""
        self._running.labels(model).set(stats.running)
        self._waiting.labels(model).set(stats.waiting)
        self._kv_use.labels(model).set(stats.kv_used_tokens / max(1, stats.kv_capacity_tokens))
        self._rss.labels(model).set(stats.rss_bytes)
        for field, counter in self._counters.items():
            counter.labels(model).inc(max(0, getattr(stats, field) - (getattr(previous, field) if previous else 0)))
        num_steps = stats.step_count - (previous.step_count if previous else 0)
        if num_steps > 0:
            num_sequences = stats.batch_size_sum - (previous.batch_size_sum if previous else 0)
            self._batch_size.labels(model).set(num_sequences / num_steps)
        cancel_to_free_s = self._cancel_to_free_s.labels(model)
        for value_s in stats.cancel_to_free_s:
            cancel_to_free_s.observe(value_s)

    def observe_worker_gone(self, model: str) -> None:
        """Nothing runs on a worker that is gone."""
        for gauge in (self._running, self._waiting, self._kv_use, self._rss, self._batch_size):
            gauge.labels(model).set(0)

    def observe_restart(self, model: str) -> None:
        """Counts a restart of a model's worker."""
        self._restarts.labels(model).inc()

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
