"""Compose a config with Hydra, validate it with pydantic, and explain what is wrong with it."""
