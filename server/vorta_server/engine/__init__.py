"""Continuous batching: requests, scheduler, KV slots, sampler, detokenizer and the loop that drives a runner."""
