"""Sharding, averages and sums alone and over two gloo processes, against the mathematics of one process.

The two are forked by one that has imported torch, with the variables that `torchrun` sets.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paperkit import UserError, parallel
from paperkit.run import checkpoints, load_checkpoint, read_json, read_metrics

HERE = Path(__file__).parent

WORKER = """
import os, sys
from pathlib import Path
import torch
import torch.distributed as dist
from paperkit import UserError, cli, parallel
from paperkit.device import choose
from paperkit.run import write_json
import toy_paper

toy_paper.warm()
child = os.fork()
rank = 0 if child else 1
os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
found = {"before": parallel.world()}
parallel.launch(choose("cpu"))
found["world"] = parallel.world()

# A network and its batch: the gradient of the mean loss, of our rows, averaged.
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)).double()
unused = torch.nn.Parameter(torch.zeros(2).double())
x = torch.randn(8, 3, dtype=torch.float64)
net(parallel.shard(x)).square().mean().backward()
parallel.average_gradients([*net.parameters(), unused])
parallel.average_gradients([unused])
found["gradients"] = [p.grad.tolist() for p in net.parameters()]
found["unused"] = unused.grad is None
found["rows"] = parallel.shard(torch.arange(6)).tolist()
try:
    parallel.shard(torch.arange(7))
except UserError as error:
    found["odd"] = str(error)

# Variance over the global batch: sums over the processes inside of a loss.
w = torch.randn(8, 2, dtype=torch.float64)
leaf = parallel.shard(w).clone().requires_grad_()
kept = leaf.detach().clone()
mean = parallel.differentiable_sum(leaf.sum(0)) / 8
variance = parallel.differentiable_sum((leaf - mean).square().sum(0)) / 8
(variance.sin() * torch.tensor([1.0, 2.0]).double()).sum().backward()
found["value"], found["leaf"] = variance.tolist(), leaf.grad.tolist()
assert torch.equal(leaf.detach(), kept)

number = torch.tensor([1.0 + rank, 5.0])
found["average"], found["given"] = parallel.average(number).tolist(), number.tolist()
found["agreed"] = parallel.agree(f"from {rank}")
found["largest"] = parallel.largest(10 - rank)

# Whole runs: one unbroken, one that only process 1 is asked to stop, and that goes on.
os.environ["TOY_RANK"] = "1"
codes = [cli.main(toy_paper.PAPER, ["train", "--out", "whole"])]
os.environ["TOY_SEND"] = "7:TERM"
codes.append(cli.main(toy_paper.PAPER, ["train"]))
del os.environ["TOY_SEND"]
dist.barrier()
codes.append(cli.main(toy_paper.PAPER, ["train", "--resume", "latest"]))
codes.append(cli.main(toy_paper.PAPER, ["train", "--batch", "7", "--out", "odd"]))
found["codes"] = codes
write_json(Path(f"found-{rank}.json"), found)
dist.barrier()
dist.destroy_process_group()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if child else 0)
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory):
    """What two processes found, and the folder that they worked in."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "worker.py").write_text(WORKER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "worker.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(HERE), **launcher},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [read_json(folder / f"found-{rank}.json") for rank in (0, 1)], folder, done


def double(values: list) -> torch.Tensor:
    """Python's numbers as they are: in float64."""
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch):
    """One process, whatever started pytest."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_alone_everything_is_the_identity(alone) -> None:
    assert parallel.world() == (0, 1)
    batch = torch.arange(7)
    assert torch.equal(parallel.shard(batch), batch)
    value = torch.randn(3, requires_grad=True)
    assert parallel.average(value) is value
    assert parallel.differentiable_sum(value) is value
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, 2.0])
    parallel.average_gradients([weight, torch.nn.Parameter(torch.ones(1))])
    assert weight.grad.tolist() == [1.0, 2.0]
    assert parallel.agree("word") == "word"
    assert parallel.largest(3) == 3


def test_a_launcher_s_rank_is_known_before_the_processes_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert parallel.world() == (2, 3)
    assert parallel.shard(torch.arange(6)).tolist() == [4, 5]
    with pytest.raises(UserError, match="--batch 7 does not divide by 3 processes: choose a multiple of 3"):
        parallel.shard(torch.arange(7))


def test_two_processes_share_the_rows(two) -> None:
    found, _, _ = two
    assert [f["before"] for f in found] == [f["world"] for f in found] == [[0, 2], [1, 2]]
    assert [f["rows"] for f in found] == [[0, 1, 2], [3, 4, 5]]
    assert all(f["odd"] == "--batch 7 does not divide by 2 processes: choose a multiple of 2" for f in found)


def test_the_averaged_gradient_is_that_of_the_whole_batch(two) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)).double()
    net(torch.randn(8, 3, dtype=torch.float64)).square().mean().backward()
    for found in two[0]:
        for parameter, gradient in zip(net.parameters(), found["gradients"], strict=True):
            assert (parameter.grad - double(gradient)).abs().max() < 1e-12
        assert found["unused"], "a parameter without a gradient keeps none"


def test_a_sum_over_processes_has_the_gradient_of_the_whole(two) -> None:
    """Each process's loss is the whole one, so that the sum of both has twice the gradient of one."""
    torch.manual_seed(0)
    torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)).double()
    torch.randn(8, 3, dtype=torch.float64)
    w = torch.randn(8, 2, dtype=torch.float64, requires_grad=True)
    variance = w.var(0, unbiased=False)
    (variance.sin() * torch.tensor([1.0, 2.0]).double()).sum().backward()
    for found in two[0]:
        assert (double(found["value"]) - variance).abs().max() < 1e-12
    gradient = torch.cat([double(found["leaf"]) for found in two[0]])
    assert (gradient / 2 - w.grad).abs().max() < 1e-12


def test_averages_and_agreement(two) -> None:
    for rank, found in enumerate(two[0]):
        assert found["average"] == [1.5, 5.0]
        assert found["given"] == [1.0 + rank, 5.0], "the argument is left alone"
        assert found["agreed"] == "from 0"
        assert found["largest"] == 10


def test_two_processes_train_as_one_does(two, alone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.chdir(tmp_path)
    import toy_paper

    single = read_metrics(toy_paper.train(toy_paper.TrainConfig()))
    both = read_metrics(two[1] / "whole")
    assert [row["step"] for row in both] == [row["step"] for row in single]
    assert all(abs(a["loss"] - b["loss"]) < 1e-5 for a, b in zip(both, single, strict=True))


def test_a_signal_to_one_process_stops_both_at_the_same_step(two) -> None:
    found, folder, done = two
    assert [f["codes"] for f in found] == [[0, 143, 0, 2]] * 2
    (run,) = (folder / "runs" / "toy").iterdir()
    assert (run / "metrics.jsonl").read_text() == (folder / "whole" / "metrics.jsonl").read_text()
    assert [path.name for path in checkpoints(run)] == ["00000020", "00000024"]
    ends = [load_checkpoint(checkpoints(where)[-1])[0]["net"] for where in (run, folder / "whole")]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    assert done.stderr.count("stopped and saved; go on with: ") == 1
    assert done.stderr.count("toy train --resume runs/toy/") == 1  # through uv where uv started the tests
    assert read_json(run / "manifest.json")["state"] == "finished"


def test_only_the_first_process_writes(two) -> None:
    _, folder, done = two
    assert [row["step"] for row in read_metrics(folder / "whole")] == list(range(1, 25))
    log = (folder / "whole" / "log.txt").read_text().splitlines()
    assert [line.split()[0] for line in log[:3]] == ["device", "run", "resume"]
    assert log[3:] == [f"step {step}" for step in range(1, 25)]
    assert done.stdout.count("toy · A Line") == 4, "one head line a command"


def test_a_batch_that_does_not_divide_is_one_line_a_process(two) -> None:
    _, folder, done = two
    assert "toy: --batch 7 does not divide by 2 processes: choose a multiple of 2\n" in done.stderr
    assert read_json(folder / "odd" / "manifest.json")["state"] == "failed"
    assert json.loads((folder / "odd" / "config.json").read_text())["batch"] == 7
