"""The verbs `match`, `browse`, `query`, `diff`, `merge`, `convert` and `report`."""

from pathlib import Path

from paperkit import UserError, images, report
from paperkit.run import find, read_json

from rosetta import browse as browser
from rosetta import convert as released
from rosetta import dictionary, mining, search, store
from rosetta.config import (
    BrowseConfig,
    ConvertConfig,
    DiffConfig,
    MatchAgainConfig,
    MergeConfig,
    QueryConfig,
    ReportConfig,
)
from rosetta.train import SUBTITLE, TITLE


def match(config: MatchAgainConfig) -> Path:
    """`rosetta match`: another rule over a run's tables; prints the counts and writes a dictionary."""
    from dataclasses import replace

    place = _mined(find("rosetta", config.run), config.probes)
    facts = read_json(place / "mined.json")
    tables = mining.stored_tables(place)
    wanted = replace(tables.config, k=config.k, back=config.back, threshold=config.threshold)
    mined = mining.mine(mining.with_rule(tables, wanted))
    probes = store.open_images(place / "probes.npy")
    built = dictionary.build(mined, config.chain, probes, facts["probes"], facts["hashes"])
    words = "-".join(
        ["dictionary", f"{config.k}", f"{config.back or config.k}", config.threshold, config.chain]
    )
    target = dictionary.write(Path(config.out) if config.out else place / words, built)
    print(mining.as_text(mining.counts(mined)))
    print(target)
    return target


def _mined(run: Path, probes: str) -> Path:
    """The folder of a run that holds maps and tables."""
    places = {
        path.parent.name if path.parent != run else "": path.parent
        for path in sorted(run.rglob("mined.json"))
    }
    if not places:
        raise UserError(f"{run} has not been mined yet: go on with it (--resume)")
    if probes and probes not in places:
        raise UserError(f"--probes {probes}: {run} has {', '.join(filter(None, places)) or 'one set only'}")
    return places[probes] if probes else places.get("real") or next(iter(places.values()))


def _dictionary_at(words: str) -> Path:
    """The folder of a dictionary: itself, or the first of a run."""
    folder = find("rosetta", words) if words == "latest" else Path(words)
    if (folder / "chains.jsonl").is_file():
        return folder
    below = sorted(
        folder.rglob("chains.jsonl"), key=lambda path: ("real" not in path.parts, len(path.parts), path)
    )
    if not below:
        raise UserError(f"{folder} holds no dictionary: name the folder of one, or a run's")
    return below[0].parent


def browse(config: BrowseConfig) -> Path:
    """`rosetta browse`: the page of a dictionary; prints and returns its path."""
    folder = _dictionary_at(config.dictionary)
    target = Path(config.out) if config.out else folder.parent / "browser.html"
    print(browser.write(target, dictionary.read(folder)))
    return target


def query(config: QueryConfig) -> list[search.Hit]:
    """`rosetta query`: units that resemble a unit or a drawn map; prints and returns them."""
    held = dictionary.read(_dictionary_at(config.dictionary))
    if config.unit:
        hits = search.like_unit(held, config.unit, config.model, config.top)
    else:
        drawn = images.read(config.map, "grey")[0].float()
        hits = search.like_map(held, drawn, config.image, config.model, config.top)
    print("\n".join(f"{hit.r:6.3f}  {hit.model}/{hit.unit}" for hit in hits))
    return hits


def diff(config: DiffConfig) -> dictionary.Difference:
    """`rosetta diff`: what two dictionaries share, on the models that both hold."""
    first, second = (dictionary.read(_dictionary_at(words)) for words in (config.first, config.second))
    found = dictionary.diff(first, second)
    print(f"models    {', '.join(found.models)}")
    print(f"both      {len(found.shared)}")
    print(f"only one  {len(found.only_first)} in {config.first}, {len(found.only_second)} in {config.second}")
    places = [first.models.index(name) for name in found.models]
    for units, one, other in sorted(found.shared, key=lambda row: -abs(row[1] - row[2])):
        names = "  ".join(first.unit_name(place, unit) for place, unit in zip(places, units, strict=True))
        print(f"{one:6.3f} {other:6.3f}  {names}")
    return found


def merge(config: MergeConfig) -> Path:
    """`rosetta merge`: two dictionaries of one pivot as one; prints and returns its folder."""
    first, second = (dictionary.read(_dictionary_at(words)) for words in (config.first, config.second))
    joined = dictionary.merge(first, second)
    folder = dictionary.write(_new(config.out), joined)
    print(f"{len(joined.chains)} chains of {', '.join(joined.models)}")
    print(folder)
    return folder


def convert(config: ConvertConfig) -> Path:
    """`rosetta convert`: the released codes' results as a dictionary; prints and returns its folder."""
    file = Path(config.file)
    if file.suffix == ".json":
        made = released.read_pairs(file)
    else:
        made = released.of_table(released.read_table(file), config.k, config.back, file.name)
    folder = dictionary.write(_new(config.out), made)
    print(f"{len(made.chains)} chains; no null came with them: p and q are 1")
    print(folder)
    return folder


def _new(out: str) -> Path:
    folder = Path(out)
    if folder.exists():
        raise UserError(f"{out} is there already: name a new folder")
    return folder


def write_report(config: ReportConfig) -> Path:
    """`rosetta report`: the run's page."""
    path = report.write(find("rosetta", config.run), TITLE, SUBTITLE)
    print(path)
    return path
