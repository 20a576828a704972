"""The run folder and the training loop's frame: log, metrics, resume, signals, progress."""

import contextlib
import functools
import importlib.util
import itertools
import json
import math
import os
import platform
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from paperkit import UserError
from paperkit.provenance import commit, hardware, now, versions
from paperkit.run.checkpoint import checkpoints, fill, load_checkpoint, save_checkpoint
from paperkit.run.config import differences, from_json, to_json
from paperkit.run.files import atomic, explain, read_json, write_json

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from torch.optim import Optimizer


@dataclass(frozen=True)
class RunOptions:
    """Where a run writes and what it runs on; no part of the experiment's configuration."""

    out: str = ""
    """Run folder; by default runs/<paper>/<time>-<preset>-s<seed>."""
    resume: str = ""
    """Go on with a run that stopped: its folder, or 'latest'."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of matrix products; the reason for 'auto' is printed."""


class Interrupted(Exception):
    """A signal ended the run after it had saved; `code` is the exit code of the command (128 + signal)."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.code = 128 + number


def runs_folder(paper: str) -> Path:
    """Where this paper's runs lie, below the working directory."""
    return Path("runs") / paper


def find(paper: str, where: str | os.PathLike[str]) -> Path:
    """The run folder that `where` names: a path, or 'latest' for this paper's newest.

    Raises `UserError` when it is missing or belongs to something else.
    """
    if str(where) == "latest":
        folders = [path.parent for path in runs_folder(paper).glob("*/manifest.json")]
        if not folders:
            raise UserError(f"there is no run in {runs_folder(paper)} yet: start one with '{paper} train'")
        return max(folders, key=_started)
    folder = Path(where)
    if not folder.is_dir():
        raise UserError(f"no run folder at {folder}: name one below {runs_folder(paper)}, or 'latest'")
    if not (folder / "manifest.json").is_file():
        raise UserError(
            f"{folder} is no run folder (it has no manifest.json): name one below {runs_folder(paper)}"
        )
    owner = read_json(folder / "manifest.json").get("paper")
    if owner != paper:
        raise UserError(f"{folder} is a run of {owner}, not of {paper}")
    return folder


def _started(folder: Path) -> tuple[float, str]:
    """When a run was started, for sorting; one whose manifest cannot be read counts as the oldest."""
    with contextlib.suppress(UserError, ValueError):
        return datetime.fromisoformat(
            str(read_json(folder / "manifest.json").get("started"))
        ).timestamp(), folder.name
    return 0.0, folder.name


class Run:
    """One run: its folder, what it logs, its checkpoints, and a clean stop on Ctrl-C or SIGTERM.

    Under several processes only the first writes; all agree on the folder and on when to stop.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], options: RunOptions):
        from paperkit import parallel

        self.folder, self.manifest, self.options = folder, manifest, options
        self.resumed = bool(options.resume)
        self._before = manifest.get("state") if self.resumed else None
        self.main = parallel.world()[0] == 0
        self.last = False
        self._complete = False
        self._signal = 0  # what this process was sent
        self._agreed = 0  # what all of them stop for
        self._start = 0
        self._opened = time.monotonic()

    @classmethod
    def open(
        cls,
        paper: str,
        title: str,
        config: Any,
        options: RunOptions,
        preset: str = "",
        seed: int = 0,
        **facts: Any,
    ) -> "Run":
        """Start a run folder, or open the one that `options.resume` names.

        `facts` go into the manifest (device, precision, data, parameters). Raises `UserError` for a folder
        that is missing, foreign, corrupt, in use, or of another configuration (its keys are listed).
        """
        from paperkit import parallel

        main = parallel.world()[0] == 0
        if options.resume:
            folder, manifest = _stored(paper, config, options, main)
        else:
            named = _new_folder(paper, options.out, f"{preset or 'custom'}-s{seed}") if main else ""
            folder, manifest = Path(parallel.agree(str(named))), _manifest(paper, title, preset, seed)
        manifest["hardware"] = hardware(str(facts.get("device", "cpu")))
        run = cls(folder, {**manifest, **facts}, options)
        if main and not run.finished:
            try:
                if not run.resumed:
                    write_json(folder / "config.json", to_json(config))
                run._write_manifest(state="running", ended=None, process=_this_process())
            except UserError:
                if not run.resumed:
                    _remove(folder)
                raise
        return run

    @property
    def finished(self) -> bool:
        """Whether the run had ended before it was opened."""
        return self._before == "finished"

    # -- what it says

    def begins(self, **told: object) -> bool:
        """Say on what the run works, where, and how to go on; False where it is finished already."""
        if self.resumed and self.finished:
            self.say(f"{self.folder} is finished already: nothing to do")
            return False
        for name, words in {**told, "run": self.folder, "resume": self.resume_command}.items():
            self.say(f"{name:9} {words}")
        return True

    def say(self, text: str) -> None:
        """Print a line (above the progress bar) and append it to log.txt."""
        if not self.main:
            return
        from tqdm import tqdm

        tqdm.write(text)
        self._append("log.txt", text)

    def log(self, step: int, **metrics: float) -> None:
        """Append one line to metrics.jsonl; with the extra `tensorboard` also there.

        Only figures that an equal run would repeat belong here.
        """
        if not self.main:
            return
        self._append("metrics.jsonl", json.dumps({"step": step, **metrics}))
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)

    @functools.cached_property
    def _board(self) -> Any:
        """TensorBoard's writer where the extra is installed, else None; drops steps after the checkpoint."""
        if not importlib.util.find_spec("tensorboard"):
            return None
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(
            str(self.folder / "tensorboard"), purge_step=self._start + 1 if self.resumed else None
        )

    def _append(self, name: str, line: str) -> None:
        try:
            with open(self.folder / name, "a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        except OSError as error:
            raise explain(error, self.folder / name) from error

    def metrics(self) -> list[dict[str, float]]:
        """The lines of metrics.jsonl; a last line cut short by a kill is left out."""
        return read_metrics(self.folder)

    def _write_manifest(self, **changes: Any) -> None:
        self.manifest.update(changes)
        if self.main:
            write_json(self.folder / "manifest.json", self.manifest)

    # -- checkpoints

    def save(
        self, step: int, weights: Mapping[str, Mapping[str, "Tensor"]], state: Any, keep: int = 2
    ) -> None:
        """Write checkpoints/<step>/: one safetensors file per group of weights, `state` for the rest.

        `state` holds tensors, numbers, strings, lists and dicts only. The folder appears whole or not at all;
        the last `keep` (at least one) stay.
        """
        if not self.main:
            return
        save_checkpoint(self.folder / "checkpoints" / f"{step:08d}", step, weights, state)
        for old in checkpoints(self.folder)[: -max(keep, 1)]:
            shutil.rmtree(old, ignore_errors=True)

    def restore(self) -> tuple[int, dict[str, dict[str, "Tensor"]], Any] | None:
        """(step, weights, state) of the last checkpoint, or None; metrics after it are dropped.

        A run that is not resumed has nothing to restore.
        """
        saved = checkpoints(self.folder) if self.resumed else []
        self._start = int(saved[-1].name) if saved else 0
        if self.resumed and self.main:
            rows = [row for row in self.metrics() if saved and row.get("step", math.inf) <= self._start]
            with atomic(self.folder / "metrics.jsonl", "w") as stream:
                stream.writelines(json.dumps(row) + "\n" for row in rows)
        if not saved:
            return None
        weights, state = load_checkpoint(saved[-1])
        return self._start, weights, state

    def goes_on(self, modules: Mapping[str, "Module"], optimiser: "Optimizer") -> int:
        """Fill modules and optimiser from the last checkpoint; the step that it was made after, else 0."""
        if not (saved := self.restore()):
            return 0
        start, weights, state = saved
        for name, module in modules.items():
            fill(module, weights[name], self.folder)
        optimiser.load_state_dict(state["optimiser"])
        self.say(f"goes on after step {start}")
        return start

    # -- the loop

    def check(self, step: int, *losses: float, advice: str = "try a lower --lr") -> None:
        """Raise `UserError`, with what is left and what to try, where a loss of this step is not finite."""
        if not all(map(math.isfinite, losses)):
            shown = ", ".join(f"{loss:g}" for loss in losses)
            raise UserError(f"the loss is not finite at step {step}: {shown}; {self.left()}; {advice}")

    def left(self) -> str:
        """What a run that went wrong leaves."""
        saved = checkpoints(self.folder)
        return f"the last good checkpoint is {saved[-1]}" if saved else "it had no checkpoint yet"

    def steps(self, start: int, total: int) -> Iterator[int]:
        """Yield start+1 … total with a progress bar and ETA.

        Before each step it is settled whether that one is the `last`: at `total`, or after a signal.
        """
        from tqdm import tqdm

        shown = self.main and sys.stderr.isatty()
        with tqdm(total=total, initial=start, disable=not shown, dynamic_ncols=True, smoothing=0.05) as bar:
            for step in range(start + 1, total + 1):
                stopping = self._stopping()
                if stopping and step < total:
                    self.say("stopping: this step, then it saves; Ctrl-C again ends at once")
                self.last = stopping or step == total
                yield step
                self.manifest["step"] = step
                bar.update()
                if self.last and step < total:
                    return
        self._complete = True

    def _stopping(self) -> bool:
        """Whether any process has been asked to stop; all get the same answer."""
        from paperkit import parallel

        # Not into `_signal` itself: one that arrives meanwhile would be lost.
        self._agreed = parallel.largest(self._signal)
        return self._agreed > 0

    def eta(self, done: int, total: int, start: int = 0) -> str:
        """'12 steps/s, 0:01:40 left' from the time since the run was opened."""
        rate = (done - start) / max(time.monotonic() - self._opened, 1e-9)
        left = timedelta(seconds=round((total - done) / rate)) if rate > 0 else "?"
        return f"{rate:.1f} steps/s, {left} left"

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Run the loop in this: after Ctrl-C or SIGTERM one more step is made and saved, then it ends.

        The manifest tells how it ended. A second Ctrl-C interrupts at once. Raises `Interrupted` when a
        signal stopped the loop before its last step.
        """

        def note(number: int, _frame: Any) -> None:
            if self._signal and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._signal = self._signal or number

        old = {}
        if threading.current_thread() is threading.main_thread():  # Python allows handlers there only
            old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        except BaseException as error:
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with contextlib.suppress(UserError):
                self._write_manifest(state=state, ended=now(), error=f"{type(error).__name__}: {error}")
            raise
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
            if (board := self.__dict__.get("_board")) is not None:
                board.close()
        stopped_by = self._agreed or self._signal
        if stopped_by and not self._complete:
            self._write_manifest(state="interrupted", ended=now())
            raise Interrupted(stopped_by, f"stopped and saved; go on with: {self.resume_command}")
        self._write_manifest(state="finished", ended=now())

    @property
    def resume_command(self) -> str:
        """The command that goes on with this run, as it can be typed where this one was."""
        verb = self.manifest.get("verb", "train")  # a fact that a paper with other verbs states
        words = [*_launcher(self.manifest["paper"]), verb, "--resume", str(self.folder)]
        for name in ("device", "precision"):
            if (value := getattr(self.options, name)) != "auto":
                words += [f"--{name}", value]
        return shlex.join(words)


# ---- starting and finding a folder -----------------------------------------------------------------------


def _stored(paper: str, config: Any, options: RunOptions, main: bool) -> tuple[Path, dict[str, Any]]:
    """(folder, manifest) of the run that `options.resume` names."""
    if options.out:
        raise UserError(f"--resume goes on in the run's own folder: leave out --out {options.out}")
    folder = find(paper, options.resume)
    path = folder / "config.json"
    # Keys that are newer than the run have their defaults.
    stored = to_json(from_json(type(config), read_json(path), str(path)))
    if changed := differences(stored, to_json(config)):
        raise UserError(
            f"{folder} has another configuration, resume it without these flags: {'; '.join(changed)}"
        )
    manifest = read_json(folder / "manifest.json")
    if main and (number := _writer(manifest)):
        raise UserError(f"{folder} is being written by process {number}: wait for it, or stop it first")
    manifest.pop("error", None)
    manifest["resumed"] = [*manifest.get("resumed", []), now()]
    return folder, manifest


def _manifest(paper: str, title: str, preset: str, seed: int) -> dict[str, Any]:
    revision, dirty = commit()
    return {
        "paper": paper,
        "title": title,
        "preset": preset,
        "seed": seed,
        "command": _command_line(paper),
        "commit": revision,
        "dirty": dirty,
        "versions": versions(paper),
        "started": now(),
    }


def _new_folder(paper: str, out: str, name: str) -> Path:
    """Make an empty run folder: `out`, or below runs/ one whose name sorts by time and is not taken."""
    parent = Path(out) if out else runs_folder(paper)
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{name}"
    try:
        if parent.is_dir() and out and any(parent.iterdir()):
            raise UserError(f"--out {out} is not empty: choose another, or --resume {shlex.quote(out)}")
        parent.mkdir(parents=True, exist_ok=True)
        if out:
            return parent
        # Two runs may start in the same second: a folder belongs to the one that made it.
        for count in itertools.count(1):
            folder = parent / (stem if count == 1 else f"{stem}-{count}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
    except OSError as error:
        raise explain(error, parent) from error
    raise AssertionError("unreachable")


def _remove(folder: Path) -> None:
    """Take back the folder of a run that could not be started."""
    with contextlib.suppress(OSError):
        (folder / "config.json").unlink(missing_ok=True)
        folder.rmdir()


def _this_process() -> dict[str, Any]:
    import psutil

    return {"host": platform.node(), "pid": os.getpid(), "created": psutil.Process().create_time()}


def _writer(manifest: Mapping[str, Any]) -> int | None:
    """The other process of this machine that still writes the run, if there is one."""
    import psutil

    writer = manifest.get("process") or {}
    if manifest.get("state") != "running" or writer.get("host") != platform.node():
        return None
    if writer["pid"] == os.getpid():  # a program that tries again
        return None
    with contextlib.suppress(psutil.Error):
        if psutil.Process(writer["pid"]).create_time() == writer["created"]:
            return writer["pid"]
    return None


def _launcher(paper: str) -> list[str]:
    """The words that call a paper's command: through uv where uv started this process, else by its name."""
    uv = os.environ.get("UV")
    if not uv or "UV_RUN_RECURSION_DEPTH" not in os.environ:
        return [paper]
    known = shutil.which("uv")
    return ["uv" if known and Path(known).samefile(uv) else uv, "run", "--package", paper, paper]


def _command_line(paper: str) -> str:
    """What was typed, with the paper's own command in place of the shared `train`."""
    name = Path(sys.argv[0]).name
    return shlex.join([paper, "train", *sys.argv[1:]] if name == "train" else [name, *sys.argv[1:]])


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl, oldest first; a last line cut short by a kill is left out."""
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows
