"""Contract kits that authors of plugins run on what they register, one file a kit.

A kit raises AssertionError with the promise that was not kept. It needs no test framework.

>>> from daskpipe.stages.describe.soap import SOAP
>>> check_descriptor(SOAP, kinds=("bulk",))  # doctest: +SKIP
"""

from daskpipe.testing.descriptors import check_descriptor
from daskpipe.testing.potentials import check_potential
from daskpipe.testing.selectors import check_selector
from daskpipe.testing.structures import Kind

__all__ = ["Kind", "check_descriptor", "check_potential", "check_selector"]
