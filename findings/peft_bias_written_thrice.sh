#!/usr/bin/env bash
# A LoRA adapter with bias="all" and a module in modules_to_save: its file holds that module's bias under three names.
# CLASSIFIER.bias and CLASSIFIER.modules_to_save.bias are the trained one, CLASSIFIER.original_module.bias is the frozen one
# of the base, which no adapter needs. Of the two trained ones only the first is read; the third replaces the base's.
# So a program that reads adapters by their names meets three biases for one layer, and must know which one counts.
#
# peft 0.21.2 with transformers 5.23.0 and torch 2.11.0 from PyPI. Seen in November 2026, a changed copy after loading:
#   classifier.bias                 -> the trained bias changes
#   classifier.modules_to_save.bias -> nothing changes
#   classifier.original_module.bias -> the base's bias changes
#
# Exit status: 0 where it behaves so, 1 where it does not. Takes some minutes; needs python3 with venv and 6 GB in TMPDIR.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv python
python/bin/pip install --quiet --disable-pip-version-check torch==2.11.0 transformers==5.23.0 peft==0.21.2
cat >show.py <<'PY'
import os, shutil
os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2ForTokenClassification

FILE, PREFIX = "adapter_model.safetensors", "base_model.model."
NAMES = ["classifier.bias", "classifier.modules_to_save.bias", "classifier.original_module.bias"]


def base():
    torch.manual_seed(1)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2ForTokenClassification(
        GPT2Config(n_positions=16, n_embd=16, n_layer=1, n_head=2, vocab_size=32, num_labels=2, **ends))


def biases(model):
    """The trained bias and the base's."""
    classifier = model.base_model.model.classifier
    return classifier.modules_to_save["default"].bias.tolist(), classifier.original_module.bias.tolist()


model = get_peft_model(base(), LoraConfig(
    r=2, target_modules=["c_attn"], bias="all", modules_to_save=["classifier"], fan_in_fan_out=True,
    task_type="TOKEN_CLS"))
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(1.0)
model.save_pretrained("adapter")
tensors = load_file(f"adapter/{FILE}")
written = sorted(name.removeprefix(PREFIX) for name in tensors if "classifier" in name and name.endswith("bias"))
print("written:", *written)

trained, frozen = biases(model)
seen = []
for name in NAMES:
    shutil.copytree("adapter", name)
    save_file({**tensors, PREFIX + name: torch.full((2,), 7.0)}, f"{name}/{FILE}", metadata={"format": "pt"})
    now = biases(PeftModel.from_pretrained(base(), name))
    seen.append((now[0] != trained, now[1] != frozen))
    print(f"{name} changed: the trained bias {'changes' if seen[-1][0] else 'stays'}, "
          f"the base's {'changes' if seen[-1][1] else 'stays'}")
raise SystemExit(written != NAMES or seen != [(True, False), (False, False), (False, True)])
PY
python/bin/python show.py 2>errors.txt || { cat errors.txt >&2; exit 1; }
