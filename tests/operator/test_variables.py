"""Reading variables; the settings that are read with it have tests of their own."""

from tinybird_proxy_operator.variables import Reader, choice, dns_label, integer, label


def test_what_is_right_is_read() -> None:
    read = Reader({"NAME": " shop ", "LABELS": "a=b, c=d,a=b,", "EMPTY": ""})
    assert read.one("NAME", dns_label, None) == "shop"
    assert read.one("NUMBER", integer(1, 9), "7") == 7
    assert read.list("LABELS", label, "") == (("a", "b"), ("c", "d"))
    assert read.list("EMPTY", label, "a=b") == ()
    assert read.problems == []


def test_what_is_wrong_is_collected() -> None:
    read = Reader({"NAME": "", "NUMBER": "10", "WORD": "no", "LABELS": "a"})
    read.one("MISSING", dns_label, None)
    read.one("NAME", dns_label, "x")
    read.one("NUMBER", integer(1, 9), None)
    read.one("WORD", choice("yes"), None)
    read.list("LABELS", label, "")
    assert read.problems == [
        "MISSING: is missing",
        "NAME: is set but empty; give it a value or leave it unset",
        "NUMBER: '10': must be a whole number from 1 to 9",
        "WORD: 'no': must be one of yes",
        "LABELS: 'a': must be a label as key=value",
    ]
