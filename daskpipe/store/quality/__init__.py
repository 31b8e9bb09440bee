"""Judge a dataset: checks with thresholds by profile, and a verdict GO or NO-GO."""
