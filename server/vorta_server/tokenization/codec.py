"""Prompts of every kind to token ids: what a worker asks of tokenization. The prompt's type is structural."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vorta.errors import InvalidArgument
from vorta_server.tokenization.message import MessageLike, ToolSpecLike
from vorta_server.tokenization.tokenizer import Tokenizer

__all__ = ["Codec", "PromptLike"]


class PromptLike(Protocol):
    """What to continue: exactly one of text, token_ids and messages is not None."""

    @property
    def text(self) -> str | None: ...
    @property
    def token_ids(self) -> Sequence[int] | None: ...
    @property
    def messages(self) -> Sequence[MessageLike] | None: ...
    @property
    def tools(self) -> Sequence[ToolSpecLike]: ...
    @property
    def add_generation_prompt(self) -> bool: ...
    @property
    def continue_final_message(self) -> bool: ...
    @property
    def add_special_tokens(self) -> bool: ...


class Codec:
    """A tokenizer with the limits of the model that it serves. Thread-safe.

    Args:
        tokenizer: The model's.
        vocab_size: Rows of the model's embedding; token ids must be below.
        max_model_len: Tokens of the model's context; a prompt must leave room for one more.
    """

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, max_model_len: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._max_prompt_len = max_model_len - 1

    def encode(self, prompt: PromptLike) -> list[int]:
        """The prompt's token ids, at least one.

        Raises:
            InvalidArgument: Names the field at fault: `prompt`, `prompt_token_ids[3]`, `messages[2].role`, …; a prompt
                that leaves no room in the context has reason CONTEXT_LENGTH_EXCEEDED.
            FailedPrecondition: Messages for a model without a chat template.
        """
        if prompt.token_ids is not None:
            return self._checked(prompt.token_ids, "prompt_token_ids", self._max_prompt_len)
        if prompt.messages is not None:
            for message in prompt.messages:
                # Before rendering: a template may take long over a huge message.
                self._tokenizer.check_length(message.content, self._max_prompt_len, field="messages")
            text = self._tokenizer.render_chat(
                prompt.messages,
                tools=prompt.tools,
                add_generation_prompt=prompt.add_generation_prompt,
                continue_final_message=prompt.continue_final_message,
            )
            # The template wrote the special tokens already.
            token_ids = self._tokenizer.encode(text, False, max_tokens=self._max_prompt_len, field="messages")
            field = "messages"
        elif prompt.text:
            token_ids = self._tokenizer.encode(prompt.text, prompt.add_special_tokens, max_tokens=self._max_prompt_len)
            field = "prompt"
        else:
            raise InvalidArgument("The prompt is empty.", reason="MISSING_FIELD", field="prompt")
        if not token_ids:
            raise InvalidArgument(f"{field} has no tokens.", reason="MISSING_FIELD", field=field)
        return token_ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        """The tokens' text.

        Raises:
            InvalidArgument: A token id outside of the model's vocabulary; names its place.
        """
        return self._tokenizer.decode(self._checked(token_ids, "token_ids", None), skip_special_tokens)

    def token_text(self, token_id: int) -> str:
        """One token's text, U+FFFD for bytes that are not UTF-8 by themselves."""
        return self._tokenizer.token_text(token_id)

    def _checked(self, token_ids: Sequence[int], field: str, max_tokens: int | None) -> list[int]:
        if not token_ids:
            raise InvalidArgument(f"{field} is empty.", reason="MISSING_FIELD", field=field)
        if max_tokens is not None and len(token_ids) > max_tokens:
            raise InvalidArgument(
                f"The prompt has {len(token_ids)} tokens; the model's context leaves room for {max_tokens}.",
                reason="CONTEXT_LENGTH_EXCEEDED",
                metadata={"max_tokens": max_tokens},
                field=field,
            )
        if min(token_ids) < 0 or max(token_ids) >= self._vocab_size:
            index = next(i for i, token_id in enumerate(token_ids) if not 0 <= token_id < self._vocab_size)
            path = f"{field}[{index}]"
            raise InvalidArgument(
                f"{path} is {token_ids[index]}; token ids are 0 to {self._vocab_size - 1}.", field=path
            )
        return list(token_ids)
