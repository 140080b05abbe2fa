"""A model's tokenizer, read from its folder: tokenizer.json and what stands beside it.

Read where they exist: tokenizer_config.json (special tokens, chat template), chat_template.jinja or chat_template.json
(which go before the config's template), generation_config.json (end-of-sequence ids, sampling defaults) and
config.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from vorta.errors import FailedPrecondition, InvalidArgument
from vorta_server.tokenization.chat_template import ChatTemplate
from vorta_server.tokenization.grammar_text import CallStyle
from vorta_server.tokenization.message import MessageLike, ToolSpecLike, message_dicts, tool_dicts
from vorta_server.tokenization.token_bytes import bytes_per_token_bound, is_byte_level, make_token_bytes

__all__ = ["GenerationDefaults", "Tokenizer"]

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """Sampling defaults of the model's generation config; those absent there change nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0


class Tokenizer:
    """Text to token ids and back, and conversations to prompts. Thread-safe: nothing changes after the construction.

    Args:
        folder: Holds tokenizer.json.

    Raises:
        FailedPrecondition: tokenizer.json is missing or unreadable, or a file beside it is; reason CHECKPOINT_INVALID.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self._folder = folder
        try:
            text = (folder / "tokenizer.json").read_text(encoding="utf-8")
            self._specification: dict[str, Any] = json.loads(text)
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise FailedPrecondition(
                f"{folder / 'tokenizer.json'} cannot be read: {error}", reason="CHECKPOINT_INVALID"
            ) from error
        # A checkpoint may come with its training's truncation and padding; prompts are refused, never cut.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._specification["truncation"] = None
        self._config = self._read_json("tokenizer_config.json")
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self._token_bytes = make_token_bytes(self._specification, vocabulary)
        self._special_ids = frozenset(
            token_id for token_id, token in self._tokenizer.get_added_tokens_decoder().items() if token.special
        )
        self._special_tokens = self._read_special_tokens()
        self._eos_token_ids = self._read_eos_token_ids()
        self._bytes_per_token = bytes_per_token_bound(self._specification, self._token_bytes)
        self._chat_template = self._read_chat_template()
        self._byte_tables: dict[bool, list[bytes]] = {}
        if is_byte_level(self._specification):
            skipped = [b"" if i in self._special_ids else token for i, token in enumerate(self._token_bytes)]
            self._byte_tables = {False: self._token_bytes, True: skipped}

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id; a model's own vocabulary may be padded beyond it."""
        return len(self._token_bytes)

    @property
    def special_token_ids(self) -> frozenset[int]:
        """Ids of control tokens, which leave no text when special tokens are skipped."""
        return self._special_ids

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a text, where the model has one."""
        return self._token_id(self._special_tokens.get("bos_token"))

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a text, of generation_config.json, else config.json, else tokenizer_config.json."""
        return self._eos_token_ids

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be rendered."""
        return self._chat_template is not None

    @property
    def tool_call_style(self) -> CallStyle:
        """How the model writes tool calls, by its chat template; Hermes's way where that does not tell."""
        template = self._chat_template
        if template is None or template.mentions("<tool_call>"):
            return "hermes"
        return "llama" if template.mentions('"parameters": ') or template.mentions("<|python_tag|>") else "hermes"

    @cached_property
    def generation_defaults(self) -> GenerationDefaults:
        """Sampling defaults of generation_config.json. `do_sample: false` means greedy, temperature 0."""
        config = self._read_json("generation_config.json")
        values: dict[str, Any] = {}
        for name in ("temperature", "top_p", "repetition_penalty"):
            if config.get(name) is not None:
                values[name] = float(config[name])
        if config.get("top_k") is not None:
            values["top_k"] = int(config["top_k"])
        if config.get("do_sample") is False:
            values["temperature"] = 0.0
        return GenerationDefaults(**values)

    def encode(
        self, text: str, add_special_tokens: bool = True, *, max_tokens: int | None = None, field: str = "prompt"
    ) -> list[int]:
        """The text's token ids.

        Args:
            text: Valid Unicode; lone surrogates are refused.
            add_special_tokens: Add what the tokenizer's template adds, such as the token that begins a text.
            max_tokens: Refuse a text of more tokens; one that is certainly longer is refused without tokenizing it.
            field: The request's field that errors name.

        Raises:
            InvalidArgument: More than `max_tokens` tokens (reason CONTEXT_LENGTH_EXCEEDED), or not valid Unicode.
        """
        if max_tokens is not None:
            self.check_length(text, max_tokens, field=field)
        try:
            token_ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        except (UnicodeEncodeError, TypeError) as error:  # the library's answers to a lone surrogate
            raise InvalidArgument("The text is not valid Unicode: it has a lone surrogate.", field=field) from error
        if max_tokens is not None and len(token_ids) > max_tokens:
            raise _too_long(f"The prompt has {len(token_ids)} tokens", max_tokens, field)
        return token_ids

    def check_length(self, text: str, max_tokens: int, *, field: str = "prompt") -> None:
        """Refuses a text that has more than `max_tokens` tokens by its size alone: no token of this vocabulary
        stands for more than so many bytes. Costs nothing beside the size.

        Raises:
            InvalidArgument: With reason CONTEXT_LENGTH_EXCEEDED.
        """
        if not math.isfinite(self._bytes_per_token):
            return
        limit_bytes = max_tokens * self._bytes_per_token
        if len(text) <= limit_bytes / 4:
            return  # a character has at most four bytes
        at_least = math.ceil(len(text.encode("utf-8", "surrogatepass")) / self._bytes_per_token)
        if at_least > max_tokens:
            raise _too_long(f"The prompt has at least {at_least} tokens", max_tokens, field)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The tokens' text; bytes that are not UTF-8 become U+FFFD. Ids beyond the vocabulary have no text."""
        table = self._byte_tables.get(skip_special_tokens)
        if table is not None:
            size = len(table)
            return b"".join([table[i] for i in token_ids if i < size]).decode("utf-8", "replace")
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def byte_table(self, skip_special_tokens: bool) -> Sequence[bytes] | None:
        """The bytes of each token when tokens simply concatenate (byte-level vocabularies), else None."""
        return self._byte_tables.get(skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that the token stands for in the middle of a text; empty beyond the vocabulary."""
        return self._token_bytes[token_id] if 0 <= token_id < len(self._token_bytes) else b""

    def token_text(self, token_id: int) -> str:
        """The text of one token, U+FFFD for bytes that are not UTF-8 by themselves."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def token_id(self, token: str) -> int | None:
        """The id of a token by its name in the vocabulary, such as `<|im_end|>`; None when there is none."""
        return self._token_id(token)

    def render_chat(
        self,
        messages: Sequence[MessageLike],
        *,
        tools: Sequence[ToolSpecLike] = (),
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> str:
        """The conversation as the model's prompt text, its special tokens included.

        Raises:
            InvalidArgument: A message is wrong, or the template refuses the conversation; names the field.
            FailedPrecondition: The model has no chat template.
        """
        if self._chat_template is None:
            raise FailedPrecondition("The model has no chat template; send a prompt instead of messages.")
        return self._chat_template.render(
            message_dicts(messages, continue_final_message=continue_final_message),
            tools=tool_dicts(tools),
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )

    def _read_json(self, name: str) -> dict[str, Any]:
        """A JSON object beside tokenizer.json; empty when the file does not exist."""
        path = self._folder / name
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise FailedPrecondition(f"{path} cannot be read: {error}", reason="CHECKPOINT_INVALID") from error
        if not isinstance(value, dict):
            raise FailedPrecondition(f"{path} is not a JSON object.", reason="CHECKPOINT_INVALID")
        return value

    def _token_id(self, token: str | None) -> int | None:
        return None if token is None else self._tokenizer.token_to_id(token)

    def _read_special_tokens(self) -> dict[str, str]:
        """Special tokens by name; older checkpoints keep them in special_tokens_map.json."""
        source = self._read_json("special_tokens_map.json") | self._config
        found: dict[str, str] = {}
        for name in _SPECIAL_NAMES:
            value = source.get(name)
            if isinstance(value, Mapping):
                value = value.get("content")
            if isinstance(value, str):
                found[name] = value
        return found

    def _read_eos_token_ids(self) -> tuple[int, ...]:
        for name in ("generation_config.json", "config.json"):
            value = self._read_json(name).get("eos_token_id")
            if isinstance(value, int):
                return (value,)
            if isinstance(value, list) and value:
                return tuple(int(token_id) for token_id in value)
        token_id = self._token_id(self._special_tokens.get("eos_token"))
        return () if token_id is None else (token_id,)

    def _read_chat_template(self) -> ChatTemplate | None:
        source: Any = self._config.get("chat_template")
        source = self._read_json("chat_template.json").get("chat_template") or source
        path = self._folder / "chat_template.jinja"
        if path.is_file():
            source = path.read_text(encoding="utf-8")
        if isinstance(source, list):
            source = {entry["name"]: entry["template"] for entry in source}
        return ChatTemplate(source, special_tokens=self._special_tokens) if source else None


def _too_long(message: str, max_tokens: int, field: str) -> InvalidArgument:
    return InvalidArgument(
        f"{message}; the model's context leaves room for {max_tokens}.",
        reason="CONTEXT_LENGTH_EXCEEDED",
        metadata={"max_tokens": max_tokens},
        field=field,
    )
