"""Label: energy, forces and stress of the picked frames, from a teacher.

Needs: picked frames in the run directory; a potential.
Makes: the frames with ``energy``, ``forces``, ``stress`` (and ``magmoms``), ``label_method``,
    ``label_status``; structures that the teacher fails on, or whose label is not finite, are rejected.
Entry: `daskpipe.stages.label.stage.label_frames` (Bag of frames -> one payload a partition).
Memory per partition: the teacher's for the batch.
"""
