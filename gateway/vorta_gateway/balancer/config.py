"""How calls are spread over endpoints. Terms are Envoy's and gRPC's."""

from __future__ import annotations

from dataclasses import dataclass, field

from vorta_gateway.channel import ChannelConfig

__all__ = ["AffinityConfig", "BalancerConfig", "HealthConfig", "OutlierConfig", "ResolverConfig", "RetryConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AffinityConfig:
    """When a prompt goes where its beginning went before.

    Attributes:
        block_characters: A prompt is compared in blocks of this many characters; one that is shorter has no affinity.
        max_blocks: Of a prompt, from its beginning.
        max_endpoint_blocks: Blocks that are remembered of an endpoint, those used last.
        min_match: The least share of a prompt's blocks that is worth going for.
        load_factor, load_margin: An endpoint's affinity does not count while its outstanding work is more than this
            many times the least loaded's and more than this many tokens above it.
    """

    block_characters: int = 128
    max_blocks: int = 512
    max_endpoint_blocks: int = 32_768
    min_match: float = 0.3
    load_factor: float = 2.0
    load_margin: float = 2_048.0

    def __post_init__(self) -> None:
        _check_between("block_characters", self.block_characters, 1, 1_000_000)
        _check_between("max_blocks", self.max_blocks, 0, 1_000_000)
        _check_between("max_endpoint_blocks", self.max_endpoint_blocks, 1, 100_000_000)
        _check_between("min_match", self.min_match, 0, 1)
        _check_between("load_factor", self.load_factor, 1, 1e9)
        _check_between("load_margin", self.load_margin, 0, 1e12)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthConfig:
    """How grpc.health.v1 is watched.

    Attributes:
        service: The name that is asked for; "" is the whole server.
        initial_backoff_s, max_backoff_s: Seconds before a broken Watch is begun again, growing twofold.
    """

    service: str = ""
    initial_backoff_s: float = 0.1
    max_backoff_s: float = 5.0

    def __post_init__(self) -> None:
        _check_between("initial_backoff_s", self.initial_backoff_s, 0.001, 3600)
        _check_between("max_backoff_s", self.max_backoff_s, self.initial_backoff_s, 3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierConfig:
    """When an endpoint is ejected, as Envoy's outlier detection does for consecutive gateway failures.

    Attributes:
        consecutive_failures: UNAVAILABLE answers and failed connections in a row that eject; 0 never ejects.
        base_ejection_s, max_ejection_s: An ejection takes the first times how often it happened, the second at most.
        interval_s: Seconds out of ejection that are one time less.
        max_ejection_percent: Of the endpoints, most that are ejected at once. 50 of one endpoint are none.
    """

    consecutive_failures: int = 5
    base_ejection_s: float = 30.0
    max_ejection_s: float = 300.0
    interval_s: float = 30.0
    max_ejection_percent: float = 50.0

    def __post_init__(self) -> None:
        _check_between("consecutive_failures", self.consecutive_failures, 0, 1_000_000)
        _check_between("base_ejection_s", self.base_ejection_s, 0, 86_400)
        _check_between("max_ejection_s", self.max_ejection_s, self.base_ejection_s, 86_400)
        _check_between("interval_s", self.interval_s, 0.001, 86_400)
        _check_between("max_ejection_percent", self.max_ejection_percent, 0, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryConfig:
    """When a failed call is sent again.

    Attributes:
        max_attempts: Of a call, the first included; 1 turns retries off.
        budget_percent, min_concurrency: Retries and hedges that run at once are at most this share of the open calls,
            and at least so many may. A share that is less than one endpoint's lets calls fail when that one dies.
        initial_backoff_s, max_backoff_s: Seconds before an endpoint is tried that failed already, growing twofold. To
            one that was not tried a call goes at once.
        max_buffer_bytes: Of a call's stream of requests; one that had sent more is not sent again.
        max_retry_delay_s: An endpoint's RetryInfo that asks for more seconds goes to the caller instead.
        hedge_after_s: Seconds without a reply after which an idempotent unary call is sent to a second endpoint too;
            None for never.
    """

    max_attempts: int = 3
    budget_percent: float = 50.0
    min_concurrency: int = 16
    initial_backoff_s: float = 0.1
    max_backoff_s: float = 1.0
    max_buffer_bytes: int = 1024 * 1024
    max_retry_delay_s: float = 5.0
    hedge_after_s: float | None = None

    def __post_init__(self) -> None:
        _check_between("max_attempts", self.max_attempts, 1, 100)
        _check_between("budget_percent", self.budget_percent, 0, 100)
        _check_between("min_concurrency", self.min_concurrency, 0, 1_000_000)
        _check_between("initial_backoff_s", self.initial_backoff_s, 0, 3600)
        _check_between("max_backoff_s", self.max_backoff_s, self.initial_backoff_s, 3600)
        _check_between("max_buffer_bytes", self.max_buffer_bytes, 0, 2**40)
        _check_between("max_retry_delay_s", self.max_retry_delay_s, 0, 3600)
        if self.hedge_after_s is not None:
            _check_between("hedge_after_s", self.hedge_after_s, 0, 3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolverConfig:
    """How a name is resolved.

    Attributes:
        interval_s: Seconds between two resolutions.
        min_interval_s: The same after an endpoint was lost, which may be because the name's addresses changed.
        timeout_s: Of one resolution.
        max_endpoints: The others of a longer answer are left out.
    """

    interval_s: float = 30.0
    min_interval_s: float = 2.0
    timeout_s: float = 10.0
    max_endpoints: int = 256

    def __post_init__(self) -> None:
        _check_between("interval_s", self.interval_s, 0.001, 86_400)
        _check_between("min_interval_s", self.min_interval_s, 0.001, self.interval_s)
        _check_between("timeout_s", self.timeout_s, 0.001, 3600)
        _check_between("max_endpoints", self.max_endpoints, 1, 100_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class BalancerConfig:
    """All of it.

    Attributes:
        max_request_ids: Requests whose endpoint is remembered for CancelGenerate and ResumeGenerate, the latest.
    """

    affinity: AffinityConfig = field(default_factory=AffinityConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    outlier: OutlierConfig = field(default_factory=OutlierConfig)
    retry: RetryConfig = field(default_factory=RetryConfig)
    resolver: ResolverConfig = field(default_factory=ResolverConfig)
    channel: ChannelConfig = field(default_factory=ChannelConfig)
    max_request_ids: int = 65_536

    def __post_init__(self) -> None:
        _check_between("max_request_ids", self.max_request_ids, 1, 100_000_000)


def _check_between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low:g} and {high:g}, not {value:g}")
