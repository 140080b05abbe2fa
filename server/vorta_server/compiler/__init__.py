"""The compiler: a Hugging Face checkpoint in, a quantised ONNX artifact out, without torch.

`compile.compile_checkpoint` is the entry, `artifact.load_manifest` reads what it wrote, `cache.artifact_for`
compiles on first use. Knows nothing of serving: no engine, no runner, no grpc, and it never runs a graph.
"""
