"""Renders conversations with a model's own chat template (Jinja), as Hugging Face's transformers does.

Templates come with the checkpoint and run in Jinja's immutable sandbox. They see `messages`, `tools`,
`add_generation_prompt`, the special tokens by name (`bos_token`, …), `raise_exception`, `strftime_now`, a `tojson`
filter that does not escape HTML, loop controls, and the `generation` tag, whose body is rendered as it stands.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from vorta.errors import FailedPrecondition, InvalidArgument

__all__ = ["ChatTemplate"]


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's own tokens for training; here it is transparent."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it as an instance attribute)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        """Replaces the tag by its body, in a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _make_environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class ChatTemplate:
    """A compiled template. Thread-safe.

    Args:
        source: The Jinja text, or several by name: "default" and, for conversations with tools, "tool_use".
        special_tokens: What the template sees beside the conversation, such as `bos_token`.

    Raises:
        FailedPrecondition: The template is not valid Jinja.
    """

    def __init__(self, source: str | Mapping[str, str], *, special_tokens: Mapping[str, str]) -> None:
        sources = {"default": source} if isinstance(source, str) else dict(source)
        environment = _make_environment()
        self._sources = tuple(sources.values())
        try:
            self._templates = {name: environment.from_string(text) for name, text in sources.items()}
        except jinja2.TemplateError as error:
            raise FailedPrecondition(f"The model's chat template is not valid: {error}") from error
        self._special_tokens = dict(special_tokens)

    def mentions(self, text: str) -> bool:
        """Whether the text stands in a template."""
        return any(text in source for source in self._sources)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> str:
        """The conversation as the model's prompt.

        Args:
            messages: Dicts with role, content and, where they apply, tool_calls, tool_call_id and name.
            tools: Function declarations; None or empty for no tools.
            add_generation_prompt: Open the assistant's turn. Ignored with continue_final_message.
            continue_final_message: End the prompt right behind the last message's content.

        Raises:
            InvalidArgument: The template refuses the conversation, or the last message cannot be continued; the field
                is `messages`.
            FailedPrecondition: There is no template for this kind of conversation.
        """
        template = (self._templates.get("tool_use") if tools else None) or self._templates.get("default")
        if template is None:
            raise FailedPrecondition("The model has no default chat template.")
        try:
            text = template.render(
                messages=messages,
                tools=list(tools) if tools else None,
                documents=None,
                add_generation_prompt=add_generation_prompt and not continue_final_message,
                **self._special_tokens,
            )
        except jinja2.TemplateError as error:
            raise InvalidArgument(
                f"The model's chat template refuses the conversation: {error}", field="messages"
            ) from error
        except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise InvalidArgument(
                f"The model's chat template cannot render the conversation: {type(error).__name__}: {error}",
                field="messages",
            ) from error
        return _cut_behind(text, str(messages[-1]["content"])) if continue_final_message else text


def _cut_behind(text: str, content: str) -> str:
    """The rendered text up to the end of the last message's content; templates may have stripped the content."""
    position = text.rfind(content.strip())
    if not content.strip() or position < 0:
        raise InvalidArgument(
            "The last message cannot be continued: the chat template does not render its content as it stands.",
            field="messages",
        )
    wanted = content.lstrip()
    if text.startswith(wanted, position):
        return text[: position + len(wanted)]
    return text[: position + len(content.strip())]
