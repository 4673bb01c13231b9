#!/usr/bin/env bash
# A model folder whose config.json says model_type gpt2, with a tokenizer.json of another kind and no tokenizer_class:
# AutoTokenizer takes it for a GPT2Tokenizer and rebuilds the pipeline. What tokenizer.json says of its normalizer is
# lost, and a WordPiece gives no ids at all; no exception, no warning.
#
# transformers 5.23.0 with tokenizers 0.23.3 from PyPI. Seen in November 2026:
#   "THE CAT" with a normalizer to lower case:  AutoTokenizer [51, 39, 36, 220, 34, 32, ...], tokenizers [258, 261]
#   "the cat" with a WordPiece of these words:  AutoTokenizer [], tokenizers [1, 2]
#   with {"tokenizer_class": "PreTrainedTokenizerFast"} in tokenizer_config.json both agree
#
# Exit status: 0 where it behaves so, 1 where it does not. Takes half a minute; needs python3 with venv.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv python
python/bin/pip install --quiet --disable-pip-version-check transformers==5.23.0 tokenizers==0.23.3
cat >show.py <<'PY'
import json, os
os.environ["HF_HUB_OFFLINE"] = "1"
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer


def folder(name, tokenizer, config):
    os.makedirs(name)
    tokenizer.save(f"{name}/tokenizer.json")
    with open(f"{name}/config.json", "w") as file:
        json.dump({"model_type": "gpt2"}, file)
    if config:
        with open(f"{name}/tokenizer_config.json", "w") as file:
            json.dump(config, file)
    return name


def both(name, tokenizer, text, config=None):
    auto = AutoTokenizer.from_pretrained(folder(name, tokenizer, config))
    of_auto, own = auto(text)["input_ids"], tokenizer.encode(text).ids
    print(f"{name}: AutoTokenizer {type(auto).__name__} {of_auto[:6]}, tokenizers {own[:6]}")
    return of_auto == own


lower = Tokenizer(models.BPE())
lower.normalizer = normalizers.Lowercase()
lower.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
lower.decoder = decoders.ByteLevel()
lower.train_from_iterator(
    ["the cat sat on the mat with the cat\n" * 20],
    trainers.BpeTrainer(vocab_size=280, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
words = Tokenizer(models.WordPiece({"[UNK]": 0, "the": 1, "cat": 2}, unk_token="[UNK]"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
named = {"tokenizer_class": "PreTrainedTokenizerFast"}

agree = [
    both("lower_case", lower, "THE CAT"),
    both("lower_case_named", lower, "THE CAT", named),
    both("wordpiece", words, "the cat"),
    both("wordpiece_named", words, "the cat", named),
]
raise SystemExit(agree != [False, True, False, True])
PY
python/bin/python show.py
