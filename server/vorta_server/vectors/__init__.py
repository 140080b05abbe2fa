"""Vector collections: SQLite is the truth, FAISS the index; or a Weaviate cluster behind the same operations."""
