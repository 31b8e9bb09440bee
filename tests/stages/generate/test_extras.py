"""Packages that only some generators need."""

from __future__ import annotations

import pytest

from daskpipe.core.errors import ConfigError
from daskpipe.stages.generate.extras import import_extra


def test_missing_package_names_the_extra() -> None:
    with pytest.raises(ConfigError, match=r"needs no_such_package; type: pip install 'daskpipe\[generate\]'"):
        import_extra("no_such_package.part")


def test_module_of_a_package() -> None:
    assert import_extra("json.decoder").JSONDecodeError
