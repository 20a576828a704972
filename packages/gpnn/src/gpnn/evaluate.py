"""The verbs `evaluate` and `report`: figures and page of a run folder."""

from pathlib import Path

from paperkit import UserError, images
from paperkit import report as page
from paperkit.data import data_root
from paperkit.run import find, read_json, write_json

from gpnn import metrics
from gpnn.config import EvaluateConfig, ReportConfig
from gpnn.reproduce import claims
from gpnn.session import TITLE


def evaluate(config: EvaluateConfig) -> Path:
    """`gpnn evaluate`: realism, completeness, sharpness, stay of every output; diversity over samples."""
    folder = find("gpnn", config.run)
    source = folder / "samples" / "0-input.png"
    if not source.exists():
        raise UserError(f"{folder} has no single input to compare with: evaluate a run of one image")
    x = images.to_float(images.read(source), 0, 1)
    outputs = {name: images.to_float(y, 0, 1) for name, y in images.read_folder(folder / "images").items()}
    found = {name: metrics.figures(y, x) for name, y in outputs.items()}
    same = [y for y in outputs.values() if y.shape == x.shape]
    if (root := data_root()) and (root / metrics.WEIGHTS).exists():
        frechet = metrics.SqueezeNetFrechet(root)
        for name, y in outputs.items():
            found[name]["squeezenet_frechet"] = frechet(y, x)
    names = list(next(iter(found.values())))
    print(f"{'':24}" + "".join(f"{name:>20}" for name in names))
    for name, row in found.items():
        print(f"{name:24}" + "".join(f"{row.get(key, float('nan')):20.4f}" for key in names))
    together = {"diversity": metrics.diversity(same, x)} if len(same) > 1 else {}
    for key, value in together.items():
        print(f"{key} over {len(same)} outputs: {value:.4f}")
    write_json(folder / "evaluation.json", {"outputs": found, **together})
    return folder / "evaluation.json"


def report(config: ReportConfig) -> Path:
    """`gpnn report`: the run's page again, with the package's claims beside it."""
    folder = find("gpnn", config.run)
    state = read_json(folder / "manifest.json").get("preset", "")
    path = page.write(folder, TITLE, f"arXiv 2103.15545 · {state}", claims())
    print(path)
    return path
