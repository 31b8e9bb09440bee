"""Contract kits for authors of plugins, one file a kit.

Needs: a generator, the factory of a descriptor or selector, or the name of a potential.
Makes: an AssertionError that names the promise that was not kept. No test framework is needed.
Entry: `check_generator`, `check_potential`, `check_descriptor`, `check_selector`.
"""

from daskpipe.testing.descriptors import check_descriptor
from daskpipe.testing.generators import check_generator
from daskpipe.testing.potentials import check_potential
from daskpipe.testing.selectors import check_selector
from daskpipe.testing.structures import Kind

__all__ = ["Kind", "check_descriptor", "check_generator", "check_potential", "check_selector"]
