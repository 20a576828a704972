"""`<paper> <verb> [--preset smoke|small|paper] [flags]` for every paper.

A paper declares its verbs as data (`Paper`, `Verb`): the configuration dataclass, the presets, and the place
of the function to call as "module:function", so that `--help` and every input error answer before torch is
imported. Expected failures (`UserError`) are one line on stderr and exit code 2; others keep their traceback
and exit with 1.
"""

import contextlib
import dataclasses
import errno
import importlib
import io
import itertools
import json
import os
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from paperkit import UserError, suggest
from paperkit.run import Interrupted, RunOptions, find, from_json, read_json, to_json

OWN_FLAGS = ("--preset", "--config", "--dry-run", "--help")
"""Flags of every verb beside those of its configuration."""


@dataclass(frozen=True)
class Verb:
    """One verb of a paper.

    `call` names "module:function", called as `function(config)`, or as `function(config, options, preset)`
    where the verb makes a run folder (`runs=True`). `describe` names a function `config -> {label: text}` for
    `--dry-run`. `presets` maps a name to (configuration, what to expect of it).
    """

    help: str
    call: str
    config: type
    presets: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    default: str = ""
    runs: bool = False
    describe: str = ""


@dataclass(frozen=True)
class Paper:
    """A paper's command: its name, title, arXiv number, verbs, and hints for verbs that it lacks."""

    name: str
    title: str
    arxiv: str
    verbs: Mapping[str, Verb]
    absent: Mapping[str, str] = field(default_factory=dict)


def main(paper: Paper, argv: Sequence[str] | None = None) -> int:
    """Run a paper's command line and return its exit code.

    0: done. 1: a bug, with its traceback. 2: bad input. 130, 143: stopped by Ctrl-C or SIGTERM. 141: the
    reader of the output went away.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # Before torch starts its threads: ones that spin while they wait slow a busy machine down tenfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        _main(paper, words)
        sys.stdout.flush()
        return 0
    except UserError as error:
        print(f"{paper.name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        if os.environ.get("RANK", "0") == "0":  # of several processes one says it
            print(f"{paper.name}: {stop}", file=sys.stderr)
        return stop.code
    except KeyboardInterrupt:
        print(f"{paper.name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _discard_output()  # `| head`: nothing more can be said
        return 141
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _discard_output()
        print(f"{paper.name}: cannot write the output: {error.strerror}", file=sys.stderr)
        return 2


def _discard_output() -> None:
    """Point stdout at nothing, so that Python does not fail on what is still in its buffer when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _main(paper: Paper, words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        print(_overview(paper))
        return
    name, rest = words[0], words[1:]
    if name in paper.absent:
        raise UserError(paper.absent[name])
    if name not in paper.verbs:
        known = ", ".join(paper.verbs)
        if name.startswith("-"):
            raise UserError(f"the verb comes first, then {name}; the verbs are {known}")
        raise UserError(f"no verb {name}{suggest(name, paper.verbs)}; the verbs are {known}")
    verb = paper.verbs[name]
    try:
        command, preset, dry = parse(paper, name, rest)
    except SystemExit as stop:  # after --help
        if stop.code not in (0, None):
            raise
        return
    if dry:
        print(dry_run(paper, name, command, preset))
        return
    target = resolve(verb.call)
    if verb.runs:
        if os.environ.get("RANK", "0") == "0":
            print(
                f"{paper.name} · {paper.title} (arXiv {paper.arxiv}) · preset {preset or 'custom'}",
                flush=True,
            )
        target(command.config, command.options, preset)
    else:
        target(command.config)


def resolve(place: str) -> Callable[..., Any]:
    """The function at "module:function"."""
    module, function = place.split(":")
    return getattr(importlib.import_module(module), function)


# ---- the words of a verb -----------------------------------------------------------------------------------


def parse(paper: Paper, name: str, words: list[str]) -> tuple[Any, str, bool]:
    """(command with .config and .options, preset, dry run) of the words after a verb.

    The preset (or the stored configuration of `--resume`, or a file given by `--config`) is resolved first;
    the other flags override it. Words after `--` are no flags. `--help` prints and raises SystemExit(0).
    """
    verb = paper.verbs[name]
    end = words.index("--") if "--" in words else len(words)
    words, literal = words[:end], words[end:]
    words, dry = _take_switch(words, "-n", "--dry-run")
    words, preset = _take_value(words, "--preset")
    words, file = _take_value(words, "--config")
    if preset and preset not in verb.presets:
        known = ", ".join(verb.presets) or "none"
        raise UserError(
            f"no preset {preset}{suggest(preset, verb.presets)}; the presets of {name} are: {known}"
        )
    if preset and file:
        raise UserError("--preset and --config both name a configuration: give one of them")
    resumed = _take_value(words, "--resume")[1] if verb.runs else ""
    base, preset = _base(paper, verb, preset, file, resumed)
    return _flags(paper, name, verb, base, words + literal), preset, dry


def _base(paper: Paper, verb: Verb, preset: str, file: str, resumed: str) -> tuple[Any, str]:
    """The configuration that the flags override (None: the class's defaults), and its name."""
    if file:
        if not Path(file).is_file():
            raise UserError(f"--config {file}: there is no such file; name the config.json of a run")
        return from_json(verb.config, read_json(Path(file)), file), ""
    if resumed and not preset:
        folder = find(paper.name, resumed)
        stored = from_json(verb.config, read_json(folder / "config.json"), str(folder / "config.json"))
        return stored, str(read_json(folder / "manifest.json").get("preset", ""))
    preset = preset or verb.default
    return (verb.presets[preset][0] if preset else None), preset


def _flags(paper: Paper, name: str, verb: Verb, base: Any, words: list[str]) -> Any:
    """The command: `base` overridden by the flags."""
    import tyro

    parts: list[Any] = [("config", verb.config, dataclasses.MISSING if base is None else base)]
    if verb.runs:
        parts.append(("options", RunOptions, RunOptions()))
    fields = [(part, Annotated[kind, tyro.conf.arg(name="")], _default(value)) for part, kind, value in parts]
    see = f"see {paper.name} {name} --help"
    known = [*OWN_FLAGS, *(flag for _, kind, _ in parts for flag in flags_of(kind))]
    for word in itertools.takewhile(lambda word: word != "--", words):
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag.replace("_", "-") not in known:
            hint = suggest(flag[2:], [name[2:] for name in known]).replace("mean ", "mean --")
            raise UserError(f"no flag {flag}{hint}; {see}")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            command, stray = tyro.cli(
                dataclasses.make_dataclass("Command", fields, frozen=True),
                args=words,
                prog=f"{paper.name} {name}",
                description=_description(paper, verb),
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(f"{one_line(said.getvalue(), words, verb.config)}; {see}") from None
    if stray:
        truth = stray[0].lower() in ("true", "false")
        hint = " (a switch takes no value: --flag or --no-flag)" if truth else ""
        raise UserError(f"unexpected word {stray[0]}{hint}; {see}")
    return command


def _default(value: Any) -> Any:
    # A factory: a configuration that holds a list is refused as a plain default.
    return field() if value is dataclasses.MISSING else field(default_factory=lambda: value)


def flags_of(kind: type, prefix: str = "") -> list[str]:
    """The flags of a configuration dataclass, as tyro names them."""
    import tyro

    hints = typing.get_type_hints(kind, include_extras=True)
    positional = tyro.conf.Positional[str].__metadata__[0]  # pyright: ignore[reportAttributeAccessIssue]
    found = []
    for part in dataclasses.fields(kind):
        hint, flag = hints[part.name], part.name.replace("_", "-")
        if dataclasses.is_dataclass(hint):
            found += flags_of(hint, f"{prefix}{flag}.")  # pyright: ignore[reportArgumentType]
        elif positional not in getattr(hint, "__metadata__", ()):
            found += [f"--{prefix}{flag}", *([f"--{prefix}no-{flag}"] if hint is bool else [])]
    return found


def one_line(box: str, words: Sequence[str], config: type) -> str:
    """tyro's framed message about `words` as one line that says what the flag takes."""
    rows = [re.sub(r"\x1b\[[0-9;]*m", "", row).strip(" │╭╰╮╯─") for row in box.splitlines()]
    text = " ".join(row for row in rows if row)
    if found := re.search(r"Missing value for argument '(?:\S+, )*(\S+)'\. Expected (\d+) value", text):
        flag, count = found.groups()
        return f"{flag.removeprefix('config.')} needs {'a value' if count == '1' else f'{count} values'}"
    if found := re.search(r"invalid choice '(.*)' for argument '(\S+)'\. Expected one of \((.*?),?\)", text):
        wrong, flag, listed = found.groups()
        choices = listed.replace("'", "").split(", ")
        return f"{flag} {wrong}: choose from {', '.join(choices)}{suggest(wrong, choices)}"
    if found := re.search(r"Error parsing (--\S+):", text):
        flag = found[1]
        takes = next((row.removeprefix(flag) for row in rows if row.startswith(f"{flag} ")), " another type")
        takes = takes.replace("{None}|", "None or ")
        return f"{flag} takes{takes}, not {_given(words, flag)}"
    if text.startswith("Required options"):
        needed = [part.name for part in dataclasses.fields(config) if _is_required(part)]
        return f"{' and '.join(needed)} must be given"
    return re.split(r"Argument helptext|For full helptext", text)[0].strip(" :.")


def _is_required(part: "dataclasses.Field[Any]") -> bool:
    return part.default is dataclasses.MISSING and part.default_factory is dataclasses.MISSING


def _given(words: Sequence[str], flag: str) -> str:
    """The words that were given to a flag."""
    for index in range(len(words) - 1, -1, -1):
        name, equals, value = words[index].partition("=")
        if name.replace("_", "-") == flag:
            following = itertools.takewhile(lambda word: not word.startswith("--"), words[index + 1 :])
            return value if equals else " ".join(following)
    return "what was given"


def _take_switch(words: list[str], *names: str) -> tuple[list[str], bool]:
    return [word for word in words if word not in names], any(word in names for word in words)


def _take_value(words: list[str], name: str) -> tuple[list[str], str]:
    """Take `name value` or `name=value` out of the words; the last one counts."""
    kept, value, remaining = [], "", iter(words)
    for word in remaining:
        if word != name and not word.startswith(f"{name}="):
            kept.append(word)
            continue
        value = next(remaining, "") if word == name else word.partition("=")[2]
        if not value or (word == name and value.startswith("-")):
            raise UserError(f"{name} needs a value")
    return kept, value


# ---- what is printed ---------------------------------------------------------------------------------------


def _overview(paper: Paper) -> str:
    width = max(map(len, paper.verbs))
    rows = [f"  {name:<{width}}  {verb.help}" for name, verb in paper.verbs.items()]
    head = f"{paper.name} · {paper.title} (arXiv {paper.arxiv})"
    usage = f"usage: {paper.name} VERB [--preset NAME] [flags]"
    return "\n".join(
        [head, "", usage, "", *rows, "", f"{paper.name} VERB --help lists a verb's flags and presets."]
    )


def _description(paper: Paper, verb: Verb) -> str:
    rows = [f"{paper.title} (arXiv {paper.arxiv})", "", verb.help]
    if verb.presets:
        rows += ["", "--preset NAME, one of:"]
        for name, (_, expect) in verb.presets.items():
            rows.append(f"  {name}{' (default)' if name == verb.default else ''}: {expect}")
    rows += [
        "",
        "--config FILE takes a run's config.json instead; flags override either.",
        "-n, --dry-run: show, do nothing.",
    ]
    return "\n".join(rows)


def dry_run(paper: Paper, name: str, command: Any, preset: str) -> str:
    """What the verb would do: its resolved configuration, and what the paper's `describe` adds."""
    verb = paper.verbs[name]
    rows = [f"{paper.name} {name} · {paper.title} (arXiv {paper.arxiv}) · preset {preset or 'custom'}"]
    facts = resolve(verb.describe)(command.config) if verb.describe else {}
    if verb.runs:
        from paperkit.device import choose

        options = command.options
        facts["device"] = str(choose(options.device, options.precision))
        facts["run folder"] = (
            options.resume or options.out or f"runs/{paper.name}/<time>-{preset or 'custom'}-…"
        )
    width = max((len(label) for label in facts), default=0)
    rows += [f"{label:<{width}}  {text}" for label, text in facts.items()]
    rows.append(json.dumps(to_json(command.config), indent=2, ensure_ascii=False))
    return "\n".join(rows)
