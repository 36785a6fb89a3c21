"""How a destination stands, as values for ``health``."""

import math

from tinybird_proxy.batch import DestinationKey
from tinybird_proxy.destination.queue import BatchQueue
from tinybird_proxy.destination.splitting import Splitting
from tinybird_proxy.destination.surroundings import Surroundings
from tinybird_proxy.health import DestinationFacts, stuck_after
from tinybird_proxy.ledger import Ledger
from tinybird_proxy.pacing import Pacing
from tinybird_proxy.tokens import fingerprint


def make_facts(
    key: DestinationKey,
    surroundings: Surroundings,
    *,
    queue: BatchQueue,
    pacing: Pacing,
    ledger: Ledger,
    splitting: Splitting,
    trouble_since: float | None,
    settled_at: float | None,
    status: int | None,
    refusing: int | None,
    now: float,
) -> DestinationFacts:
    """Times are the clock's seconds. ``status``: of the answer behind the state; ``refusing``: what clients hear."""
    rows, oldest_at = queue.promised_rows(), queue.oldest_at()
    pause_s = pacing.paused_until - now
    ceiling, letters_rows = splitting.ceiling_bytes(now), surroundings.letters.held_rows(key)
    return DestinationFacts(
        data_source=key.name,
        params=dict(key.params),
        token_hash=None if key.token is None else fingerprint(key.token),
        state=pacing.state,
        reason=pacing.reason,
        status=status,
        confirmed=pacing.confirmed,
        buffered_rows=rows,
        buffered_bytes=queue.held()[1],
        held_bytes=queue.memory_bytes(),
        oldest_age_s=None if oldest_at is None else now - oldest_at,
        in_flight=len(queue.in_flight),
        places=pacing.places,
        batches_waiting=len(queue.waiting),
        next_attempt_in_s=None if queue.in_flight or math.isinf(pause_s) else max(0.0, pause_s),
        not_delivering_for_s=None if trouble_since is None else now - trouble_since,
        delivered_ago_s=None if settled_at is None else now - settled_at,
        stuck_after_s=stuck_after(surroundings.limits.flush_interval_s),
        refusing=refusing,
        splitting=splitting.facts(),
        ceiling_bytes=None if math.isinf(ceiling) else int(ceiling),
        letters_rows=letters_rows,
        ledger=ledger.as_dict(rows, letters_rows),
    )
