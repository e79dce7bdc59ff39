"""``comp-export serve --ray``: the models of the arguments as a fleet, deployed or written as YAML."""

from collections.abc import Sequence

from comp.commands.options import CommonOptions
from comp.utils.console import print_json
from serve.artifacts import ArtifactVariant
from serve.commands.fleet_options import FleetOptions
from serve.fleet.config import FleetConfig, FleetModel, Replicas
from serve.server.logs import START
from serve.server.models import Limits, places_of


def models_of(arguments: Sequence[str], variant: ArtifactVariant) -> tuple[FleetModel, ...]:
    """Return the models that the arguments name, by absolute paths."""
    return tuple(
        FleetModel(
            id=name,
            path=str(path.resolve()),
            provider=variant.provider if of_run else "auto",
            backend=variant.backend if of_run else None,
        )
        for name, path, of_run in places_of(arguments, variant)
    )


def replicas_of(fleet: FleetOptions, limits: Limits, threads: int | None) -> Replicas:
    """Return the replicas; each has a core for every thread."""
    least, most = fleet.replicas
    return Replicas(
        least=least,
        most=most,
        target_ongoing=fleet.target_ongoing or limits.rows,
        models_each=fleet.models_each,
        cpus=threads or 1,
        gpus=fleet.gpus,
    )


def serve_on_ray(
    config: FleetConfig, fleet: FleetOptions, host: str, port: int, options: CommonOptions
) -> None:
    """Deploy the fleet and serve until a signal, or write its YAML file.

    Raises:
        CompExportError: the fleet does not start.
    """
    if fleet.yaml is not None:
        from serve.fleet.document import save_yaml

        save_yaml(fleet.yaml, config, host, port)
        START.info("serve: wrote %s: `serve deploy %s` of Ray takes it", fleet.yaml, fleet.yaml)
        return
    from serve.fleet.running import run

    def started(cluster: str) -> None:
        address = f"http://{host}:{port}/v1"
        if options.json:
            names = [model.id for model in config.models]
            print_json({"url": address, "models": names, "ray": cluster})
        else:
            START.info("serve: %s, on Ray at %s; Ctrl-C stops it", address, cluster)

    run(config, fleet.address, host, port, started)
