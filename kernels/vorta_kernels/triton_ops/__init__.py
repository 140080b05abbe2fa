"""The kernels in Triton, one module for each stem of `vorta_kernels.reference`: launchers of the same names and
signatures, and keywords to tune them.

Importing a module here imports triton. `vorta_kernels.ops` picks between these, CUDA C++ and the references.
"""
