"""A server that speaks Weaviate's wire, gRPC and REST, over dictionaries in memory.

It proves what the adapter sends and reads, and nothing about a real Weaviate.
"""
