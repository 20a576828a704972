"""`ittt adapt` and `ittt evaluate` with a run on airfoils or cars."""

from pathlib import Path
from typing import Any

from paperkit.run import write_json

from ittt import airfoils, graphs, meshes
from ittt.baselines import method
from ittt.graph_config import GraphAdaptConfig, GraphConfig, GraphEvaluateConfig
from ittt.graph_data import Data, graph_of, ring, together
from ittt.graphs import Trained, by_level, predicted, tested
from ittt.verbs import write_found


def adapt_shapes(config: GraphAdaptConfig) -> Path:
    """Adapt to the shapes of a folder and write what came of each, in the labels' own units."""
    trained = graphs.restored(config.run)
    names, found = read_shapes(Path(config.shapes), trained)
    settings = config.adapt
    if config.no_harm:
        settings = graphs.without_harm(trained.net, *graphs.load(trained.config), settings, config.batch)
        print(f"no harm: learning rate {settings.lr:g}")
    adapter = trained.net.adapter(settings, trained.calibration)
    written: list[dict[str, Any]] = []
    step = config.batch or len(found)
    for start in range(0, len(found), step):
        told = adapter(together(found[start : start + step]))
        for facts, after, before in zip(told.rows(), told.prediction[:, 0], told.before[:, 0], strict=True):
            prediction = {"prediction": trained.unit * float(after), "before": trained.unit * float(before)}
            gaps = {name: trained.unit * facts[name] for name in ("gap_before", "gap_after")}
            written.append({"shape": names[len(written)], **prediction, **facts, **gaps})
    return write_found(Path(config.out), written, "shapes")


def read_shapes(folder: Path, trained: Trained) -> tuple[list[str], list[Data]]:
    """Names and graphs of a folder's outlines or meshes, as the network knows them."""
    if trained.config.task == "airfoils":
        files = airfoils.list_outlines(folder)
        nodes = sum(airfoils.NODES) // 2
        outlines = [airfoils.resampled(airfoils.read_outline(path), nodes) for path in files.values()]
        return list(files), [graph_of(outline, ring(nodes)) for outline in outlines]
    files = meshes.list_meshes(folder)
    found = [meshes.merged(meshes.read(path), trained.config.nodes) for path in files.values()]
    return list(files), [meshes.graph_of_mesh(mesh, trained.size) for mesh in found]


def evaluate(config: GraphEvaluateConfig) -> Path:
    """Print errors by method and batch size, inside and outside, and write evaluation.json into the run."""
    trained = graphs.restored(config.run)
    shapes, parts = graphs.load(trained.config)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for many in config.batches:
        found[str(many)] = {}
        for name in config.methods:
            if name == "shuffled" and any(len(rows) % many == 1 or many == 1 for rows in tested(parts)):
                continue  # a batch of one has no other shape
            ask = method(
                name, trained.net, config.adapt, plain=trained.plain, calibration=trained.calibration
            )
            found[str(many)][name] = by_level(
                shapes, parts, *(predicted(ask, shapes, rows, many) for rows in tested(parts))
            )
    gaps = {
        place: shapes.unit * float(trained.net.gap(shapes.batch(rows)).mean())
        for place, rows in zip(("inside", "outside"), tested(parts), strict=True)
    }
    print(printed(trained.config, found, gaps))
    path = trained.folder / "evaluation.json"
    write_json(path, {"data": shapes.name, "mae": found, "gap": gaps})
    return path


def printed(
    config: GraphConfig, found: dict[str, dict[str, dict[str, float]]], gaps: dict[str, float]
) -> str:
    """The errors and gaps as text."""
    places = list(next(iter(next(iter(found.values())).values())))
    lines = [
        f"mean absolute error on test shapes of {config.task}, inside and outside the range trained on",
        f"{'batch':24}" + "".join(f"{place:>11}" for place in places),
    ]
    for many, rows in found.items():
        for name, values in rows.items():
            lines.append(f"{many:>5}  {name:17}" + "".join(f"{value:11.4g}" for value in values.values()))
    return "\n".join([*lines, f"{'mean gap':24}" + "".join(f"{value:11.4g}" for value in gaps.values())])
