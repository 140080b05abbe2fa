"""The gateway: every wire that is not gRPC, from the descriptors of gRPC services."""
