"""Explore: relaxation, molecular dynamics and Monte Carlo from seed structures, many systems in one batch.

Needs: seeds as `ase.Atoms` whose ``info`` holds a ``condition`` (temperature, pressure, replica); a potential.
Makes: frames as a dataset (positions rounded to float32, lineage, conditions, committee disagreement); for each
    trajectory that stopped early a rejection with its last sane and its crashed geometry; counts of trial moves.
Entry: `daskpipe.stages.explore.stage.explore` (Bag of seeds -> one payload a partition).
Memory per partition: what the model needs for one batch, plus 13 bytes x atoms x frames.
Placement: a worker that offers ``GPU`` if there is one (one thread), else any.

A `trajectory.Trajectory` is one seed under one condition. `runner.BatchRunner` runs the trajectories of a unit in
batches that fit the device (`capacity.BatchCapacity`). `batch.Batch` holds their tensors, `integrate.baoab_step` moves
them; `fire.fire_step` relaxes seeds first where ``relax`` asks for it. With LJ, EMT and xTB in float64 on a CPU, a
trajectory has the same bits in any batch; with MACE, ``batch_size`` and ``batch_atoms`` change the last bits.
"""
