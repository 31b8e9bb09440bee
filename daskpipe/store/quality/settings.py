"""Define the settings of the quality gate: the limit of each check of `daskpipe.store.quality.check_table.CHECKS`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, create_model, field_validator

from daskpipe.core.errors import describe_unknown
from daskpipe.core.validation import FiniteModel
from daskpipe.store.quality.check_table import CHECKS, Profile
from daskpipe.store.quality.limits import CellLimits, DuplicateLimits, EnergyLimits, Shares, SizeLimits

__all__ = [
    "CHECKS", "CellLimits", "DuplicateLimits", "EnergyLimits", "Profile", "Quality", "Shares", "SizeLimits",
]  # fmt: skip


class _ProfileSettings(FiniteModel):
    profile: Profile = Field(
        default="auto",
        description="Where the data comes from: run, import, molecules, or reference (isolated atoms, dimer curves, "
        "pressed and stretched cells, sets of others); it decides which checks only warn. auto derives it from the "
        "data",
    )
    warn: tuple[str, ...] | None = Field(
        default=None, description="Checks that warn where they would fail; null: those of the profile"
    )

    @field_validator("warn")
    @classmethod
    def _check_names(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in names or ():
            if name not in CHECKS:
                raise ValueError(describe_unknown("check", name, list(CHECKS)))
        return names


if TYPE_CHECKING:
    _Limits = _ProfileSettings
else:
    _Limits = create_model(
        "_Limits",
        __base__=_ProfileSettings,
        **{name: (entry.limit_type, entry.setting) for name, entry in CHECKS.items()},
    )


class Quality(_Limits):
    """Settings of the quality gate: one limit per check; null turns a check off."""

    def limit_of(self, name: str) -> Any:
        """Return the limit of a check; ``None`` if it is turned off."""
        return getattr(self, name)
