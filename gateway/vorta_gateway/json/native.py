"""The codec's native half: a Python module in C++ (`csrc`), built for this interpreter on first use.

It turns wire bytes into JSON and JSON into wire bytes by tables that are made here from descriptors. It does the forms
that are common and right; for everything else, errors among it, it says so, and the codec in Python does the whole once
more. So that one defines the mapping, and is what remains where there is no C++ compiler, or no Python.h.

The library is kept by `vorta_kernels.build`. While it is being built, in a thread, the codec in Python does the work.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import platform
import sysconfig
import threading
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from typing import Any, Protocol

import orjson
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from vorta_gateway.json.descriptors import is_map, message_of
from vorta_kernels.build import BuildError, compiler, kept, run_compiler

__all__ = ["BuildError", "Mapping", "build", "load", "loaded", "make_mapping"]

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "csrc"
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-math-errno")
_BUILD_TIMEOUT_S = 300

_F = FieldDescriptor
_PLAIN, _UNSUPPORTED, _WRAPPER = 0, 1, 6
_FORMS = {
    "google.protobuf.Any": _UNSUPPORTED,
    "google.protobuf.Empty": 2,
    "google.protobuf.Timestamp": 3,
    "google.protobuf.Duration": 4,
    "google.protobuf.FieldMask": 5,
    "google.protobuf.Struct": 7,
    "google.protobuf.Value": 8,
    "google.protobuf.ListValue": 9,
    **{
        f"google.protobuf.{kind}Value": _WRAPPER
        for kind in ("Bool", "Int32", "Int64", "UInt32", "UInt64", "Float", "Double", "String", "Bytes")
    },
}
_MAX_FIELDS = 256
_NULL = "google.protobuf.NullValue"


class Mapping(Protocol):
    """One message type, and how it is written and read."""

    def read(self, data: bytes) -> bytes | None:
        """Wire bytes of a JSON text; None if it takes the codec in Python."""
        ...

    def write(self, data: bytes) -> bytes | None:
        """JSON text of wire bytes; None if it takes the codec in Python."""
        ...


# Building and loading


@functools.cache
def load() -> Any:
    """The module, built if need be (some seconds); None, with a line in the log, where that does not go."""
    try:
        path = _path()
        if not path.exists():
            build(path)
        return load_file(path)
    except (BuildError, ImportError, OSError) as error:
        logger.warning("without the native JSON codec, on the slower one in Python: %s", error)
        return None


class _Background:
    """The module, as far as it is there."""

    def __init__(self) -> None:
        self.module: Any = None
        self.is_done = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def ask(self) -> None:
        """Loads the module if it has been built, and begins to build it if not."""
        with self._lock:
            if self._thread is not None or self.is_done:
                return
            if _is_built():
                self._load()
            else:
                self._thread = threading.Thread(target=self._load, name="vorta-json-build", daemon=True)
                self._thread.start()

    def _load(self) -> None:
        self.module = load()
        self.is_done = True


_background = _Background()


def loaded() -> tuple[Any, bool]:
    """The module, or None, and whether that is final: while it is being built it is not. Never waits."""
    if not _background.is_done:
        _background.ask()
    return _background.module, _background.is_done


def build(path: Path, flags: tuple[str, ...] = FLAGS) -> None:
    """Builds the module. Raises BuildError: there is no compiler or no Python.h, or the compiler failed."""
    program = compiler()
    if program is None:
        raise BuildError("no C++ compiler is installed")
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").exists():
        raise BuildError("Python.h is not installed")
    sources = sorted(str(file) for file in SOURCES.glob("*.cpp"))
    run_compiler([program, *flags, f"-I{include}", *sources], path, timeout_s=_BUILD_TIMEOUT_S)


def load_file(path: Path) -> Any:
    """The module of a library that was built. Raises ImportError."""
    loader = ExtensionFileLoader("vorta_json", str(path))
    spec = importlib.util.spec_from_loader("vorta_json", loader)
    if spec is None:
        raise ImportError(f"{path} is no module")
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _is_built() -> bool:
    try:
        return _path().exists()
    except OSError:
        return False


@functools.cache
def _path() -> Path:
    parts = (*FLAGS, platform.machine(), sysconfig.get_config_var("SOABI") or platform.python_version())
    return kept("gateway", "vorta_json", parts, (f for f in sorted(SOURCES.iterdir()) if f.suffix in (".cpp", ".hpp")))


# Tables


def make_mapping(
    module: Any,
    descriptor: Descriptor,
    *,
    camel_case: bool = False,
    always_print: bool = False,
    enum_numbers: bool = False,
    ignore_unknown: bool = False,
) -> Mapping:
    """How the native codec writes and reads a message type. The options are those of `JsonOptions`."""
    tables = _Tables(camel_case=camel_case)
    tables.message(descriptor)
    mapping: Mapping = module.Mapping(tables.messages, tables.enums, always_print, enum_numbers, ignore_unknown)
    return mapping


class _Tables:
    """A message type and all that it contains, as lists that name each other by index."""

    def __init__(self, *, camel_case: bool) -> None:
        self._camel_case = camel_case
        self._indices: dict[Descriptor, int] = {}
        self._enum_indices: dict[EnumDescriptor, int] = {}
        self.messages: list[Any] = []
        self.enums: list[Any] = []

    def message(self, descriptor: Descriptor) -> int:
        """The index of a type; added if it is new."""
        index = self._indices.get(descriptor)
        if index is None:
            index = self._indices[descriptor] = len(self.messages)
            self.messages.append(None)  # its place: the type may contain itself
            self.messages[index] = self._message(descriptor)
        return index

    def _message(self, descriptor: Descriptor) -> tuple[int, list[tuple[str, int]], list[Any]]:
        form = _FORMS.get(descriptor.full_name, _PLAIN)
        if len(descriptor.fields) > _MAX_FIELDS:
            form = _UNSUPPORTED
        if form == _UNSUPPORTED:
            return form, [], []
        fields = sorted(descriptor.fields, key=lambda field: field.number)
        indices = {field.number: index for index, field in enumerate(fields)}
        names: dict[str, int] = {}
        for field in descriptor.fields:  # of two fields with one name, the later has it
            names[field.name] = names[field.json_name] = indices[field.number]
        oneofs = {oneof.name: index for index, oneof in enumerate(descriptor.oneofs) if len(oneof.fields) > 1}
        return form, list(names.items()), [self._field(field, oneofs) for field in fields]

    def _field(self, field: FieldDescriptor, oneofs: dict[str, int]) -> tuple[Any, ...]:
        name = field.json_name if self._camel_case else field.name
        message = field.message_type
        enum = field.enum_type
        takes_null = not field.is_repeated and (
            (message is not None and message.full_name == "google.protobuf.Value")
            or (enum is not None and enum.full_name == _NULL)
        )
        oneof = field.containing_oneof
        return (
            field.number,
            field.type,
            orjson.dumps(name).decode() + ":",
            field.is_repeated,
            bool(field.is_repeated and is_map(field)),
            bool(field.is_repeated and field.is_packed),
            not field.is_repeated and field.has_presence,
            takes_null,
            -1 if oneof is None else oneofs.get(oneof.name, -1),
            -1 if message is None else self.message(message_of(field)),
            -1 if enum is None else self._enum(enum),
        )

    def _enum(self, enum: EnumDescriptor) -> int:
        index = self._enum_indices.get(enum)
        if index is None:
            index = self._enum_indices[enum] = len(self.enums)
            names = [(value.name, value.number) for value in enum.values]
            texts = [
                (orjson.dumps(value.name).decode(), number) for number, value in sorted(enum.values_by_number.items())
            ]
            self.enums.append((enum.is_closed, enum.full_name == _NULL, names, texts))
        return index


if __name__ == "__main__":  # `python -m vorta_gateway.json.native` builds the module and prints its path
    if load() is None:
        raise SystemExit(1)
    print(_path())  # noqa: T201
