"""The dictionary file, its import, comparison and search; the browser in a real browser."""

import base64
import itertools
import json
import os
import pickle
import shutil
import subprocess
import urllib.request
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from paperkit import UserError, images
from rosetta import browse, convert, dictionary, planted, search
from rosetta.config import MatchConfig
from rosetta.maps import Maps
from rosetta.method import best_buddies
from rosetta.mining import Tables, mine

MATCH = MatchConfig(draws=3, others=0)


def probes(n: int = 40) -> torch.Tensor:
    return torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1


@cache
def built(*numbers: int) -> dictionary.Dictionary:
    """The dictionary of some of the planted models, made once: tests only read it."""
    maps = [m.part(slice(0, 40)) for m in planted.plant(0, 0.3).maps]
    zoo = [maps[i] for i in numbers]
    about = dictionary.describe("noise", probes())
    return dictionary.build(mine(Tables(zoo, MATCH)), "star", probes(), about, [f"w{i}" for i in numbers])


@pytest.fixture(scope="module")
def whole() -> dictionary.Dictionary:
    return built(0, 1, 2)


@pytest.fixture(scope="module")
def folder(whole, tmp_path_factory) -> Path:
    return dictionary.write(tmp_path_factory.mktemp("dict") / "dictionary", whole)


# ---- the file


def test_what_is_written_is_read(whole, folder):
    read = dictionary.read(folder)
    assert read.manifest == json.loads(json.dumps(whole.manifest))
    assert read.chains == whole.chains
    assert read.pictures == whole.pictures
    assert all(torch.equal(read.tensors[key], value) for key, value in whole.tensors.items())


def test_it_says_what_a_reader_needs(whole):
    manifest, chain = whole.manifest, whole.chains[0]
    assert whole.models == ["planted-0", "planted-1", "planted-2"]
    assert [len(model["dead"]) for model in manifest["models"]] == [3, 3, 3]
    assert manifest["probes"] == {"name": "noise", "images": 40, "hash": manifest["probes"]["hash"]}
    assert {row["what"] for row in manifest["counts"]} >= {"planted-0 x planted-1", "star of 3"}
    assert chain["id"] == "C0001"
    assert chain["weakest"] == min(chain["scores"])
    assert 0 < chain["q"] < 0.5
    units = whole.tensors["0-1.units"].tolist()
    assert chain["units"][:2] in units
    assert chain["scores"][0] == pytest.approx(float(whole.tensors["0-1.r"][units.index(chain["units"][:2])]))
    layers = manifest["models"][0]["layers"]
    assert whole.unit_name(0, layers[0]["channels"]) == f"{layers[1]['name']}/0"


def test_another_schema_or_version_is_refused(folder, tmp_path):
    for change, message in (
        ({"version": 2}, "is a dictionary of version 2, this program reads 1"),
        ({"schema": "x"}, "its schema is 'x'"),
    ):
        other = tmp_path / str(len(message))
        shutil.copytree(folder, other)
        manifest = json.loads((other / "manifest.json").read_text()) | change
        (other / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match=message):
            dictionary.read(other)
    shutil.copytree(folder, tmp_path / "cut")
    (tmp_path / "cut" / "chains.jsonl").write_text('{"id": ')
    with pytest.raises(UserError, match=r"chains\.jsonl cannot be read"):
        dictionary.read(tmp_path / "cut")
    with pytest.raises(UserError, match="is no dictionary"):
        dictionary.read(tmp_path)


# ---- two of them


def test_two_stars_of_one_pivot_join_to_the_star_of_all(whole):
    joined = dictionary.merge(built(0, 1), built(0, 2))
    assert joined.models == whole.models
    assert {tuple(c["units"]) for c in joined.chains} == {tuple(c["units"]) for c in whole.chains}
    by_units = {tuple(c["units"]): c for c in whole.chains}
    for chain in joined.chains:
        assert chain["weakest"] == pytest.approx(by_units[tuple(chain["units"])]["weakest"])
    assert torch.equal(joined.tensors["0-2.units"], whole.tensors["0-2.units"])
    assert torch.equal(joined.tensors["2.signature"], whole.tensors["2.signature"])


def test_what_cannot_be_joined():
    one, other = built(0, 1), built(0, 2)
    elsewhere = other.manifest | {"probes": dictionary.describe("noise", -probes())}
    with pytest.raises(UserError, match="saw different probes"):
        dictionary.merge(one, replace(other, manifest=elsewhere))
    with pytest.raises(UserError, match="the pivots differ: planted-0 and planted-2"):
        dictionary.merge(one, built(2, 1))
    with pytest.raises(UserError, match="both dictionaries hold planted-1"):
        dictionary.merge(one, one)


def test_difference(whole):
    pair = built(0, 1)
    found = dictionary.diff(whole, pair)
    assert found.models == ["planted-0", "planted-1"]
    assert found.only_first == []
    assert len(found.shared) == len(whole.chains)
    assert len(found.only_second) == len(pair.chains) - len(whole.chains)
    with pytest.raises(UserError, match="fewer than two models"):
        dictionary.diff(pair, built(2, 1))


# ---- search


def test_a_unit_is_near_its_copies_in_other_models(whole):
    truth = planted.plant(0, 0.3).truth
    pivot, partner = whole.chains[0]["units"][:2]
    hits = search.like_unit(whole, f"planted-0/{whole.unit_name(0, pivot)}", "planted-1", 3)
    number = [search.find(whole, f"{hit.model}/{hit.unit}")[1] for hit in hits]
    assert truth[1].get(number[0]) == truth[0][pivot] == truth[1][partner]
    assert hits[0].r > 0.5
    assert [hit.r for hit in hits] == sorted((hit.r for hit in hits), reverse=True)


def test_a_drawn_map_finds_the_unit_that_has_it():
    maps = planted.plant(0, 0.3).maps[2]  # on a 28x28 grid
    held = built(2, 1)
    unit = next(u for u in range(maps.channels[0]) if bool(maps.alive[u]))
    drawn = maps.data[0][7, unit]
    hits = search.like_map(held, drawn, 7, "planted-2", 1)
    assert hits[0].r == pytest.approx(1.0, abs=2e-3)
    assert search.find(held, f"planted-2/{hits[0].unit}")[1] == unit


def test_faiss_and_torch_agree(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(5, 30, generator=generator), torch.randn(200, 30, generator=generator)
    ours = search.nearest(queries, keys, 7)
    monkeypatch.setattr(search.importlib.util, "find_spec", lambda name: None)
    theirs = search.nearest(queries, keys, 7)
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=0)
    assert torch.equal(ours[1], theirs[1])


def test_bad_queries(whole):
    for call, message in (
        (lambda: search.like_unit(whole, "planted-0/main/9999", "", 1), "no unit planted-0/main/9999"),
        (lambda: search.like_unit(whole, "planted-0/main/0", "planted-7", 1), "no model planted-7"),
        (lambda: search.like_unit(whole, "planted-0/main/0", "planted-0", 1), "no other model"),
        (lambda: search.like_map(whole, torch.rand(8, 8), 32, "", 1), "images 0 to 31"),
        (lambda: search.like_map(whole, torch.ones(8, 8), 0, "", 1), "one value everywhere"),
    ):
        with pytest.raises(UserError, match=message):
            call()


# ---- the released codes' files


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_a_released_table_is_read_without_running_it(tmp_path, kind):
    scores = torch.rand(12, 9, generator=torch.Generator().manual_seed(0))
    file = tmp_path / "table.pkl"
    file.write_bytes(pickle.dumps(scores if kind == "torch" else scores.numpy()))
    assert torch.equal(convert.read_table(file), scores.double())
    made = convert.of_table(convert.read_table(file), 1, 5, "table.pkl")
    wanted = best_buddies(scores.double(), 1, 5).nonzero().tolist()
    assert sorted(chain["units"] for chain in made.chains) == wanted
    dictionary.write(tmp_path / "made", made)
    again = dictionary.read(tmp_path / "made")
    assert again.unit_name(1, 8) == "all/8"
    with pytest.raises(UserError, match="holds no signatures"):
        search.like_unit(again, "rows/all/0", "", 1)


class Evil:
    def __init__(self, call, *words):
        self.call, self.words = call, words

    def __reduce__(self):
        return self.call, self.words


def test_a_pickle_with_code_is_refused_and_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inner = pickle.dumps(Evil(os.mkdir, "ran"))
    for number, bad in enumerate([
        Evil(os.mkdir, "ran"), {"t": Evil(os.system, "mkdir ran")}, [torch.ones(2), Evil(eval, "1")],
        Evil(torch.storage._load_from_bytes, inner), Evil(pickle.loads, inner),
    ]):  # fmt: skip
        file = tmp_path / f"{number}.pkl"
        file.write_bytes(pickle.dumps(bad))
        with pytest.raises(UserError, match="perhaps code, and was not opened"):
            convert.read_table(file)
    assert not (tmp_path / "ran").exists()


def test_other_pickles_are_named(tmp_path):
    for content, message in (
        (pickle.dumps([1, 2]), "holds no table"),
        (pickle.dumps(torch.ones(3)), "holds no table"),
        (pickle.dumps(torch.full((2, 2), torch.nan)), "not finite"),
        (b"\x80\x04broken", "is damaged|not opened"),
    ):
        (tmp_path / "x.pkl").write_bytes(content)
        with pytest.raises(UserError, match=message):
            convert.read_table(tmp_path / "x.pkl")
    with pytest.raises(UserError, match="no such file"):
        convert.read_table(tmp_path / "none.pkl")


def test_lists_of_the_successor(tmp_path):
    file = tmp_path / "best_buddies.json"
    entries = [
        {"score": 0.5, "a": {"layer": 3, "unit": 7}, "b": {"layer": 0, "unit": 1}},
        {"score": 0.9, "a": {"layer": 1, "unit": 2}, "b": {"layer": 0, "unit": 4}},
    ]
    file.write_text(json.dumps({"pairs": entries}))
    made = convert.read_pairs(file)
    names = [[made.unit_name(i, u) for i, u in enumerate(chain["units"])] for chain in made.chains]
    assert names == [["1/2", "0/4"], ["3/7", "0/1"]]
    assert [chain["weakest"] for chain in made.chains] == [0.9, 0.5]
    for bad, message in (
        ({"a": 1}, "holds no list of pairs"),
        ([{"score": 1, "a": {}, "b": {}}], "a unit is neither"),
    ):
        file.write_text(json.dumps(bad))
        with pytest.raises(UserError, match=message):
            convert.read_pairs(file)


# ---- the browser


def test_names_cannot_break_out_of_the_page(whole, tmp_path):
    text = browse.as_script({"x": "</script><script>alert(1)</script>\u2028"})
    assert "<" not in text
    assert json.loads(text) == {"x": "</script><script>alert(1)</script>\u2028"}
    page = browse.write(tmp_path / "b.html", whole).read_text("utf-8")
    assert "default-src 'none'" in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


class Browser:
    """A headless Chromium, driven by WebDriver's own words."""

    def __init__(self, port: int):
        self.root = f"http://127.0.0.1:{port}"
        words = ["headless=new", "no-sandbox", "disable-gpu", "window-size=1200,1000"]
        wanted = {"browserName": "chrome", "goog:chromeOptions": {"args": [f"--{w}" for w in words]}}
        self.root += (
            f"/session/{self._send('/session', {'capabilities': {'alwaysMatch': wanted}})['sessionId']}"
        )

    def _send(self, path: str, value: object | None, method: str = "POST"):
        data = None if value is None else json.dumps(value).encode()
        request = urllib.request.Request(
            self.root + path, data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())["value"]

    def open(self, page: Path) -> None:
        self._send("/url", {"url": page.as_uri()})

    def element(self, selector: str) -> str:
        return next(iter(self._send("/element", {"using": "css selector", "value": selector}).values()))

    def type(self, selector: str, text: str) -> None:
        self._send(f"/element/{self.element(selector)}/value", {"text": text})

    def click(self, selector: str) -> None:
        self._send(f"/element/{self.element(selector)}/click", {})

    def run(self, script: str):
        return self._send("/execute/sync", {"script": f"return {script}", "args": []})

    def picture(self) -> bytes:
        return base64.b64decode(self._send("/screenshot", None, "GET"))

    def close(self) -> None:
        self._send("", None, "DELETE")


DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="module")
def browser():
    driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        line = next(row for row in itertools.islice(driver.stdout, 50) if "successfully" in row)
        opened = Browser(int(line.rstrip(" .\n").rsplit(" ", 1)[1]))
        yield opened
        opened.close()
    finally:
        driver.kill()
        driver.wait()
        driver.stdout.close()


@pytest.mark.skipif(not DRIVER, reason="no chromedriver on this machine")
def test_filter_typed_unit_opened_keys_pressed(browser, whole, tmp_path):
    browser.open(browse.write(tmp_path / "browser.html", whole))
    all_chains = len(whole.chains)
    rows = "document.querySelectorAll('#list li').length"
    heading = "document.querySelector('#detail h2').textContent"
    assert browser.run(rows) == all_chains
    # search
    name = whole.unit_name(1, whole.chains[3]["units"][1])
    browser.type("#search", f"planted-1/{name}")
    assert 1 <= browser.run(rows) < all_chains
    assert browser.run("document.getElementById('count').textContent").endswith(f"of {all_chains} chains.")
    browser.run("(document.getElementById('search').value = '', list())")
    # limits
    limit = whole.chains[4]["weakest"]
    browser.run(f"(document.getElementById('r').value = {limit:.2f}, list())")
    assert browser.run(rows) == sum(c["weakest"] >= round(limit, 2) for c in whole.chains)
    browser.run("(document.getElementById('r').value = 0, list())")
    browser.click("#significant")
    assert browser.run(rows) == sum(c["significant"] for c in whole.chains)
    browser.click("#significant")
    # a unit opened, then the keyboard
    browser.click("#C0003")
    assert browser.run(heading).startswith("C0003")
    assert browser.run("document.getElementById('picture').naturalWidth") > 100
    browser.type("#list", "j")
    assert browser.run(heading).startswith("C0004")
    browser.type("#list", "\ue012")  # arrow keys are written as private characters
    browser.type("#list", "\ue013")
    assert browser.run(heading).startswith("C0003")
    browser.type("#list", "/")
    assert browser.run("document.activeElement.id") == "search"
    # the tree opens a chain; nothing came from outside
    dot = "document.querySelector(\"circle[data-id='C0002']\")"
    browser.run(f"(document.querySelectorAll('details')[1].open = true, {dot}.onclick())")
    assert browser.run(heading).startswith("C0002")
    assert (
        browser.run(
            "performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length"
        )
        == 0
    )
    shot = images.decode(browser.picture(), "screenshot")
    if place := os.environ.get("ROSETTA_SCREENSHOT"):
        images.write(place, shot)
    assert len(np.unique(shot.numpy())) > 50
    assert browser.run("document.documentElement.scrollWidth") <= browser.run("innerWidth")


def test_the_page_holds_what_the_dictionary_does(whole):
    shown = browse.data(whole)
    assert [c["id"] for c in shown["chains"]] == [c["id"] for c in whole.chains]
    assert all(c["picture"].startswith("data:image/png;base64,") for c in shown["chains"])
    assert len(shown["tree"]) == len(whole.chains) - 1


def test_signatures_are_centred_and_of_length_one_or_dead():
    maps = Maps("m", ["l"], [torch.rand(40, 3, 9, 9)])
    maps.data[0][:, 1] = 2.0
    found = dictionary.signature(maps)
    assert found.shape == (3, 32 * 49)
    assert float(found[1].abs().max()) < 1e-3 or float(found[1].norm()) <= 1.01
    torch.testing.assert_close(found[[0, 2]].norm(dim=1), torch.ones(2))
    assert float(found.mean(1).abs().max()) < 1e-6
