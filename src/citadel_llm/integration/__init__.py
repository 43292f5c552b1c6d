"""The peers of the LLM server: its database, its vector store and its metrics server."""
