"""What is said where there is no memory: how much would do, and that estimate against what training takes."""

import pytest
import torch

from tests.data import small_model, write_processed
from tests.stages import load_stage
from utils.core.errors import InputError, advice_on, is_out_of_memory
from utils.data import clips
from utils.models import memory, training
from utils.pruning import layer_sweep


def test_stored_bytes_of_a_network_counted_by_hand():
    """A linear layer keeps its input, a ReLU its output, which the next layer keeps too: counted once."""
    network = torch.nn.Sequential(torch.nn.Linear(10, 20), torch.nn.ReLU(), torch.nn.Linear(20, 5))
    assert memory.stored_bytes(network, {"input": torch.zeros(3, 10)}) == 4 * (3 * 10 + 3 * 20)


@pytest.mark.parametrize("name", ["wav2vec2", "whisper"])
def test_training_bytes(name):
    model, _ = small_model(name)
    clip = {model.main_input_name: torch.zeros(1, 80, 100) if name == "whisper" else torch.zeros(1, 8000)}
    n = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    stored = memory.stored_bytes(model.train(), clip)
    assert stored > 0
    assert memory.training_bytes(model, clip, 4, 1000) == 1000 + 12 * n + 4 * stored


def test_the_message_says_how_much_would_do():
    def allocate():
        torch.empty(2**60, dtype=torch.float32)

    with pytest.raises(InputError, match=r"out of memory \(.*\): about 3 GB"), memory.advised(lambda: "about 3 GB"):
        allocate()
    with pytest.raises(InputError, match="not even one clip"), memory.advised(allocate):
        raise MemoryError
    with pytest.raises(ZeroDivisionError), memory.advised(lambda: "nothing"):
        raise ZeroDivisionError
    with pytest.raises(RuntimeError) as caught:
        allocate()
    assert is_out_of_memory(caught.value) and "out of memory" in advice_on(caught.value)
    assert memory.resident_bytes() > 1e7


NO_MEMORY = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes")


def test_a_training_without_memory_says_how_much_would_do(tmp_path, monkeypatch, capfd):
    data_dir = write_processed(tmp_path / "data", recordings_per_class={"train": 2, "val": 2})

    def train(*args, **kwargs):
        raise NO_MEMORY

    monkeypatch.setattr(training.ClassifierTrainer, "train", train)
    words = ["--base_model", "tiny", "--data_dir", data_dir, "--output_dir", tmp_path / "run", "--device", "cpu"]
    assert load_stage("02_finetuning").main([*map(str, words), "--per_device_train_batch_size", "8"]) == 3
    printed = capfd.readouterr().err
    assert "training in batches of 8 needs about" in printed and "Traceback" not in printed


def test_a_sweep_without_memory_says_how_much_would_do(tmp_path, monkeypatch):
    model, extractor = small_model("wav2vec2")
    some = clips.read_clips(write_processed(tmp_path / "data"), "test")

    def logits(*args):
        raise NO_MEMORY

    monkeypatch.setattr(layer_sweep, "_logits", logits)
    with pytest.raises(InputError, match=r"16 clips at once take about \d+ MB besides the model, one clip \d+ MB"):
        layer_sweep.predict_subsets(model, extractor, some, [(0, 1)], batch_size=16, device="cpu")
