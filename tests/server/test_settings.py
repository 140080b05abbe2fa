"""Settings: order of sources, and that everything unknown or out of range is refused by name."""

from __future__ import annotations

import pytest

from vorta.errors import FailedPrecondition
from vorta_server.settings import known_names, load_settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in known_names():
        monkeypatch.delenv(name, raising=False)


def refused(*args, **kwargs):
    with pytest.raises(FailedPrecondition) as caught:
        load_settings(*args, **kwargs)
    assert caught.value.reason == "SETTINGS_INVALID"
    return caught.value


def test_defaults():
    settings = load_settings()
    assert (settings.grpc.port, settings.http.port, settings.host) == (50051, 8000, "127.0.0.1")
    assert settings.front.max_buffered_bytes_per_stream == 1 << 20
    assert settings.drain.grace_s == 300
    assert settings.models == {}


def test_flags_over_environment_over_file_over_defaults(tmp_path, monkeypatch):
    file = tmp_path / "vorta.toml"
    file.write_text(
        'precision = "fp32"\n[grpc]\nport = 1\nmax_request_bytes = 2048\n[worker]\nthreads = 3\n'
        '[models]\nsmall = "/m/small"\n'
    )
    monkeypatch.setenv("VORTA_GRPC__PORT", "2")
    monkeypatch.setenv("VORTA_WORKER__THREADS", "4")
    monkeypatch.setenv("VORTA_LOG__LEVEL", "DEBUG")
    settings = load_settings({"grpc": {"port": 3}}, config=file)
    assert settings.grpc.port == 3
    assert settings.grpc.max_request_bytes == 2048
    assert settings.worker.threads == 4
    assert settings.precision == "fp32"
    assert settings.log.level == "DEBUG"
    assert settings.models == {"small": "/m/small"}


def test_models_from_the_environment(monkeypatch):
    monkeypatch.setenv("VORTA_MODELS", '{"a": "/x"}')
    assert load_settings().models == {"a": "/x"}
    monkeypatch.setenv("VORTA_MODELS", "{")
    assert "models" in refused().message


@pytest.mark.parametrize("name", ["VORTA_GPRC__PORT", "VORTA_GRPC__PROT", "VORTA_NONSENSE", "vorta_x"])
def test_unknown_environment_variables_are_refused(name):
    error = refused(environ={name: "1", "PATH": "/bin"})
    assert error.field == name
    assert name in error.message


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        ({"grpc": {"port": 70000}}, "grpc.port"),
        ({"grpc": {"port": "abc"}}, "grpc.port"),
        ({"grpc": {"prot": 1}}, "grpc.prot"),
        ({"nonsense": 1}, "nonsense"),
        ({"precision": "int3"}, "precision"),
        ({"worker": {"runner": "magic"}}, "worker.runner"),
        ({"worker": {"threads": -1}}, "worker.threads"),
        ({"worker": {"providers": "rocm"}}, "worker.providers"),
        ({"worker": {"providers": "cuda,"}}, "worker.providers"),
        ({"worker": {"max_running_requests": 0}}, "worker.max_running_requests"),
        ({"front": {"write_share": 0}}, "front.write_share"),
        ({"front": {"max_concurrent_requests": 0}}, "front.max_concurrent_requests"),
        ({"drain": {"grace_s": -1}}, "drain.grace_s"),
        ({"drain": {"grace_s": float("nan")}}, "drain.grace_s"),
        ({"log": {"level": "LOUD"}}, "log.level"),
        ({"generation": {"max_tokens_cap": 0}}, "generation.max_tokens_cap"),
        ({"models": ["a"]}, "models"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_values_are_named(flags, field):
    error = refused(flags)
    assert error.field == field
    assert field in error.message


def test_bad_value_in_the_environment(monkeypatch):
    monkeypatch.setenv("VORTA_HTTP__PORT", "-1")
    assert refused().field == "http.port"


@pytest.mark.parametrize("text", ["[grpc\n", "\udcff"])
def test_a_file_that_is_not_toml(tmp_path, text):
    file = tmp_path / "vorta.toml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert refused(config=file).field == "config"


def test_a_file_that_is_not_there(tmp_path):
    assert refused(config=tmp_path / "none").field == "config"


def test_several_problems_are_told_together():
    error = refused({"grpc": {"port": -1}, "drain": {"grace_s": -1}})
    assert "grpc.port" in error.message
    assert "drain.grace_s" in error.message
