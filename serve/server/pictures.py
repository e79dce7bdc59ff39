"""Read the images of requests: data URIs, and URLs of allowed hosts."""

import base64
import binascii
import re

from serve.server.errors import ApiError

DATA = re.compile(r"data:image/[a-zA-Z0-9.+-]{1,40}(;[a-zA-Z0-9=.+-]{1,60}){0,4};base64,", re.ASCII)


def bytes_of_data_uri(url: str, param: str, max_bytes: int) -> bytes:
    """Decode a data URI of an image; whether it is one is seen when it is read.

    Raises:
        ApiError: it is no base64 data URI of an image, or too large.
    """
    match = DATA.match(url)
    if match is None:
        raise ApiError(
            f"{param} is no base64 data URI of an image (data:image/png;base64,…): send the picture itself",
            param=param,
        )
    words = url[match.end() :]
    if len(words) * 3 // 4 > max_bytes + 2:
        raise ApiError(
            f"{param} has about {len(words) * 3 // 4} bytes, {max_bytes} at most: scale the picture down",
            status=413,
            param=param,
        )
    try:
        return base64.b64decode(words, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(f"{param} is no valid base64: {error}", param=param) from error
