"""Compiles the Triton kernels on a host without a GPU, exactly as a launch would.

`python -m vorta_kernels.triton_ops.ahead 80 89 90 [stem ...]` calls each launcher on CPU tensors of `grid.AHEAD` for
every compute capability, compiles instead of launching, and prints a line of JSON for each kernel: registers, spills,
shared memory, and the memory instructions of its machine code. What is compiled (types, constants, warps, stages, which
addresses and numbers 16 divides) comes from the launch itself, so it is what a GPU would run. The process launches
nothing afterwards.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from vorta_kernels import grid
from vorta_kernels.triton_ops import fp8

__all__ = ["Compiled", "compile_case", "main"]

_MEMORY_INSTRUCTION = re.compile(r"\b(LDGSTS|LDG|STG|UTMALDG|HGMMA|QGMMA|HMMA|QMMA)\b((?:\.[A-Z0-9_]+)*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """One kernel for one compute capability.

    Attributes:
        registers: Of a thread.
        local_bytes: Of a thread's stack and local memory: what is spilled lies there.
        shared_bytes: Of a program.
        instructions: How often the machine code has a global load (LDG; LDGSTS is asynchronous), store (STG) or matrix
            product (HMMA, HGMMA, ...), by name and bits, as in "LDGSTS.128".
    """

    stem: str
    kernel: str
    case: str
    capability: int
    registers: int
    local_bytes: int
    shared_bytes: int
    num_warps: int
    instructions: dict[str, int]


def compile_case(stem: str, case: grid.Case, capability: int) -> list[Compiled]:
    """Every kernel that the case's launcher launches."""
    launcher = getattr(import_module(f"vorta_kernels.triton_ops.{stem}"), case.op)
    with _compiling(capability) as compiled:
        grid.run(case, launcher, torch.device("cpu"))
    return [_described(stem, case, capability, name, kernel) for name, kernel in compiled]


@contextmanager
def _compiling(capability: int) -> Iterator[list[tuple[str, Any]]]:
    """Launches compile; yields the list of (name, what was compiled)."""
    target = GPUTarget("cuda", capability, 32)
    backend = make_backend(target)
    compiled: list[tuple[str, Any]] = []

    def compile_instead(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        binder = create_function_from_signature(self.signature, self.params, backend)
        bound, specialization, options = binder(*args, **kwargs)
        options, signature, constants, attributes = self._pack_args(backend, kwargs, bound, specialization, options)
        source = ASTSource(self, signature, constants, attributes)
        compiled.append((self.fn.__name__, triton.compile(source, target=target, options=options.__dict__)))

    run = JITFunction.run
    JITFunction.run = compile_instead
    fp8.assumed_capability = divmod(capability, 10)
    try:
        yield compiled
    finally:
        JITFunction.run = run
        fp8.assumed_capability = None


def _described(stem: str, case: grid.Case, capability: int, name: str, kernel: Any) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage, code = _cuobjdump("--dump-resource-usage", file.name), _cuobjdump("--dump-sass", file.name)
    use = {key: int(number) for key, number in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    instructions: dict[str, int] = {}
    for kind, suffixes in _MEMORY_INSTRUCTION.findall(code):
        bits = next((part for part in suffixes.split(".") if part in ("64", "128", "U8", "U16", "S8", "S16")), "32")
        name_and_bits = f"{kind}.{bits}" if kind in ("LDG", "LDGSTS", "STG") else kind
        instructions[name_and_bits] = instructions.get(name_and_bits, 0) + 1
    return Compiled(
        stem=stem,
        kernel=name,
        case=case.id,
        capability=capability,
        registers=use["REG"],
        local_bytes=use["STACK"] + use["LOCAL"],
        shared_bytes=kernel.metadata.shared,
        num_warps=kernel.metadata.num_warps,
        instructions=instructions,
    )


def _cuobjdump(option: str, path: str) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return subprocess.run([tool, option, path], capture_output=True, text=True, check=True).stdout


def main(arguments: list[str]) -> None:
    """See the module's docstring."""
    capabilities = [int(argument) for argument in arguments if argument.isdecimal()]
    stems = [argument for argument in arguments if not argument.isdecimal()] or list(grid.AHEAD)
    for stem in stems:
        for case in grid.AHEAD[stem]:
            for capability in capabilities:
                for compiled in compile_case(stem, case, capability):
                    sys.stdout.write(json.dumps(asdict(compiled)) + "\n")
                    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
