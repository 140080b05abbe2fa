"""Embeddings and rerank scores: batching, the encoder behind it, pooling. Knows no wire and no model format."""
