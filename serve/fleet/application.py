"""The application on Ray Serve."""

from typing import Any

import ray.serve as ray_serve

from serve.fleet.config import FleetConfig, Replicas
from serve.fleet.entrance import MODELS, Entrance
from serve.fleet.replica import Replica

ENTRANCE = "Entrance"
ENTERED_AT_ONCE = (
    1000  # requests that an entrance passes on at the same time; it only waits for them
)
HEALTH_SECONDS = 10.0  # between two checks of a replica


def build(config: FleetConfig) -> Any:
    """Return the application of a fleet; Ray makes the configuration from ``args`` of a YAML file."""
    replicas = config.replicas
    models = ray_serve.deployment(
        Replica,
        name=MODELS,
        # A replica has requests waiting when an answer ends, and the others wait for the next free replica.
        max_ongoing_requests=2 * config.max_num_seqs,
        max_queued_requests=config.max_queue,
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_wait_loop_s=1.0,
        graceful_shutdown_timeout_s=replicas.drain_seconds,
        **_number(replicas),
    ).bind(config)
    entrance = ray_serve.deployment(
        ray_serve.ingress()(Entrance),
        name=ENTRANCE,
        num_replicas=config.entrances,
        max_ongoing_requests=ENTERED_AT_ONCE,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_wait_loop_s=1.0,
        graceful_shutdown_timeout_s=replicas.drain_seconds,
    )
    return entrance.bind(config, models)


def _number(replicas: Replicas) -> dict[str, Any]:
    if replicas.least == replicas.most:
        return {"num_replicas": replicas.most}
    return {
        "autoscaling_config": {
            "min_replicas": replicas.least,
            "max_replicas": replicas.most,
            "target_ongoing_requests": replicas.target_ongoing,
        }
    }
