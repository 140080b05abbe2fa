"""Greedy decoding in plain torch, batched: enough to evaluate a checkpoint without the server."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer

from vorta_bench.mini.chat import END_OF_TEXT, TURN_END, prompt_text
from vorta_bench.mini.model import KvCache, MiniModel
from vorta_bench.tasks import Case


@torch.inference_mode()
def complete_tokens(
    model: MiniModel, prompts: Sequence[list[int]], stop_ids: set[int], max_tokens: int
) -> list[list[int]]:
    """Greedy continuations of token prompts, without the stop token; prompts are padded on the left."""
    device = next(model.parameters()).device
    longest = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
    valid = torch.zeros(len(prompts), longest, dtype=torch.bool, device=device)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.tensor(prompt, device=device)
        valid[row, longest - len(prompt) :] = True
    positions = (valid.cumsum(1) - 1).clamp_min(0)
    square = torch.ones(longest, longest, dtype=torch.bool, device=device)
    mask = (valid[:, None, None, :] & square.tril()) | torch.eye(longest, dtype=torch.bool, device=device)
    caches = [KvCache() for _ in range(model.config.num_layers)]
    outputs: list[list[int]] = [[] for _ in prompts]
    done = [False] * len(prompts)
    for _ in range(max_tokens):
        hidden = model.hidden(tokens, positions, mask, caches)
        best = model.logits(hidden[:, -1]).argmax(-1)
        for row, token in enumerate(best.tolist()):
            done[row] = done[row] or token in stop_ids
            if not done[row]:
                outputs[row].append(token)
        if all(done):
            break
        tokens, positions = best[:, None], positions[:, -1:] + 1
        valid = torch.cat([valid, torch.ones_like(valid[:, :1])], 1)
        mask = valid[:, None, None, :]
    return outputs


class TorchCompleter:
    """Completes cases with a model; a `Complete` for `vorta_bench.tasks.evaluate`."""

    def __init__(self, model: MiniModel, tokenizer: Tokenizer, *, max_tokens: int = 128, batch_size: int = 50) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_tokens, self.batch_size = max_tokens, batch_size
        self.stop_ids = {tokenizer.token_to_id(END_OF_TEXT), tokenizer.token_to_id(TURN_END)}

    def __call__(self, cases: Sequence[Case]) -> list[str]:
        """Completions in the order of the cases."""
        prompts = [self.tokenizer.encode(prompt_text(case), add_special_tokens=False).ids for case in cases]
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        texts = [""] * len(prompts)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            outputs = complete_tokens(self.model, [prompts[i] for i in chosen], self.stop_ids, self.max_tokens)
            for index, output in zip(chosen, outputs, strict=True):
                texts[index] = self.tokenizer.decode(output)
        return texts
