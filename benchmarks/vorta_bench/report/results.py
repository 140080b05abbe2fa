"""What the stages' JSON files say, by kind of figure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vorta_bench.h200.ceilings import figures_to_ceilings
from vorta_bench.h200.floor import Ceilings, decode_floor_s, prefill_floor_s
from vorta_bench.h200.model_shape import SHAPES
from vorta_bench.h200.recording import DRY_RUN

__all__ = ["Baseline", "Batch", "Decode", "Prefill", "Results", "Streams"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decode:
    """Steps of the bare runner; `floor_s` is None where the ceilings are not known."""

    model: str
    precision: str
    mode: str
    batch: int
    context: int
    step_s: float
    tokens_per_joule: float | None
    floor_s: float | None

    @property
    def tokens_per_s(self) -> float:
        """Over all sequences."""
        return self.batch / self.step_s

    @property
    def share(self) -> float | None:
        """The floor's time over the step's."""
        return None if self.floor_s is None else self.floor_s / self.step_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefill:
    """One prompt by the bare runner."""

    model: str
    precision: str
    num_tokens: int
    seconds: float
    floor_s: float | None

    @property
    def share(self) -> float | None:
        """The floor's time over the prompt's."""
        return None if self.floor_s is None else self.floor_s / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """Decode by another engine."""

    model: str
    baseline: str
    batch: int
    context: int
    tokens_per_s: float
    first_s: float
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Whole requests in one batch by another engine."""

    model: str
    baseline: str
    prompt: int
    output: int
    batch: int
    tokens_per_s: float
    tokens_per_joule: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """A number of streams over gRPC; `figure` as in `h200.wire.summarise_requests`."""

    model: str
    precision: str
    prompt: int
    output: int
    streams: int
    figure: dict[str, Any]


class Results:
    """A run.

    Attributes:
        stages: Each stage's whole file by its name.
        ceilings: None where they were not measured.
    """

    def __init__(self, stages: dict[str, dict[str, Any]]) -> None:
        self.stages = stages
        self.ceilings: Ceilings | None = figures_to_ceilings(self.figures("ceilings"))
        self.decodes = list(self._decodes())
        self.prefills = list(self._prefills())
        self.baselines = list(self._baselines())
        self.batches = list(self._batches())
        self.streams = list(self._streams())

    @classmethod
    def read(cls, folder: Path) -> Results:
        """All files of a folder that are a stage's."""
        stages = {}
        for path in sorted(folder.glob("*.json")):
            document = json.loads(path.read_text())
            if isinstance(document, dict) and {"stage", "figures"} <= document.keys():
                stages[document["stage"]] = document
        return cls(stages)

    @property
    def dry_stages(self) -> list[str]:
        """Stages that were run without a GPU."""
        return [name for name, stage in self.stages.items() if stage["device"] == DRY_RUN]

    @property
    def devices(self) -> list[str]:
        """What measured, each once."""
        return list(dict.fromkeys(str(stage["device"]) for stage in self.stages.values()))

    @property
    def models(self) -> list[str]:
        """Those with any figure, as `SHAPES` orders them."""
        kinds: list[Sequence[Decode | Prefill | Baseline | Batch | Streams]] = [self.decodes, self.prefills]
        kinds += [self.baselines, self.batches, self.streams]
        found = {one.model for kind in kinds for one in kind}
        return [model for model in SHAPES if model in found]

    def figures(self, stage: str) -> dict[str, Any]:
        """A stage's figures by key; none where it was not run."""
        return dict(self.stages.get(stage, {}).get("figures", {}))

    def figure(self, stage: str, key: str) -> dict[str, Any] | None:
        """One figure."""
        found = self.figures(stage).get(key)
        return None if found is None else dict(found)

    def missing(self) -> Iterator[tuple[str, str, str, bool]]:
        """Stage, key and reason of whatever has no figure; True where it was tried and failed."""
        for name, stage in self.stages.items():
            for key, reason in stage["failures"].items():
                yield name, key, reason, True
            for key, reason in stage["skipped"].items():
                yield name, key, reason, False

    def _decodes(self) -> Iterator[Decode]:
        for key, figure in self.figures("engine").items():
            model, precision, mode, work = key.split("/")
            if not work.startswith("decode"):
                continue
            floor_s = None
            if self.ceilings is not None:
                floor_s = decode_floor_s(
                    SHAPES[model], precision, self.ceilings, batch=figure["batch"], context=figure["mean_context"]
                )
            yield Decode(
                model=model,
                precision=precision,
                mode=mode,
                batch=figure["batch"],
                context=figure["context"],
                step_s=figure["step_s"],
                tokens_per_joule=figure["tokens_per_joule"],
                floor_s=floor_s,
            )

    def _prefills(self) -> Iterator[Prefill]:
        for key, figure in self.figures("engine").items():
            model, precision, _, work = key.split("/")
            if not work.startswith("prefill"):
                continue
            num_tokens, floor_s = figure["num_tokens"], None
            if self.ceilings is not None:
                floor_s = prefill_floor_s(SHAPES[model], precision, self.ceilings, num_tokens=num_tokens)
            yield Prefill(
                model=model, precision=precision, num_tokens=num_tokens, seconds=figure["seconds"], floor_s=floor_s
            )

    def _baselines(self) -> Iterator[Baseline]:
        for key, figure in self.figures("baselines").items():
            model, baseline, work = key.split("/")
            if work.startswith("decode"):
                yield Baseline(
                    model=model,
                    baseline=baseline,
                    batch=figure["batch"],
                    context=figure["context"],
                    tokens_per_s=figure["tokens_per_s"],
                    first_s=figure["first_s"],
                    version=figure["version"],
                )

    def _batches(self) -> Iterator[Batch]:
        for key, figure in self.figures("baselines").items():
            model, baseline, work = key.split("/")
            if not work.startswith("decode"):
                yield Batch(
                    model=model,
                    baseline=baseline,
                    prompt=figure["prompt_tokens"],
                    output=figure["output_tokens"],
                    batch=figure["batch"],
                    tokens_per_s=figure["output_tokens_per_s"],
                    tokens_per_joule=figure["tokens_per_joule"],
                )

    def _streams(self) -> Iterator[Streams]:
        for key, figure in self.figures("wire").items():
            model, precision, work = key.split("/")
            if "+" in work:
                yield Streams(
                    model=model,
                    precision=precision,
                    prompt=figure["prompt_tokens"],
                    output=figure["output_tokens_each"],
                    streams=figure["streams"],
                    figure=figure,
                )
