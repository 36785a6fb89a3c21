"""`tinybird_proxy.emulator.limits`: requests a second for each data source."""

from tinybird_proxy.emulator.limits import RequestLimiter


def _allowed(limiter: RequestLimiter, datasource: str, now: float) -> bool:
    allowance = limiter.take(datasource, now)
    assert allowance is not None
    return allowance.allowed


def test_as_many_requests_as_the_limit_pass_in_one_second() -> None:
    limiter = RequestLimiter(3)
    assert [_allowed(limiter, "hits", 10.0 + 0.1 * number) for number in range(4)] == [True, True, True, False]


def test_a_new_window_opens_one_second_after_the_first_request() -> None:
    limiter = RequestLimiter(1)
    assert _allowed(limiter, "hits", 10.0)
    assert not _allowed(limiter, "hits", 10.99)
    assert _allowed(limiter, "hits", 11.0)


def test_each_data_source_has_its_own_limit() -> None:
    limiter = RequestLimiter(1)
    assert _allowed(limiter, "hits", 10.0)
    assert _allowed(limiter, "clicks", 10.0)


def test_the_headers_of_an_allowed_request_are_integers_and_never_say_that_nothing_remains() -> None:
    limiter = RequestLimiter(2)
    remaining = []
    for _ in range(2):
        allowance = limiter.take("hits", 10.0)
        assert allowance is not None
        assert allowance.headers().keys() == {"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"}
        remaining.append(allowance.headers()["X-RateLimit-Remaining"])
    assert remaining == ["1", "1"]


def test_a_refused_request_is_told_when_to_come_back() -> None:
    limiter = RequestLimiter(1)
    limiter.take("hits", 10.0)
    refused = limiter.take("hits", 10.3)
    assert refused is not None
    assert refused.headers() == {
        "X-RateLimit-Limit": "1",
        "X-RateLimit-Remaining": "0",
        "X-RateLimit-Reset": "1",
        "Retry-After": "1",
    }


def test_a_limit_of_zero_is_no_limit() -> None:
    assert RequestLimiter(0).take("hits", 10.0) is None


def test_windows_of_data_sources_long_silent_are_forgotten() -> None:
    limiter = RequestLimiter(1)
    for number in range(10_000):
        limiter.take(f"ds{number}", 10.0)
    limiter.take("hits", 20.0)
    assert len(limiter._windows) == 1
