"""The checks for a GPU, rehearsed on the emulation."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from vorta_kernels import cpu, cuda_check  # noqa: E402


@pytest.mark.skipif(cpu.compiler() is None, reason="no C++ compiler is installed to build the emulation")
def test_every_kernel_passes_on_the_emulation(capsys: pytest.CaptureFixture[str]) -> None:
    assert cuda_check.main(["--device", "cpu"]) == 0
    kernels = json.loads(capsys.readouterr().out)["kernels"]
    assert set(kernels) == {"batch_pack", "batch_compact", "block_copy", "fp8_linear", "linear_bf16", "int4_linear"}
    assert all(kernel["cases"] and not kernel["failed"] for kernel in kernels.values())


@pytest.mark.skipif(cpu.compiler() is None, reason="no C++ compiler is installed to build the emulation")
def test_says_what_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def wrong(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(x), len(weight), dtype=x.dtype)

    for other in ("_pack_cases", "_compact_cases", "_copy_cases", "_int4_cases"):
        monkeypatch.setattr(cuda_check, other, lambda device, is_small: iter(()))
    monkeypatch.setattr(cuda_check, "linear_bf16", wrong)
    assert cuda_check.main(["--device", "cpu"]) == 1
    kernels = json.loads(capsys.readouterr().out)["kernels"]
    assert "times what is allowed" in kernels["linear_bf16"]["failed"][0]
    assert not kernels["fp8_linear"]["failed"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_says_that_there_is_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert cuda_check.main([]) == 2
    assert "sees no GPU" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU to run the CUDA kernels on")
@pytest.mark.timeout(900)
def test_every_kernel_passes_on_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert cuda_check.main([]) == 0, capsys.readouterr().out
