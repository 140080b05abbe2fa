"""The proto3 JSON mapping, compiled from descriptors."""
