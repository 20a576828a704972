"""`<paper> <verb> [--preset smoke|small|paper] [flags]` for every paper.

A paper declares its verbs as data (`Paper`, `Verb`): the configuration dataclass, the presets, and the place
of the function to call as "module:function", so that `--help` and every input error answer before torch is
imported. Expected failures (`UserError`) are one line on stderr and exit code 2; others keep their traceback
and exit with 1.
"""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from paperkit import UserError
from paperkit.run import Interrupted, RunOptions, find, from_json, read_json, suggest


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
    """Run a paper's command line and return its exit code: 0, 1 (bug), 2 (bad input), 130/143 (signal)."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _main(paper, words)
    except UserError as error:
        print(f"{paper.name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"{paper.name}: {stop}", file=sys.stderr)
        return stop.code
    except KeyboardInterrupt:
        print(f"{paper.name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`| head`): not a failure, and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _main(paper: Paper, words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_overview(paper))
        return 0
    name, rest = words[0], words[1:]
    if name in paper.absent:
        raise UserError(paper.absent[name])
    if name not in paper.verbs:
        raise UserError(f"no verb {name}{suggest(name, paper.verbs)}; the verbs are {', '.join(paper.verbs)}")
    verb = paper.verbs[name]
    command, preset, dry = parse(paper, name, rest)
    if dry:
        print(dry_run(paper, name, command, preset))
        return 0
    target = resolve(verb.call)
    if verb.runs:
        print(f"{paper.name} · {paper.title} (arXiv {paper.arxiv}) · preset {preset or 'custom'}", flush=True)
        target(command.config, command.options, preset)
    else:
        target(command.config)
    return 0


def resolve(place: str) -> Callable[..., Any]:
    """The function at "module:function"."""
    module, function = place.split(":")
    return getattr(importlib.import_module(module), function)


# ---- the words of a verb -----------------------------------------------------------------------------------


def parse(paper: Paper, name: str, words: list[str]) -> tuple[Any, str, bool]:
    """(command with .config and .options, preset, dry run) of the words after a verb.

    The preset (or the stored configuration of `--resume`, or a file given by `--config`) is resolved first;
    the other flags override it. `--help` prints and exits with 0.
    """
    verb = paper.verbs[name]
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
    resumed = _peek(words, "--resume") if verb.runs else None
    base, preset = _base(paper, verb, preset, file, resumed)
    return _flags(paper, name, verb, base, words), preset, dry


def _base(paper: Paper, verb: Verb, preset: str, file: str, resumed: str | None) -> tuple[Any, str]:
    """The configuration that the flags override, and its name."""
    if file:
        return from_json(verb.config, read_json(Path(file)), file), ""
    if resumed and not preset:
        folder = find(paper.name, resumed)
        stored = from_json(verb.config, read_json(folder / "config.json"), str(folder / "config.json"))
        return stored, str(read_json(folder / "manifest.json").get("preset", ""))
    preset = preset or verb.default
    return (verb.presets[preset][0] if preset else verb.config()), preset


def _flags(paper: Paper, name: str, verb: Verb, base: Any, words: list[str]) -> Any:
    import tyro

    fields: list[Any] = [("config", Annotated[verb.config, tyro.conf.arg(name="")])]
    if verb.runs:
        fields.append(("options", Annotated[RunOptions, tyro.conf.arg(name="")], RunOptions()))
    command = dataclasses.make_dataclass("Command", fields, frozen=True)
    default = command(base, RunOptions()) if verb.runs else command(base)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                command,
                args=words,
                default=default,
                prog=f"{paper.name} {name}",
                description=_description(paper, verb),
                config=(tyro.conf.FlagConversionOff, tyro.conf.ConsolidateSubcommandArgs),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(one_line(said.getvalue(), f"{paper.name} {name}")) from None


def one_line(box: str, command: str) -> str:
    """tyro's framed message as one line: the message, the nearest flag, where the help is."""
    rows = [re.sub(r"\x1b\[[0-9;]*m", "", row).strip(" │╭╰╮╯") for row in box.splitlines()]
    rows = [row for row in rows[1:] if row and not row.endswith("─")]
    text = " ".join(rows)
    message = re.split(r"─{3,}|Perhaps you meant|Argument helptext|For full helptext", text)[0].strip(" :.")
    near = re.search(r"Perhaps you meant:?\s*(--[\w.-]+)", text)
    hint = f" (did you mean {near.group(1)}?)" if near else ""
    return f"{message}{hint}; see {command} --help"


def _take_switch(words: list[str], *names: str) -> tuple[list[str], bool]:
    return [word for word in words if word not in names], any(word in names for word in words)


def _take_value(words: list[str], name: str) -> tuple[list[str], str]:
    """Take `name value` or `name=value` out of the words; the last one counts."""
    kept, value, index = [], "", 0
    while index < len(words):
        word = words[index]
        if word == name:
            if index + 1 == len(words) or words[index + 1].startswith("-"):
                raise UserError(f"{name} needs a value")
            value, index = words[index + 1], index + 1
        elif word.startswith(f"{name}="):
            value = word.partition("=")[2]
        else:
            kept.append(word)
        index += 1
    return kept, value


def _peek(words: list[str], name: str) -> str:
    return _take_value(words, name)[1]


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
    rows.append(json.dumps(dataclasses.asdict(command.config), indent=2, default=str))
    return "\n".join(rows)
