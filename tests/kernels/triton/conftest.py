"""Triton's interpreter for the tests of this folder: kernels run on CPU tensors, in numpy.

Triton decides when a function is decorated, so TRITON_INTERPRET must be set when triton and the kernels are imported
(here, before any test module of this folder) and while they run (the fixture), but not for the process's other tests.

What the interpreter of triton 3.6 gets wrong is put right here, so that tests need no tolerance for it: it truncates
float32 to bfloat16 and drops the carry when it rounds to float8, multiplies matrices of bfloat16 as integers, and makes
no index of an array of one element, which numpy 2.4 refuses.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

_INTERPRET = "TRITON_INTERPRET"

collect_ignore_glob: list[str] = []
if any(importlib.util.find_spec(name) is None for name in ("torch", "triton")):
    collect_ignore_glob = ["test_*.py"]


def _numpy_type(name: str) -> Any:
    types = {"bf16": ml_dtypes.bfloat16, "fp8e4nv": ml_dtypes.float8_e4m3fn, "fp16": np.float16, "fp32": np.float32}
    return np.dtype(types[name])


def _import_interpreted() -> None:
    """Imports triton and the kernels as interpreted ones."""
    if "triton" in sys.modules and type(sys.modules["triton"].language.cdiv).__name__ != "InterpretedFunction":
        # Somebody was here first. All but the extension module, which can be loaded only once, is imported anew.
        for name in [name for name in sys.modules if name == "triton" or name.startswith("triton.")]:
            if not name.startswith("triton._C"):
                del sys.modules[name]
    for name in [name for name in sys.modules if name.startswith("vorta_kernels.triton_ops")]:
        del sys.modules[name]
    interpreter = importlib.import_module("triton.runtime.interpreter")

    def convert(values: Any, source: Any, target: Any, rounding: Any) -> Any:
        wide = values.view(_numpy_type(source.name)).astype(np.float32)
        unsigned = np.dtype(f"uint{target.primitive_bitwidth}")
        with np.errstate(over="ignore", invalid="ignore"):
            return wide.astype(_numpy_type(target.name)).view(unsigned)

    def dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        wide = [x.data.view(_numpy_type(x.dtype.scalar.name)).astype(np.float32) for x in (a, b)]
        return interpreter.TensorHandle(np.matmul(*wide) + d.data, d.dtype.scalar)

    patch_tensor = interpreter._patch_lang_tensor

    def patch_tensor_and_index(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_tensor_and_index
    # For every call of a helper it patches the whole language anew, which takes milliseconds: once a launch will do.
    patch_language = interpreter._patch_lang
    language = importlib.import_module("triton.language")
    patched: set[int] = set()

    def languages(function: Any) -> set[int]:
        return {id(value) for value in function.__globals__.values() if value is language or value is language.core}

    def patch_for_launch(function: Any) -> Any:
        patched.clear()
        patched.update(languages(function))
        return patch_language(function)

    def call_helper(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not languages(self.fn) <= patched:
            patch_language(self.fn)
            patched.update(languages(self.fn))
        return self.rewrite()(*args, **kwargs)

    interpreter._patch_lang = patch_for_launch
    interpreter.InterpretedFunction.__call__ = call_helper
    # Its check of every addition for overflow costs a fifth of the time; numbers here are small.
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    interpreter._convert_float = convert
    interpreter.InterpreterBuilder.create_dot = dot
    for stem in ("fp8", "rms_norm", "silu_mul", "rope_kv", "paged_attention", "sample", "verify", "linear"):
        importlib.import_module(f"vorta_kernels.triton_ops.{stem}")


if not collect_ignore_glob:
    before = os.environ.get(_INTERPRET)
    os.environ[_INTERPRET] = "1"
    try:
        _import_interpreted()
    finally:
        if before is None:
            del os.environ[_INTERPRET]
        else:
            os.environ[_INTERPRET] = before


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(_INTERPRET, "1")
    # The interpreter computes what masks hide, too.
    with np.errstate(all="ignore"):
        yield
