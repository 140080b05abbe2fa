"""The CUDA C++ kernels on torch tensors; each module has the stem of its kernel and of its reference.

Every function runs on the current stream of its tensors' device, allocates nothing but its results where none are
given, and never waits for the device. A product reads its matrix while the kernel in front of it still ends, so the
device must have been waited for between the making of a matrix and its first product. CPU tensors run the emulation of
`vorta_kernels.cuda`, which is for tests.
"""
