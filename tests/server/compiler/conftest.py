"""Fixtures: one checkpoint and one set of artifacts per case and session of a test process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.server.compiler.case import Case, random_tensors, write_checkpoint
from vorta_server.compiler.compile import compile_checkpoint
from vorta_server.compiler.plan import Kernels


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Path]:
    """The checkpoint folder of a case, written once."""
    root = tmp_path_factory.mktemp("checkpoints")

    def folder(case: Case) -> Path:
        path = root / case.name
        return path if path.exists() else write_checkpoint(path, case.config, random_tensors(case.config))

    return folder


@pytest.fixture(scope="session")
def artifact_of(tmp_path_factory: pytest.TempPathFactory, checkpoint_of: Callable[[Case], Path]) -> Callable[..., Path]:
    """The artifact of a case in a precision (and with some kernels), compiled once."""
    root = tmp_path_factory.mktemp("artifacts")

    def folder(case: Case, precision: str, kernels: Kernels = "portable") -> Path:
        path = root / f"{case.name}-{precision}-{kernels}"
        if not path.exists():
            compile_checkpoint(checkpoint_of(case), path, precision=precision, kernels=kernels)
        return path

    return folder


@pytest.fixture
def small_config() -> dict[str, Any]:
    """A one-layer Llama configuration."""
    from tests.server.compiler.case import CASES

    return {**CASES[0].config, "num_hidden_layers": 1}


@pytest.fixture
def small_tensors(small_config: dict[str, Any]) -> dict[str, npt.NDArray[np.float32]]:
    """The tensors of small_config."""
    return random_tensors(small_config)


@pytest.fixture
def small_checkpoint(
    tmp_path: Path, small_config: dict[str, Any], small_tensors: dict[str, npt.NDArray[np.float32]]
) -> Path:
    """A checkpoint of small_config that a test may damage."""
    return write_checkpoint(tmp_path / "small", small_config, small_tensors)
