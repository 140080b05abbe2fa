"""The models that the server knows: ids, sources and states."""
