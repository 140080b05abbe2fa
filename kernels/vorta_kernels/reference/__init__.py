"""What every GPU kernel must compute, in plain torch: the oracle of the kernels' tests, and the path on a CPU.

A module here has the stem of its kernel. Sums are in float64; results are rounded once, to the type of the kernel's
output. Nothing here is fast, and nothing needs a GPU.
"""
