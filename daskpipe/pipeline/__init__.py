"""Pipeline: the steps of a run in order, datasets from existing data, and stages on files.

Needs: a config, a run directory and the workers of a cluster.
Makes: the units of a run and its ``dataset.zarr``; a merged or imported dataset; picks or features of files.
Entry: `run_pipeline.run_pipeline`; `datasets.merge` and `datasets.import_labelled`; `frames.select_files` and
`frames.describe_files`.
Memory: receipts of units, some 300 bytes each; structures stay on the workers.
"""
