"""Config: compose it with Hydra, validate it with pydantic, and explain what is wrong with it.

Needs: the name of a preset or a YAML file, and overrides in Hydra's grammar.
Makes: a `models.Config`, frozen, with absolute paths; a ConfigError that names the key, the value and what to type.
Entry: `load.load_config`.
"""
