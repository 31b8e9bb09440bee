"""Lay out the steps of a run in order, merge and import datasets, and run stages on files."""
