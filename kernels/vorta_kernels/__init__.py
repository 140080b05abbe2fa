"""Vorta's own kernels. `cpu` has operators for ONNX Runtime; each kernel has a reference in numpy beside its tests."""
