"""What is said when a package of the extra `ingest` is not installed."""

from __future__ import annotations


class MissingPackage(Exception):
    """A package that this input needs is not installed."""

    def __init__(self, package: str) -> None:
        super().__init__(f'`vorta ingest` needs {package} for this: pip install "vorta[ingest]"')
