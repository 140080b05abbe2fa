"""The OpenAI API over the contract: chat completions, completions, embeddings, models."""
