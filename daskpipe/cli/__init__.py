"""Command line: one module a group of verbs, each verb a thin call of the library.

Needs: the words that a user types.
Makes: a table or lines for people, one JSON object with ``--json``, and an exit code.
Entry: `main.main`, the console script ``daskpipe``.
"""
