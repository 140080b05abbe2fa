"""Speculative decoding's last step: which of the drafted tokens stand."""

from __future__ import annotations

import torch

__all__ = ["verify"]


def verify(drafts: torch.Tensor, num_drafts: torch.Tensor, sampled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Accepts each row's drafts up to the first that differs from what the model sampled in its place.

    The model samples at every drafted position, each with its own uniform number, as if all drafts before it had been
    accepted. A draft that is the sample stands, and the first sample that differs takes its place; so the output has
    the model's distribution exactly, whatever the drafts are (arXiv 2211.17192 for drafts that are certain).

    Args:
        drafts: int32 [num_rows, max_drafts].
        num_drafts: int32 [num_rows], 0 to max_drafts.
        sampled: int32 [num_rows, max_drafts + 1], the model's token behind the row's context and its first i drafts.

    Returns:
        num_accepted int32 [num_rows], and tokens int32 [num_rows, max_drafts + 1]: the accepted drafts, then one more
        token of the model's, then -1.
    """
    max_drafts = drafts.shape[1]
    column = torch.arange(max_drafts, device=drafts.device)[None]
    stands = (drafts == sampled[:, :max_drafts]) & (column < num_drafts[:, None])
    num_accepted = stands.int().cumprod(-1).sum(-1).int()
    position = torch.arange(max_drafts + 1, device=drafts.device)[None]
    tokens = sampled.masked_fill(position > num_accepted[:, None], -1)
    return num_accepted, tokens
