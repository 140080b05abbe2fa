"""The log's two forms."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from vorta_server.observability.log import set_up_logging


@pytest.fixture
def root_logger():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:], root.level = handlers, level


def test_text(root_logger, capsys):
    set_up_logging(level="INFO", format="text")
    logging.getLogger("vorta.test").info("hello %s", "you")
    logging.getLogger("vorta.test").debug("not this")
    text = capsys.readouterr().err
    assert text.endswith("INFO vorta.test hello you\n")
    assert "not this" not in text


def test_text_with_a_traceback(root_logger, capsys):
    set_up_logging(level="INFO", format="text")
    try:
        raise ValueError("bad")
    except ValueError:
        logging.getLogger("vorta.test").exception("it %s", "failed")
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.endswith("ERROR vorta.test it failed")
    assert rest[0].startswith("Traceback")
    assert rest[-1] == "ValueError: bad"


def test_json_lines_with_tracebacks(root_logger, capsys):
    set_up_logging(level="DEBUG", format="json")
    try:
        raise ValueError("bad")
    except ValueError:
        logging.getLogger("vorta.test").exception("it %s", "failed")
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["logger"], entry["message"]) == ("ERROR", "vorta.test", "it failed")
    assert "ValueError: bad" in entry["traceback"]
    assert entry["time"].endswith("Z")


def test_lines_of_an_event_loop_are_written_soon_and_in_order(root_logger, capsys):
    set_up_logging(level="INFO", format="text")
    logger = logging.getLogger("vorta.test")

    async def log() -> list[str]:
        logger.info("one")
        logger.info("two")
        seen = [capsys.readouterr().err]
        logger.warning("three")
        seen.append(capsys.readouterr().err)
        logger.info("four")
        await asyncio.to_thread(logger.info, "five")
        seen.append(capsys.readouterr().err)
        logger.info("six")
        await asyncio.sleep(0.2)
        seen.append(capsys.readouterr().err)
        logger.info("seven")
        return seen

    parts = [[line.split()[-1] for line in part.splitlines()] for part in asyncio.run(log())]
    assert parts == [[], ["one", "two", "three"], ["four", "five"], ["six"]]
    asyncio.run(asyncio.sleep(0))
    logging.getLogger().handlers[0].flush()
    assert capsys.readouterr().err.split()[-1] == "seven"
