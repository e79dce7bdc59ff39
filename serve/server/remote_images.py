"""Fetch images from hosts that the operator allows, and from no address inside the operator's network."""

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

import httpx

from serve.server.errors import ApiError

PORTS = {"http": 80, "https": 443}


class RemoteImages:
    """Fetches images.

    The host is resolved once, all its addresses must be public, and the connection goes to the address that
    was checked: a name that changes meanwhile (DNS rebinding) leads nowhere else. Redirects and proxies are
    not followed.

    Args:
        hosts: names of hosts that are allowed, or ``HOST:PORT``; empty: none is.
        max_bytes: largest image.
        seconds: longest time of one fetch.
    """

    def __init__(self, hosts: Sequence[str], max_bytes: int, seconds: float) -> None:
        self._hosts = {host.lower() for host in hosts}
        self._max_bytes, self._seconds = max_bytes, seconds

    async def fetch(self, url: str, param: str) -> bytes:
        """Return the bytes of an image.

        Raises:
            ApiError: the host is not allowed or its address is not public; a redirect, another status than
                200, too many bytes, or too long a time.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or PORTS[parts.scheme]
        except ValueError as error:
            raise ApiError(f"{param}: {error}", param=param) from error
        if not host or not self._allowed(host, port, parts.scheme) or parts.username is not None:
            raise ApiError(
                f"{param}: this server fetches no images from {host}: send a data URI "
                "(data:image/png;base64,…), or let its operator add --allow-remote-images",
                param=param,
            )
        try:
            return await asyncio.wait_for(self._get(url, host, port, param), self._seconds)
        except asyncio.TimeoutError as error:  # Python 3.10 has two
            raise ApiError(
                f"{param}: {host} took longer than {self._seconds:g} s", param=param
            ) from error
        except httpx.HTTPError as error:
            raise ApiError(
                f"{param}: {host}: {type(error).__name__} {error}".rstrip(), param=param
            ) from error

    def _allowed(self, host: str, port: int, scheme: str) -> bool:
        usual = port == PORTS[scheme]
        return (usual and host in self._hosts) or f"{host}:{port}" in self._hosts

    async def _get(self, url: str, host: str, port: int, param: str) -> bytes:
        address = await _public_address(host, port, param)
        target = httpx.URL(url)
        named = f"{host}:{target.port}" if target.port else host
        async with (
            httpx.AsyncClient(
                trust_env=False, follow_redirects=False, timeout=self._seconds
            ) as client,
            client.stream(
                "GET",
                target.copy_with(host=address),
                headers={"Host": named, "Accept": "image/*", "Accept-Encoding": "identity"},
                extensions={"sni_hostname": host},
            ) as response,
        ):
            if response.status_code != 200:
                raise ApiError(
                    f"{param}: {host} answers {response.status_code}, and redirects are not followed",
                    param=param,
                )
            data = bytearray()
            async for chunk in response.aiter_raw():
                data += chunk
                if len(data) > self._max_bytes:
                    raise ApiError(
                        f"{param}: the image has more than {self._max_bytes} bytes", param=param
                    )
            return bytes(data)


async def _public_address(host: str, port: int, param: str) -> str:
    """Resolve a host; refuse it if one of its addresses is not public."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ApiError(f"{param}: {host}: {error.strerror}", param=param) from error
    addresses = [str(each[4][0]) for each in found]
    if not addresses or not all(_is_public(each) for each in addresses):
        raise ApiError(f"{param}: {host} is at no public address", param=param)
    return addresses[0]


def _is_public(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(parsed, "ipv4_mapped", None)
    parsed = mapped or parsed
    return parsed.is_global and not parsed.is_multicast
