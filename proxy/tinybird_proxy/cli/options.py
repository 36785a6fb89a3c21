"""All options as a table, from the one table in ``config``."""

from tinybird_proxy.config import OPTIONS


def as_markdown() -> str:
    """The README's table."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for option in OPTIONS:
        names = " or ".join(f"`{name}`" for name in (option.variable, *option.aliases))
        default = "" if option.default is None else f"`{option.default}`"
        lines.append(f"| {names} | {default} | {option.help} |")
    return "\n".join(lines)


def as_text() -> str:
    """The same for a terminal."""
    width = max(len(option.variable) for option in OPTIONS)
    return "\n".join(
        f"{option.variable:{width}}  {option.help.replace('`', '')}"
        + (f" Default: {option.default}." if option.default is not None else "")
        for option in OPTIONS
    )
