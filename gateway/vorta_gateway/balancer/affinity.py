"""Which endpoint has computed the beginning of a prompt already.

As the prefix-aware routers of llm-d and SGLang do it: a prompt is a chain of blocks, the hash of each covering all
before it, and an endpoint is taken to have cached the blocks that were sent there last. What it really has cached is
not asked: a wrong guess costs a prefill, not an answer.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Protocol

from google.protobuf.message import Message

from vorta_gateway.upstream import RpcMethod

__all__ = ["AffinityKey", "PrefixIndex", "Prompt", "VortaAffinityKey", "hash_blocks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What a request asks a model to continue.

    Attributes:
        model: Its id, as the request has it.
        text: The prompt or the conversation. Requests whose rendered prompts begin alike have texts that begin alike.
        max_tokens: Most tokens to generate, of all sequences together; None where the request does not say.
    """

    model: str
    text: str
    max_tokens: int | None


class AffinityKey(Protocol):
    """Finds the prompt in a request."""

    def is_prompted(self, method: RpcMethod) -> bool:
        """Whether requests of a method have prompts. Only those are parsed."""
        ...

    def prompt(self, method: RpcMethod, request: Message) -> Prompt | None:
        """The request's prompt, None if it has none."""
        ...


class VortaAffinityKey:
    """Prompts of vorta.v1.InferenceService."""

    _METHODS = frozenset(
        f"/vorta.v1.InferenceService/{name}" for name in ("Generate", "StreamGenerate", "Chat", "StreamChat")
    )

    def is_prompted(self, method: RpcMethod) -> bool:
        """See `AffinityKey`."""
        return method.path in self._METHODS

    def prompt(self, method: RpcMethod, request: Message) -> Prompt | None:
        """See `AffinityKey`."""
        # By field names: the descriptors may come from reflection, in classes of their own.
        fields: Any = request
        max_tokens = fields.max_tokens * max(1, fields.n) if fields.HasField("max_tokens") else None
        if method.path.endswith("Chat"):
            text = "".join([*map(_rendered_tool, fields.tools), *map(_rendered_message, fields.messages)])
        elif fields.prompt_token_ids:
            # One character a token: they are compared, never shown.
            text = "".join(chr(token_id % 0x110000) for token_id in fields.prompt_token_ids)
        else:
            text = fields.prompt
        return Prompt(model=fields.model, text=text, max_tokens=max_tokens) if text else None


def hash_blocks(prompt: Prompt, *, block_characters: int, max_blocks: int) -> tuple[int, ...]:
    """The chain of hashes of a prompt's whole blocks; equal ones within this process are equal beginnings.

    A last piece that is shorter than a block is left out: the next turn of a conversation would not have it.
    """
    chain: list[int] = []
    last = hash(prompt.model)
    text = prompt.text
    for begin in range(0, min(len(text) // block_characters, max_blocks) * block_characters, block_characters):
        last = hash((last, text[begin : begin + block_characters]))
        chain.append(last)
    return tuple(chain)


class PrefixIndex:
    """The blocks that were sent to one endpoint, the least recently sent given up first.

    Args:
        max_blocks: That are kept.
    """

    __slots__ = ("_blocks", "_max_blocks")

    def __init__(self, max_blocks: int) -> None:
        self._blocks: OrderedDict[int, None] = OrderedDict()
        self._max_blocks = max_blocks

    def __len__(self) -> int:
        return len(self._blocks)

    def match(self, chain: tuple[int, ...]) -> int:
        """How many blocks from the beginning are here."""
        for number, block in enumerate(chain):
            if block not in self._blocks:
                return number
        return len(chain)

    def add(self, chain: tuple[int, ...]) -> None:
        """Notes that a prompt was sent."""
        # From the end, so that a prompt's beginning, which more prompts share, outlives its end.
        for block in reversed(chain):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._max_blocks:
            self._blocks.popitem(last=False)


def _rendered_tool(tool: Any) -> str:
    return f"\x1e{tool.name}\x1f{tool.description}\x1f{tool.parameters.SerializeToString(deterministic=True)!r}"


def _rendered_message(message: Any) -> str:
    calls = "".join(f"\x1f{call.name}\x1f{call.arguments}" for call in message.tool_calls)
    return f"\x1e{message.role}\x1f{message.name}\x1f{message.content}{calls}"
