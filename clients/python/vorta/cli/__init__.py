"""The command `vorta`. One file per command; `main` puts them together. The SDK never imports this package."""

from vorta.cli.main import main

__all__ = ["main"]
