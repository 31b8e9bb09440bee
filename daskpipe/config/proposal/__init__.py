"""Proposal of a config for what a user wants to study: what ``daskpipe new`` calls.

Needs: chemical formulas, SMILES or files of structures. Makes: a short commented YAML file that ``daskpipe run`` takes.
Entry function: `propose_config`. `systems` reads what was typed, `kinds` makes the sources, `conditions` chooses
potential, teacher, temperatures and cutoff, each with its reason, and `writing` puts them into YAML.
"""

from __future__ import annotations

from daskpipe.config.proposal.kinds import KINDS
from daskpipe.config.proposal.writing import Proposal, propose_config

__all__ = ["KINDS", "Proposal", "propose_config"]
