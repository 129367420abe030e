"""Compare BEATs with the code of the Earth Species Project, which is Microsoft's with faster attention, as published.

    python -m drills.beats_reference                # installs avex 1.4.0 in a temporary folder, without its packages
    python -m drills.beats_reference --avex FOLDER  # with a folder from: pip install --no-deps --target FOLDER avex

The reference gets random weights in the published shape, times 3: as initialised, a block changes its input so little
that a wrong residual factor hardly shows. They are saved in both formats of files, loaded as stage 02 does, pruned,
saved and loaded again. Both networks then compute in float64, in which rounding does not grow from block to block.

Prints, for each file and each list of kept blocks, the largest difference of a spectrogram, of the states after a
block, and of the logits, each beside the largest value. Exits 1 if a spectrogram differs at all, or a state or a logit
by more than 1e-5 of the largest.
"""

import argparse
import importlib.util
import logging
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from safetensors.torch import save_file

from utils.models import encoders

PACKAGE = "avex==1.4.0"
RATE_HZ = 16_000
CLIP_SECONDS = 5.0
LEVELS = (1e-4, 0.01, 0.3)
LABELS = ["Blackbird", "Crow", "Great Tit"]
MOST_DIFFERENCE = 1e-5
N_BLOCKS = 12
KEEPS = [list(range(N_BLOCKS)), [*range(5), *range(6, N_BLOCKS)], list(range(0, N_BLOCKS, 2)), []]
OLD_NAMES = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}


def load_reference(folder: Path) -> ModuleType:
    """Return the subpackage of avex that holds BEATs; it needs none of the packages that avex asks for but pydantic."""
    place = folder / "avex" / "models" / "beats"
    spec = importlib.util.spec_from_file_location(
        "avex_beats", place / "__init__.py", submodule_search_locations=[str(place)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["avex_beats"] = module
    spec.loader.exec_module(module)
    logging.getLogger("avex_beats").setLevel(logging.WARNING)
    return module


def published(avex: ModuleType, folder: Path) -> tuple[torch.nn.Module, list[Path]]:
    """Return a reference model, and its weights in both formats of files."""
    torch.manual_seed(0)
    cfg = avex.BEATsConfig()
    model = avex.BEATs(cfg).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "original0" not in name and "grep_a" not in name:
                parameter *= 3
            else:
                parameter += 0.1 * torch.randn_like(parameter)
    weights = model.state_dict()
    old = {
        next((name.replace(new, old) for new, old in OLD_NAMES.items() if new in name), name): value
        for name, value in weights.items()
        if not name.startswith("fbank.")
    }
    paths = [folder / "BEATs_iter3_plus_AS2M.pt", folder / "esp-aves2-sl-beats-all.safetensors"]
    torch.save({"cfg": cfg.model_dump(), "model": old}, paths[0])
    # safetensors refuses one tensor under several names: the published file has a copy for each block.
    save_file(
        {f"backbone.{name}": value.clone(memory_format=torch.contiguous_format) for name, value in weights.items()},
        paths[1],
    )
    return model, paths


@torch.inference_mode()
def compare(reference: torch.nn.Module, path: Path, keep: list[int], folder: Path) -> list[float]:
    """Return the largest differences and values: of the spectrogram, the states after each block, and the logits."""
    loaded = encoders.load_base_model(str(path), LABELS).ready("cpu")
    encoders.prune_model(loaded.model, keep)
    encoders.save_model(loaded, folder)
    loaded = encoders.load_model(folder, "cpu")
    loaded.model.double()
    rng = np.random.default_rng(0)
    audio = [(level * rng.standard_normal(round(CLIP_SECONDS * RATE_HZ))).astype(np.float32) for level in LEVELS]
    inputs = loaded.prepare(audio, RATE_HZ)
    spectrogram = inputs["input_features"]
    found = loaded.model(spectrogram.double(), output_hidden_states=True)

    whole, states = reference.encoder.layers, []
    reference.encoder.layers = torch.nn.ModuleList(whole[layer] for layer in keep)
    hooks = [
        layer.register_forward_hook(lambda _, __, output: states.append(output[0].transpose(0, 1)))
        for layer in reference.encoder.layers
    ]
    wanted = reference.float().preprocess(torch.from_numpy(np.stack(audio)))
    patches = reference.double().patch_embedding(wanted.double()[:, None]).flatten(2).transpose(1, 2)
    last, _ = reference.encoder(reference.post_extract_proj(reference.layer_norm(patches)))
    for hook in hooks:
        hook.remove()
    reference.encoder.layers = whole
    states = states or [last]
    mine = found.hidden_states[-len(states) :]
    logits = loaded.model.classifier(last.mean(dim=1))
    return [
        float((spectrogram - wanted).abs().max()),
        float(wanted.abs().max()),
        max(float((a - b).abs().max()) for a, b in zip(mine, states, strict=True)),
        max(float(state.abs().max()) for state in states),
        float((found.logits - logits).abs().max()),
        float(logits.abs().max()),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--avex", type=Path, help="folder that holds the package avex; default: it is installed")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    n_wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder = args.avex or Path(name) / "packages"
        if args.avex is None:
            words = ["install", "--quiet", "--no-deps", "--target", folder, PACKAGE]
            subprocess.run([sys.executable, "-m", "pip", *map(str, words)], check=True)
        reference, paths = published(load_reference(folder), Path(name))
        print("file | blocks | spectrogram | of | states | of | logits | of")
        for path in paths:
            for keep in KEEPS:
                numbers = compare(reference, path, keep, Path(name) / f"{path.stem}-{len(keep)}")
                print(" | ".join([path.name, str(len(keep)), *(f"{number:.3g}" for number in numbers)]))
                spectrogram, _, *rest = numbers
                n_wrong += bool(spectrogram) or any(
                    not difference <= MOST_DIFFERENCE * largest
                    for difference, largest in zip(rest[::2], rest[1::2], strict=True)
                )
    print(f"{n_wrong} of {len(paths) * len(KEEPS)} differ")
    return int(n_wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
