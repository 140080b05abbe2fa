from __future__ import annotations

import contextlib
import warnings

# authlib, which the Weaviate client imports, warns about httpx while it is imported, whatever the filters say.
with warnings.catch_warnings(record=True), contextlib.suppress(ImportError):
    import weaviate  # noqa: F401
