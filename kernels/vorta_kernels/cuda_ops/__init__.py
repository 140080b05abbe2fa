"""The CUDA C++ kernels on torch tensors; each module has the stem of its kernel and of its reference.

Every function runs on the current stream of its tensors' device, allocates nothing but its results where none are
given, and never waits for the device. CPU tensors run the emulation of `vorta_kernels.cuda`, which is for tests.
"""
