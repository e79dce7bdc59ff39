"""Check the address of a server before anything is loaded for it."""

import errno
import os
import socket

from comp.errors import CompExportError


def check_address(host: str, port: int) -> None:
    """Refuse an address that cannot be listened on.

    Raises:
        CompExportError: the port is taken or not allowed, or the host is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise CompExportError(f"--host {host}: {error.strerror}; use 127.0.0.1") from error
    with socket.socket(family, kind, protocol) as probe:
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise CompExportError(
                    f"port {port} is taken on {host}: choose another one with --port"
                ) from error
            raise CompExportError(
                f"cannot listen on {host}:{port}: {error.strerror}; use other --host and --port"
            ) from error
