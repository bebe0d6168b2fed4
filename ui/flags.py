"""Options of the library as flags of the command line, grouped in ``--help`` by what they belong to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from ..converters import options
from ..converters.options import Option
from ..errors import UsageError

if TYPE_CHECKING:
    _AnyType = click.ParamType[Any]
else:  # click before 8.4 knows no type parameter
    _AnyType = click.ParamType

Function = Callable[..., None]
_METAVARS = {"number": "N", "size": "SIZE", "path": "FILE"}


class OptionType(_AnyType):
    """A value of an option, checked by the option itself."""

    def __init__(self, option: Option) -> None:
        self.option, self.name = option, option.kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.option.parse(value) if isinstance(value, str) else self.option.check(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


class Flag(click.Option):
    """An option of the command line that is listed under a heading of its own."""

    def __init__(self, names: Sequence[str], *, group: str = "", **settings: Any) -> None:
        super().__init__(names, **settings)
        self.group = group


def flag(option: Option, group: str = "", *, hidden: bool = False) -> Flag:
    """The flag of an option."""
    names, settings = _described(option)
    return Flag(names, group=group, hidden=hidden, **settings)


def flagged(*chosen: Option, group: str = "") -> Callable[[Function], Function]:
    """A decorator that gives a command the flags of some options."""

    def added(function: Function) -> Function:
        for option in reversed(chosen):
            names, settings = _described(option)
            function = click.option(*names, cls=Flag, group=group, **settings)(function)
        return function

    return added


def _described(option: Option) -> tuple[list[str], dict[str, Any]]:
    names = [option.flags, option.name]
    if option.kind == "flag":
        return names, {"help": option.help, "is_flag": True}
    several = option.kind == "words"
    shown = f"  [default: {option.default}]" if option.default is not None else ""
    metavar = "|".join(option.choices) or _METAVARS.get(option.kind) or option.name.upper()
    return names, {
        "help": option.help + shown,
        "type": str if several else OptionType(option),
        "multiple": several,
        "metavar": option.example if several else metavar,
    }


class Command(click.Command):
    """A command whose help lists its options by group, those without one last."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            row = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if row is not None:
                groups.setdefault(getattr(param, "group", ""), []).append(row)
        rest = groups.pop("", [])
        for name, rows in (*groups.items(), ("Options", rest)):
            with formatter.section(name):
                formatter.write_dl(rows)


class Converting(Command):
    """A command that converts. Besides what every such command takes it has the options of all formats; those
    of the formats in ``reads`` and ``writes`` (None: of all) are shown in its help.

    Formats are asked when a command line is parsed, so that other commands start without them.
    """

    def __init__(
        self,
        *arguments: Any,
        reads: Sequence[str] | None = None,
        writes: Sequence[str] | None = None,
        without: Sequence[Option] = (),
        **settings: Any,
    ) -> None:
        super().__init__(*arguments, **settings)
        #: formats of sources that the command is named after
        self.reads = reads
        self._writes, self._without = writes, without
        self._flags: list[click.Parameter] = []

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Parameters of the signature, then layout, weights, formats and output."""
        if not self._flags:
            self._flags = list(self._make())
        own = super().get_params(ctx)
        named = [param for param in own if isinstance(param, click.Argument)]
        return [*named, *self._flags, *(param for param in own if param not in named)]

    def _make(self) -> Iterator[click.Parameter]:
        if self._writes is None:
            from ..converters.registry import writable

            said = f"{', '.join(writable())}; the source's format is detected."
            yield Flag(["--to"], required=True, metavar="FORMAT", help=said, group="Target")
        yield from (flag(option, "Layout") for option in options.LAYOUT)
        yield from (flag(option, "Weights") for option in (options.DTYPE, options.EXACT))
        yield from format_flags(self.reads, self._writes)
        if self._writes is None or "onnx" in self._writes:
            said = "Add the graph to SRC, a Hugging Face directory; no OUT."
            yield Flag(["--in-place"], is_flag=True, help=said, group="Writing onnx")
        yield from (flag(option, "Run", hidden=option in self._without) for option in options.RUN)


def format_flags(reads: Iterable[str] | None, writes: Iterable[str] | None) -> list[Flag]:
    """The options of every format, once each, under the names of those that have them."""
    from ..converters.registry import formats

    found: dict[str, tuple[Option, list[str]]] = {}
    for each in formats():
        for option in each.options:
            sides = reads if option.when == "read" else writes
            without = option.when == "write" and not each.writes
            shown = found.setdefault(option.name, (option, []))[1]
            if (sides is None or each.name in sides) and not without:
                shown.append(each.name)
    titles = {"read": "Reading", "write": "Writing"}
    made = [
        flag(option, f"{titles[option.when]} {', '.join(shown)}", hidden=not shown)
        for option, shown in found.values()
    ]
    return sorted(made, key=lambda each: each.group)
