"""Interceptors of the chain: what is done once per call on every wire."""
