"""The process that tries grammars: it answers, and whoever asks goes on when it does not."""

from __future__ import annotations

import os
import signal

import pytest

from vorta.errors import InvalidArgument
from vorta_server.tokenization import grammar_check
from vorta_server.tokenization.grammar_check import GrammarChecker
from vorta_server.tokenization.grammar_text import GrammarText

REGEX = GrammarText(notation="regex", text="[a-z]+", field="response_format.regex")


def test_a_process_that_gets_no_time_is_given_up_and_started_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    checker = GrammarChecker()
    assert "a-z" in checker.check(REGEX)
    assert checker._process is not None
    os.kill(checker._process.pid, signal.SIGSTOP)
    monkeypatch.setattr(grammar_check, "_MAX_WAIT_S", 0.1)
    with pytest.raises(InvalidArgument) as caught:
        checker.check(REGEX)
    assert caught.value.field == "response_format.regex"
    monkeypatch.undo()
    assert "a-z" in checker.check(REGEX)
    checker.close()
