"""Which drafted tokens stand.

Floor: 2 * max_drafts + 2 integers a row in, one more than that out; far below a launch's cost.

Design: one program of one warp a row; the first draft that does not stand is a minimum over the row, so nothing is
serial and nothing waits for the host.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["verify"]


@triton.jit
def verify_kernel(
    drafts,
    num_drafts,
    sampled,
    num_accepted,
    tokens,
    MAX_DRAFTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    position = tl.arange(0, BLOCK)
    is_draft = position < tl.minimum(tl.load(num_drafts + row), MAX_DRAFTS)
    token = tl.load(sampled + row * (MAX_DRAFTS + 1) + position, mask=position <= MAX_DRAFTS, other=-1)
    draft = tl.load(drafts + row * MAX_DRAFTS + position, mask=is_draft, other=-1)
    accepted = tl.min(tl.where(is_draft & (draft == token), BLOCK, position), 0)
    tl.store(num_accepted + row, accepted)
    kept = tl.where(position <= accepted, token, -1)
    tl.store(tokens + row * (MAX_DRAFTS + 1) + position, kept, mask=position <= MAX_DRAFTS)


def verify(drafts: torch.Tensor, num_drafts: torch.Tensor, sampled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See `reference.verify.verify`. All three are contiguous."""
    num_rows, max_drafts = drafts.shape
    num_accepted = torch.empty(num_rows, dtype=torch.int32, device=drafts.device)
    tokens = torch.empty(num_rows, max_drafts + 1, dtype=torch.int32, device=drafts.device)
    verify_kernel[(num_rows,)](
        drafts,
        num_drafts,
        sampled,
        num_accepted,
        tokens,
        MAX_DRAFTS=max_drafts,
        BLOCK=triton.next_power_of_2(max_drafts + 1),
        num_warps=1,
    )
    return num_accepted, tokens
