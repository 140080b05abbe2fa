"""The command line against the scripted server."""

from __future__ import annotations

import codecs
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest

import vorta
from tests.clients.cli.conftest import ROOT, Run, spawn
from tests.clients.fake_server import FakeServer, text_of
from vorta import errors
from vorta.cli import main
from vorta.cli.main import build_parser
from vorta.cli.sampling import add_sampling
from vorta.v1 import common_pb2


def test_generate_prints_the_text(run: Run, server: FakeServer) -> None:
    assert run("generate", "hello", "--max-tokens", "3") == (0, text_of("hello", 3) + "\n", "")
    assert server.calls["StreamGenerate"][0].max_tokens == 3
    assert run("generate", "hello", "--no-stream")[1] == text_of("hello") + "\n"
    assert len(server.calls["Generate"]) == 1


def test_generate_with_every_sampling_flag(run: Run, server: FakeServer) -> None:
    flags = (
        "--min-tokens 1 --temperature 0 --top-p 0.5 --top-k 4 --min-p 0.1 --presence-penalty 1 --frequency-penalty 1 "
        "--repetition-penalty 2 --logit-bias 5=-1.5 --logit-bias 6=1 --seed 7 --stop a --stop b --stop-token-id 9 "
        "--include-stop --ignore-eos --n 2 --logprobs 1 --prompt-logprobs 2 --echo --priority -3 --deterministic "
        "--no-skip-special-tokens --request-id r1 --max-tokens 2 --regex [a-z]+"
    )
    assert run("generate", "hello", "--json", *flags.split())[0] == 0
    (request,) = server.calls["Generate"]
    unset = [
        field.name for field in request.DESCRIPTOR.fields if field.name not in {f.name for f, _ in request.ListFields()}
    ]
    assert unset == ["model", "prompt_token_ids"]
    assert (dict(request.logit_bias), request.stop, request.stop_token_ids) == ({5: -1.5, 6: 1.0}, ["a", "b"], [9])
    assert request.skip_special_tokens is False
    assert request.response_format.regex == "[a-z]+"


def test_format_flags(run: Run, server: FakeServer, tmp_path: Path) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text('{"type": "object"}')
    grammar.write_text('start: "a"')
    for flags in (
        ["--json-schema", str(schema)],
        ["--grammar", str(grammar)],
        ["--choice", "yes", "--choice", "no"],
        ["--json-object"],
    ):
        assert run("chat", "hello", *flags)[0] == 0
    formats = [request.response_format for request in server.calls["StreamChat"]]
    assert [asked.WhichOneof("format") for asked in formats] == ["json_schema", "grammar", "choice", "json_object"]
    assert (formats[0].json_schema, formats[1].grammar) == ('{"type": "object"}', 'start: "a"')
    assert list(formats[2].choice.choices) == ["yes", "no"]
    code, _, err = run("generate", "hello", "--json-schema", str(tmp_path / "absent"))
    assert code != 0
    assert "json_schema" in err
    assert run("generate", "hello", "--json-object", "--regex", "a")[0] == 2


def test_tool_choice(run: Run, server: FakeServer, tmp_path: Path) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text('[{"name": "now"}]')
    assert run("chat", "hello", "--tools", str(tools), "--tool-choice", "now")[0] == 0
    (request,) = server.calls["StreamChat"]
    assert (request.tool_choice.mode, request.tool_choice.name) == (common_pb2.TOOL_CHOICE_MODE_REQUIRED, "now")


def test_generate_as_json(server: FakeServer) -> None:
    process = spawn("generate", "hello", "--json", "--server", server.target)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    result = json.loads(out)
    assert result["text"] == text_of("hello")
    assert (result["finish_reason"], result["tokens_per_second"]) == ("stop", 200.0)
    assert result["usage"]["prompt_tokens"] == 3


def test_generate_as_json_lines(run: Run) -> None:
    code, out, _ = run("generate", "hello", "--json", "--stream", "--max-tokens", "2")
    events = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [event["event"] for event in events] == ["started", "delta", "delta", "finished"]
    assert "".join(event.get("text", "") for event in events) == text_of("hello", 2)


def test_prompt_from_standard_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for word in ([], ["-"]):
        monkeypatch.setattr(sys, "stdin", io.StringIO("piped"))
        assert run("generate", *word)[1] == text_of("piped") + "\n"


def test_chat_once(run: Run, server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text('[{"name": "clock"}]')
    code, out, _ = run("chat", "hi", "--system", "be brief", "--tools", str(tools), "--json")
    assert code == 0
    assert json.loads(out)["message"]["tool_calls"][0]["name"] == "clock"
    assert [message.role for message in server.calls["Chat"][0].messages] == ["system", "user"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("piped"))
    assert run("chat") == (0, text_of("piped") + "\n", "")


@pytest.mark.parametrize("text", ["{", "{}"])
def test_bad_tools_file(run: Run, tmp_path: Path, text: str) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text(text)
    code, _, err = run("chat", "hi", "--tools", str(tools))
    assert (code, "field tools" in err) == (2, True)


def test_models(run: Run, server: FakeServer) -> None:
    assert "tiny" in run("models")[1]
    code, out, _ = run("models", "list")
    assert code == 0
    assert out.splitlines()[1].split() == ["tiny", "*", "serving", "generation", "int8", "cpu", "512", "5M"]
    assert json.loads(run("models", "list", "--json")[1])["models"][0]["model"] == "tiny"
    assert "25% in use" in run("models", "get", "tiny")[1]
    assert json.loads(run("models", "load", "new", "--source", "/x", "--json")[1])["source"] == "/x"
    assert "unloaded" in run("models", "unload", "tiny", "--grace", "2")[1]
    assert server.calls["UnloadModel"][0].grace_s == 2


def test_tokenize(run: Run) -> None:
    assert run("tokenize", "ab")[1].splitlines() == ["      97  'a'", "      98  'b'", "2 of 99 tokens"]
    assert json.loads(run("tokenize", "ab", "--chat", "--json")[1])["token_ids"] == [97, 98]


def test_health(run: Run) -> None:
    assert run("health") == (0, "serving\n", "")
    assert run("health", "sick") == (1, "not_serving\n", "")
    assert json.loads(run("health", "--json")[1]) == {"service": "", "status": "serving"}


def test_info(run: Run) -> None:
    assert "default model  tiny" in run("info")[1]
    assert json.loads(run("info", "--json")[1])["start_time"] == "2023-11-14T22:13:20+00:00"


def test_server_errors(run: Run, server: FakeServer) -> None:
    assert run("models", "get", "no") == (1, "", "error: no model no (MODEL_NOT_FOUND)\n")
    assert run("generate", "", "--no-stream") == (2, "", "error: prompt is empty (MISSING_FIELD, field prompt)\n")
    code, out, _ = run("models", "get", "no", "--json")
    assert (code, json.loads(out)["error"]["metadata"]) == (1, {"model": "no"})
    server.fail_next("StreamGenerate", errors.Unavailable("m is\nloading"))
    assert run("generate", "hello")[::2] == (3, "error: m is loading (MODEL_NOT_READY)\n")


def test_no_server(run: Run) -> None:
    code, out, err = run("health", target="localhost:1")
    assert (code, out) == (3, "")
    assert err.startswith("error: no connection to the server")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [[], ["nothing"], ["generate", "x", "--max-tokens", "x"], ["generate", "x", "--timeout", "0"],
     ["generate", "x", "--logit-bias", "5"], ["models", "nothing"], ["completion", "tcsh"]],
)  # fmt: skip
def test_wrong_usage(run: Run, words: list[str]) -> None:
    code, out, _ = run(*words)
    assert (code, out) == (2, "")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"vorta {vorta.__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "generate" in script
    assert "max-tokens" in script


def test_every_option_has_a_help_text() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    add_sampling(parser)
    assert all(action.help for action in parser._actions)


def fake_distribution(folder: Path, modules: dict[str, str]) -> None:
    """A distribution with one entry point per module, each module with the given source."""
    info = folder / "commands_for_test-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: commands-for-test\nVersion: 1\n")
    lines = [f"{name} = command_{name}:add_{name}" for name in modules]
    (info / "entry_points.txt").write_text("\n".join(["[vorta.commands]", *lines, ""]))
    for name, source in modules.items():
        (folder / f"command_{name}.py").write_text(source)


def test_commands_of_other_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    works = (
        "def add_works(subparsers):\n"
        "    parser = subparsers.add_parser('works', help='it works')\n"
        "    parser.add_argument('--server')\n"
        "    parser.set_defaults(run=lambda arguments: print('ran') or 7)\n"
    )
    modules = {"works": works, "lacks": "import no_such_module\n", "boom": "raise RuntimeError('loaded')\n"}
    fake_distribution(tmp_path, modules)
    monkeypatch.syspath_prepend(tmp_path)
    assert run("works") == (7, "ran\n", "")
    code, _, err = run("lacks", "--any", "option", "-h")
    assert code == 2
    assert (
        err
        == "error: `vorta lacks` needs the server: pip install \"vorta[server]\" (No module named 'no_such_module')\n"
    )
    # A client's command loads none of them.
    assert run("health")[0] == 0
    with pytest.raises(RuntimeError, match="loaded"):
        build_parser([])


def test_client_commands_are_light(server: FakeServer) -> None:
    code = (
        "import sys; from vorta.cli import main; code = main(sys.argv[1:]);"
        "heavy = {'numpy', 'pydantic', 'onnxruntime', 'vorta_server', 'tqdm', 'shtab'} & set(sys.modules);"
        "sys.exit(f'loaded {heavy}' if heavy else code)"
    )
    words = [sys.executable, "-c", code, "health", "--server", server.target]
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": ROOT}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "serving\n", "")


def test_the_command_line_loads_no_grpc_until_it_connects() -> None:
    code = (
        "import sys; from vorta.cli.main import build_parser; build_parser(['health']); sys.exit('grpc' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": ROOT}, check=False)
    assert done.returncode == 0


def test_interrupt_cancels_the_request(server: FakeServer) -> None:
    server.on_event = lambda request_id, index: (index > 3 and server.cancelled[request_id].wait(30)) and None
    process = spawn("generate", "hello", "--server", server.target)
    assert process.stdout is not None
    seen = ""
    while len(seen) < len(text_of("hello", 3)):
        seen += process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert len(server.calls["CancelGenerate"]) == 1
    assert (seen + out).startswith(text_of("hello", 3))


def test_a_closed_pipe_cancels_the_request(server: FakeServer) -> None:
    opened = threading.Event()
    server.on_event = lambda request_id, index: (index > 1 and opened.wait(30)) and None
    process = spawn("generate", "hello", "--server", server.target)
    assert process.stdout is not None
    process.stdout.read(1)
    process.stdout.close()
    opened.set()
    assert process.wait(30) == 1
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()


class Terminal:
    """A command on a pseudo terminal."""

    def __init__(self, *words: str) -> None:
        self._near, far = pty.openpty()
        termios.tcsetwinsize(far, (24, 200))
        self.process = spawn(*words, stdin=far, stdout=far, stderr=far, env={"TERM": "dumb"}, start_new_session=True)
        os.close(far)
        self.shown = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()  # what is read may end within a character

    def type(self, text: str) -> None:
        os.write(self._near, text.encode())

    def wait_for(self, text: str) -> None:
        while text not in self.shown:
            assert select.select([self._near], [], [], 30)[0], self.shown
            self.shown += self._decoder.decode(os.read(self._near, 4096))
        self.shown = self.shown.partition(text)[2]

    def close(self) -> int:
        code = self.process.wait(30)
        os.close(self._near)
        return code


def test_conversation(server: FakeServer) -> None:
    terminal = Terminal("chat", "--server", server.target, "--system", "be brief", "--max-tokens", "2")
    terminal.wait_for("> ")
    terminal.type("one\n")
    terminal.wait_for(text_of("one", 2))
    terminal.wait_for("200.0 tokens/s")
    terminal.wait_for("> ")
    terminal.type("two\n")
    terminal.wait_for(text_of("two", 2))
    terminal.wait_for("> ")
    terminal.type("/reset\n/system be long\n/help\n")
    terminal.wait_for("leaves")
    terminal.type("three\n")
    terminal.wait_for(text_of("three", 2))
    terminal.wait_for("> ")
    server.on_event = lambda request_id, index: (index > 1 and server.cancelled[request_id].wait(30)) and None
    terminal.type("stop\n")
    terminal.wait_for(text_of("stop", 1))
    os.kill(terminal.process.pid, signal.SIGINT)
    terminal.wait_for("stopped")
    terminal.wait_for("> ")
    terminal.type("/exit\n")
    assert terminal.close() == 0
    asked = [[message.content for message in request.messages] for request in server.calls["StreamChat"]]
    assert asked[0] == ["be brief", "one"]
    assert asked[1] == ["be brief", "one", text_of("one", 2), "two"]
    assert asked[2] == ["be long", "three"]
    assert len(server.calls["CancelGenerate"]) == 1


def test_control_characters_do_not_reach_a_terminal(server: FakeServer) -> None:
    terminal = Terminal("generate", "a\033[2J", "--server", server.target, "--max-tokens", "1")
    terminal.wait_for(" a\ufffd[2J0")
    terminal.wait_for("stop")
    assert terminal.close() == 0
