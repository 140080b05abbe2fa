"""Spreads calls over several endpoints: by load, prompt and health, with retries where they are safe."""

from __future__ import annotations

from vorta_gateway.balancer.affinity import AffinityKey, Prompt, VortaAffinityKey
from vorta_gateway.balancer.config import (
    AffinityConfig,
    BalancerConfig,
    HealthConfig,
    OutlierConfig,
    ResolverConfig,
    RetryConfig,
)
from vorta_gateway.balancer.stats import BalancerStats, EndpointStats
from vorta_gateway.balancer.targets import DnsName, Resolver, parse_targets
from vorta_gateway.balancer.upstream import BalancedUpstream

__all__ = [
    "AffinityConfig",
    "AffinityKey",
    "BalancedUpstream",
    "BalancerConfig",
    "BalancerStats",
    "DnsName",
    "EndpointStats",
    "HealthConfig",
    "OutlierConfig",
    "Prompt",
    "Resolver",
    "ResolverConfig",
    "RetryConfig",
    "VortaAffinityKey",
    "parse_targets",
]
