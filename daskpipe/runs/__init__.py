"""Start, resume, watch, cancel, plan, check and report runs."""
