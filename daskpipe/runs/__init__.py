"""Runs: run, resume, watch, cancel, plan, probe, audit and report a run.

Needs: a config, or a run directory.
Makes: a run directory with ``dataset.zarr`` and ``quality.json``; a plan; a report; an audit.
Entry: `run.run`, `run.resume`, `status.read_status`, `cancel.cancel_run`, `plan.plan_run`, `probe.probe_run`,
`fsck.fsck`, `report.write_report`.
Memory: receipts of units; an audit keeps a number for each unit.
"""
