"""What limits the tokens of a sequence: a grammar's state beside it, and the bits that say what may follow.

Owned by the engine, implemented in `vorta_server.tokenization`. The bits of a row are int32 [ceil(vocab_size / 32)]:
bit `token_id % 32` of word `token_id // 32`, counted from the least significant, is 1 where the token may follow. A
batch has one row of words for each row of logits, which is what kernels of GPUs take.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vorta.errors import VortaError

__all__ = [
    "Bits",
    "Grammar",
    "MaskFiller",
    "RowMask",
    "TokenConstraint",
    "bits_of",
    "forbid",
    "num_words",
    "stack_masks",
]

Bits = NDArray[np.int32]

_ALL = np.int32(-1)

_MANY, _FEW = 16_384, 0.5
"""Of a row of so many logits, with less than this share of them allowed, keeping those is faster than striking others
out."""

_MIN_THREAD_WORDS = 1000
"""Words of masks for which it pays to wake a thread: eight rows of 4096 tokens, or one of 32,000."""


class TokenConstraint(Protocol):
    """The state of one sequence, which has accepted the sequence's tokens. One thread at a time calls."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing but an end-of-sequence token may follow."""
        ...

    @property
    def failure(self) -> VortaError | None:
        """Why it cannot go on, where it cannot: then no token may follow."""
        ...

    def fill_mask(self, mask: Bits) -> None:
        """Writes what may follow; end-of-sequence tokens may exactly where the text is whole."""
        ...

    def accept(self, token_id: int) -> None:
        """Takes the sequence's next token."""
        ...


class Grammar(Protocol):
    """What a text may be."""

    def start(self) -> TokenConstraint:
        """The state of a sequence without tokens."""
        ...


def num_words(vocab_size: int) -> int:
    """Words of a row's mask."""
    return -(-vocab_size // 32)


def bits_of(token_ids: NDArray[np.int64], vocab_size: int) -> Bits:
    """The mask that allows these tokens."""
    is_set = np.zeros(num_words(vocab_size) * 32, np.uint8)
    is_set[token_ids] = 1
    return np.packbits(is_set, bitorder="little").view(np.int32)


def forbid(logits: NDArray[np.float32], masks: Bits) -> None:
    """Makes impossible what the masks [num_rows, words] do not allow in their rows [num_rows, vocab_size], which are
    contiguous."""
    vocab_size = logits.shape[1]
    if len(logits) > 1 and vocab_size > _MANY:  # a row fits the core's own cache, and has a share of its own
        for row in range(len(logits)):
            forbid(logits[row : row + 1], masks[row : row + 1])
    elif vocab_size > _MANY and int(np.bitwise_count(masks.view(np.uint32)).sum()) < _FEW * logits.size:
        places = np.flatnonzero(_unpack(masks, vocab_size))
        flat = logits.reshape(-1)
        allowed = flat[places]
        flat.fill(-np.inf)
        flat[places] = allowed
    else:
        np.copyto(logits, np.float32(-np.inf), where=_unpack(~masks, vocab_size))


def _unpack(masks: Bits, vocab_size: int) -> NDArray[np.bool_]:
    """The masks' bits [num_rows, vocab_size]."""
    return np.unpackbits(masks.view(np.uint8), axis=1, count=vocab_size, bitorder="little").view(np.bool_)


class RowMask:
    """A sequence's constraint and the bits of its next token.

    Args:
        constraint: The sequence's.
        vocab_size: Of the model.
        late_ids: Tokens that may not follow until `min_tokens`, unless nothing else may.
        never_ids: Tokens that may not follow at all, unless nothing else may.
    """

    __slots__ = ("_bits", "_filling", "_is_filled", "_late", "_never", "constraint")

    def __init__(
        self,
        constraint: TokenConstraint,
        *,
        vocab_size: int,
        late_ids: NDArray[np.int64],
        never_ids: NDArray[np.int64],
    ) -> None:
        self.constraint = constraint
        self._bits: Bits = np.zeros(num_words(vocab_size), np.int32)
        self._late = bits_of(late_ids, vocab_size) if late_ids.size else None
        self._never = bits_of(never_ids, vocab_size) if never_ids.size else None
        self._is_filled = False
        self._filling: Future[None] | None = None

    def accept(self, token_id: int) -> None:
        """Takes the sequence's next token."""
        self.constraint.accept(token_id)
        self._is_filled = False

    def begin(self, filling: Future[None]) -> None:
        """Notes that somebody fills the bits."""
        self._filling = filling

    def fill(self) -> None:
        """Fills the bits."""
        self.constraint.fill_mask(self._bits)
        self._is_filled = True

    def write(self, mask: Bits, *, is_early: bool) -> None:
        """Writes what may follow. `is_early`: before `min_tokens`."""
        filling, self._filling = self._filling, None
        if filling is not None:
            filling.result()
        if not self._is_filled:
            self.fill()
        mask[:] = self._bits
        for forbidden in (self._never, self._late if is_early else None):
            if forbidden is not None and (mask & ~forbidden).any():
                mask &= ~forbidden


class MaskedRow(Protocol):
    """A row that may have a constraint."""

    @property
    def mask(self) -> RowMask | None: ...
    @property
    def is_early(self) -> bool: ...


def stack_masks(rows: Sequence[MaskedRow], masks: Bits) -> None:
    """Writes the rows' masks [num_rows, words]; rows without a constraint may go on with any token."""
    for row, words in zip(rows, masks, strict=True):
        if row.mask is None:
            words[:] = _ALL
        else:
            row.mask.write(words, is_early=row.is_early)


class MaskFiller:
    """Fills masks in a thread, so that they are there when the model has computed the next step. A few small ones are
    filled where they are used, which takes less than waking a thread.

    Args:
        vocab_size: Of the model.
    """

    def __init__(self, vocab_size: int) -> None:
        self._num_words = num_words(vocab_size)
        self._executor: ThreadPoolExecutor | None = None

    def begin(self, masks: Sequence[RowMask]) -> None:
        """Starts to fill. Their constraints are not to be touched before `RowMask.write` has returned."""
        if len(masks) * self._num_words < _MIN_THREAD_WORDS:
            return
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="masks")
        filling = self._executor.submit(_fill_all, masks)
        for mask in masks:
            mask.begin(filling)


def _fill_all(masks: Sequence[RowMask]) -> None:
    for mask in masks:
        mask.fill()
