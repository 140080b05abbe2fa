"""The runner on a GPU: a decoder in torch tensors over `vorta_kernels`, with paged K and V and CUDA graphs.

On a CPU the same code runs over the kernels' references, which is how all of it but the speed is tested.
"""
