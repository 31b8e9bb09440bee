"""Explore: relaxation, molecular dynamics and Monte Carlo from seed structures, many in one batch.

Needs: seeds as `ase.Atoms` whose ``info`` holds a ``condition`` (temperature, pressure, replica); a potential.
Makes: frames as a dataset (positions rounded to float32, lineage, bath, disagreement of a committee); stops of
    trajectories with the crashed and the last sane geometry; counts of trial moves.
Entry: `daskpipe.stages.explore.stage.explore` (Bag of seeds -> one payload a partition).
Memory per partition: the model's for the batch in flight, plus 13 bytes x atoms x frames.
Placement: a worker that offers ``GPU`` where there is one (one thread), else any.

A `walkers.Walker` is one seed under one condition. `dynamics.Flight` brings the walkers of a unit to their ends, as
many at once as `packing.Room` allows; `batch.Batch` holds those in flight and `integrate.step` moves them;
`relaxation.Relaxation` goes before walkers that ask for it, moved by `fire.fire_step`. With LJ, EMT
and xTB in float64 on a CPU a trajectory is the same to the last bit in any batch; with MACE ``batch_size`` and
``batch_atoms`` decide last bits, and in time its course. Kills and resumes never do.
"""
