"""Compute with ASE calculators in processes of their own, with this Python or with that of another environment.

Needs   a place, ``module:function`` or ``file.py:function``, that makes an ASE calculator; for a teacher with an
        environment of its own, ``daskpipe env create NAME``.
Makes   a `daskpipe.potentials.Potential` whose process is replaced when it crashes, hangs or leaks.
Entry   `daskpipe.potentials.isolated.process.isolate_calculator`; `daskpipe.potentials.isolated.environments`.
Memory  that of the teacher, in a process beside each worker.
"""
