"""Operations against a hand count and a published figure; times and memory against scripted ones."""

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

from tests.data import small_model
from tests.stages import ROOT
from utils.models import encoders, latency

LABELS = ["crow", "finch", "jay"]
RATE_HZ = 16_000


def macs_by_hand(config, n_samples, n_classes):
    """Return (total, front end) of a wav2vec2 classifier, layer by layer."""
    macs, frames, channels = 0, n_samples, 1
    for width, kernel, stride in zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True):
        frames = (frames - kernel) // stride + 1
        macs += frames * width * channels * kernel
        channels = width
    hidden, kernel = config.hidden_size, config.num_conv_pos_embeddings
    macs += frames * channels * hidden
    # An even kernel makes one frame too many, which is computed and then cut off.
    macs += (frames + 1 - kernel % 2) * hidden * (hidden // config.num_conv_pos_embedding_groups) * kernel
    linear = frames * (4 * hidden**2 + 2 * hidden * config.intermediate_size)
    attention = 2 * frames**2 * hidden
    head = frames * hidden * config.classifier_proj_size + config.classifier_proj_size * n_classes
    return macs + config.num_hidden_layers * (linear + attention) + head, macs


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return encoders.tiny_model(LABELS).ready("cpu")


@pytest.mark.parametrize("keep", [[0, 1, 2, 3], [2], []])
def test_macs_agree_with_a_count_by_hand(tiny, keep):
    model = tiny.model
    encoders.prune_model(model, keep)
    before = model.config._attn_implementation
    assert before != "eager"  # the fused attention of a CPU is unknown to the counter
    macs = latency.count_macs(model, {"input_values": torch.zeros(1, 2 * RATE_HZ)})
    assert macs == macs_by_hand(model.config, 2 * RATE_HZ, len(LABELS))
    assert model.config._attn_implementation == before


def test_macs_grow_with_the_batch(tiny):
    model = tiny.model
    one, three = (latency.count_macs(model, {"input_values": torch.zeros(n, RATE_HZ)}) for n in (1, 3))
    assert three == (3 * one[0], 3 * one[1])


def test_macs_of_wav2vec2_base_agree_with_the_published_figure():
    # OpenVINO Open Model Zoo, wav2vec2-base: 26.843 GFLOPs, two for a multiply-accumulate, for 30,480
    # samples and a head of 32 letters; it also counts the additions of biases and normalisations.
    with torch.device("meta"):  # shapes without numbers
        model = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(num_labels=35)).eval()
    total, front_end = latency.count_macs(model, {"input_values": torch.zeros(1, 30_480, device="meta")})
    assert (total, front_end) == macs_by_hand(model.config, 30_480, 35)
    frames = 95
    our_head, their_head = frames * 768 * 256 + 256 * 35, frames * 768 * 32
    assert 2 * (total - our_head + their_head) / 1e9 == pytest.approx(26.843, rel=0.003)


# ------------------------------------------------------------------------------------------------- time


@pytest.fixture
def script(monkeypatch):
    """Return a function that makes passes last as it says, by the order in which they come; each pass is run."""

    def set_times(times):
        times = iter(times)

        def scripted(call):
            call()
            return next(times)

        monkeypatch.setattr(latency, "_seconds", scripted)
        return times

    return set_times


@pytest.fixture
def quiet(monkeypatch):
    """Return a function that sets how long the CPUs were busy, this process included, and this process alone."""

    def set_load(busy_s=0.0, own_s=0.0, wall_s=10.0, n_cpus=2, n_threads=2):
        for owner, name, values in (
            (latency, "_busy_seconds", [0.0, busy_s]),
            (latency.time, "process_time", [0.0, own_s]),
        ):
            monkeypatch.setattr(owner, name, iter(values).__next__)
        walls = itertools.chain([0.0], itertools.repeat(wall_s))
        monkeypatch.setattr(latency.time, "perf_counter", walls.__next__)
        monkeypatch.setattr(latency, "available_cpus", lambda: n_cpus)
        monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)

    set_load()
    return set_load


def test_cost_is_made_of_the_measured_times(tiny, script, quiet, monkeypatch):
    monkeypatch.setattr(latency, "MAX_PASSES", 4)
    # Five rounds of four whole passes, of 0.100, 0.102 … s, each followed by a front end of 0.040 s; batches of 0.5 s.
    whole = 0.100 + 0.002 * np.arange(20)
    left = script([value for seconds in whole for value in (seconds, 0.040)] + [0.5] * 3)
    audio = np.random.default_rng(0).normal(size=2 * RATE_HZ).astype(np.float32)
    cost = latency.measure_cost(tiny, audio, RATE_HZ, 4)
    assert not list(left)
    of_rounds = np.median(whole.reshape(5, 4), axis=1)
    assert cost.n_repeats == 20
    assert cost.latency_ms_median == pytest.approx(1e3 * np.median(of_rounds))
    assert (cost.latency_ms_low, cost.latency_ms_high) == pytest.approx((103, 135))  # of 100 to 106, of 132 to 138
    assert cost.latency_ms_p95 == pytest.approx(1e3 * np.quantile(whole, 0.95))
    assert cost.latency_front_end_ms == pytest.approx(40)
    assert cost.real_time_factor == pytest.approx(np.median(of_rounds) / 2)
    assert cost.throughput_clips_per_s == pytest.approx(4 / 0.5)
    assert (cost.batch_size, cost.dtype, cost.n_threads) == (4, "float32", 2)
    assert (cost.latency_doubt, cost.cpu_busy_share) == ("no", 0)
    total, front_end = macs_by_hand(tiny.config, 2 * RATE_HZ, len(LABELS))
    assert (cost.gmacs_per_clip, cost.gmacs_front_end) == (total / 1e9, front_end / 1e9)


def test_models_take_turns_and_each_round_begins_with_another(tiny, monkeypatch):
    turns = []
    monkeypatch.setattr(latency._Candidate, "take_turn", lambda self, n, budget_s: turns.append((self, n, budget_s)))
    monkeypatch.setattr(latency, "_latencies", lambda candidates, load: list(candidates))
    models = dict.fromkeys("abcde", tiny)
    found = latency.measure_in_turn(models, np.zeros(RATE_HZ, np.float32), RATE_HZ, budget_s=10)
    names = {candidate: name for name, candidate in found.items()}
    assert "".join(names[turn[0]] for turn in turns) == "abcdebcdeacdeabdeabceabcd"
    assert [turn[1] for turn in turns] == [latency.N_WARM_UP] * 5 + [1] * 20
    assert {turn[2] for turn in turns} == {2.0}


def test_repeats_stop_at_the_most(tiny, monkeypatch):
    monkeypatch.setattr(latency, "MAX_PASSES", 5)
    found = latency.measure_in_turn({"a": tiny}, np.zeros(RATE_HZ, np.float32), RATE_HZ, budget_s=1e9)["a"]
    assert found.n_repeats == 25
    assert found.latency_ms_p95 >= found.latency_ms_median > 0
    assert found.latency_ms_low <= found.latency_ms_median <= found.latency_ms_high


def pruned(keep):
    torch.manual_seed(0)
    return encoders.pruned_copy(encoders.tiny_model(LABELS).ready("cpu"), keep)


def measure(models):
    return latency.measure_in_turn(models, np.zeros(RATE_HZ, np.float32), RATE_HZ, budget_s=0)


@pytest.mark.parametrize(
    ("load", "share", "doubt"),
    [
        ({"busy_s": 20, "own_s": 20}, 0.0, "no"),
        ({"busy_s": 20, "own_s": 10}, 0.5, "load"),  # one busy process beside two threads on two CPUs
        ({"busy_s": 20, "own_s": 10, "n_threads": 1}, 0.5, "no"),  # one thread has a CPU to itself
        ({"busy_s": 21.5, "own_s": 20}, 0.075, "no"),  # what a system does by itself
        ({"busy_s": 25, "own_s": 20}, 0.25, "load"),
        ({"busy_s": 600, "own_s": 40, "n_cpus": 64, "n_threads": 4}, 0.875, "no"),  # 8 of 64 are free for 4
        ({"busy_s": 630, "own_s": 10, "n_cpus": 64, "n_threads": 4}, 0.96875, "load"),
        ({"busy_s": 19, "own_s": 20}, 0.0, "no"),  # clocks of different steps
        ({"busy_s": 20, "own_s": 20, "n_threads": 16}, 0.0, "no"),  # more threads than CPUs: no one else's fault
        ({"busy_s": float("nan"), "own_s": 20}, None, "no"),  # a system that does not tell
    ],
)
def test_load_is_recorded_and_marked_where_threads_lack_cpus(load, share, doubt, script, quiet, caplog):
    quiet(**load)
    script(itertools.repeat(0.1))
    found = measure({"whole": pruned([0, 1, 2, 3])})["whole"]
    assert found.latency_doubt == doubt
    assert np.isnan(found.cpu_busy_share) if share is None else found.cpu_busy_share == pytest.approx(share)
    assert ("other processes used the rest" in caplog.text) == (doubt == "load")


def test_a_few_slow_passes_are_marked(script, quiet, caplog):
    script([*[0.1] * 36, *[0.4, 0.1] * 2])  # two of 20 whole passes
    assert measure({"whole": pruned([0, 1, 2, 3])})["whole"].latency_doubt == "unsteady"
    assert "one pass in twenty took 400 ms or more, but the median is 100 ms" in caplog.text


def test_fewer_blocks_that_are_slower_are_marked(script, quiet, caplog):
    models = {n: pruned(list(range(n))) for n in (0, 1, 2, 4)} | {"again": pruned([1, 3])}
    ms = {0: 10, 1: 33, 2: 32, 4: 60, "again": 31}
    names = list(models)
    turns = [name for number in range(5) for name in names[number:] + names[:number]]
    script([seconds for name in turns for seconds in [ms[name] / 1e3, 0.001] * 4])
    found = measure(models)
    assert {name: latency.latency_doubt for name, latency in found.items()} == {
        **{0: "no", 1: "order", 2: "order", 4: "no", "again": "order"}
    }
    assert {name: latency.latency_ms_median for name, latency in found.items()} == pytest.approx(ms)
    assert "fewer blocks were slower" in caplog.text


def test_models_of_another_kind_or_length_have_no_order():
    short, long = ("whisper", 512, (1, 80, 500)), ("whisper", 512, (1, 80, 3000))
    assert (
        latency.slower_with_fewer([(long, 2, 300.0), (short, 6, 50.0), (object(), 0, 9.0), (object(), 0, 8.0)]) == set()
    )
    assert latency.slower_with_fewer([(short, 2, 30.0), (short, 4, 30.0), (short, 4, 31.0)]) == set()
    assert latency.slower_with_fewer([(short, 6, 30.0), (long, 6, 30.0), (short, 4, 31.0)]) == {0, 2}


def test_a_narrower_model_is_of_another_kind():
    """Four narrow blocks may be faster than three wide ones."""
    clip = np.zeros(16_000, np.float32)
    models = [small_model("wav2vec2"), small_model("wav2vec2"), small_model("wav2vec2", intermediate_size=16)]
    same, again, narrow = (latency._Candidate(loaded, clip, 16_000).kind for loaded in models)
    assert same == again != narrow


def test_cpus_are_busy_where_they_are():
    """A second of this process's own work is counted, whoever else is there."""
    before, own = latency._busy_seconds(), time.process_time()
    while time.process_time() - own < 0.5:
        pass
    assert latency._busy_seconds() - before >= 0.4


# ------------------------------------------------------------------------------------ waiting threads


def test_no_stage_loads_pytorch_before_its_threads_are_told_to_sleep(tmp_path):
    """OpenMP reads OMP_WAIT_POLICY when it is loaded; what imports PyTorch first would leave its threads spinning."""
    probe = (
        "import os, runpy, sys\n"
        "class Probe:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('torch', 'sklearn'):\n"
        "            sys.exit('policy: ' + os.environ.get('OMP_WAIT_POLICY', 'none'))\n"
        "sys.meta_path.insert(0, Probe())\n"
        "runpy.run_path(sys.argv[1], run_name='imported')\n"
        "import torch\n"  # as a stage does when it has something to do
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    scripts = [*sorted(ROOT.glob("0*.py")), ROOT / "experiments" / "latencies.py"]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", probe, path], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
        )
        for path in scripts
    ]
    said = {
        path.name: process.communicate(timeout=120)[1].strip() for path, process in zip(scripts, running, strict=True)
    }
    assert set(said.values()) == {"policy: PASSIVE"}, said


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("active", "ACTIVE")])
def test_the_openmp_library_of_pytorch_takes_it(given, expected):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_DISPLAY_ENV": "true"} | ({"OMP_WAIT_POLICY": given} if given else {})
    done = subprocess.run(
        [sys.executable, "-c", "import utils, torch"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if "OMP_WAIT_POLICY" not in done.stderr:
        pytest.skip("this PyTorch has another OpenMP library, which says nothing of itself")
    assert f"OMP_WAIT_POLICY = '{expected}'" in done.stderr


# ----------------------------------------------------------------------------------------------- memory


def test_peak_memory_sees_what_was_freed_and_forgets_what_was_before():
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system keeps only the peak since the process began")

    def use(megabytes):
        return lambda: np.ones(int(megabytes * 1e6), np.uint8).sum()

    idle, busy, again = (latency._peak_memory_mb(use(megabytes), "cpu") for megabytes in (1, 300, 1))
    assert busy - idle == pytest.approx(300, abs=60)
    assert again - idle == pytest.approx(0, abs=60)


def test_peak_memory_without_proc_is_that_of_the_process(monkeypatch):
    known = latency._peak_resident_mb()

    def absent(self, *args, **kwargs):
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", absent)
    monkeypatch.setattr(Path, "write_text", absent)
    assert latency._peak_memory_mb(lambda: None, "cpu") >= 0.9 * known
