"""`--device` and `--precision`: what is chosen, why, and what is refused; GPUs by stand-ins."""

import pytest
import torch
from paperkit import UserError
from paperkit.device import choose


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """A machine with that many GPUs, with or without bf16 units."""

    def pretend(count: int, bf16: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Made-up GPU")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        monkeypatch.delenv("LOCAL_RANK", raising=False)

    return pretend


def refusal(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        choose(*words)  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_a_gpu_auto_is_the_cpu_in_fp32_and_says_why(gpus) -> None:
    gpus(0)
    found = choose()
    assert (found.device, found.precision) == (torch.device("cpu"), "fp32")
    assert str(found).startswith("cpu, fp32 (no GPU found")
    assert choose("cpu", "fp32").device == torch.device("cpu")
    with found.autocast():
        assert not torch.is_autocast_enabled("cpu")


def test_a_cpu_number_is_the_cpu(gpus) -> None:
    gpus(0)
    assert choose("cpu:1").device == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cuda:-1", "0", "cpu cpu"])
def test_nonsense_is_no_device(gpus, name: str) -> None:
    gpus(1)
    assert f"--device {name}" in refusal(name)


@pytest.mark.parametrize("name", ["meta", "xla"])
def test_a_device_that_torch_knows_and_we_do_not(gpus, name: str) -> None:
    gpus(0)
    assert "not supported" in refusal(name)


def test_gpus_that_are_not_there(gpus) -> None:
    gpus(0)
    assert "no CUDA GPU" in refusal("cuda")
    assert "no CUDA GPU" in refusal("cuda:1")
    assert "no Apple GPU" in refusal("mps")
    gpus(2)
    assert "2 GPU(s)" in refusal("cuda:2")


def test_bf16_on_a_cpu_is_refused(gpus) -> None:
    gpus(0)
    assert "use --precision fp32" in refusal("auto", "bf16")


def test_a_gpu_is_taken_with_bf16_where_it_has_it(gpus) -> None:
    gpus(2)
    assert str(choose()) == "cuda:0, bf16 (Made-up GPU; bf16 as the GPU has bf16 units)"
    assert choose("cuda:1", "fp32").precision == "fp32"
    assert choose("cpu").device.type == "cpu"
    gpus(1, bf16=False)
    assert choose().precision == "fp32"
    assert "no bf16 units" in refusal("cuda", "bf16")


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_under_a_launcher_each_process_has_its_own_gpu(gpus, monkeypatch, name: str) -> None:
    gpus(2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose(name).device == torch.device("cuda", 1)
    assert choose("cuda:0").device == torch.device("cuda", 0), "what is asked for by number is given"


@pytest.mark.gpu
def test_a_real_gpu() -> None:
    found = choose("cuda")
    with found.autocast():
        product = torch.ones(2, 2, device=found.device) @ torch.ones(2, 2, device=found.device)
    assert product.dtype == {"bf16": torch.bfloat16, "fp32": torch.float32}[found.precision]
