"""`vorta pull`: downloads a model from the Hugging Face hub into the data folder.

A model appears under its name complete or not at all: it is downloaded into a folder beside its place, where an
interrupted download is taken up again, and then renamed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from vorta.cli.output import print_json
from vorta.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Unavailable, VortaError

__all__ = ["add_pull", "pull"]

# What the compiler reads, and the licence. The hub's other formats (PyTorch pickles, GGUF) are never fetched.
_WANTED = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "LICENSE*",
)
_REQUIRED = ("config.json", "tokenizer.json", "*.safetensors")


def add_pull(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `pull` to the command line."""
    parser = subparsers.add_parser(
        "pull",
        help="download a model from the Hugging Face hub",
        description="Download a model into DIR/models, where `vorta serve --model ID` and `vorta compile ID` find it.",
    )
    parser.add_argument("model", help="its id on the hub, such as Qwen/Qwen2.5-0.5B-Instruct")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit; default: main")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="default: that of `vorta serve`")
    parser.add_argument("--token", metavar="TOKEN", help="for private and gated models")
    parser.add_argument("--endpoint", metavar="URL", help="another hub than huggingface.co")
    parser.add_argument("--force", action="store_true", help="download anew and replace what is there")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=run_pull)


def run_pull(arguments: argparse.Namespace) -> int:
    """Pulls; returns the exit code. Raises VortaError."""
    from vorta_server.commands.data_dir import find_data_dir

    folder, is_new = pull(
        arguments.model,
        data_dir=find_data_dir(arguments.data_dir),
        revision=arguments.revision,
        token=arguments.token,
        endpoint=arguments.endpoint,
        force=arguments.force,
        show_progress=sys.stderr.isatty() and not arguments.json,
    )
    num_bytes = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    if arguments.json:
        print_json({"model": arguments.model, "path": str(folder), "size_bytes": num_bytes, "is_new": is_new})
    else:
        state = "" if is_new else "already here (--force downloads it anew): "
        sys.stdout.write(f"{state}{folder}, {num_bytes / 1e6:.1f} MB\n")
    return 0


def pull(
    model: str,
    *,
    data_dir: Path,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    force: bool = False,
    show_progress: bool = False,
) -> tuple[Path, bool]:
    """Downloads a model to `data_dir/models`; returns its folder and whether it was downloaded now.

    Args:
        endpoint: The hub's URL; None for huggingface.co.
        force: Download even when the model is there, and replace it.

    Raises:
        InvalidArgument: `model` is no hub id.
        NotFound: The hub has no such model or revision.
        PermissionDenied: The model is gated, or private and the token does not open it.
        FailedPrecondition: The model has no safetensors, config.json or tokenizer.json.
        Unavailable: The hub could not be reached, or failed.
    """
    name = model.replace("/", "--")
    if not model or model.startswith(".") or model.count("/") > 1 or "\\" in model or ".." in model:
        raise InvalidArgument(f"{model!r} is not a hub id such as owner/name", field="model")
    models = data_dir / "models"
    folder = models / name
    if folder.is_dir() and not force:
        return folder, False
    partial = models / ".partial" / name
    partial.mkdir(parents=True, exist_ok=True)
    _download(model, partial, revision, token, endpoint, show_progress)
    for pattern in _REQUIRED:
        if not any(partial.glob(pattern)):
            shutil.rmtree(partial)
            raise FailedPrecondition(
                f"{model} has no {pattern}, so it cannot be served",
                reason="CHECKPOINT_INVALID",
                metadata={"model": model},
                field=pattern,
            )
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # the hub client's notes about the download
    _replace(folder, partial)
    return folder, True


def _download(
    model: str, folder: Path, revision: str | None, token: str | None, endpoint: str | None, show_progress: bool
) -> None:
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined] # of the HTTP client that it uses
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    (enable_progress_bars if show_progress else disable_progress_bars)()
    try:
        snapshot_download(
            model,
            revision=revision,
            local_dir=folder,
            cache_dir=folder / ".cache",
            token=token,
            endpoint=endpoint,
            allow_patterns=list(_WANTED),
            ignore_patterns=["*/*"],  # other formats of the same weights live in folders
        )
    except errors.HFValidationError as exc:
        raise InvalidArgument(f"{model!r} is not a hub id: {exc}", field="model") from exc
    except errors.GatedRepoError as exc:
        raise PermissionDenied(
            f"{model} is gated: accept its terms on the hub and pass --token", metadata={"model": model}
        ) from exc
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as exc:
        raise NotFound(
            f"the hub has no {model}" + (f" at revision {revision}" if revision else "") + ", or not for this token",
            metadata={"model": model},
        ) from exc
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, HTTPError, ConnectionError) as exc:
        raise _unreachable(exc) from exc


def _unreachable(exc: Exception) -> VortaError:
    cause = exc.__cause__ or exc
    return Unavailable(f"the hub did not answer: {cause}", reason="CONNECTION_FAILED", retry_delay_s=5.0)


def _replace(folder: Path, new: Path) -> None:
    """Puts a folder into another's place; the old one is deleted last."""
    old = new.with_name(new.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
