"""Explore: molecular dynamics from seed structures, many in one batch.

Needs: seeds as `ase.Atoms` whose ``info`` holds ``temperature`` (K) and ``replica``; a potential.
Makes: frames as a dataset (positions rounded to float32, lineage, thermostat); rejected trajectories.
Entry: `daskpipe.explore.stage.explore` (Bag of seeds -> one payload a partition).
Memory per partition: the model's for the batch, plus 13 bytes x atoms x frames.
Placement: a worker that offers ``GPU`` where there is one (one thread), else any.

With a potential that computes structure by structure (EMT, xTB) a trajectory depends on nothing but its
seed, conditions and the run's seed. A batched model (MACE) rounds differently in batches of another
make-up, so there the trajectory's last bits, and after a while its course, depend on ``batch_size`` too.
"""
