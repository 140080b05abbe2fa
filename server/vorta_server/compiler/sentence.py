"""What sentence-transformers writes beside a checkpoint: how hidden states become one vector, prompts, lengths."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vorta_server.compiler.checkpoint import (
    MODULES_FILE,
    Checkpoint,
    CheckpointError,
    Float32Array,
    read_json_object,
    read_small_tensors,
)
from vorta_server.compiler.config import ConfigReader

__all__ = ["DenseLayer", "SentenceSpec", "read_max_tokens", "read_sentence"]

_POOLINGS = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
# The flags that older versions wrote, one for each kind.
_FLAG = "pooling_mode_"
_FLAG_POOLINGS = {"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "lasttoken"}

# Tokenizers that know no limit write a number of this size or larger.
_NO_LIMIT = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseLayer:
    """A linear layer behind the pooling: weight [out, in], bias [out] or None, and perhaps tanh.

    It is computed for every token, before the pooling, which is the same: without an activation the mean of linear
    images is the image of the mean, and with one the pooling only takes a token.
    """

    name: str
    weight: Float32Array
    bias: Float32Array | None
    has_tanh: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceSpec:
    """How a text becomes a vector by default.

    Attributes:
        pooling: "mean", "cls" or "last".
        normalize: Whether vectors are scaled to length 1.
        prompts: Texts put before an input, by name.
        default_prompt: Name of the one used when none is asked for; empty for none.
    """

    pooling: str
    normalize: bool = False
    prompts: dict[str, str]
    default_prompt: str
    dense: tuple[DenseLayer, ...] = ()


def read_sentence(checkpoint: Checkpoint, default_pooling: str) -> SentenceSpec:
    """Reads modules.json, the modules' configurations and config_sentence_transformers.json.

    Without modules.json vectors are pooled by `default_pooling` and not scaled, as sentence-transformers does then.

    Raises CheckpointError naming the file and the module or field that is wrong or not supported.
    """
    folder = checkpoint.folder
    prompts, default_prompt = _read_prompts(folder)
    if not (folder / MODULES_FILE).is_file():
        return SentenceSpec(pooling=default_pooling, prompts=prompts, default_prompt=default_prompt)
    pooling, normalize, dense = "", False, list[DenseLayer]()
    for index, (kind, path) in enumerate(_read_modules(folder / MODULES_FILE)):
        match kind:
            case "Transformer" if index == 0:
                if path != folder:
                    raise _module_error(folder, f"keeps the transformer in {path.name}, not beside itself")
            case "Pooling" if index == 1:
                pooling = _read_pooling(path / "config.json", has_prompts=any(prompts.values()))
            case "Dense" if pooling and not normalize:
                dense.append(_read_dense(path, pooling))
            case "Normalize" if pooling:
                normalize = True
            case _:
                raise _module_error(folder, f"has the module {kind} in place {index}, which is not supported")
    if not pooling:
        raise _module_error(folder, "has no module Pooling")
    return SentenceSpec(
        pooling=pooling, normalize=normalize, prompts=prompts, default_prompt=default_prompt, dense=tuple(dense)
    )


def read_max_tokens(checkpoint: Checkpoint, max_tokens: int) -> int:
    """The tokens that an input may have: what sentence-transformers' or else the tokenizer's configuration says, up to
    what the model has positions for."""
    for file in sorted(checkpoint.folder.glob("sentence_*_config.json")):
        config = ConfigReader(read_json_object(file), file)
        if config.has("max_seq_length"):
            return min(max_tokens, config.positive_int("max_seq_length"))
    file = checkpoint.folder / "tokenizer_config.json"
    limit = read_json_object(file).get("model_max_length") if file.is_file() else None
    if type(limit) is int and 1 <= limit < _NO_LIMIT:
        return min(max_tokens, limit)
    return max_tokens


def _module_error(folder: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{MODULES_FILE} {what}", field=MODULES_FILE, path=folder / MODULES_FILE)


def _read_modules(file: Path) -> list[tuple[str, Path]]:
    """Each module's class and folder, in order."""
    try:
        modules = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}", field=MODULES_FILE, path=file) from error
    if not isinstance(modules, list) or not modules:
        raise _module_error(file.parent, "must list modules")
    return [_read_module(module, file) for module in modules]


def _read_module(module: Any, file: Path) -> tuple[str, Path]:
    kind = module.get("type") if isinstance(module, dict) else None
    path = module.get("path", "") if isinstance(module, dict) else None
    if not isinstance(kind, str) or not isinstance(path, str) or (path and Path(path).name != path):
        raise _module_error(file.parent, f"has the broken entry {module!r}")
    return kind.rsplit(".", 1)[-1], file.parent / path if path else file.parent


def _read_prompts(folder: Path) -> tuple[dict[str, str], str]:
    file = folder / "config_sentence_transformers.json"
    if not file.is_file():
        return {}, ""
    config = ConfigReader(read_json_object(file), file)
    raw = config.raw("prompts") or {}
    if not isinstance(raw, dict) or not all(text is None or isinstance(text, str) for text in raw.values()):
        raise config.error("prompts", f"must map names to texts, not {raw!r}")
    prompts = {name: text or "" for name, text in raw.items()}
    default = config.raw("default_prompt_name")
    if default is not None and (not isinstance(default, str) or default not in prompts):
        raise config.error("default_prompt_name", f"is {default!r}, which is none of {sorted(prompts)}")
    return prompts, default or ""


def _read_pooling(file: Path, *, has_prompts: bool) -> str:
    config = ConfigReader(read_json_object(file), file)
    modes = config.raw("pooling_mode")
    if modes is None:
        raw = read_json_object(file)
        modes = [
            _FLAG_POOLINGS.get(name.removeprefix(_FLAG), name)
            for name, value in raw.items()
            if name.startswith(_FLAG) and value
        ]
    wanted = [modes] if isinstance(modes, str) else modes
    if not isinstance(wanted, list) or len(wanted) != 1 or wanted[0] not in _POOLINGS:
        raise config.error("pooling_mode", f"is {modes!r}; supported is one of {', '.join(_POOLINGS)}")
    if has_prompts and not config.flag("include_prompt", True):
        raise config.error("include_prompt", "is false, which is not supported")
    return _POOLINGS[wanted[0]]


def _read_dense(folder: Path, pooling: str) -> DenseLayer:
    file = folder / "config.json"
    config = ConfigReader(read_json_object(file), file)
    name = str(config.raw("activation_function")).rsplit(".", 1)[-1]
    if name not in ("Identity", "Tanh") or (name == "Tanh" and pooling == "mean"):
        raise config.error("activation_function", f"is {name} behind the pooling {pooling}, which is not supported")
    shape = (config.positive_int("out_features"), config.positive_int("in_features"))
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise CheckpointError(f"{weights} is missing (a pickle is not read)", field=folder.name, path=weights)
    tensors = read_small_tensors(weights)
    weight, bias = tensors.get("linear.weight"), tensors.get("linear.bias")
    if weight is None or weight.shape != shape or (bias is not None and bias.shape != shape[:1]):
        raise CheckpointError(
            f"{weights}: linear.weight and linear.bias do not fit {list(shape)}", field="linear.weight", path=weights
        )
    return DenseLayer(name=folder.name, weight=weight, bias=bias, has_tanh=name == "Tanh")
