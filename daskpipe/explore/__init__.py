"""Explore: molecular dynamics and Monte Carlo from seed structures, many in one batch.

Needs: seeds as `ase.Atoms` whose ``info`` holds a ``condition`` (temperature, pressure, replica); a potential.
Makes: frames as a dataset (positions rounded to float32, lineage, thermostat, barostat, disagreement of a committee);
    stops of trajectories with the crashed and the last sane geometry; counts of trial moves.
Entry: `daskpipe.explore.stage.explore` (Bag of seeds -> one payload a partition).
Memory per partition: the model's for the batch in flight, plus 13 bytes x atoms x frames.
Placement: a worker that offers ``GPU`` where there is one (one thread), else any.

A `walkers.Walker` is one seed under one condition. `dynamics.Flight` brings the walkers of a unit to their ends, as
many at once as `packing.Room` allows; `batch.Batch` holds those in flight as tensors and `integrate.step` moves
them; `guards` say who is broken, `monte_carlo` and `moves` make trial moves, `checkpoint` packs what was reached.

On a CPU in float64, with LJ, EMT and what is computed structure by structure (xTB), a trajectory depends on nothing
but its seed, conditions and the run's seed, to the last bit. MACE rounds differently in batches of another make-up,
so there the trajectory's last bits, and after a while its course, depend on ``batch_size`` and ``batch_atoms`` too;
not on kills.
"""
