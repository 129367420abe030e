#!/usr/bin/env bash
# transformers 5.23.0, torch 2.11.0, CPU: the hidden states of WhisperEncoder are a transposed view through all blocks, not
# contiguous memory. The encoder permutes the output of its convolutions, and each block adds to that view, which keeps
# its strides. So each layer norm copies its input first: 13 copies in six blocks. With one .contiguous() before block 0
# there is one copy, and the output is equal bit for bit.
# Exits 0 if this is still so, 1 if the behaviour changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.11.0 transformers==5.23.0 numpy==2.4.6
"$work/venv/bin/python" - 2>/dev/null <<'PY'
import sys
import torch
import transformers
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

print("transformers", transformers.__version__, "torch", torch.__version__)
torch.manual_seed(0)
config = WhisperConfig(d_model=512, encoder_layers=6, encoder_attention_heads=8, encoder_ffn_dim=2048)
config.max_source_positions = 250
encoder = WhisperEncoder(config).eval()
sound = torch.randn(4, config.num_mel_bins, 500)

seen = {}
hooks = [
    layer.register_forward_hook(lambda module, args, output, number=number: seen.update({number: output}))
    for number, layer in enumerate(encoder.layers)
]


@torch.no_grad()
def answer():
    return encoder(sound).last_hidden_state


def copies():
    with torch.profiler.profile() as profiled:
        answer()
    return sum(event.name == "aten::clone" for event in profiled.events())


as_it_is = answer()
states = [output[0] if isinstance(output, tuple) else output for _, output in sorted(seen.items())]
transposed = [not state.is_contiguous() and state.transpose(1, 2).is_contiguous() for state in states]
print("states after each block are transposed:", transposed)
for hook in hooks:
    hook.remove()
before = copies()
encoder.layers[0].register_forward_pre_hook(lambda module, args: (args[0].contiguous(), *args[1:]))
after = copies()
is_equal = torch.equal(answer(), as_it_is)
print(f"contiguous before block 0: equal {is_equal}; copies of tensors in a pass: {before} before, {after} after")
sys.exit(0 if len(transposed) == 6 and all(transposed) and is_equal and before - after == 12 else 1)
PY
