"""The verbs `evaluate` and `report`: figures and page of a run folder."""

from pathlib import Path

from paperkit import UserError
from paperkit import report as page
from paperkit.run import find, read_json, write_json

from vgpnn import metrics, video
from vgpnn.config import EvaluateConfig, ReportConfig
from vgpnn.reproduce import claims
from vgpnn.session import TITLE
from vgpnn.video import to_unit


def evaluate(config: EvaluateConfig) -> Path:
    """`vgpnn evaluate`: R, C, S, M, F and NNFDIV of every output; diversity over samples."""
    folder = find("vgpnn", config.run)
    files = sorted((folder / "lossless").glob("*.mkv"))
    sources = {"input.mkv", "painted.mkv", "content.mkv", "style.mkv", "sketch.mkv"}
    source = next((f for name in ("input.mkv", "style.mkv") for f in files if f.name == name), None)
    if source is None:
        raise UserError(f"{folder} has no input to compare with: evaluate a run of one clip")
    x = to_unit(video.read(source).frames)
    outputs = {f.stem: to_unit(video.read(f).frames) for f in files if f.name not in sources}
    if not outputs:
        raise UserError(f"{folder} has no outputs yet: let it end, or go on with --resume {folder}")
    against = metrics.Against(x)
    found = {
        name: {**against.figures(y), "nnfdiv": metrics.field_complexity(y, x)} for name, y in outputs.items()
    }
    names = list(next(iter(found.values())))
    print(f"{'':16}" + "".join(f"{name:>14}" for name in names))
    for name, row in found.items():
        print(f"{name:16}" + "".join(f"{row.get(key, float('nan')):14.5f}" for key in names))
    same = [y for y in outputs.values() if y.shape[2:] == x.shape[2:]]
    together = {"natural": against.natural()}
    if len(same) > 1:
        together["diversity"] = metrics.diversity(same, x)
    for key, value in together.items():
        print(f"{key}: {value:.5f}")
    write_json(folder / "evaluation.json", {"outputs": found, **together})
    return folder / "evaluation.json"


def report(config: ReportConfig) -> Path:
    """`vgpnn report`: the run's page again, with the package's claims beside it."""
    folder = find("vgpnn", config.run)
    verb = read_json(folder / "manifest.json").get("verb", "")
    notes = (folder / "log.txt").read_text("utf-8") if (folder / "log.txt").exists() else ""
    path = page.write(folder, TITLE, f"arXiv 2109.08591 · {verb}", claims(), "\n\n".join(notes.splitlines()))
    print(path)
    return path
