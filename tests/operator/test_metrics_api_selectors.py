"""Label selectors, by the grammar and the rules of Kubernetes' own."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybird_proxy_operator.metrics_api.selectors import Selector, parse

LABELS = {"app": "proxy", "tier": "", "tinybird-proxy.io/proxy": "events", "number": "7"}


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("", True),
        ("  ", True),
        ("app=proxy", True),
        ("app==proxy", True),
        ("app = proxy , tier=", True),
        ("app=other", False),
        ("missing=x", False),
        ("missing=", False),
        ("tier=", True),
        ("app!=proxy", False),
        ("app!=other", True),
        ("missing!=x", True),
        ("app", True),
        ("missing", False),
        ("!missing", True),
        ("! missing", True),
        ("!app", False),
        ("app in (proxy)", True),
        ("app in (a,proxy,b)", True),
        ("app in (a, b)", False),
        ("app in(proxy)", True),
        ("tier in ()", True),
        ("tier in (,a)", True),
        ("missing in (a)", False),
        ("app notin (a,b)", True),
        ("app notin (proxy)", False),
        ("missing notin (a)", True),
        ("tier notin ()", False),
        ("number>6", True),
        ("number > 7", False),
        ("number<8", True),
        ("app>1", False),
        ("missing<1", False),
        ("app=proxy,tinybird-proxy.io/proxy=events,!tinybird-proxy.io/draining", True),
        ("app=proxy,missing", False),
        ("in in (a)", False),
        ("notin", False),
    ],
)
def test_what_fits_is_what_kubernetes_says_fits(text: str, fits: bool) -> None:
    assert parse(text).matches(LABELS) is fits


@pytest.mark.parametrize(
    "text",
    [
        ",",
        "app=proxy,",
        "app proxy",
        "=x",
        "app=(x)",
        "app in proxy",
        "app in (proxy",
        "app in (a b)",
        "app in (a))",
        "!app=x",
        "!",
        "app=a=b",
        "-app=x",
        "Prefix/app=x",
        f"{'a' * 64}=x",
        f"app={'a' * 64}",
        "app=-x",
        "number>x",
        "app=!x",
        "a/b/c",
    ],
)
def test_what_cannot_be_read_is_told(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse(text)


def test_a_selector_knows_which_labels_it_speaks_of() -> None:
    assert parse("a=b,!c").speaks_of("c")
    assert not parse("a=b,!c").speaks_of("b")
    assert parse("") == Selector()


@given(st.text(alphabet="ab=!,() <>in/-.", max_size=20))
def test_nothing_that_is_written_breaks_it(text: str) -> None:
    with suppress(ValueError):
        parse(text).matches(LABELS)
