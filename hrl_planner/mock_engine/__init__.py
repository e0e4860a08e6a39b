"""A mock engine: an OpenAI server whose timing follows a worker profile."""
