"""Training of vorta-mini: a budget, warm-up, plateau, linear decay; quantisation-aware in the later part."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file
from torch import Tensor, distributed, nn
from torch.nn import functional

from vorta_bench.mini.corpus import FIRST_WEIGHTS, LAST_WEIGHTS, WEIGHTS, CorpusStream, Rows
from vorta_bench.mini.model import MiniModel, ModelConfig
from vorta_bench.mini.optimizer import Muon, has_fast_bfloat16, split_parameters
from vorta_bench.mini.quantization import Precision, quantize_weight, straight_through


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Training ends at `max_steps` or after `time_budget_s`, whichever is first; the schedule follows the nearer.

    `peak` scales both learning rates. What ends in `_from` is a share of the schedule.
    """

    time_budget_s: float = 3600.0
    max_steps: int = 1_000_000
    batch_tokens: int = 4096
    matrix_learning_rate: float = 0.02
    other_learning_rate: float = 0.004
    warmup_steps: int = 100
    decay_from: float = 0.45
    quantize_from: float = 0.75
    all_tasks_from: float = 0.2
    last_tasks_from: float = 0.85
    peak: float = 1.0
    num_workers: int = 1
    num_replicas: int = 1
    seed: int = 1
    compile: bool = True
    log_every: int = 20
    save_every_s: float = 300.0

    def learning_rate_factor(self, step: int, progress: float) -> float:
        """Factor on both learning rates at a step, with `progress` from 0 to 1."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        decay = 1.0 if progress < self.decay_from else max(0.02, (1 - progress) / (1 - self.decay_from))
        return self.peak * warm * decay


def attention_mask(documents: Tensor) -> Tensor:
    """[B, 1, L, L]: a query sees earlier positions of its own document."""
    length = documents.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
    return ((documents[:, :, None] == documents[:, None, :]) & causal)[:, None]


@contextmanager
def weights_as(matrices: Sequence[nn.Parameter], precision: Precision) -> Iterator[None]:
    """Inside, the matrices hold their values after a round trip through `precision`; afterwards the exact ones again.

    Gradients taken inside are thus straight-through. Changing the values rather than the graph keeps one compiled
    graph for all.
    """
    exact = [matrix.detach().clone() for matrix in matrices] if precision != "fp32" else []
    with torch.no_grad():
        for matrix, value in zip(matrices, exact, strict=False):
            matrix.copy_(quantize_weight(value, precision))
    try:
        yield
    finally:
        with torch.no_grad():
            for matrix, value in zip(matrices, exact, strict=False):
                matrix.copy_(value)


def loss_of(hidden: Tensor, head: Tensor, tokens: Tensor, learnt: Tensor) -> Tensor:
    """Mean cross entropy of the learnt tokens [B, L]; `head` [vocab, hidden] runs on these only."""
    rows, columns = torch.nonzero(learnt[:, 1:], as_tuple=True)
    logits = functional.linear(hidden[rows, columns], head).float()
    return functional.cross_entropy(logits, tokens[rows, columns + 1])


def choose_precision(rng: Random, progress: float, quantize_from: float) -> Precision:
    """Full precision before `quantize_from`, then mostly int4."""
    if progress < quantize_from:
        return "fp32"
    return "int4" if rng.random() < 0.8 else "fp32"


class Replicas:
    """Replicas of the model in processes of one thread each, which average their gradients after every step.

    On a busy machine this is faster than one process of many threads, which waits for its slowest thread in every
    operator.
    """

    def __init__(self, rank: int, num_replicas: int, rendezvous: Path) -> None:
        self.rank, self.num_replicas = rank, num_replicas
        if num_replicas > 1:
            torch.set_num_threads(1)
            distributed.init_process_group(
                "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=num_replicas
            )

    def average(self, parameters: Sequence[nn.Parameter], progress: float) -> float:
        """Replace the gradients by their mean over the replicas; returns the mean of `progress`."""
        if self.num_replicas == 1:
            return progress
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients] + [torch.tensor([progress])])
        distributed.all_reduce(flat)
        flat /= self.num_replicas
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()
        return float(flat[-1])


def train(
    model_config: ModelConfig,
    config: TrainConfig,
    tokenizer_path: Path,
    out: Path,
    resume: Path | None = None,
    device: str = "cpu",
    rank: int = 0,
) -> MiniModel:
    """Train and return the model; `out`/state.pt is written every `save_every_s` and at the end.

    `resume` is a state.pt, or a checkpoint folder, whose weights start with a fresh optimizer. Computes in bfloat16 by
    autocast where that is faster, else in fp32; weights and optimizer stay in fp32.
    """
    replicas = Replicas(rank, config.num_replicas, (out / "rendezvous").absolute())
    torch.manual_seed(config.seed)
    rng = Random(config.seed)
    model = MiniModel(model_config).to(device)
    matrices, others = split_parameters(model)
    muon = Muon(matrices)
    adam = torch.optim.AdamW(others, lr=config.other_learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    if resume is not None and resume.is_dir():
        weights = load_file(resume / "model.safetensors", device=device)
        model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    elif resume is not None:
        state = torch.load(resume, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        adam.load_state_dict(state["adam"])
        for buffer, saved in zip(muon.buffers, state["muon"], strict=True):
            buffer.copy_(saved)

    def save() -> None:
        state = {
            "model": model.state_dict(),
            "adam": adam.state_dict(),
            "muon": muon.buffers,
            "config": asdict(model_config),
        }
        torch.save(state, out / "state.tmp")
        (out / "state.tmp").replace(out / "state.pt")

    out.mkdir(parents=True, exist_ok=True)
    compute_hidden = torch.compile(model.hidden, dynamic=False) if config.compile else model.hidden
    stream = CorpusStream(
        tokenizer_path=tokenizer_path,
        seed=config.seed * config.num_replicas + rank,
        batch_tokens=config.batch_tokens // config.num_replicas,
        num_workers=config.num_workers,
        weights=FIRST_WEIGHTS if config.all_tasks_from > 0 else WEIGHTS if config.last_tasks_from > 0 else LAST_WEIGHTS,
    )
    bfloat16 = has_fast_bfloat16(torch.device(device))
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{num_parameters / 1e6:.2f} M parameters on {device}{' in bfloat16' if bfloat16 else ''}, {config}", flush=True
    )
    start = last_save = time.monotonic()
    num_tokens, running, step = 0, 0.0, 0
    progress = 0.0
    for step, rows in enumerate(stream):
        if progress >= 1:
            break
        if progress >= config.last_tasks_from:
            stream.weights = LAST_WEIGHTS
        elif progress >= config.all_tasks_from:
            stream.weights = WEIGHTS
        factor = config.learning_rate_factor(step, progress)
        precision = choose_precision(rng, progress, config.quantize_from)
        tokens, documents, learnt = _on_device(rows, device)
        positions = torch.arange(tokens.shape[1], device=device).expand(tokens.shape)
        with weights_as(matrices, precision), torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            hidden = compute_hidden(tokens, positions, attention_mask(documents))
            loss = loss_of(hidden, straight_through(model.model.embed_tokens.weight, precision), tokens, learnt)
            loss.backward()
        elapsed = time.monotonic() - start
        progress = max((step + 1) / config.max_steps, elapsed / config.time_budget_s)
        progress = replicas.average([*matrices, *others], progress)
        muon.step(config.matrix_learning_rate * factor)
        for group in adam.param_groups:
            group["lr"] = config.other_learning_rate * factor
        adam.step()
        adam.zero_grad(set_to_none=True)
        num_tokens += tokens.numel() * config.num_replicas
        running = loss.item() if step == 0 else 0.9 * running + 0.1 * loss.item()
        if step % config.log_every == 0 and rank == 0:
            print(
                f"step {step} loss {running:.3f} tokens {num_tokens / 1e6:.2f}M {num_tokens / elapsed:.0f}/s "
                f"progress {progress:.3f} lr {factor:.2f} {precision}",
                flush=True,
            )
        if time.monotonic() - last_save > config.save_every_s and rank == 0:
            save()
            last_save = time.monotonic()
    if rank != 0:
        return model
    save()
    print(f"trained {step} steps, {num_tokens / 1e6:.1f} M tokens, {time.monotonic() - start:.0f} s", flush=True)
    return model


def _on_device(rows: Rows, device: str) -> tuple[Tensor, Tensor, Tensor]:
    tokens = torch.from_numpy(rows.tokens).to(device, non_blocking=True).long()
    documents = torch.from_numpy(rows.documents).to(device, non_blocking=True)
    return tokens, documents, torch.from_numpy(rows.learnt).to(device, non_blocking=True)
