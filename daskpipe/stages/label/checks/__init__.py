"""Checks of labels, each a function of its own.

`limits`               refuses labels that are not finite, or beyond a limit.
`finite_differences`   compares forces and stresses with energies of displaced structures.
`second_teacher`       compares labels with those of another teacher.
"""
