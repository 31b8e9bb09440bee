"""Label picked frames with energy, forces and stress from a teacher.

Needs: picked frames in the run directory; a potential.
Makes: the frames with ``energy``, ``forces``, ``stress`` (and ``magmoms``), ``label_method``,
    ``label_status``; structures on which the teacher fails, or whose label breaks a limit, are rejected.
Entry: `daskpipe.stages.label.stage.label_frames` (Bag of frames -> one payload a partition).
Memory per partition: that of the teacher for the batch.
"""
