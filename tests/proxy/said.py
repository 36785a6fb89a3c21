"""What a person is told in every kind of trouble, word for word: read it as at three in the morning.

`test_verdict_emulated` brings each kind about and compares.
"""

import re
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a person is told: of the data source, of the whole proxy, and as the metrics' label."""

    cause: str | None = None
    overall: str = "All is well."
    sentence: str


# Word for word, numbers that vary aside: T is a time, N a number that grows meanwhile.
SAID: Final = {
    "200": Said(
        sentence="Nothing is waiting.",
    ),
    "200 with quarantine": Said(
        sentence="Nothing is waiting. Since the start: 1 row in Tinybird's quarantine (hits_quarantine).",
    ),
    "200 with too few": Said(
        sentence=(
            "Nothing is waiting. Since the start: 2 rows taken without Tinybird saying that they are written "
            "(unverified)."
        ),
    ),
    "200 with too many": Said(
        sentence="Nothing is waiting.",
    ),
    "202": Said(
        sentence=(
            "Nothing is waiting. Since the start: 3 rows taken without Tinybird saying that they are written "
            "(unverified)."
        ),
    ),
    "200 unreadable after readable ones": Said(
        sentence=(
            "Nothing is waiting. Since the start: 3 rows taken without Tinybird saying that they are written "
            "(unverified)."
        ),
    ),
    "200 unreadable at first": Said(
        cause="held",
        overall=(
            "1 destination is not delivering (hits): 3 rows are kept. Somebody has to act on hits: `/status` says how."
        ),
        sentence=(
            "Held for T: TINYBIRD_URL does not answer like Tinybird: no readable counts (200: It works!). 3 rows "
            "are waiting, the oldest for T; nothing is lost as long as the proxy runs. No attempt is made by "
            "itself, since it might double the rows; `tinybird-proxy probe` makes one. To do: TINYBIRD_URL must "
            "be the address of Tinybird's API itself. That takes a restart, which loses what is waiting. Since "
            "the start: 3 rows that may have arrived more than once (ambiguous)."
        ),
    ),
    "200 after an unreadable one": Said(
        sentence="Nothing is waiting. Since the start: 3 rows that may have arrived more than once (ambiguous).",
    ),
    "429 with seconds": Said(
        cause="throttled",
        overall="1 destination is not delivering (hits): 3 rows are kept. The proxy tries again by itself.",
        sentence=(
            "Not delivering for T: Tinybird asks us to slow down (429: fault: 429). 3 rows are waiting, the "
            "oldest for T; nothing is lost as long as the proxy runs. The next attempt is made by itself in T. "
            "Nothing to do, unless it goes on: then something else writes to hits too, or UPSTREAM_RATE is more "
            "than your plan allows."
        ),
    ),
    "429 with a date": Said(
        cause="throttled",
        overall="1 destination is not delivering (hits): 3 rows are kept. The proxy tries again by itself.",
        sentence=(
            "Not delivering for T: Tinybird asks us to slow down (429: fault: 429). 3 rows are waiting, the "
            "oldest for T; nothing is lost as long as the proxy runs. The next attempt is made by itself in T. "
            "Nothing to do, unless it goes on: then something else writes to hits too, or UPSTREAM_RATE is more "
            "than your plan allows."
        ),
    ),
    "429 without": Said(
        cause="throttled",
        overall="1 destination is not delivering (hits): 3 rows are kept. The proxy tries again by itself.",
        sentence=(
            "Not delivering for T: Tinybird asks us to slow down (429: fault: 429). 3 rows are waiting, the "
            "oldest for T; nothing is lost as long as the proxy runs. The next attempt is made by itself in T. "
            "Nothing to do, unless it goes on: then something else writes to hits too, or UPSTREAM_RATE is more "
            "than your plan allows."
        ),
    ),
    "503 of Tinybird": Said(
        cause="throttled",
        overall="1 destination is not delivering (hits): 3 rows are kept. The proxy tries again by itself.",
        sentence=(
            "Not delivering for T: Tinybird is unavailable for now (503: fault: 503). 3 rows are waiting, the "
            "oldest for T; nothing is lost as long as the proxy runs. The next attempt is made by itself in T. "
            "Nothing to do, unless it lasts: then ask Tinybird."
        ),
    ),
    "503 of Tinybird without": Said(
        cause="throttled",
        overall="1 destination is not delivering (hits): 3 rows are kept. The proxy tries again by itself.",
        sentence=(
            "Not delivering for T: Tinybird is unavailable for now (503: fault: 503). 3 rows are waiting, the "
            "oldest for T; nothing is lost as long as the proxy runs. The next attempt is made by itself in T. "
            "Nothing to do, unless it lasts: then ask Tinybird."
        ),
    ),
    "503 of a gateway": Said(
        cause="failing",
        overall="1 destination is not delivering (hits): 3 rows are kept. The proxy tries again by itself.",
        sentence=(
            "Not delivering for T: Tinybird answered with an error (503: fault: 503). 3 rows are waiting, the "
            "oldest for T; nothing is lost as long as the proxy runs. The next attempt is made by itself in T. "
            "Nothing to do, unless it lasts: then ask Tinybird. Since the start: 3 rows that may have arrived "
            "more than once (ambiguous)."
        ),
    ),
    "200 after ambiguous ones": Said(
        sentence="Nothing is waiting. Since the start: 3 rows that may have arrived more than once (ambiguous).",
    ),
    "408": Said(
        cause="failing",
        overall="1 destination is not delivering (hits): 3 rows are kept. The proxy tries again by itself.",
        sentence=(
            "Not delivering for T: Tinybird answered with an error (408: fault: 408). 3 rows are waiting, the "
            "oldest for T; nothing is lost as long as the proxy runs. The next attempt is made by itself in T. "
            "Nothing to do, unless it lasts: then ask Tinybird. Since the start: 3 rows that may have arrived "
            "more than once (ambiguous)."
        ),
    ),
    "500": Said(
        cause="failing",
        overall="1 destination is not delivering (hits): 3 rows are kept. The proxy tries again by itself.",
        sentence=(
            "Not delivering for T: Tinybird answered with an error (500: fault: 500). 3 rows are waiting, the "
            "oldest for T; nothing is lost as long as the proxy runs. The next attempt is made by itself in T. "
            "Nothing to do, unless it lasts: then ask Tinybird. Since the start: 3 rows that may have arrived "
            "more than once (ambiguous)."
        ),
    ),
    "502": Said(
        cause="failing",
        overall="1 destination is not delivering (hits): 3 rows are kept. The proxy tries again by itself.",
        sentence=(
            "Not delivering for T: Tinybird answered with an error (502: fault: 502). 3 rows are waiting, the "
            "oldest for T; nothing is lost as long as the proxy runs. The next attempt is made by itself in T. "
            "Nothing to do, unless it lasts: then ask Tinybird. Since the start: 3 rows that may have arrived "
            "more than once (ambiguous)."
        ),
    ),
    "504": Said(
        cause="failing",
        overall="1 destination is not delivering (hits): 3 rows are kept. The proxy tries again by itself.",
        sentence=(
            "Not delivering for T: Tinybird answered with an error (504: fault: 504). 3 rows are waiting, the "
            "oldest for T; nothing is lost as long as the proxy runs. The next attempt is made by itself in T. "
            "Nothing to do, unless it lasts: then ask Tinybird. Since the start: 3 rows that may have arrived "
            "more than once (ambiguous)."
        ),
    ),
    "no answer": Said(
        cause="unreachable",
        overall="1 destination is not delivering (hits): 3 rows are kept. The proxy tries again by itself.",
        sentence=(
            "Not delivering for T: no answer from 127.0.0.1 within T (UPSTREAM_TIMEOUT). 3 rows are waiting, the "
            "oldest for T; nothing is lost as long as the proxy runs. The next attempt is made by itself in T. "
            "Nothing to do, unless it lasts: then check TINYBIRD_URL and the network. Since the start: 3 rows "
            "that may have arrived more than once (ambiguous)."
        ),
    ),
    "reset before the body": Said(
        cause="unreachable",
        overall="1 destination is not delivering (hits): 3 rows are kept. The proxy tries again by itself.",
        sentence=(
            "Not delivering for T: the connection to 127.0.0.1 broke before the answer: connection reset by "
            "peer. 3 rows are waiting, the oldest for T; nothing is lost as long as the proxy runs. The next "
            "attempt is made by itself in T. Nothing to do, unless it lasts: then check TINYBIRD_URL and the "
            "network. Since the start: 3 rows that may have arrived more than once (ambiguous)."
        ),
    ),
    "reset during the body": Said(
        cause="unreachable",
        overall="1 destination is not delivering (hits): 3 rows are kept. The proxy tries again by itself.",
        sentence=(
            "Not delivering for T: the connection to 127.0.0.1 broke before the answer: connection reset by "
            "peer. 3 rows are waiting, the oldest for T; nothing is lost as long as the proxy runs. The next "
            "attempt is made by itself in T. Nothing to do, unless it lasts: then check TINYBIRD_URL and the "
            "network. Since the start: 3 rows that may have arrived more than once (ambiguous)."
        ),
    ),
    "reset after the body": Said(
        cause="unreachable",
        overall="1 destination is not delivering (hits): 3 rows are kept. The proxy tries again by itself.",
        sentence=(
            "Not delivering for T: the connection to 127.0.0.1 broke before the answer: connection reset by "
            "peer. 3 rows are waiting, the oldest for T; nothing is lost as long as the proxy runs. The next "
            "attempt is made by itself in T. Nothing to do, unless it lasts: then check TINYBIRD_URL and the "
            "network. Since the start: 3 rows that may have arrived more than once (ambiguous)."
        ),
    ),
    "refused connection": Said(
        cause="unreachable",
        overall="1 destination is not delivering (hits): 3 rows are kept. The proxy tries again by itself.",
        sentence=(
            "Not delivering for T: no connection to 127.0.0.1:PORT: connection refused. 3 rows are waiting, the "
            "oldest for T; nothing is lost as long as the proxy runs. The next attempt is made by itself in T. "
            "Nothing to do, unless it lasts: then check TINYBIRD_URL and the network."
        ),
    ),
    "unknown name": Said(
        cause="unreachable",
        overall="1 destination is not delivering (hits): 3 rows are kept. The proxy tries again by itself.",
        sentence=(
            "Not delivering for T: no connection to nowhere.invalid:PORT: the name cannot be resolved. 3 rows "
            "are waiting, the oldest for T; nothing is lost as long as the proxy runs. The next attempt is made "
            "by itself in T. Nothing to do, unless it lasts: then check TINYBIRD_URL and the network."
        ),
    ),
    "untrusted certificate": Said(
        cause="unreachable",
        overall="1 destination is not delivering (hits): 3 rows are kept. The proxy tries again by itself.",
        sentence=(
            "Not delivering for T: no connection to localhost:PORT: its TLS certificate is not valid for this "
            "name or not trusted (SSL_CERT_FILE names other authorities). 3 rows are waiting, the oldest for T; "
            "nothing is lost as long as the proxy runs. The next attempt is made by itself in T. Nothing to do, "
            "unless it lasts: then check TINYBIRD_URL and the network."
        ),
    ),
    "no TLS": Said(
        cause="unreachable",
        overall="1 destination is not delivering (hits): 3 rows are kept. The proxy tries again by itself.",
        sentence=(
            "Not delivering for T: no connection to 127.0.0.1:PORT: TLS failed. 3 rows are waiting, the oldest "
            "for T; nothing is lost as long as the proxy runs. The next attempt is made by itself in T. Nothing "
            "to do, unless it lasts: then check TINYBIRD_URL and the network."
        ),
    ),
    "401": Said(
        cause="held",
        overall=(
            "1 destination is not delivering (hits): 3 rows are kept. Somebody has to act on hits: `/status` says how."
        ),
        sentence=(
            "Held for T: Tinybird does not accept the token (401: fault: 401). 3 rows are waiting, the oldest "
            "for T; nothing is lost as long as the proxy runs. The next attempt is made by itself in T, then "
            "each minute. To do: put a token of TINYBIRD_URL's region that may append to hits into the file of "
            "TINYBIRD_TOKEN_FILE, and it is tried at once. TINYBIRD_TOKEN itself changes only with a restart, "
            "which loses what is waiting."
        ),
    ),
    "403": Said(
        cause="held",
        overall=(
            "1 destination is not delivering (hits): 3 rows are kept. Somebody has to act on hits: `/status` says how."
        ),
        sentence=(
            "Held for T: Tinybird does not accept the token for this data source (403: fault: 403). 3 rows are "
            "waiting, the oldest for T; nothing is lost as long as the proxy runs. The next attempt is made by "
            "itself in T, then each minute. To do: let TINYBIRD_TOKEN append to hits, or put a token of "
            "TINYBIRD_URL's region that may append to hits into the file of TINYBIRD_TOKEN_FILE, and it is tried "
            "at once. TINYBIRD_TOKEN itself changes only with a restart, which loses what is waiting."
        ),
    ),
    "404": Said(
        cause="held",
        overall=(
            "1 destination is not delivering (hits): 3 rows are kept. Somebody has to act on hits: `/status` says how."
        ),
        sentence=(
            "Held for T: Tinybird does not know this data source, or the token belongs to another region (404: "
            "fault: 404). 3 rows are waiting, the oldest for T; nothing is lost as long as the proxy runs. The "
            "next attempt is made by itself in T, then each minute. To do: create hits in the workspace of "
            "TINYBIRD_TOKEN, mend the name that clients send, or set TINYBIRD_URL to the token's region."
        ),
    ),
    "508": Said(
        cause="held",
        overall=(
            "1 destination is not delivering (hits): 3 rows are kept. Somebody has to act on hits: `/status` says how."
        ),
        sentence=(
            "Held for T: the request came back to this proxy: TINYBIRD_URL leads to itself (508: fault: 508). 3 "
            "rows are waiting, the oldest for T; nothing is lost as long as the proxy runs. The next attempt is "
            "made by itself in T, then each minute. To do: TINYBIRD_URL must name Tinybird, not this proxy. That "
            "takes a restart, which loses what is waiting."
        ),
    ),
    "307": Said(
        cause="held",
        overall=(
            "1 destination is not delivering (hits): 3 rows are kept. Somebody has to act on hits: `/status` says how."
        ),
        sentence=(
            "Held for T: TINYBIRD_URL answers with a redirect, which the proxy does not follow: to "
            "https://api.us-east.tinybird.co (307: fault: 307). 3 rows are waiting, the oldest for T; nothing is "
            "lost as long as the proxy runs. The next attempt is made by itself in T, then each minute. To do: "
            "TINYBIRD_URL must be the address of Tinybird's API itself. That takes a restart, which loses what "
            "is waiting."
        ),
    ),
    "301 to nowhere": Said(
        cause="held",
        overall=(
            "1 destination is not delivering (hits): 3 rows are kept. Somebody has to act on hits: `/status` says how."
        ),
        sentence=(
            "Held for T: TINYBIRD_URL answers with a redirect, which the proxy does not follow (301: fault: "
            "301). 3 rows are waiting, the oldest for T; nothing is lost as long as the proxy runs. The next "
            "attempt is made by itself in T, then each minute. To do: TINYBIRD_URL must be the address of "
            "Tinybird's API itself. That takes a restart, which loses what is waiting."
        ),
    ),
    "418": Said(
        cause="held",
        overall=(
            "1 destination is not delivering (hits): 3 rows are kept. Somebody has to act on hits: `/status` says how."
        ),
        sentence=(
            "Held for T: Tinybird gave an answer that the proxy does not know (418: I'm a teapot). 3 rows are "
            "waiting, the oldest for T; nothing is lost as long as the proxy runs. The next attempt is made by "
            "itself in T, then each minute. To do: see what Tinybird says; `tinybird-proxy probe` tries again at "
            "once."
        ),
    ),
    "401 at first": Said(
        cause="held",
        overall=(
            "1 destination is not delivering (hits): 3 rows are kept. Somebody has to act on hits: `/status` says how."
        ),
        sentence=(
            "Held for T: Tinybird does not accept the token (401: fault: 401). 3 rows are waiting, the oldest "
            "for T; nothing is lost as long as the proxy runs. The next attempt is made by itself in T, then "
            "each minute. To do: put a token of TINYBIRD_URL's region that may append to hits into the file of "
            "TINYBIRD_TOKEN_FILE, and it is tried at once. TINYBIRD_TOKEN itself changes only with a restart, "
            "which loses what is waiting."
        ),
    ),
    "403 at first": Said(
        cause="held",
        overall=(
            "1 destination is not delivering (hits): 3 rows are kept. Somebody has to act on hits: `/status` says how."
        ),
        sentence=(
            "Held for T: Tinybird does not accept the token for this data source (403: fault: 403). 3 rows are "
            "waiting, the oldest for T; nothing is lost as long as the proxy runs. The next attempt is made by "
            "itself in T, then each minute. To do: let TINYBIRD_TOKEN append to hits, or put a token of "
            "TINYBIRD_URL's region that may append to hits into the file of TINYBIRD_TOKEN_FILE, and it is tried "
            "at once. TINYBIRD_TOKEN itself changes only with a restart, which loses what is waiting."
        ),
    ),
    "404 at first": Said(
        cause="refused",
        overall="Tinybird refuses 1 destination (hits): its clients are told.",
        sentence=(
            "Requests are refused with 404 for T: Tinybird does not know this data source, or the token belongs "
            "to another region (404: Data Source 'hits' does not exist). Clients are told and nothing of theirs "
            "is taken, so nothing is lost; one request a minute is let through to try. To do: create hits in the "
            "workspace of TINYBIRD_TOKEN, mend the name that clients send, or set TINYBIRD_URL to the token's "
            "region."
        ),
    ),
    "401 for a client at first": Said(
        cause="refused",
        overall="Tinybird refuses 1 destination (hits): its clients are told.",
        sentence=(
            "Requests are refused with 401 for T: Tinybird does not accept the token (401: fault: 401). Clients "
            "are told and nothing of theirs is taken, so nothing is lost; one request a minute is let through to "
            "try. To do: let the client's token (SHA-256 f0f8722e…) append to hits, or give the client another "
            "one of TINYBIRD_URL's region."
        ),
    ),
    "403 for a client at first": Said(
        cause="refused",
        overall="Tinybird refuses 1 destination (hits): its clients are told.",
        sentence=(
            "Requests are refused with 403 for T: Tinybird does not accept the token for this data source (403: "
            "fault: 403). Clients are told and nothing of theirs is taken, so nothing is lost; one request a "
            "minute is let through to try. To do: let the client's token (SHA-256 f0f8722e…) append to hits, or "
            "give the client another one of TINYBIRD_URL's region."
        ),
    ),
    "404 for a client at first": Said(
        cause="refused",
        overall="Tinybird refuses 1 destination (hits): its clients are told.",
        sentence=(
            "Requests are refused with 404 for T: Tinybird does not know this data source, or the token belongs "
            "to another region (404: fault: 404). Clients are told and nothing of theirs is taken, so nothing is "
            "lost; one request a minute is let through to try. To do: create hits in the workspace of the "
            "client's token (SHA-256 f0f8722e…), mend the name that the client sends, or set TINYBIRD_URL to the "
            "token's region."
        ),
    ),
    "401 for a client": Said(
        cause="held",
        overall=(
            "1 destination is not delivering (hits): 3 rows are kept. Somebody has to act on hits: `/status` says how."
        ),
        sentence=(
            "Held for T: Tinybird does not accept the token (401: fault: 401). 3 rows are waiting, the oldest "
            "for T; nothing is lost as long as the proxy runs. The next attempt is made by itself in T, then "
            "each minute. To do: let the client's token (SHA-256 f0f8722e…) append to hits; what waits is sent "
            "with that one only."
        ),
    ),
    "403 for a client": Said(
        cause="held",
        overall=(
            "1 destination is not delivering (hits): 3 rows are kept. Somebody has to act on hits: `/status` says how."
        ),
        sentence=(
            "Held for T: Tinybird does not accept the token for this data source (403: fault: 403). 3 rows are "
            "waiting, the oldest for T; nothing is lost as long as the proxy runs. The next attempt is made by "
            "itself in T, then each minute. To do: let the client's token (SHA-256 f0f8722e…) append to hits; "
            "what waits is sent with that one only."
        ),
    ),
    "404 for a client": Said(
        cause="held",
        overall=(
            "1 destination is not delivering (hits): 3 rows are kept. Somebody has to act on hits: `/status` says how."
        ),
        sentence=(
            "Held for T: Tinybird does not know this data source, or the token belongs to another region (404: "
            "fault: 404). 3 rows are waiting, the oldest for T; nothing is lost as long as the proxy runs. The "
            "next attempt is made by itself in T, then each minute. To do: create hits in the workspace of the "
            "client's token (SHA-256 f0f8722e…), mend the name that the client sends, or set TINYBIRD_URL to the "
            "token's region."
        ),
    ),
    "403 for a client with rows": Said(
        cause="refused",
        overall="Tinybird refuses 1 destination (hits): its clients are told, and 3 rows are kept that came before.",
        sentence=(
            "Requests are refused with 403 for T: Tinybird does not accept the token for this data source (403: "
            "invalid authentication token). Clients are told and nothing of theirs is taken, so nothing is lost; "
            "one request a minute is let through to try. 3 rows are waiting, the oldest for T: taken before, "
            "kept for an hour, and dead letters then. To do: let the client's token (SHA-256 f0f8722e…) append "
            "to hits; what waits is sent with that one only. Since the start: 3 rows that may have arrived more "
            "than once (ambiguous)."
        ),
    ),
    "a loop of one": Said(
        cause="held",
        overall=(
            "1 destination is not delivering (hits): 3 rows are kept. Somebody has to act on hits: `/status` says how."
        ),
        sentence=(
            "Held for T: the request came back to this proxy: TINYBIRD_URL leads to itself (508: this request "
            "came from this very proxy: TINYBIRD_URL leads back to it). 3 rows are waiting, the oldest for T; "
            "nothing is lost as long as the proxy runs. The next attempt is made by itself in T, then each "
            "minute. To do: TINYBIRD_URL must name Tinybird, not this proxy. That takes a restart, which loses "
            "what is waiting."
        ),
    ),
    "a loop of two": Said(
        cause="held",
        overall=(
            "1 destination is not delivering (hits): 3 rows are kept. Somebody has to act on hits: `/status` says how."
        ),
        sentence=(
            "Held for T: the request came back to this proxy: TINYBIRD_URL leads to itself (508: this request "
            "came from this very proxy: TINYBIRD_URL leads back to it). 3 rows are waiting, the oldest for T; "
            "nothing is lost as long as the proxy runs. The next attempt is made by itself in T, then each "
            "minute. To do: TINYBIRD_URL must name Tinybird, not this proxy. That takes a restart, which loses "
            "what is waiting."
        ),
    ),
    "taken by another proxy": Said(
        sentence=(
            "Nothing is waiting. Since the start: 3 rows taken without Tinybird saying that they are written "
            "(unverified)."
        ),
    ),
    "413 halved": Said(
        sentence="Nothing is waiting. Requests are kept to N bytes, because Tinybird refused larger ones (413).",
    ),
    "413 for a row": Said(
        overall="1 row is in dead letters, in memory only: `tinybird-proxy dead-letters ls` shows them.",
        sentence=(
            "Nothing is waiting. Requests are kept to N bytes, because Tinybird refused larger ones (413). "
            "1 row is in dead letters, in memory only: `tinybird-proxy dead-letters ls` shows them."
        ),
    ),
    "400 for one row, searching": Said(
        overall="Tinybird rejected rows of 1 destination (hits): the bad ones are being looked for.",
        sentence=(
            "Looking for the bad rows in a batch of 16 rows: Tinybird says the request is not valid (400: fault: "
            "400). N requests so far, N rows undecided. N rows are waiting, the oldest for T; nothing is lost "
            "as long as the proxy runs. Good rows are delivered, bad ones become dead letters; other batches go "
            "on. Nothing to do until then."
        ),
    ),
    "400 for one row": Said(
        overall="1 row is in dead letters, in memory only: `tinybird-proxy dead-letters ls` shows them.",
        sentence=(
            "Nothing is waiting. 1 row is in dead letters, in memory only: `tinybird-proxy dead-letters ls` shows them."
        ),
    ),
    "400 for ten rows, searching": Said(
        overall="Tinybird rejected rows of 1 destination (hits): the bad ones are being looked for.",
        sentence=(
            "Looking for the bad rows in a batch of 32 rows: Tinybird says the request is not valid (400: fault: "
            "400). N requests so far, N rows undecided. N rows are waiting, the oldest for T; nothing is lost "
            "as long as the proxy runs. Good rows are delivered, bad ones become dead letters; other batches go "
            "on. Nothing to do until then."
        ),
    ),
    "400 for ten rows": Said(
        overall="10 rows are in dead letters, in memory only: `tinybird-proxy dead-letters ls` shows them.",
        sentence=(
            "Nothing is waiting. 10 rows are in dead letters, in memory only: `tinybird-proxy dead-letters ls` "
            "shows them."
        ),
    ),
    "400 for all": Said(
        cause="held",
        overall=(
            "1 destination is not delivering (hits): 16 rows are kept. Somebody has to act on hits: `/status` says how."
        ),
        sentence=(
            "Held for T: Tinybird says the request is not valid (400: fault: 400); no part of its rows is taken "
            "either. 16 rows are waiting, the oldest for T; nothing is lost as long as the proxy runs. The next "
            "attempt is made by itself in T, then each minute. To do: compare what clients send to hits, and its "
            "parameters, with what Tinybird says."
        ),
    ),
    "400 for a handful": Said(
        overall="2 rows are in dead letters, in memory only: `tinybird-proxy dead-letters ls` shows them.",
        sentence=(
            "Nothing is waiting. 2 rows are in dead letters, in memory only: `tinybird-proxy dead-letters ls` "
            "shows them."
        ),
    ),
    "400 for a second handful": Said(
        overall="4 rows are in dead letters, in memory only: `tinybird-proxy dead-letters ls` shows them.",
        sentence=(
            "Nothing is waiting. 4 rows are in dead letters, in memory only: `tinybird-proxy dead-letters ls` "
            "shows them."
        ),
    ),
    "400 for a third handful": Said(
        cause="held",
        overall=(
            "1 destination is not delivering (hits): 1 row is kept. Somebody has to act on hits: `/status` says "
            "how. 4 rows are in dead letters, in memory only: `tinybird-proxy dead-letters ls` shows them."
        ),
        sentence=(
            "Held for T: Tinybird says the request is not valid (400: fault: 400); so was every row of the "
            "batches before. 1 row is waiting, the oldest for T; nothing is lost as long as the proxy runs. The "
            "next attempt is made by itself in T, then each minute. To do: compare what clients send to hits, "
            "and its parameters, with what Tinybird says. 4 rows are in dead letters, in memory only: "
            "`tinybird-proxy dead-letters ls` shows them."
        ),
    ),
    "422": Said(
        overall="3 rows are in dead letters, in memory only: `tinybird-proxy dead-letters ls` shows them.",
        sentence=(
            "Nothing is waiting. 3 rows are in dead letters, in memory only: `tinybird-proxy dead-letters ls` "
            "shows them."
        ),
    ),
    "expired": Said(
        cause="failing",
        overall=(
            "1 destination is not delivering (hits): no rows are waiting. The proxy tries again by itself. 3 "
            "rows are in dead letters, in memory only: `tinybird-proxy dead-letters ls` shows them."
        ),
        sentence=(
            "Not delivering for T: Tinybird answered with an error (500: fault: 500). No rows are waiting. The "
            "next rows are the next attempt. Nothing to do, unless it lasts: then ask Tinybird. Since the start: "
            "3 rows that may have arrived more than once (ambiguous). 3 rows are in dead letters, in memory "
            "only: `tinybird-proxy dead-letters ls` shows them."
        ),
    ),
}


# What differs from run to run, and how it is written then.
_VARIES: Final = (
    (r"\b\d+(\.\d+)? (s|min|h)\b", "T"),
    (r"(127\.0\.0\.1|localhost|nowhere\.invalid):\d+", r"\1:PORT"),
    (r"kept to [\d,]+ bytes", "kept to N bytes"),
    (
        r"\d+ requests? so far, \d+ rows? undecided\. \d+ rows? (is|are) waiting",
        "N requests so far, N rows undecided. N rows are waiting",
    ),
)


def plain(text: str) -> str:
    """``text`` with what varies written plainly."""
    for varying, written in _VARIES:
        text = re.sub(varying, written, text)
    return text
