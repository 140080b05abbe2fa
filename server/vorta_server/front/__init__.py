"""The gRPC front: handlers, interceptors, conversion, health and reflection."""
