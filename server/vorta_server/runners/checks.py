"""What every runner over slots refuses: steps that would read or write outside of them."""

from __future__ import annotations

from vorta_server.engine.runner import StepBatch

__all__ = ["check_step"]


def check_step(batch: StepBatch, *, num_slots: int, max_model_len: int) -> None:
    """Raises ValueError for a step outside of `num_slots` slots of `max_model_len` tokens: graphs do not look."""
    num_rows = len(batch.decode_token_ids)
    if num_rows != len(batch.decode_lengths) or num_rows > num_slots:
        raise ValueError(f"a decode batch of {num_rows} rows, {len(batch.decode_lengths)} lengths, {num_slots} slots")
    if num_rows:
        lowest, highest = int(batch.decode_lengths.min()), int(batch.decode_lengths.max())
        if lowest < 0 or highest >= max_model_len:
            raise ValueError(f"decode lengths {lowest} to {highest}, slots of {max_model_len} tokens")
    for chunk in batch.prefills:
        if not 0 <= chunk.slot < num_slots:
            raise ValueError(f"a chunk in slot {chunk.slot} of {num_slots}")
        end = chunk.num_past + len(chunk.token_ids)
        if chunk.num_past < 0 or len(chunk.token_ids) == 0 or end > max_model_len:
            raise ValueError(
                f"a chunk of {len(chunk.token_ids)} tokens behind {chunk.num_past}, slots of {max_model_len} tokens"
            )
