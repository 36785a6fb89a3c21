"""Ask Tinybird, with an empty body, whether URL and token are good. No row is sent."""

import asyncio
import ssl
from datetime import UTC, datetime

from tinybird_proxy.app.run import make_upstream_settings
from tinybird_proxy.batch import DestinationKey, Payload
from tinybird_proxy.config import Config
from tinybird_proxy.errors import UpstreamError
from tinybird_proxy.server.events import PATH
from tinybird_proxy.tokens import OwnToken
from tinybird_proxy.upstream import Upstream
from tinybird_proxy.verdict import is_json_object, message_of, retry_after_s

# A data source that nobody has: only URL and token are asked about.
_NAME = "tinybird_proxy_check"


async def ask_upstream(config: Config, own_token: OwnToken | None) -> tuple[bool, str]:
    """Whether URL and token look good, and a sentence about it."""
    upstream = Upstream(
        make_upstream_settings(config, "check"),
        tls=ssl.create_default_context(),
        now=asyncio.get_running_loop().time,
    )
    token = own_token.current.value if own_token is not None and own_token.current is not None else "none"
    try:
        key = DestinationKey(PATH, _NAME, (), None)
        reply = await upstream.send(upstream.url(key, wait=False), Payload(b"", None), token=token, batch_id="check")
    except UpstreamError as error:
        return False, f"{config.tinybird_url}: {error}."
    finally:
        await upstream.close()
    where, said = config.tinybird_url, message_of(reply)
    if reply.status in (429, 503):
        after = retry_after_s(reply.headers, datetime.now(UTC))
        return True, f"{where} answers, but asks to come back in {after if after is not None else 'a few'} s."
    if not is_json_object(reply):  # any web server has pages, refusals and 404s; Tinybird says all of them in JSON
        return False, f"{where} does not answer like Tinybird ({reply.status}: {said})."
    if reply.status in (401, 403):
        if own_token is None:
            return True, f"{where} answers like Tinybird; clients bring their own tokens."
        variable = "TINYBIRD_TOKEN" if config.tinybird_token_file is None else "TINYBIRD_TOKEN_FILE"
        return False, f"{where} answers, but refuses the token of {variable} ({reply.status}: {said})."
    if reply.status in (200, 202, 400, 404, 413, 422):
        return True, f"{where} answers and accepts the token ({reply.status})."
    return False, f"{where} does not answer like Tinybird ({reply.status}: {said})."
