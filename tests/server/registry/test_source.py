"""Where models come from."""

from __future__ import annotations

import pytest

from vorta.errors import InvalidArgument
from vorta_server.registry.source import resolve_source, split_model_flag


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
