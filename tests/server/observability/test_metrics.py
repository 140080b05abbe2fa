"""Metrics from workers' reports."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from tests.server.front.scripted import finished, stats
from vorta_server.engine.request import FinishReason
from vorta_server.observability.metrics import Metrics


def samples(metrics):
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, sample.labels.get("model") or sample.labels.get("method")): sample.value
        for family in families
        for sample in family.samples
    }


def test_counters_add_up_over_reports_and_restarts():
    metrics = Metrics()
    first = stats(generated_token_count=10, step_count=5, batch_size_sum=20, cancel_to_free_s=[0.002])
    second = stats(generated_token_count=25, step_count=9, batch_size_sum=32, kv_used_tokens=1, kv_capacity_tokens=4)
    metrics.observe_stats("m", first, None)
    metrics.observe_stats("m", second, first)
    metrics.observe_stats("m", stats(generated_token_count=3), None)  # a new process counts from 0
    got = samples(metrics)
    assert got["vorta_generated_tokens_total", "m"] == 28
    assert got["vorta_steps_total", "m"] == 9
    assert got["vorta_batch_size_sequences", "m"] == 3.0
    assert got["vorta_cancel_to_free_seconds_count", "m"] == 1
    metrics.observe_stats("m", second, first)
    assert samples(metrics)["vorta_kv_use_ratio", "m"] == 0.25
    metrics.observe_worker_gone("m")
    assert samples(metrics)["vorta_kv_use_ratio", "m"] == 0


def test_ends_of_requests():
    metrics = Metrics()
    metrics.observe_finished("m", finished("r", 10))
    metrics.observe_finished("m", finished("r", 0, FinishReason.CANCELLED))
    metrics.observe_finished("m", finished("r", 1))
    got = samples(metrics)
    assert got["vorta_ttft_seconds_count", "m"] == 2
    assert got["vorta_tpot_seconds_count", "m"] == 1
    assert got["vorta_tpot_seconds_sum", "m"] == 0.09 / 9


def test_every_name_has_the_prefix():
    metrics = Metrics()
    metrics.observe_rpc("/x", "OK", 0.1)
    assert all(name.startswith("vorta_") for name, _ in samples(metrics))
