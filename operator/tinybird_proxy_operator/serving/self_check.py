"""Whether this process answers itself as it is to answer the API server: asked before anything is registered."""

import ssl
from collections.abc import Awaitable, Callable
from typing import Final

import aiohttp

_TIMEOUT_S: Final = 5.0


def self_check(
    session: aiohttp.ClientSession, *, port: Callable[[], int], server_name: str
) -> Callable[[str], Awaitable[None]]:
    """Ask our own listener as the API server will: over TLS, by the Service's name, with the CAs of a bundle.

    What it returns raises ``ValueError`` if that does not work.
    """

    async def check(bundle: str) -> None:
        context = ssl.create_default_context(cadata=bundle)
        url, timeout = f"https://localhost:{port()}/healthz", aiohttp.ClientTimeout(total=_TIMEOUT_S)
        try:
            async with session.get(url, ssl=context, server_hostname=server_name, timeout=timeout) as response:
                if response.status != 200:
                    raise ValueError(f"/healthz answers {response.status}")
        except aiohttp.ClientConnectorCertificateError as error:
            raise ValueError(str(error.certificate_error)) from error
        except aiohttp.ClientConnectorError as error:
            raise ValueError(str(error.os_error)) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ValueError(type(error).__name__) from error

    return check
