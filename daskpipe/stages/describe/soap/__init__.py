"""SOAP power spectra.

========================  ==============================================================================
`drop_in`                 `daskpipe.SOAP`, with the arguments and methods of ``dscribe.descriptors.SOAP``
`descriptor`              the descriptor ``soap`` of the pipeline
`engine`                  computes both: arrays in, features, derivatives and projections out
`basis`                   radial functions as tables, factors of the harmonics
`checks`, `jobs`          arguments and messages; several systems at once
`spectrum_kernels`        neighbours to coefficients, coefficients to features
`weighting_kernels`       weights of neighbours by distance
`gradient_kernels`        derivatives of the coefficients
`derivative_kernels`      derivatives of the features
`projection_kernels`      derivatives summed with weights as they are made
========================  ==============================================================================
"""
