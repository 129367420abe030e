"""What is said where there is no memory: how much would do, and that estimate against what training takes."""

import errno
import multiprocessing
import weakref
from concurrent.futures import ProcessPoolExecutor

import pyarrow
import pytest
import torch

from tests.data import small_model, write_processed
from tests.stages import load_stage
from utils.core import errors
from utils.core.errors import InputError, advice_on, is_out_of_memory
from utils.data import clips, sources
from utils.models import encoders, loading, memory, training
from utils.pruning import layer_sweep


@pytest.mark.parametrize("name", ["wav2vec2", "whisper"])
def test_training_bytes_count_weights_and_clips(name):
    """Twice the clips take as much more; what does not grow is what was there, gradients and AdamW's moments."""
    model = small_model(name).model
    clip = {model.main_input_name: torch.zeros(1, 80, 100) if name == "whisper" else torch.zeros(1, 8000)}
    n = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    one, two = (memory.training_bytes(model.eval(), clip, size, 1000) for size in (1, 2))
    assert one < two and 2 * one - two == pytest.approx(1000 + 12 * n)


def peak_of_steps(n_clips, n_samples):
    """In a process of its own: return what it had, the estimate, and the peak of two steps of AdamW, in bytes."""
    torch.set_num_threads(1)
    model = small_model("wav2vec2", hidden_size=256, intermediate_size=1024, conv_dim=(128, 128, 128)).model
    before = memory.used_bytes("cpu")
    clips = torch.randn(n_clips, n_samples)
    optimizer = torch.optim.AdamW(model.train().parameters(), fused=True)
    for _ in range(2):
        model(clips, labels=torch.zeros(n_clips, dtype=torch.long)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    peak = memory.used_bytes("cpu")
    return before, memory.training_bytes(model, {"input_values": clips[:1]}, n_clips, before), peak


def test_training_bytes_against_the_peak_of_a_process():
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        before, estimate, peak = pool.submit(peak_of_steps, 16, 8000).result()
    assert peak - before > 1e8  # else there is nothing to compare
    assert estimate == pytest.approx(peak, rel=0.25) and 1 / 1.6 < (estimate - before) / (peak - before) < 1.6


def test_a_limit_of_addresses_is_named(monkeypatch):
    resident = memory.used_bytes("cpu")
    assert 1e7 < memory.used_bytes("cpu", most=False) <= resident
    assert memory.amount(2.51e9) == memory.more(2.51e9) == "2.5 GB"
    monkeypatch.setattr(memory.resource, "getrlimit", lambda kind: (2**40, 2**40))
    assert memory.amount(2.51e9) == "2.5 GB of address space (ulimit -v)"
    assert memory.more(2.51e9) == "1209.5 GB of address space (ulimit -v)"  # 2**40 bytes were not enough
    assert memory.used_bytes("cpu") > resident > 1e7  # libraries are mapped and hardly read
    assert memory.used_bytes("cpu", most=False) > resident


def test_the_message_says_how_much_would_do():
    def allocate():
        torch.empty(2**60, dtype=torch.float32)

    def fail(error):
        raise error

    with pytest.raises(InputError, match=r"^it: out of memory \(.*\): about 3 GB$"):
        memory.advised(allocate, lambda: "about 3 GB", lambda: 0, "it: ")
    with pytest.raises(InputError, match=r"not even one clip at a time fits: give the job more than 2\.0 GB"):
        memory.advised(lambda: fail(MemoryError()), allocate, lambda: 2e9)
    with pytest.raises(ZeroDivisionError):
        memory.advised(lambda: 1 / 0, lambda: "nothing", lambda: 0)
    with pytest.raises(ZeroDivisionError):
        memory.advised(allocate, lambda: fail(ZeroDivisionError()), lambda: 0)
    assert memory.advised(lambda: 3, lambda: "nothing", lambda: 0) == 3
    with pytest.raises(RuntimeError) as caught:
        allocate()
    assert is_out_of_memory(caught.value) and "out of memory" in advice_on(caught.value)


def test_tensors_of_work_that_failed_are_gone_when_the_need_is_found():
    """A module with hooks runs in a closure, which its frame holds even after it was cleared."""
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    network[1].register_forward_hook(lambda *args: None)
    found = []

    def work():
        hidden = network[0](torch.ones(1, 4))
        found.append(weakref.ref(hidden))
        network[1].forward = fail
        network[1](hidden)

    def fail(hidden):
        raise RuntimeError("out of memory")

    with pytest.raises(InputError, match="gone"):
        memory.advised(work, lambda: "gone" if found[0]() is None else "there", lambda: 0)


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
    loaded = small_model("wav2vec2")
    some = clips.read_clips(write_processed(tmp_path / "data"), "test")

    def logits(*args):
        raise NO_MEMORY

    read, n_reads = memory.used_bytes, []
    monkeypatch.setattr(memory, "used_bytes", lambda *args, **kwargs: n_reads.append(1) or read(*args, **kwargs))
    layer_sweep.predict_subsets(loaded, some, [(0, 1)], batch_size=2)
    assert not n_reads  # it is read for the message alone
    monkeypatch.setattr(layer_sweep, "_logits", logits)
    with pytest.raises(InputError, match=r"with 16 clips at once .* [\d.]+ GB, with one .* GB; .*\(--batch_size\)"):
        layer_sweep.predict_subsets(loaded, some, [(0, 1)], batch_size=16)


def test_files_that_no_memory_was_left_for_are_not_called_damaged(tmp_path, monkeypatch):
    def fail(error):
        def raise_it(*args, **kwargs):
            raise error

        return raise_it

    data_dir = write_processed(tmp_path / "data")
    some = clips.read_clips(data_dir, "test")
    for error in (pyarrow.ArrowMemoryError("realloc of size 64 failed"), OSError(errno.ENOMEM, "no memory")):
        with monkeypatch.context() as patch:
            patch.setattr(clips.pq, "ParquetFile", fail(error))
            for read in (lambda: some.audio(0), lambda: clips.read_clips(data_dir, "test")):
                with pytest.raises(type(error)):
                    read()
    error = OSError("Unknown error: Failed to launch worker thread: Resource temporarily unavailable")
    monkeypatch.setattr(clips.pq, "ParquetFile", fail(error))
    with pytest.raises(OSError, match="worker thread"):
        clips.read_clips(data_dir, "test")
    assert "ulimit -u, give the job more memory" in advice_on(error)
    assert "out of memory" in advice_on(RuntimeError("could not create a primitive"))
    assert advice_on(RuntimeError("could not create a primitive descriptor for a convolution")) is None


@pytest.mark.parametrize("where", ["safe_open", "AutoModelForAudioClassification"])
def test_a_model_that_no_memory_was_left_for_is_not_called_damaged(where, tmp_path, monkeypatch):
    loaded = small_model("wav2vec2")
    encoders.save_model(loaded, tmp_path / "model")

    class NoMemory:
        def __init__(self, *args, **kwargs):
            raise MemoryError("Cannot allocate memory (os error 12)")

        from_pretrained = from_config = __init__

    monkeypatch.setattr(loading, where, NoMemory)
    with pytest.raises(InputError, match=r"model: out of memory .* loading it alone needs about [\d.]+ GB"):
        encoders.load_model(tmp_path / "model", "cpu")
    monkeypatch.setattr(loading.AutoFeatureExtractor, "from_pretrained", no_thread)
    with pytest.raises(RuntimeError, match="new thread"):
        encoders.load_model(tmp_path / "model", "cpu")


def no_thread(*args, **kwargs):
    raise RuntimeError("can't start new thread")


def test_a_recording_that_no_memory_was_left_for_is_not_called_damaged(monkeypatch):
    import av

    asked = av.error.MemoryError(errno.ENOMEM, "Cannot allocate memory")
    sources._check_memory(asked)  # a damaged header can ask for more than any machine has
    assert advice_on(SystemError("error return without exception set")) is None
    monkeypatch.setattr(errors, "PROBE_BYTES", 2**62)
    assert "out of memory" in advice_on(SystemError("error return without exception set"))
    sources._check_memory(av.error.InvalidDataError(1, "damaged"))
    with pytest.raises(MemoryError):
        sources._check_memory(asked)


def test_what_a_failed_attempt_left_of_a_model_is_no_hindrance(tmp_path):
    """A stage that was killed, or had no memory to reload the model, left a folder that the next attempt met."""
    loaded = small_model("wav2vec2")
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "config.json").write_text("{")
    encoders.save_model(loaded, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
