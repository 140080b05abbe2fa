"""Grammars: whatever the logits are, what comes out is of the format; what cannot be is refused by its field."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.tokenization.conftest import train_byte_level, train_sentencepiece
from vorta.errors import FailedPrecondition, InvalidArgument
from vorta_server.engine.request import SamplingParams
from vorta_server.engine.row_state import RowState
from vorta_server.engine.sampler import Sampler
from vorta_server.tokenization.grammar import GrammarCompiler
from vorta_server.tokenization.tokenizer import Tokenizer
from vorta_server.tokenization.tool_call import parse_tool_calls
from vorta_server.workers.protocol import OutputFormat, ToolSpec

MINI = Path(__file__).parents[3] / "server/vorta_server/models/vorta-mini"

ADDRESS = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", 'b"c', "日本"]}, "minItems": 1, "maxItems": 3},
        "at": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/point"}]},
    },
    "required": ["name", "age", "tags", "at"],
    "additionalProperties": False,
    "$defs": {
        "point": {
            "type": "object",
            "properties": {"x": {"type": "boolean"}, "y": {"const": 1}},
            "required": ["x", "y"],
            "additionalProperties": False,
        }
    },
}
TOOLS = [
    ToolSpec("add", "", {"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}, "required": ["a"],
                         "additionalProperties": False, "$defs": {"n": {"type": "integer", "maximum": 99}}}),
    ToolSpec("now", "", {}),
]  # fmt: skip
SUM = 'start: term ("+" term)*\nterm: /[0-9]{1,2}/ | "(" start ")"'
GBNF = 'root ::= "x" [0-9] [a-c]? "."'


@dataclass
class Model:
    """A vocabulary, and a "model" whose logits are random."""

    tokenizer: Tokenizer
    vocab_size: int
    compiler: GrammarCompiler = field(init=False)

    def __post_init__(self) -> None:
        self.compiler = GrammarCompiler(self.tokenizer, vocab_size=self.vocab_size)

    def write(
        self, asked: OutputFormat, seed: int, *, max_tokens: int = 400, tools: Any = (), **sampling: Any
    ) -> tuple[str, bool]:
        """A text, and whether it came to its end."""
        state = self.compiler.compile(asked, tools).start()
        options = SamplingParams(**{"temperature": 1.0, **sampling})
        ends = self.tokenizer.eos_token_ids
        row = RowState(
            options, seed=seed, prompt_token_ids=[1], vocab_size=self.vocab_size, eos_token_ids=ends, constraint=state
        )
        generator, sampler, rows, ids = np.random.default_rng(seed), Sampler(self.vocab_size), [row], []
        for _ in range(max_tokens):
            logits = generator.standard_normal((1, self.vocab_size), np.float32) * 3
            sampled = sampler.sample(logits, rows)
            assert not sampled.bad_rows, state.failure
            token_id = int(sampled.token_ids[0])
            if token_id in ends:
                return self.text(ids), True
            ids.append(token_id)
            if row.is_complete:
                return self.text(ids), True
        return self.text(ids, "ignore"), False

    def text(self, ids: list[int], errors: str = "strict") -> str:
        return b"".join(self.tokenizer.token_bytes(token_id) for token_id in ids).decode("utf-8", errors)


@pytest.fixture(scope="module", params=["mini", "byte level", "sentencepiece"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    make: dict[str, Callable[[Path], Path]] = {"byte level": train_byte_level, "sentencepiece": train_sentencepiece}
    folder = make[request.param](tmp_path_factory.mktemp("t") / "t") if request.param in make else MINI
    tokenizer = Tokenizer(folder)
    # A model's vocabulary is often padded beyond the tokenizer's.
    made = Model(tokenizer, tokenizer.vocab_size + (0 if request.param == "mini" else 13))
    yield made
    made.compiler.close()


@pytest.fixture(scope="module")
def mini() -> Iterator[Model]:
    made = Model(Tokenizer(MINI), 4096)
    yield made
    made.compiler.close()


def schema(value: Any) -> OutputFormat:
    return OutputFormat("json_schema", text=json.dumps(value))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), temperature=st.sampled_from([0.0, 1.0]), top_k=st.sampled_from([0, 3]))
def test_json_is_of_its_schema_whatever_the_logits_are(model: Model, seed: int, temperature: float, top_k: int) -> None:
    text, is_whole = model.write(schema(ADDRESS), seed, temperature=temperature, top_k=top_k)
    assert is_whole
    jsonschema_rs.validate(ADDRESS, json.loads(text))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_other_formats_hold_whatever_the_logits_are(model: Model, seed: int) -> None:
    text, is_whole = model.write(OutputFormat("regex", text=r"^\d{3}-(foo|bär){1,2}\$$"), seed)
    assert is_whole
    assert re.fullmatch(r"\d{3}-(foo|bär){1,2}\$", text)
    choices = ["yes", "no", 'a "quoted"\n one', "日本\\", "yes, but"]
    text, is_whole = model.write(OutputFormat("choice", choices=choices), seed)
    assert is_whole
    assert text in choices
    text, is_whole = model.write(OutputFormat("grammar", text=GBNF), seed)
    assert is_whole
    assert re.fullmatch(r"x[0-9][a-c]?\.", text)
    text, is_whole = model.write(OutputFormat("grammar", text=SUM), seed, max_tokens=100)
    if is_whole:
        assert isinstance(eval(re.sub(r"\b0+(\d)", r"\1", text)), int)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), name=st.sampled_from(["", "add", "now"]))
def test_calls_are_calls_whatever_the_logits_are(model: Model, seed: int, name: str) -> None:
    text, is_whole = model.write(OutputFormat("tool_call", text=name), seed, tools=TOOLS)
    if not is_whole:
        return
    parsed = parse_tool_calls(text, tool_names=["add", "now"])
    assert parsed.tool_calls
    assert not parsed.content
    if name:
        assert [call.name for call in parsed.tool_calls] == [name]
    for call in parsed.tool_calls:
        arguments = json.loads(call.arguments)
        assert arguments == {} if call.name == "now" else arguments["a"] <= 99


def test_any_json_object(model: Model) -> None:
    for seed in range(5):
        text, is_whole = model.write(OutputFormat("json_object"), seed, max_tokens=300)
        if is_whole:
            assert isinstance(json.loads(text), dict)
        else:
            assert text.startswith("{")


def test_white_space_has_a_bound(mini: Model) -> None:
    state = mini.compiler.compile(OutputFormat("json_object")).start()
    mask = np.zeros(128, np.int32)
    space = mini.tokenizer.encode(" ", False)[0]
    state.accept(mini.tokenizer.encode("{", False)[0])
    for _ in range(32):
        state.fill_mask(mask)
        assert mask[space // 32] >> (space % 32) & 1
        state.accept(space)
    state.fill_mask(mask)
    assert not mask[space // 32] >> (space % 32) & 1


def test_mask_has_a_bit_for_each_token_that_may_follow(mini: Model) -> None:
    state = mini.compiler.compile(OutputFormat("regex", text="[ab]{1,2}")).start()
    mask = np.zeros(128, np.int32)

    def allowed() -> set[str]:
        state.fill_mask(mask)
        is_set = np.unpackbits(mask.view(np.uint8), bitorder="little")
        return {mini.tokenizer.token_text(int(token_id)) for token_id in np.flatnonzero(is_set)}

    ends = {"<|endoftext|>", "<|im_end|>"} & {mini.tokenizer.token_text(i) for i in mini.tokenizer.eos_token_ids}
    assert ends
    assert {"a", "b"} <= allowed() <= {"a", "b", "ab", "ba", "aa", "bb"}
    state.accept(mini.tokenizer.encode("a", False)[0])
    assert allowed() == {"a", "b"} | ends  # whole, and may go on
    assert not state.is_complete
    state.accept(mini.tokenizer.encode("b", False)[0])
    assert allowed() == ends
    assert state.is_complete
    assert state.failure is None


def test_states_of_a_grammar_are_independent(mini: Model) -> None:
    grammar = mini.compiler.compile(OutputFormat("choice", choices=["ab", "b"]))
    first, second = grammar.start(), grammar.start()
    first.accept(mini.tokenizer.encode("b", False)[0])
    assert first.is_complete
    assert not second.is_complete
    mask, other = np.zeros(128, np.int32), np.zeros(128, np.int32)
    second.fill_mask(mask)
    grammar.start().fill_mask(other)
    assert (mask == other).all()


def test_a_token_that_may_not_follow_is_a_failure(mini: Model) -> None:
    state = mini.compiler.compile(OutputFormat("regex", text="a")).start()
    state.accept(mini.tokenizer.encode("b", False)[0])
    mask = np.ones(128, np.int32)
    state.fill_mask(mask)
    assert not mask.any()
    assert not state.is_complete
    assert isinstance(state.failure, InvalidArgument)


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (schema({"type": "nonsense"}), "response_format.json_schema"),
        (schema({"$ref": "#/nowhere"}), "response_format.json_schema"),
        (schema({"$ref": "http://localhost:1/schema"}), "response_format.json_schema"),
        (schema({"not": {"type": "string"}}), "response_format.json_schema"),
        (schema(False), "response_format.json_schema"),
        (schema({"type": "integer", "minimum": 3, "maximum": 2}), "response_format.json_schema"),
        (OutputFormat("regex", text="("), "response_format.regex"),
        (OutputFormat("regex", text=r"(?=a)b"), "response_format.regex"),
        (OutputFormat("grammar", text="start: nowhere"), "response_format.grammar"),
        (OutputFormat("grammar", text="root ::= " + "(" * 4000 + '"a"' + ")" * 4000), "response_format.grammar"),
        (OutputFormat("grammar", text="start: " + "(" * 100_000), "response_format.grammar"),
    ],
)
def test_what_is_no_format_is_refused_by_its_field(mini: Model, asked: OutputFormat, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        mini.compiler.compile(asked)
    assert caught.value.metadata["field"] == field
    assert len(caught.value.message) < 700


def test_a_tools_bad_schema_is_named(mini: Model) -> None:
    tools = [TOOLS[0], ToolSpec("bad", "", {"type": "nonsense"})]
    with pytest.raises(InvalidArgument) as caught:
        mini.compiler.compile(OutputFormat("tool_call"), tools)
    assert caught.value.metadata["field"] == "tools[1].parameters"


def test_what_takes_too_long_is_refused_and_the_next_is_served(mini: Model) -> None:
    # The intersection of these would take hours.
    bomb = schema({"allOf": [{"type": "string", "pattern": f".*{i}.{{50}}"} for i in range(30)]})
    with pytest.raises(InvalidArgument, match="too complex"):
        mini.compiler.compile(bomb)
    assert mini.write(OutputFormat("choice", choices=["after"]), 0) == ("after", True)


def test_what_the_vocabulary_cannot_write_is_refused(mini: Model) -> None:
    class Wordless(Tokenizer):
        def token_bytes(self, token_id: int) -> bytes:
            return super().token_bytes(token_id).replace(b"z", b"")

    compiler = GrammarCompiler(Wordless(MINI), vocab_size=4096)
    with pytest.raises(InvalidArgument, match="no token"):
        compiler.compile(OutputFormat("choice", choices=["z"]))
    state = compiler.compile(OutputFormat("choice", choices=["az"])).start()
    state.accept(mini.tokenizer.encode("a", False)[0])
    assert state.failure is not None
    assert "no token" in state.failure.message
    compiler.close()


def test_grammars_are_compiled_once(mini: Model) -> None:
    asked = OutputFormat("regex", text="once")
    assert mini.compiler.find(asked) is None
    grammar = mini.compiler.compile(asked)
    assert mini.compiler.find(OutputFormat("regex", text="once")) is grammar
    assert mini.compiler.compile(asked) is grammar
    for number in range(70):
        mini.compiler.compile(OutputFormat("choice", choices=[str(number)]))
    assert mini.compiler.find(asked) is None


def test_without_an_end_token_there_is_no_format() -> None:
    class Endless(Tokenizer):
        @property
        def eos_token_ids(self) -> tuple[int, ...]:
            return ()

    compiler = GrammarCompiler(Endless(MINI), vocab_size=4096)
    with pytest.raises(FailedPrecondition):
        compiler.compile(OutputFormat("json_object"))
    compiler.close()


@pytest.mark.parametrize(
    ("template", "style"), [("{{ '<tool_call>' }}", "hermes"), ('{"parameters": 1}', "llama"), ("{{ 1 }}", "hermes")]
)
def test_calls_are_written_as_the_template_has_them(tmp_path: Path, template: str, style: str) -> None:
    folder = train_byte_level(tmp_path / "t")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    model = Model(Tokenizer(folder), Tokenizer(folder).vocab_size)
    assert model.tokenizer.tool_call_style == style
    text, is_whole = model.write(OutputFormat("tool_call", text="add"), 1, tools=TOOLS)
    assert is_whole
    assert text.startswith("<tool_call>" if style == "hermes" else '{"name": "add", "parameters": {')
    assert [call.name for call in parse_tool_calls(text).tool_calls] == ["add"]
    model.compiler.close()
