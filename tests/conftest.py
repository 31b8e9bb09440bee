"""Makes what stands beside this file importable in every test: ``reference``, ``chunking``."""
