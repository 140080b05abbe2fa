"""The composition root before it runs."""

from __future__ import annotations

import tempfile

import pytest

from vorta_server.app import App
from vorta_server.settings import Settings, WorkerSettings


@pytest.fixture
def temporary_folder(tmp_path, monkeypatch):
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


async def test_an_app_that_never_runs_leaves_nothing(tmp_path, temporary_folder):
    app = App(Settings(models={"fake": "fake"}, data_dir=tmp_path / "data", worker=WorkerSettings(runner="fake")))
    assert not app.admission.is_draining
    assert not list(temporary_folder.iterdir())
    methods = {method.path: method for methods in app.services.values() for method in methods}
    assert {path for path, method in methods.items() if method.is_unlimited and not method.is_probe} == {
        "/vorta.v1.InferenceService/CancelGenerate"
    }
