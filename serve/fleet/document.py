"""The YAML file of a fleet, for ``serve deploy`` and ``serve run`` of Ray."""

from pathlib import Path

import yaml

from comp.utils.files import write_text
from serve.fleet.config import FleetConfig

NAME = "comp-export"  # of the application
IMPORT_PATH = "serve.fleet.application:build"


def yaml_of(config: FleetConfig, host: str, port: int) -> str:
    """Return the file that ``serve deploy`` and ``serve run`` take: the application with its arguments."""
    document = {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port},
        "applications": [
            {
                "name": NAME,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "args": config.model_dump(mode="json", exclude_none=True),
            }
        ],
    }
    return yaml.safe_dump(document, sort_keys=False)


def save_yaml(path: Path, config: FleetConfig, host: str, port: int) -> None:
    """Write the file of ``yaml_of``, with the command that takes it.

    Raises:
        CompExportError: the disk is full, or the place is not writable.
    """
    opening = f"# Deploy, and update without a failed request: serve deploy {path.name}\n"
    write_text(path, opening + yaml_of(config, host, port))
